"""Reading sources a batch of documents at a time, from wherever an earlier reading stopped."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sconce.data.sources import DocumentRule, Source

BATCH_BYTES = 2**20  # of text in a batch: enough to be worth handing to a thread, little beside a model


@dataclass(frozen=True, slots=True)
class Part:
    """What one path of the corpus stands for; `path` is its place among `paths`, or among `validation_paths`."""

    path: int
    threshold: int


@dataclass(frozen=True, slots=True)
class Position:
    """How far the sources are read: `source` whole ones, of the next what comes before `number`; `read` bytes in all.

    `number` is as `Source.numbered` counts: of a row in Parquet, else of a document.
    """

    source: int
    number: int
    read: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents of one part, and where reading goes on after them."""

    documents: list[bytes]
    part: Part
    after: Position

    @property
    def threshold(self) -> int:
        """The hash up to which they are held out."""
        return self.part.threshold


class Reader:
    """Reads the sources from `start` on; `finished` is extended by each that is read to its end."""

    def __init__(
        self,
        sources: Sequence[tuple[Source, Part]],
        rule: DocumentRule,
        start: Position,
        finished: list[dict[str, Any]],
    ) -> None:
        self.finished = finished
        self._sources, self._start = sources, start
        self._rule: DocumentRule = rule
        self._read = sum(source.size for source, _ in sources[: start.source])

    @property
    def skipped(self) -> int:
        """Records and the like that could not be used, in all that was read so far."""
        return sum(one["skipped"] for one in self.finished) + sum(source.skipped for source, _ in self._sources)

    def batches(self) -> Iterator[Batch]:
        """All documents from the start on, in order; where batches end depends on them alone. Raises DataError."""
        batch, size = Batch([], Part(0, 0), self._start), 0
        for index, (source, part) in enumerate(self._sources[self._start.source :], self._start.source):
            if batch.documents and batch.part != part:
                yield batch
                batch, size = Batch([], part, batch.after), 0
            held = batch.documents
            start = self._start.number if index == self._start.source else 0
            # What was skipped is counted anew; where nothing may be, what lies before need not be looked at.
            begin = start if source.on_error == "stop" else 0
            for number, document in source.numbered(self._rule, begin, self._count):
                if number < start:
                    continue
                held.append(document)
                size += len(document)
                if size >= BATCH_BYTES:
                    yield Batch(held, part, Position(index, number + 1, self._read))
                    held, size = [], 0
            self._finish(source)
            batch = Batch(held, part, Position(index + 1, 0, self._read))
        if batch.documents:
            yield batch

    def _count(self, size: int) -> None:
        self._read += size

    def _finish(self, source: Source) -> None:
        facts = {"sha256": source.sha256, "skipped": source.skipped, "first_fault": source.first_fault}
        self.finished.append(facts)
        source.skipped = 0  # counted there from now on
