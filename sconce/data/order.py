"""Which rows a step trains on: a shuffle that is computed, not stored, so any step can be asked for directly.

Two layers. A run draws from an endless sequence of long rows, of one source (`Shuffled`), of several (`Mixed`) or of a
stream (`Streamed`): what stands at any place of it is computed from the seed and the place. `Order` says which places a
step has: those after the steps before it, whose number the ramp's stages give in closed form. Where a stage's rows are
shorter, it takes whole long rows of the sequence, cuts each into equal parts, and shuffles the parts of the rows that
it takes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sconce.mixing import splitmix64
from sconce.ramp import Ramp, constant

_WINDOW = 4096
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


@lru_cache(maxsize=1024)
def _permuted(size: int, seed: int, epoch: int, source: int, window: int) -> NDArray[np.int64]:
    first = window * _WINDOW
    return permute(np.arange(first, min(first + _WINDOW, size)), size, seed, epoch, source)


def permute_run(index: NDArray[np.int64], size: int, seed: int, epoch: int, source: int = 0) -> NDArray[np.int64]:
    """`permute` of indices that lie close together, as those of a step do, and of the step after it.

    They are computed _WINDOW at a time, which costs little more than a few, and the last ones are kept.
    """
    image, windows = np.empty_like(index), index // _WINDOW
    for window in np.unique(windows).tolist():
        here = windows == window
        image[here] = _permuted(size, seed, epoch, source, window)[index[here] - window * _WINDOW]
    return image


def _feistel(value: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: int) -> NDArray[np.uint64]:
    width, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = value >> width, value & mask
    for key in keys:
        left, right = right, left ^ (splitmix64(right ^ key) & mask)
    return (left << width) | right


class RowSequence(Protocol):
    """An endless sequence of long rows; what stands at a place of it depends on the seed and the place alone."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Long rows of each source, numbered through one source after the other; of a stream, not known, none."""
        ...

    @property
    def seed(self) -> int: ...

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows at these places, (len(places),)."""
        ...

    def row_epochs(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """In which pass over its source each of them is, (len(places),)."""
        ...

    def passes(self, places: int) -> tuple[float, ...]:
        """Passes over each source that so many places make."""
        ...

    def around(self, place: int) -> tuple[int, int]:
        """Places first .. last - 1, among them this one, within which parts of rows may be shuffled."""
        ...


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Every row once an epoch, each epoch in its own order."""

    num_rows: int
    seed: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """One source."""
        return (self.num_rows,)

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows at these places, (len(places),)."""
        epoch, position = np.divmod(places, self.num_rows)
        rows = np.empty_like(position)
        for one in np.unique(epoch):
            now = epoch == one
            rows[now] = permute_run(position[now], self.num_rows, self.seed, int(one))
        return rows

    def row_epochs(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """In which pass over the rows each of them is, (len(places),)."""
        return places // self.num_rows

    def passes(self, places: int) -> tuple[float, ...]:
        """Passes over the rows that so many places make."""
        return (places / self.num_rows,)

    def around(self, place: int) -> tuple[int, int]:
        """The epoch."""
        first = place - place % self.num_rows
        return first, first + self.num_rows


BLOCK = 4096  # rows in which every source has exactly its share; an even power of two, which `permute` is fastest with


@dataclass(frozen=True, slots=True)
class Mix:
    """From place `first` of the sequence on, each BLOCK rows hold `counts` rows of each source."""

    first: int
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
class Mixed:
    """Rows of several sources, by weights that may change; each source is shuffled as if it were alone.

    `sizes` are the rows of each source, and a row's number counts on through the sources. In a block the sources come
    in an order of its own, so that where the k-th row of a source stands is known without those before it.
    """

    sizes: tuple[int, ...]
    mixes: tuple[Mix, ...]
    seed: int

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows at these places, (len(places),)."""
        sources, counts = self._drawn(places)
        offsets = np.cumsum([0, *self.sizes])
        rows = np.empty_like(counts)
        for source, size in enumerate(self.sizes):
            epoch, position = np.divmod(counts, size)
            for one in np.unique(epoch[sources == source]).tolist():
                now = (sources == source) & (epoch == one)
                rows[now] = offsets[source] + permute_run(position[now], size, self.seed, one, source)
        return rows

    def row_epochs(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """In which pass over its source each of them is, (len(places),)."""
        sources, counts = self._drawn(places)
        return counts // np.array(self.sizes)[sources]

    def passes(self, places: int) -> tuple[float, ...]:
        """Passes over each source that so many places make."""
        return tuple(int(used) / size for used, size in zip(self._used(places), self.sizes, strict=True))

    def around(self, place: int) -> tuple[int, int]:
        """The block, which ends where the weights change."""
        number = self._number(place)
        start = self.mixes[number].first
        first = place - (place - start) % BLOCK
        following = self.mixes[number + 1 :]
        return first, min(first + BLOCK, following[0].first) if following else first + BLOCK

    def _number(self, place: int) -> int:
        return max(number for number, mix in enumerate(self.mixes) if mix.first <= place)

    def _used(self, places: int) -> NDArray[np.int64]:
        """Rows of each source at the first `places` places, (sources,)."""
        used = np.zeros(len(self.sizes), np.int64)
        for number, mix in enumerate(self.mixes):
            last = self.mixes[number + 1].first if number + 1 < len(self.mixes) else places
            blocks, rest = divmod(max(0, min(places, last) - mix.first), BLOCK)
            used += blocks * np.array(mix.counts)
            used += np.bincount(self._block(number, blocks)[:rest], minlength=len(self.sizes))
        return used

    def _block(self, number: int, block: int) -> NDArray[np.int64]:
        """The source of each row of a block, (BLOCK,)."""
        in_order = np.repeat(np.arange(len(self.sizes)), self.mixes[number].counts)
        # A source beyond 32 bits: keys that no source's rows are permuted by.
        return in_order[permute_run(np.arange(BLOCK), BLOCK, self.seed, block, 2**32 + number)]

    def _drawn(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source at each place, and how many rows of that source came before it, (len(places),) each."""
        sources, counts = np.empty_like(places), np.empty_like(places)
        firsts = np.array([mix.first for mix in self.mixes])
        numbers = np.searchsorted(firsts, places, side="right") - 1
        blocks = (places - firsts[numbers]) // BLOCK
        pairs: list[tuple[int, int]] = sorted(set(zip(numbers.tolist(), blocks.tolist(), strict=True)))
        for number, block in pairs:
            first = self.mixes[number].first + block * BLOCK
            layout, before = self._block(number, block), self._used(first)
            by_source = np.argsort(layout, kind="stable")
            ends = np.cumsum(np.bincount(layout, minlength=len(self.sizes)))
            earlier = np.empty(BLOCK, np.int64)  # rows of its source before it in the block
            earlier[by_source] = np.arange(BLOCK) - np.append(0, ends[:-1])[layout[by_source]]
            here = (numbers == number) & (blocks == block)
            inside = places[here] - first
            sources[here] = layout[inside]
            counts[here] = before[layout[inside]] + earlier[inside]
        return sources, counts


@dataclass(frozen=True, slots=True)
class Streamed:
    """Every row of a stream once an epoch, shuffled within its window of `window_rows` rows, windows in order.

    `total_rows`, called with a row's number, waits until that row is there or the stream has ended, and says how many
    rows there are if that is known; what comes after them is of the next epoch, in an order of its own.
    """

    window_rows: int
    seed: int
    total_rows: Callable[[int], int | None]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Not known before the stream has ended."""
        return ()

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows at these places, (len(places),). May wait until the stream has come there."""
        epochs, positions, total = self._counted(places)
        windows = positions // self.window_rows
        rows = np.empty_like(positions)
        for epoch, window in np.unique(np.stack([epochs, windows]), axis=1).T.tolist():
            now = (epochs == epoch) & (windows == window)
            first = window * self.window_rows
            size = self.window_rows if total is None else min(self.window_rows, total - first)
            rows[now] = first + permute_run(positions[now] - first, size, self.seed, epoch, window)
        return rows

    def row_epochs(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """In which pass over the stream each of them is, (len(places),)."""
        return self._counted(places)[0]

    def passes(self, places: int) -> tuple[float, ...]:
        """Not known, as `sizes`."""
        return ()

    def around(self, place: int) -> tuple[int, int]:
        """The window. May wait until the stream has come there."""
        (epoch,), (position,), total = self._counted(np.array([place], np.int64))
        first = place - int(position) % self.window_rows
        last = first + self.window_rows
        return first, last if total is None else min(last, (int(epoch) + 1) * total)

    def _counted(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], int | None]:
        """Epoch of each, its place in the epoch, (len(places),) each, and the stream's rows if they are known."""
        total = self.total_rows(int(places.max()))
        if total is None:
            return np.zeros_like(places), places, None
        epochs, positions = np.divmod(places, total)
        return epochs, positions, total


@dataclass(frozen=True, slots=True)
class Order:
    """Which rows each step trains on: a function of these, hence of config and seed, and of the step.

    Rows are numbered by their length: where a long row makes m of them, row r is part r % m of long row r // m.
    """

    sequence: RowSequence
    ramp: Ramp

    @property
    def seed(self) -> int:
        """What the shuffles are keyed by."""
        return self.sequence.seed

    @property
    def num_rows(self) -> int:
        """Long rows, of all sources together; 0 where they are not known, of a stream."""
        return sum(self.sequence.sizes)

    def parts(self, step: int) -> int:
        """Rows that one long row makes in the update after `step` updates."""
        return self.ramp.parts(self.ramp.at(step))

    def rows(self, step: int) -> NDArray[np.int64]:
        """Rows of the update after `step` updates, (batch_size,)."""
        places, part = self._drawn(step)
        return self.sequence.rows(places) * self.parts(step) + part

    def row_epochs(self, step: int) -> NDArray[np.int64]:
        """In which pass over its source each row of that update is, (batch_size,)."""
        return self.sequence.row_epochs(self._drawn(step)[0])

    def source_epochs(self, step: int) -> tuple[float, ...]:
        """Passes over each source that `step` updates have made; amid shuffled parts of a mixture, about so many."""
        whole, rest = divmod(self.ramp.places(step), self.ramp.longest)
        if not rest:
            return self.sequence.passes(whole)
        share = rest / self.ramp.longest
        pairs = zip(self.sequence.passes(whole), self.sequence.passes(whole + 1), strict=True)
        return tuple(before + share * (after - before) for before, after in pairs)

    def epoch(self, step: int) -> float:
        """Passes that `step` updates have made, of the source with the most."""
        return max(self.source_epochs(step))

    def _drawn(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places in the sequence, and which part of the row there, of that update's rows, (batch_size,) each."""
        ramp, number = self.ramp, self.ramp.number(step)
        stage, parts = ramp.stages[number], self.parts(step)
        count = (step - stage.first_step) * stage.batch_size + np.arange(stage.batch_size, dtype=np.int64)
        start = ramp.places(stage.first_step) // ramp.longest
        if parts == 1:
            return start + count, np.zeros_like(count)
        following = ramp.stages[number + 1 :]
        end = ramp.places(following[0].first_step) // ramp.longest if following else None
        shuffled, done = np.empty_like(count), 0
        while done < len(count):
            first, last = self.sequence.around(start + int(count[done]) // parts)
            first, last = max(first, start), last if end is None else min(last, end)
            until = int(np.searchsorted(count, (last - start) * parts))
            offset = (first - start) * parts
            # A source that neither rows nor blocks are permuted by.
            key = (self.seed, first, 2**33 + number)
            within = permute_run(count[done:until] - offset, (last - first) * parts, *key)
            shuffled[done:until] = within + first * parts
            done = until
        return shuffled // parts, shuffled % parts


def make_order(sizes: tuple[int, ...], weights: Sequence[tuple[int, tuple[int, ...]]], ramp: Ramp, seed: int) -> Order:
    """The order of the rows of one source; or of several, mixed by `weights`: (first step, `block_counts`) each."""
    if not weights:
        return Order(Shuffled(sum(sizes), seed), ramp)
    mixes = tuple(Mix(ramp.places(step) // ramp.longest, counts) for step, counts in weights)
    return Order(Mixed(sizes, mixes, seed), ramp)


def shuffled_order(num_rows: int, batch_size: int, seed: int) -> Order:
    """The order of one source's rows in batches of one size."""
    return Order(Shuffled(num_rows, seed), constant(batch_size))


def rank_share(rows: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """Which of a step's rows process `rank` (from 0) of `world_size` has: in order, as evenly as they can be divided.

    The shares of all ranks, one after the other, are the step's rows: the set, and its hash, know no world size.
    """
    assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
    return rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]
