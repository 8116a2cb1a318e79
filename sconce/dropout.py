"""Which activations a training step drops: a hash of where they stand, the same bits in every backend.

An activation is named by (seed, step, row, layer, site, index). `row` counts within the whole step and not within a
micro-batch, so that the split into micro-batches changes nothing; `index` counts a row's activations in C order.
With f = `mix32`:

    keep  if and only if  f(f(index) ^ f(row_key ^ f(3 layer + site))) >> 8  >=  round(rate 2^24)

`row_key` is made on the host; the rest is uint32 arithmetic modulo 2^32, which the backends spell once each.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sconce.mixing import MIX32_MULTIPLIERS, MIX32_SHIFTS, mix32, splitmix64

Site = Literal["attention", "attention_output", "mlp_output"]
SITES: tuple[Site, ...] = ("attention", "attention_output", "mlp_output")
DRAW_BITS = 24
DRAW_SHIFT = 32 - DRAW_BITS


def row_keys(seed: int, step: int, first_row: int, count: int) -> NDArray[np.uint32]:
    """Keys (count,) of rows first_row .. first_row + count - 1 of the update after `step` updates."""
    rows = np.arange(first_row, first_row + count, dtype=np.uint64)
    key = splitmix64(np.array([seed % 2**64], np.uint64))
    key = splitmix64(key ^ np.uint64(step))
    return (splitmix64(key ^ rows) >> np.uint64(32)).astype(np.uint32)


def site_constant(layer: int, site: Site) -> int:
    """What tells one place in the model from another, a uint32."""
    # In Python's integers: torch.compile traces through this, and has no uint32 arithmetic for numpy's.
    x = len(SITES) * layer + SITES.index(site)
    for shift, multiplier in zip(MIX32_SHIFTS[:2], MIX32_MULTIPLIERS, strict=True):
        x = (x ^ (x >> shift)) * multiplier % 2**32
    return x ^ (x >> MIX32_SHIFTS[2])


def threshold(rate: float) -> int:
    """The least 24-bit draw that is kept."""
    return round(rate * 2**DRAW_BITS)


def keep_mask(keys: NDArray[np.uint32], layer: int, site: Site, size: int, rate: float) -> NDArray[np.bool_]:
    """The reference: True (len(keys), size) where an activation stays."""
    site_keys = mix32(keys ^ np.uint32(site_constant(layer, site)))
    index = mix32(np.arange(size, dtype=np.uint32))
    return mix32(index[None, :] ^ site_keys[:, None]) >> np.uint32(DRAW_SHIFT) >= threshold(rate)
