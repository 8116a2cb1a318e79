"""`sconce.dropout` in PyTorch, which has no uint32 arithmetic: int32 wraps to the same bits."""

import torch
from torch import Tensor

from sconce.dropout import DRAW_SHIFT, Site, site_constant, threshold
from sconce.mixing import MIX32_MULTIPLIERS, MIX32_SHIFTS


def site_key(layer: int, site: Site) -> Tensor:
    """What `drop` needs to know of a place: a tensor, as a number would have each layer compiled for itself."""
    return torch.tensor(_signed(site_constant(layer, site)), dtype=torch.int32)


def drop(x: Tensor, rate: float, keys_B: Tensor | None, site: Tensor) -> Tensor:
    """Zero a fraction `rate` of `x` (B, ...) and scale the rest by 1 / (1 - rate); all of `x` without keys."""
    if keys_B is None or rate == 0:
        return x
    site_keys_B = _mix32(keys_B ^ site)
    index_N = _mix32(torch.arange(x[0].numel(), dtype=torch.int32, device=x.device))
    draws_BN = _shift(_mix32(index_N ^ site_keys_B[:, None]), DRAW_SHIFT)
    keep = (draws_BN >= threshold(rate)).view_as(x)
    return torch.where(keep, x.float() * (1 / (1 - rate)), 0.0).to(x.dtype)


def _mix32(x: Tensor) -> Tensor:
    first, second, third = MIX32_SHIFTS
    x = (x ^ _shift(x, first)) * _signed(MIX32_MULTIPLIERS[0])
    x = (x ^ _shift(x, second)) * _signed(MIX32_MULTIPLIERS[1])
    return x ^ _shift(x, third)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: PyTorch's own would repeat the sign."""
    return (x >> bits) & (2 ** (32 - bits) - 1)


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value
