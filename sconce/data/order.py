"""Which rows a step trains on: a shuffle that is computed, not stored, so any step can be asked for directly."""

import math
from collections.abc import Sequence
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

    def row_epochs(self, step: int) -> NDArray[np.int64]:
        """In which pass over the rows each row of that update is, (batch_size,)."""
        return (step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)) // self.num_rows

    def epoch(self, step: int) -> float:
        """Passes over the rows that `step` updates have made."""
        return step * self.batch_size / self.num_rows


BLOCK = 4096  # rows in which every source has exactly its share; an even power of two, which `permute` is fastest with


@dataclass(frozen=True, slots=True)
class Stage:
    """From the update after `first_step` updates on, each BLOCK rows hold `counts` rows of each source."""

    first_step: int
    counts: tuple[int, ...]


def block_counts(weights: Sequence[float]) -> tuple[int, ...]:
    """How many rows of a block each source has, by the largest remainder; 0 for too small a weight."""
    total = math.fsum(weights)
    shares = [weight / total * BLOCK for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda source: (counts[source] - shares[source], source))
    for source in by_remainder[: BLOCK - sum(counts)]:
        counts[source] += 1
    return tuple(counts)


@dataclass(frozen=True, slots=True)
class MixedOrder:
    """Rows of several sources, by weights that may change at a step; each source is shuffled as if it were alone.

    `sizes` are the rows of each source, and a row's number counts on through the sources. In a block the sources come
    in an order of its own, so that where the k-th row of a source stands is known without those before it.
    """

    sizes: tuple[int, ...]
    stages: tuple[Stage, ...]
    batch_size: int
    seed: int

    @property
    def num_rows(self) -> int:
        """Of all sources together."""
        return sum(self.sizes)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Rows of the update after `step` updates, (batch_size,)."""
        sources, counts = self._drawn(step)
        offsets = np.cumsum([0, *self.sizes])
        rows = np.empty_like(counts)
        for source, size in enumerate(self.sizes):
            epoch, position = np.divmod(counts, size)
            for one in np.unique(epoch[sources == source]).tolist():
                now = (sources == source) & (epoch == one)
                rows[now] = offsets[source] + permute(position[now], size, self.seed, one, source)
        return rows

    def row_epochs(self, step: int) -> NDArray[np.int64]:
        """In which pass over its source each row of that update is, (batch_size,)."""
        sources, counts = self._drawn(step)
        return counts // np.array(self.sizes)[sources]

    def epoch(self, step: int) -> float:
        """Passes that `step` updates have made, of the source with the most."""
        return max(self.source_epochs(step))

    def source_epochs(self, step: int) -> tuple[float, ...]:
        """Passes over each source that `step` updates have made."""
        return tuple(int(used) / size for used, size in zip(self._used(step), self.sizes, strict=True))

    def _used(self, step: int) -> NDArray[np.int64]:
        """Rows of each source in `step` updates, (sources,)."""
        used = np.zeros(len(self.sizes), np.int64)
        for number, stage in enumerate(self.stages):
            last = self.stages[number + 1].first_step if number + 1 < len(self.stages) else step
            blocks, rest = divmod(max(0, min(step, last) - stage.first_step) * self.batch_size, BLOCK)
            used += blocks * np.array(stage.counts)
            used += np.bincount(self._block(number, blocks)[:rest], minlength=len(self.sizes))
        return used

    def _block(self, stage: int, block: int) -> NDArray[np.int64]:
        """The source of each row of a block, (BLOCK,)."""
        in_order = np.repeat(np.arange(len(self.sizes)), self.stages[stage].counts)
        # A source beyond 32 bits: keys that no source's rows are permuted by.
        return in_order[permute(np.arange(BLOCK), BLOCK, self.seed, block, 2**32 + stage)]

    def _drawn(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source of each row of an update, and how many rows of that source came before it, (batch_size,) each."""
        stage = max(number for number, stage in enumerate(self.stages) if stage.first_step <= step)
        first = self.stages[stage].first_step
        done = (step - first) * self.batch_size
        blocks = range(done // BLOCK, (done + self.batch_size - 1) // BLOCK + 1)
        layout = np.concatenate([self._block(stage, block) for block in blocks])
        start = done - blocks[0] * BLOCK
        sources = layout[start : start + self.batch_size]
        before = self._used(step)
        counts = np.empty(len(sources), np.int64)
        for source in np.unique(sources).tolist():
            mine = sources == source
            counts[mine] = before[source] + np.arange(int(mine.sum()))
        return sources, counts


Order = TrainOrder | MixedOrder


def make_order(sizes: tuple[int, ...], stages: tuple[Stage, ...], batch_size: int, seed: int) -> Order:
    """The order of the rows of one source, or with `stages` of several."""
    return MixedOrder(sizes, stages, batch_size, seed) if stages else TrainOrder(sum(sizes), batch_size, seed)
