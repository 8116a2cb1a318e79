"""Cross-entropy in float32, in nats: with all logits at once, or in chunks that are never held together."""

from typing import cast

import mlx.core as mx


def score_targets(
    x_BTH: mx.array, weight_VH: mx.array, targets_BT: mx.array, chunk: int | None
) -> tuple[mx.array, mx.array]:
    """-log p(target) as float32 (B, T), 0 where target is -1, and where the likeliest token is the target.

    Logits are x @ weight.T, made `chunk` tokens at a time.
    """
    weight_VH = weight_VH.astype(x_BTH.dtype)
    x_NH, targets_N = x_BTH.flatten(0, 1), targets_BT.flatten()
    nats: list[mx.array] = []
    hits: list[mx.array] = []
    for start, end in _chunks(targets_N.size, chunk):
        targets = targets_N[start:end]
        x = mx.depends(x_NH[start:end], [*nats[-1:], *hits[-1:]])  # one chunk's logits at a time
        logits = (x @ weight_VH.T).astype(mx.float32)
        picked = mx.take_along_axis(logits, mx.maximum(targets, 0)[:, None], axis=-1).squeeze(-1)
        nats.append(mx.where(targets >= 0, mx.logsumexp(logits, axis=-1) - picked, 0.0))
        hits.append(mx.argmax(logits, axis=-1) == targets)
    return mx.concatenate(nats).reshape(targets_BT.shape), mx.concatenate(hits).reshape(targets_BT.shape)


def summed_nats(x_BTH: mx.array, weight_VH: mx.array, targets_BT: mx.array, chunk: int | None) -> mx.array:
    """The sum of `score_targets`' nats, to be differentiated.

    Makes both gradients on the way forward, while a chunk's logits are there, so that none is made twice or kept.
    """

    def nats_and_grads(x_NH: mx.array, weight_VH: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        weight, targets_N = weight_VH.astype(x_NH.dtype), targets_BT.flatten()
        total, grad_weight_VH = mx.array(0.0), mx.array(0.0)
        grads_x: list[mx.array] = []
        for start, end in _chunks(targets_N.size, chunk):
            # A chunk waits for all of the one before: else MLX holds the logits of several at once.
            x = mx.depends(x_NH[start:end], [grad_weight_VH, *grads_x[-1:]])
            targets = targets_N[start:end, None]
            scored, picked = (targets >= 0).astype(mx.float32), mx.maximum(targets, 0)
            logits = (x @ weight.T).astype(mx.float32)
            log_z = mx.logsumexp(logits, axis=-1, keepdims=True)
            log_p = mx.take_along_axis(logits, picked, axis=-1) - log_z
            total = total - (log_p * scored).sum()
            # The softmax and, but for 1 at the target, the gradient. MLX overwrites no array that another operation
            # under way reads: each such reading costs a further array of this size, which is why the largest logit is
            # not subtracted first, though float32 keeps fewer digits of logits in the thousands. Cast here, the
            # exponential of a compiled step is never written in float32.
            grad = (mx.exp(logits - log_z) * scored).astype(x.dtype)
            at_target = ((mx.exp(log_p) - 1.0) * scored).astype(x.dtype)
            grad = mx.put_along_axis(grad, picked, at_target, axis=-1)
            grads_x.append(grad @ weight)
            grad_weight_VH = grad_weight_VH + (grad.T @ x).astype(mx.float32)
        return total, mx.concatenate(grads_x), grad_weight_VH

    def pull(
        _primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array]:
        _, grad_x_NH, grad_weight_VH = outputs
        return grad_x_NH * cotangents[0].astype(grad_x_NH.dtype), grad_weight_VH * cotangents[0]

    function = mx.custom_function(nats_and_grads)
    function.vjp(pull)
    total, *_ = cast(tuple[mx.array, ...], function(x_BTH.flatten(0, 1), weight_VH))
    return total


def _chunks(tokens: int, chunk: int | None) -> list[tuple[int, int]]:
    size = chunk or tokens
    return [(start, min(start + size, tokens)) for start in range(0, tokens, size)]
