"""Who sees whom, and training attention whose memory is linear in the sequence length.

Differentiated, MLX's fused kernel makes every score at once, (B, N, T, T): on a CPU, and on Metal with a mask or before
version 0.32. Blocks of queries skip the future, which is half of them, and in long sequences compute them again for
their gradient, so that one block's scores are held at a time.
"""

from collections.abc import Sequence
from typing import cast

import mlx.core as mx

BLOCKED_FROM = 256  # tokens
RECOMPUTED_FROM = 1024  # tokens; kept, the scores would from there be more than all else that a layer keeps
BLOCK = 128


def visible(queries_T: mx.array, keys_S: mx.array, window: int | None) -> mx.array:
    """True (T, S) where the query at one position sees the key at another: itself and what came before."""
    distance_TS = queries_T[:, None] - keys_S
    return distance_TS >= 0 if window is None else (distance_TS >= 0) & (distance_TS < window)


def mask_of(queries: slice, keys: slice, window: int | None, segments_BT: mx.array | None) -> mx.array:
    """True (1 or B, 1, T, S) where the positions `queries` see the positions `keys`."""
    mask = visible(mx.arange(queries.start, queries.stop), mx.arange(keys.start, keys.stop), window)[None]
    if segments_BT is not None:
        mask = mask & (segments_BT[:, queries, None] == segments_BT[:, None, keys])
    return mask[:, None]


def attend_in_blocks(
    q_BNTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array, window: int | None, segments_BT: mx.array | None
) -> mx.array:
    """Causal attention, (B, N, T, D), that keeps half of the probabilities for the gradient, or none in a long row.

    The gradient is that of softmax(q k / sqrt(D)) v, block by block, as in FlashAttention (Dao et al. 2022, section
    3.1 and appendix B.2).
    """
    length, scale = q_BNTD.shape[2], q_BNTD.shape[3] ** -0.5
    starts = range(0, length, BLOCK)
    queries = [slice(start, min(start + BLOCK, length)) for start in starts]
    keys = [slice(0 if window is None else max(0, own.start - window + 1), own.stop) for own in queries]
    recomputed = length >= RECOMPUTED_FROM

    def probabilities(block: int, q_BKRD: mx.array, k_BKTD: mx.array) -> mx.array:
        """(B, K, R, S) of one block; its R rows are the queries of all heads that share a key."""
        mask = mask_of(queries[block], keys[block], window, segments_BT)
        # Added and not selected by: MLX's CPU adds in vectors, and selects one by one.
        bias = mx.where(mask, 0.0, float("-inf")).astype(q_BKRD.dtype)
        scores = (q_BKRD * scale) @ k_BKTD[:, :, keys[block]].swapaxes(2, 3)
        by_head = scores.reshape(*scores.shape[:2], -1, *bias.shape[2:]) + bias[:, :, None]
        return mx.softmax(by_head.reshape(scores.shape), axis=-1, precise=True)

    def forward(q_BNTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array) -> list[mx.array]:
        out: list[mx.array] = []
        kept: list[mx.array] = []
        for block, own in enumerate(queries):
            # A block waits for the one before: else MLX holds the scores of several at once.
            q = mx.depends(_by_key_head(q_BNTD[:, :, own], k_BKTD), out[-1:])
            probs = probabilities(block, q, k_BKTD)
            out.append((probs @ v_BKTD[:, :, keys[block]]).reshape(q_BNTD[:, :, own].shape))
            if not recomputed:
                kept.append(probs)
        return [mx.concatenate(out, axis=2), *kept]

    def backward(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> tuple[mx.array, mx.array, mx.array]:
        q_BNTD, k_BKTD, v_BKTD = primals
        (out_BNTD, *kept), grad_BNTD = outputs, cotangents[0]
        grad_q: list[mx.array] = []
        grad_k, grad_v = mx.zeros(k_BKTD.shape, k_BKTD.dtype), mx.zeros(v_BKTD.shape, v_BKTD.dtype)
        for block, own in enumerate(queries):
            q, grad, out = mx.depends(
                [_by_key_head(x_BNTD[:, :, own], k_BKTD) for x_BNTD in (q_BNTD, grad_BNTD, out_BNTD)],
                [*grad_q[-1:], grad_k, grad_v],
            )
            seen = keys[block]
            probs = probabilities(block, q, k_BKTD) if recomputed else kept[block]
            grad_v[:, :, seen] = grad_v[:, :, seen] + probs.swapaxes(2, 3) @ grad
            grad_probs = grad @ v_BKTD[:, :, seen].swapaxes(2, 3)
            grad_scores = probs * (grad_probs - (grad * out).sum(axis=-1, keepdims=True))
            grad_k[:, :, seen] = grad_k[:, :, seen] + grad_scores.swapaxes(2, 3) @ (q * scale)
            grad_q.append((grad_scores @ k_BKTD[:, :, seen] * scale).reshape(q_BNTD[:, :, own].shape))
        return mx.concatenate(grad_q, axis=2), grad_k, grad_v

    function = mx.custom_function(forward)
    function.vjp(backward)
    out_BNTD, *_ = cast(list[mx.array], function(q_BNTD, k_BKTD, v_BKTD))
    return out_BNTD


def _by_key_head(x_BNTD: mx.array, k_BKTD: mx.array) -> mx.array:
    """The rows of the heads that share a key after each other, (B, K, N / K * T, D)."""
    return x_BNTD.reshape(*k_BKTD.shape[:2], -1, x_BNTD.shape[3])
