"""Who sees whom, and training attention whose memory is linear in the sequence length.

MLX's fused kernel has no gradient on Metal: differentiated, it makes every score at once, (B, N, T, T). Blocks of
queries skip the future, which is half of them, and in long sequences are computed again for their gradient, so that
one block's scores are held at a time.
"""

from functools import partial

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
    """Causal attention, (B, N, T, D), that keeps few scores for the gradient, and from RECOMPUTED_FROM none."""
    length = q_BNTD.shape[2]
    recomputed = mx.checkpoint if length >= RECOMPUTED_FROM else lambda attend: attend
    blocks: list[mx.array] = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        first = 0 if window is None else max(0, start - window + 1)
        # Bound and not passed: recomputing wants a gradient for every argument, and integers have none.
        attend = recomputed(partial(_attend, slice(start, end), slice(first, end), window, segments_BT))
        blocks.append(attend(q_BNTD[:, :, start:end], k_BKTD[:, :, first:end], v_BKTD[:, :, first:end]))
    return mx.concatenate(blocks, axis=2)


def _attend(
    queries: slice,
    keys: slice,
    window: int | None,
    segments_BT: mx.array | None,
    q_BNTD: mx.array,
    k_BKSD: mx.array,
    v_BKSD: mx.array,
) -> mx.array:
    # Added and not selected by: MLX's CPU adds in vectors, and selects one by one.
    seen = mx.where(mask_of(queries, keys, window, segments_BT), 0.0, float("-inf")).astype(q_BNTD.dtype)
    scale = q_BNTD.shape[3] ** -0.5
    return mx.fast.scaled_dot_product_attention(q_BNTD, k_BKSD, v_BKSD, scale=scale, mask=seen)
