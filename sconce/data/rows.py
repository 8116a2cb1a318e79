"""Rows: the sequences that a split's tokens make, `data.packing` of them."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sconce.data.batches import Batch, num_rows, read_batch, validation_batches
from sconce.data.corpus import Split
from sconce.data.packing import Plan, open_plan
from sconce.data.shards import TokenData, TokenStore
from sconce.errors import DataError

Packing = Literal["concat", "bestfit"]


class Rows(Protocol):
    """The rows of one split, each of `seq_len` predictions; any of them is read without the others."""

    @property
    def num_rows(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source; they are numbered through, one source after the other."""
        ...

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The given rows, (len(rows), seq_len)."""
        ...

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Where the row's tokens are from: start .. end - 1 of the split, in order."""
        ...

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

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        return read_batch(self._store, rows, self.seq_len, self._first)

    def spans(self, row: int) -> list[tuple[int, int]]:
        start = self._first + row * self.seq_len
        return [(start, start + self.seq_len + 1)]

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

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        inputs, targets, segments = (np.zeros((len(rows), self.seq_len), np.int32) for _ in range(3))
        targets[:] = -1
        for index, row in enumerate(rows.tolist()):
            at = number = 0
            for number, (start, end) in enumerate(self.spans(row)):
                place = slice(at, at + end - start)
                tokens = self._store.read(max(start - 1, 0), end - max(start - 1, 0))
                inputs[index, place] = tokens[:-1] if start else np.append(self._eos_id, tokens[:-1])
                targets[index, place] = tokens[1:] if start else tokens
                segments[index, place] = number
                at = place.stop
            segments[index, at:] = number + 1
        return Batch(inputs, targets, segments)

    def spans(self, row: int) -> list[tuple[int, int]]:
        return self._plan.pieces(row)

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

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        parts = [source.batch(local) for source, local in (self._at(row) for row in rows.tolist())]
        inputs = np.concatenate([part.inputs for part in parts])
        targets = np.concatenate([part.targets for part in parts])
        segments = [part.segments for part in parts if part.segments is not None]
        return Batch(inputs, targets, np.concatenate(segments) if segments else None)

    def spans(self, row: int) -> list[tuple[int, int]]:
        source, local = self._at(row)
        return source.spans(int(local[0]))

    def in_order(self, batch_size: int, max_batches: int | None = None) -> Iterator[Batch]:
        raise AssertionError("only training mixes sources")

    def _at(self, row: int) -> tuple[Rows, NDArray[np.int64]]:
        index = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return self._sources[index], np.array([row - int(self._firsts[index])])


def open_rows(tokens: TokenData, split: Split, seq_len: int, packing: Packing) -> Rows:
    """The rows of a split. Raises DataError when there is not one to train on."""
    store = tokens.train if split == "train" else tokens.validation
    if packing == "concat":
        if split == "train":
            num_rows(store, seq_len)  # validation may be shorter than a row
        return ConcatRows(store, seq_len)
    return PackedRows(store, open_plan(tokens, split, seq_len), seq_len, tokens.eos_id)


def open_train_rows(tokens: TokenData, seq_len: int, packing: Packing, mixed: bool) -> Rows:
    """The rows to train on; `mixed` keeps each path of the corpus apart, as a source. Raises DataError."""
    if not mixed:
        return open_rows(tokens, "train", seq_len, packing)
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
            plan = open_plan(tokens, "train", seq_len, part)
            rows = PackedRows(tokens.train, plan, seq_len, tokens.eos_id)
        if rows.num_rows < 1:
            raise DataError(
                f"{path}: {part[1] - part[0]} training tokens, less than one row of data.sequence_length {seq_len}: "
                "give more text, or join it with another path"
            )
        sources.append(rows)
    return MixedRows(sources)
