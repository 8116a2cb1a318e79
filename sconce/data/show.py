"""What one update trains on, for a person to read: rows, the documents they are cut from, and their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sconce.data.batches import num_rows
from sconce.data.order import TrainOrder
from sconce.data.shards import TokenData
from sconce.errors import DataError


class TextDecoder(Protocol):
    """What showing needs of a tokenizer."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a row has of one document, `offset` tokens into it. `document` counts the split's documents from 0.

    `text` is of these tokens alone: half a character at either end becomes U+FFFD. `ends` if the document's EOS,
    which is in `tokens` and not in `text`, is the last token here.
    """

    document: int
    offset: int
    tokens: list[int]
    text: str
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One row of a batch: `position` in the batch, `row` of the split, whose tokens start .. end - 1 it is.

    It holds sequence_length + 1 tokens: all but the last are inputs, all but the first are targets.
    """

    position: int
    row: int
    epoch: int
    start: int
    end: int
    pieces: list[Piece]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownStep:
    """The update that makes `step`; `row_ids` are of its whole batch, `rows` those that were asked for."""

    step: int
    batch_size: int
    sequence_length: int
    num_rows: int
    row_ids: list[int]
    rows: list[ShownRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReader:
    """Everything that decides what a run's updates train on."""

    data: TokenData
    tokenizer: TextDecoder
    batch_size: int
    sequence_length: int
    seed: int

    def show(self, step: int, position: int | None = None) -> ShownStep:
        """The update that makes `step`, counted from 1, or only the row at one position of its batch.

        Reads those rows' tokens and nothing else. Raises DataError when there is no such step or position.
        """
        if step < 1:
            raise DataError(f"--step {step}: expected 1 or more; step 1 is the first update")
        if position is not None and not 0 <= position < self.batch_size:
            raise DataError(f"--row {position}: expected 0 to {self.batch_size - 1}, a position in the batch")
        order = TrainOrder(num_rows(self.data.train, self.sequence_length), self.batch_size, self.seed)
        rows = order.rows(step - 1)  # those of the update after step - 1 updates
        first = (step - 1) * self.batch_size
        return ShownStep(
            step=step,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            num_rows=order.num_rows,
            row_ids=[int(row) for row in rows],
            rows=[
                self._row(place, int(rows[place]), (first + place) // order.num_rows)
                for place in (range(self.batch_size) if position is None else [position])
            ],
        )

    def _row(self, position: int, row: int, epoch: int) -> ShownRow:
        start = row * self.sequence_length
        tokens = self.data.train.read(start, self.sequence_length + 1)
        end = start + len(tokens)
        pieces: list[Piece] = []
        for span in self.data.train.documents(start, len(tokens)):
            begin = max(span.start, start)
            ids = tokens[begin - start : min(span.end, end) - start].astype(np.int64).tolist()
            ends = span.end <= end
            text = self.tokenizer.decode(ids[:-1] if ends else ids, skip_special=False)
            pieces.append(Piece(document=span.index, offset=begin - span.start, tokens=ids, text=text, ends=ends))
        return ShownRow(position=position, row=row, epoch=epoch, start=start, end=end, pieces=pieces)
