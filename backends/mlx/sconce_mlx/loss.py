"""Cross-entropy in float32, per token, in nats."""

import mlx.core as mx


def token_nats(logits_BTV: mx.array, targets_BT: mx.array) -> mx.array:
    """-log p(target) as float32 (B, T); 0 where the target is -1."""
    scored_BT = targets_BT >= 0
    logits_BTV = logits_BTV.astype(mx.float32)
    picked_BT = mx.take_along_axis(logits_BTV, mx.maximum(targets_BT, 0)[..., None], axis=-1).squeeze(-1)
    nats_BT = mx.logsumexp(logits_BTV, axis=-1) - picked_BT
    return mx.where(scored_BT, nats_BT, 0.0)
