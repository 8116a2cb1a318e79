"""Cross-entropy in float32, in nats: with all logits at once, or in chunks that are never held together."""

import mlx.core as mx


def token_nats(x_BTH: mx.array, weight_VH: mx.array, targets_BT: mx.array, chunk: int | None) -> mx.array:
    """-log p(target) as float32 (B, T), of logits x @ weight.T made `chunk` tokens at a time; 0 where target is -1.

    Chunks are computed again for their gradient.
    """
    weight_VH = weight_VH.astype(x_BTH.dtype)
    if chunk is None or targets_BT.size <= chunk:
        return _nats(x_BTH, weight_VH, targets_BT)
    x_NH, targets_N = x_BTH.flatten(0, 1), targets_BT.flatten()
    parts: list[mx.array] = []
    for start in range(0, targets_BT.size, chunk):
        targets = targets_N[start : start + chunk]
        # The targets by closure: recomputing wants a gradient for every argument, and integers have none.
        part = mx.checkpoint(lambda x, weight, targets=targets: _nats(x, weight, targets))
        parts.append(part(x_NH[start : start + chunk], weight_VH))
    return mx.concatenate(parts).reshape(targets_BT.shape)


def _nats(x: mx.array, weight_VH: mx.array, targets: mx.array) -> mx.array:
    logits = (x @ weight_VH.T).astype(mx.float32)
    picked = mx.take_along_axis(logits, mx.maximum(targets, 0)[..., None], axis=-1).squeeze(-1)
    return mx.where(targets >= 0, mx.logsumexp(logits, axis=-1) - picked, 0.0)
