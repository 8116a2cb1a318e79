"""What one update trains on, for a person to read: rows, the documents they are cut from, and their text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sconce.data.order import Order
from sconce.data.rows import NumberedRows
from sconce.data.shards import DocumentSpan
from sconce.errors import DataError, in_short


class ShownTokens(Protocol):
    """Tokens and the documents that they are of."""

    def read(self, start: int, count: int) -> NDArray[np.int32]: ...
    def documents(self, start: int, count: int) -> Iterator[DocumentSpan]: ...


class ShownData(Protocol):
    """What showing needs of a run's token shards, or of those windows of its stream that are here."""

    @property
    def folder(self) -> Path: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def train(self) -> ShownTokens: ...


class TextDecoder(Protocol):
    """What showing needs of a tokenizer."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a row has of one document: the split's tokens from `start` on, `offset` tokens into the document.

    `document` counts the split's documents from 0.

    `text` is of these tokens alone: half a character at either end becomes U+FFFD. `ends` if the document's EOS,
    which is in `tokens` and not in `text`, is the last token here.
    """

    document: int
    start: int
    offset: int
    tokens: list[int]
    text: str
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One row of a batch: `position` in the batch, `row` of the split; `source` is its path, where several are mixed.

    Without packing its pieces are sequence_length + 1 tokens in a row: all but the last are inputs, all but the first
    are targets. Packed, each token is a target, its input is the token before it, and `padding` places are empty.
    """

    position: int
    row: int
    source: str | None
    epoch: int
    padding: int
    pieces: list[Piece]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownStep:
    """The update that makes `step`; `row_ids` are of its whole batch, `rows` those that were asked for.

    `num_rows` are there in all: None of a stream.
    """

    step: int
    batch_size: int
    sequence_length: int
    num_rows: int | None
    row_ids: list[int]
    rows: list[ShownRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReader:
    """Everything that decides what a run's updates train on; `sources` are the paths that it mixes, if it does.

    The run ends at `total_steps`; its first `imported_steps` another system did, on rows that are not known.
    """

    data: ShownData
    tokenizer: TextDecoder
    rows: NumberedRows
    order: Order
    sources: Sequence[str] = ()
    total_steps: int
    imported_steps: int = 0

    def show(self, step: int, position: int | None = None) -> ShownStep:
        """The update that makes `step`, counted from 1, or only the row at one position of its batch.

        Reads those rows' tokens and nothing else. Raises DataError when there is no such step or position.
        """
        if step < 1:
            raise DataError(f"--step {in_short(step)}: expected 1 or more; step 1 is the first update")
        order = self.order
        if step > (largest := order.ramp.steps(2**63 - 1)):
            raise DataError(f"--step {in_short(step)}: expected at most {largest}, where counting rows ends")
        stage, parts = order.ramp.at(step - 1), order.parts(step - 1)
        if position is not None and not 0 <= position < stage.batch_size:
            raise DataError(
                f"--row {in_short(position)}: expected 0 to {stage.batch_size - 1}, a position in the batch"
            )
        rows = order.rows(step - 1)  # those of the update after step - 1 updates
        epochs = order.row_epochs(step - 1)
        return ShownStep(
            step=step,
            batch_size=stage.batch_size,
            sequence_length=stage.seq_len,
            num_rows=order.num_rows * parts or None,
            row_ids=[int(row) for row in rows],
            rows=[
                self._row(place, int(rows[place]), parts, int(epochs[place]))
                for place in (range(stage.batch_size) if position is None else [position])
            ],
        )

    def remarks(self, step: int) -> list[str]:
        """What else to know of that step, a line each: no hash is read here, and a run has a beginning and an end."""
        if self.order.num_rows:
            found = ["the shards are taken at their sizes: `sconce checkpoint verify --deep` also reads their content"]
        else:
            found = ["of a stream, a window's documents are counted from its first token on"]
        if step <= self.imported_steps:
            found.append(
                f"steps 1 to {self.imported_steps} were done before the import, on rows that are not known: these are "
                "only what this order has in their place"
            )
        if step > self.total_steps:
            found.append(f"the run ends at step {self.total_steps}: these rows it would train on if it went on")
        return found

    def _row(self, position: int, row: int, parts: int, epoch: int) -> ShownRow:
        spans = self.rows.spans(row, parts)
        pieces = [piece for start, end in spans for piece in self._pieces(start, end)]
        padding = max(0, self.rows.seq_len // parts - sum(end - start for start, end in spans))
        number = int(np.searchsorted(np.cumsum(self.order.sequence.sizes), row // parts, side="right"))
        source = self.sources[number] if self.sources else None
        return ShownRow(position=position, row=row, source=source, epoch=epoch, padding=padding, pieces=pieces)

    def _pieces(self, start: int, end: int) -> Iterator[Piece]:
        tokens = self.data.train.read(start, end - start)
        for span in self.data.train.documents(start, len(tokens)):
            begin = max(span.start, start)
            ids = tokens[begin - start : min(span.end, end) - start].astype(np.int64).tolist()
            ends = span.end <= end and ids[-1] == self.data.eos_id  # a stream's window may end in a document
            text = self.tokenizer.decode(ids[:-1] if ends else ids, skip_special=False)
            yield Piece(document=span.index, start=begin, offset=begin - span.start, tokens=ids, text=text, ends=ends)
