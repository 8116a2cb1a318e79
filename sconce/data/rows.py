"""Rows: the sequences that a split's tokens make, `data.packing` of them."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sconce.data.batches import Batch, num_rows, read_batch, regroup, validation_batches
from sconce.data.corpus import Split
from sconce.data.packing import Plan, Say, open_plan
from sconce.data.shards import TokenData, TokenStore
from sconce.errors import DataError

Packing = Literal["concat", "bestfit"]


class NumberedRows(Protocol):
    """Rows of `seq_len` predictions each; any of them is read without the others. How many there are may not be known.

    With `parts` the same are numbered as shorter rows: row r is part r % parts of row r // parts, each being cut into
    so many of equal length.
    """

    @property
    def seq_len(self) -> int: ...

    def batch(self, rows: NDArray[np.int64], parts: int = 1) -> Batch:
        """The given rows, (len(rows), seq_len // parts)."""
        ...

    def spans(self, row: int, parts: int = 1) -> list[tuple[int, int]]:
        """Where the row's tokens are from: start .. end - 1 of the split, in order."""
        ...


class TrainRows(NumberedRows, Protocol):
    """All rows to train on."""

    @property
    def num_rows(self) -> int: ...
    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source; they are numbered through, one source after the other."""
        ...


class Rows(TrainRows, Protocol):
    """All rows of one split."""

    def in_order(self, batch_size: int, max_batches: int | None = None) -> Iterator[Batch]:
        """Every token as a target once, in order; the first `max_batches` batches of that.

        All batches are (batch_size, seq_len): the last one is filled up with what is not scored.
        """
        ...


class ConcatRows:
    """Documents one after the other, cut at every `seq_len` tokens; attention crosses their borders.

    A row's first token is not its target but that of the row before. Of the whole split the first token is no
    target, and what is left after the last whole row is none either, but in validation.
    """

    def __init__(self, store: TokenStore, seq_len: int, part: tuple[int, int] | None = None) -> None:
        """Rows of all tokens, or of tokens first .. last - 1."""
        self._first, last = part or (0, store.num_tokens)
        self.num_rows, self.seq_len = max(0, last - self._first - 1) // seq_len, seq_len
        self.sizes = (self.num_rows,)
        self._store = store

    def batch(self, rows: NDArray[np.int64], parts: int = 1) -> Batch:
        return read_batch(self._store, rows, self.seq_len // parts, self._first)

    def spans(self, row: int, parts: int = 1) -> list[tuple[int, int]]:
        seq_len = self.seq_len // parts
        start = self._first + row * seq_len
        return [(start, start + seq_len + 1)]

    def in_order(self, batch_size: int, max_batches: int | None = None) -> Iterator[Batch]:
        return validation_batches(self._store, self.seq_len, batch_size, max_batches)


class PackedRows:
    """Documents, and what is left of long ones, packed into rows; attention stays inside a piece.

    Every token of the split is a target exactly once. A piece's first input is the token before it: the end of the
    document before (for the first of all another such end), which starts a document in sampling too, or the token at
    which a long document was cut. Positions need not restart: rotary attention knows only distances.
    """

    def __init__(self, store: TokenStore, plan: Plan, seq_len: int, eos_id: int) -> None:
        self.num_rows, self.seq_len = plan.num_rows, seq_len
        self.sizes = (self.num_rows,)
        self._store, self._plan, self._eos_id = store, plan, eos_id

    def batch(self, rows: NDArray[np.int64], parts: int = 1) -> Batch:
        size = self.seq_len // parts
        row, starts, lengths, places = self._plan.pieces_of(rows // parts)
        places = places - (rows % parts * size)[row]
        firsts, lasts = np.maximum(places, 0), np.minimum(places + lengths, size)
        inside = firsts < lasts
        row, starts, firsts, lasts = row[inside], (starts + firsts - places)[inside], firsts[inside], lasts[inside]
        inputs, segments = (np.zeros((len(rows), size), np.int32) for _ in range(2))
        targets = np.full((len(rows), size), -1, np.int32)
        begins = row * size + firsts
        used = np.bincount(row, lasts - firsts, len(rows)).astype(np.int64)
        filled = np.arange(size) < used[:, None]
        targets[filled] = self._store.read_pieces(starts, lasts - firsts)
        np.multiply(targets[:, :-1], filled[:, 1:], out=inputs[:, 1:])
        inputs.reshape(-1)[begins] = self._before(starts)
        marks = np.append(begins[firsts > 0], (np.arange(len(rows)) * size + used)[used < size])
        segments.reshape(-1)[marks] = 1
        np.cumsum(segments, axis=1, out=segments)
        return Batch(inputs, targets, segments)

    def _before(self, starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """The token before each of these; before the first of all, the end of a document."""
        before = self._store.read_pieces(np.maximum(starts - 1, 0), np.ones_like(starts)).astype(np.int32)
        before[starts == 0] = self._eos_id
        return before

    def spans(self, row: int, parts: int = 1) -> list[tuple[int, int]]:
        """A piece that goes on in the next part is cut there, as a long document is."""
        whole, part = divmod(row, parts)
        size = self.seq_len // parts
        found: list[tuple[int, int]] = []
        at = -part * size  # where in this part the piece begins
        for start, end in self._plan.pieces(whole):
            first, last = start + max(0, -at), min(end, start - at + size)
            if first < last:
                found.append((first, last))
            at += end - start
        return found

    def in_order(self, batch_size: int, max_batches: int | None = None) -> Iterator[Batch]:
        count = -(-self.num_rows // batch_size)
        for first in range(0, (count if max_batches is None else min(count, max_batches)) * batch_size, batch_size):
            batch = self.batch(np.arange(first, min(first + batch_size, self.num_rows)))
            missing = ((0, batch_size - len(batch.inputs)), (0, 0))
            assert batch.segments is not None
            yield Batch(
                np.pad(batch.inputs, missing),
                np.pad(batch.targets, missing, constant_values=-1),
                np.pad(batch.segments, missing),
            )


class MixedRows:
    """The rows of several sources, numbered through."""

    def __init__(self, sources: Sequence[Rows]) -> None:
        self.sizes = tuple(source.num_rows for source in sources)
        self.num_rows, self.seq_len = sum(self.sizes), sources[0].seq_len
        self._sources = sources
        self._firsts = np.cumsum([0, *self.sizes])

    def batch(self, rows: NDArray[np.int64], parts: int = 1) -> Batch:
        numbers = self.source_of(rows, parts)
        present: list[int] = np.unique(numbers).tolist()
        batches = [
            self._sources[number].batch(rows[numbers == number] - int(self._firsts[number]) * parts, parts)
            for number in present
        ]
        (whole,) = regroup(batches, len(rows))
        as_asked = np.argsort(np.argsort(numbers, kind="stable"))
        segments = None if whole.segments is None else whole.segments[as_asked]
        return Batch(whole.inputs[as_asked], whole.targets[as_asked], segments)

    def spans(self, row: int, parts: int = 1) -> list[tuple[int, int]]:
        number = int(self.source_of(np.array([row]), parts)[0])
        return self._sources[number].spans(row - int(self._firsts[number]) * parts, parts)

    def source_of(self, rows: NDArray[np.int64], parts: int = 1) -> NDArray[np.int64]:
        """Which source each row is of, (len(rows),)."""
        return np.searchsorted(self._firsts * parts, rows, side="right") - 1


def read_in_parts(rows: NumberedRows, numbers: NDArray[np.int64], parts: int, size: int) -> list[Batch]:
    """The rows of these numbers in micro-batches, `size` at a time."""
    return [rows.batch(numbers[i : i + size], parts) for i in range(0, len(numbers), size)]


def open_rows(tokens: TokenData, split: Split, seq_len: int, packing: Packing, say: Say | None = None) -> Rows:
    """The rows of a split; `say` hears of a packing plan that is made. DataError when there is not one to train on."""
    store = tokens.train if split == "train" else tokens.validation
    if packing == "concat":
        if split == "train":
            num_rows(store, seq_len)  # validation may be shorter than a row
        return ConcatRows(store, seq_len)
    return PackedRows(store, open_plan(tokens, split, seq_len, say=say), seq_len, tokens.eos_id)


def open_train_rows(
    tokens: TokenData, seq_len: int, packing: Packing, mixed: bool, say: Say | None = None
) -> TrainRows:
    """The rows to train on; `mixed` keeps each path of the corpus apart, as a source. Raises as `open_rows`."""
    if not mixed:
        return open_rows(tokens, "train", seq_len, packing, say)
    manifest = tokens.manifest
    if len(manifest.path_tokens) != len(manifest.paths):
        raise DataError(
            f"{tokens.folder}: does not say which tokens are of which path, which data.weights needs: delete the "
            "folder and prepare the data again"
        )
    ends = np.cumsum(manifest.path_tokens).tolist()
    parts = list(zip([0, *ends[:-1]], ends, strict=True))
    sources: list[Rows] = []
    for path, part in zip(manifest.paths, parts, strict=True):
        if packing == "concat":
            rows = ConcatRows(tokens.train, seq_len, part)
        else:
            plan = open_plan(tokens, "train", seq_len, part, say)
            rows = PackedRows(tokens.train, plan, seq_len, tokens.eos_id)
        if rows.num_rows < 1:
            raise DataError(
                f"{path}: {part[1] - part[0]} training tokens, less than one row of data.sequence_length {seq_len}: "
                "give more text, or join it with another path"
            )
        sources.append(rows)
    return MixedRows(sources)
