"""Which rows a step trains on: a shuffle that is computed, not stored, so any step can be asked for directly."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sconce.mixing import splitmix64

_ROUNDS = 8  # four make a Feistel network a strong permutation (Luby and Rackoff 1988) of a large domain


def permute(index: NDArray[np.int64], size: int, seed: int, epoch: int, source: int = 0) -> NDArray[np.int64]:
    """Where a pseudo-random permutation of range(size), keyed by (seed, epoch, source), sends each index.

    A balanced Feistel network permutes the next even power of two; whatever lands outside is sent on until it
    lands inside (cycle-walking), which keeps it a bijection and takes under four turns on average.
    """
    assert size >= 1, "a permutation needs something to permute"
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence([seed, epoch, source]).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    image = _feistel(index.astype(np.uint64), keys, half_bits)
    while (outside := image >= size).any():
        image[outside] = _feistel(image[outside], keys, half_bits)
    return image.astype(np.int64)


def _feistel(value: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: int) -> NDArray[np.uint64]:
    width, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = value >> width, value & mask
    for key in keys:
        left, right = right, left ^ (splitmix64(right ^ key) & mask)
    return (left << width) | right


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """Every row once an epoch, each epoch in its own order; batches run on over the end of an epoch."""

    num_rows: int
    batch_size: int
    seed: int

    def rows(self, step: int) -> NDArray[np.int64]:
        """Rows of the update after `step` updates, (batch_size,)."""
        count = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epoch, position = np.divmod(count, self.num_rows)
        rows = np.empty_like(position)
        for one in np.unique(epoch):
            now = epoch == one
            rows[now] = permute(position[now], self.num_rows, self.seed, int(one))
        return rows

    def epoch(self, step: int) -> float:
        """Passes over the rows that `step` updates have made."""
        return step * self.batch_size / self.num_rows
