"""Cross-entropy in float32, per token, in nats."""

import torch.nn.functional as F
from torch import Tensor


def token_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """-log p(target) as float32 (B, T); 0 where the target is -1."""
    logits_BVT = logits_BTV.float().transpose(1, 2)
    return F.cross_entropy(logits_BVT, targets_BT, ignore_index=-1, reduction="none")
