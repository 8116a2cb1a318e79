"""`sconce.dropout` in MLX."""

import math

import mlx.core as mx

from sconce.dropout import DRAW_SHIFT, Site, site_constant, threshold
from sconce.mixing import MIX32_MULTIPLIERS, MIX32_SHIFTS


def drop(x: mx.array, rate: float, keys_B: mx.array | None, layer: int, site: Site) -> mx.array:
    """Zero a fraction `rate` of `x` (B, ...) and scale the rest by 1 / (1 - rate); all of `x` without keys."""
    if keys_B is None or rate == 0:
        return x
    site_keys_B = _mix32(keys_B ^ _uint32(site_constant(layer, site)))
    index_N = _mix32(mx.arange(math.prod(x.shape[1:]), dtype=mx.uint32))
    draws_BN = _mix32(index_N ^ site_keys_B[:, None]) >> DRAW_SHIFT
    keep = (draws_BN >= threshold(rate)).reshape(x.shape)
    return mx.where(keep, x.astype(mx.float32) * (1 / (1 - rate)), 0.0).astype(x.dtype)


def _mix32(x: mx.array) -> mx.array:
    first, second, third = MIX32_SHIFTS
    x = (x ^ (x >> first)) * _uint32(MIX32_MULTIPLIERS[0])
    x = (x ^ (x >> second)) * _uint32(MIX32_MULTIPLIERS[1])
    return x ^ (x >> third)


def _uint32(value: int) -> mx.array:
    return mx.array(value, dtype=mx.uint32)
