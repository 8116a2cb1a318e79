"""Reading sources a batch of documents at a time, from wherever an earlier reading stopped.

How far one has come is in the journal of a build: where it goes on, what was skipped, and what the builder adds.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sconce.data.corpus import Corpus
from sconce.data.sources import Source, cut_lines_note
from sconce.errors import DataError
from sconce.files import write_json

JOURNAL = "journal.json"

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
        corpus: Corpus,
        start: Position | None = None,
        finished: list[dict[str, Any]] | None = None,
    ) -> None:
        """Documents are what `corpus` says; without `start`, from the beginning."""
        self.start, self.finished = start or Position(0, 0, 0), finished or []
        self._sources, self._corpus = sources, corpus
        self._read = sum(source.size for source, _ in sources[: self.start.source])

    def commit(self, folder: Path, request: str, after: Position, state: Mapping[str, Any]) -> None:
        """Write the journal: all before `after` is done, and `state` is what the builder has of it."""
        journal = {
            "request": request,
            "position": asdict(after),
            "skipped": self.skipped,
            "finished": self.finished[: after.source],
            **state,
        }
        write_json(folder / JOURNAL, journal)

    @property
    def skipped(self) -> int:
        """Records and the like that could not be used, in all that was read so far."""
        return sum(one["skipped"] for one in self.finished) + sum(source.skipped for source, _ in self._sources)

    def remarks(self) -> Iterator[str]:
        """What people should know of the files that were read to their end."""
        if faulty := [one for one in self.finished if one["skipped"]]:
            count, first = sum(one["skipped"] for one in faulty), faulty[0]["first_fault"]
            yield f"WARNING: skipped {count:,} in {len(faulty):,} files; the first: {first}"
        if cut := sum(one.get("cut_lines", 0) for one in self.finished):
            yield f"note: {cut_lines_note(cut)}"

    def batches(self) -> Iterator[Batch]:
        """All documents from the start on, in order; where batches end depends on them alone. Raises DataError."""
        batch, size = Batch([], Part(0, 0), self.start), 0
        for index, (source, part) in enumerate(self._sources[self.start.source :], self.start.source):
            if batch.documents and batch.part != part:
                yield batch
                batch, size = Batch([], part, batch.after), 0
            held = batch.documents
            start = self.start.number if index == self.start.source else 0
            # What was skipped is counted anew; where nothing may be, what lies before need not be looked at.
            begin = start if source.on_error == "stop" else 0
            for number, document in source.numbered(self._corpus.rule, begin, self._count):
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
        self.finished.append({**facts, "cut_lines": source.cut_lines})
        source.skipped = 0  # counted there from now on


def resume(
    folder: Path,
    request: str,
    sources: Sequence[tuple[Source, Part]],
    corpus: Corpus,
    restore: Callable[[Mapping[str, Any]], None],
) -> Reader | None:
    """Go on from the journal in `folder`, of which `restore` takes back what the builder had, or raises DataError.

    None where there is no journal, or it is of another request or of damaged files; where nothing may be skipped, also
    if something was.
    """
    try:
        journal = json.loads((folder / JOURNAL).read_bytes())
        if journal["request"] != request or (corpus.on_error == "stop" and journal["skipped"]):
            return None
        reader = Reader(sources, corpus, Position(**journal["position"]), journal["finished"])
        restore(journal)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
    return reader
