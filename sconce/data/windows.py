"""A corpus as one sequence of tokens, cut into windows: the write head of a stream.

Window w holds tokens w*rows*seq_len .. (w + 1)*rows*seq_len of the training documents in order, the last of which is
the first of the window after it too: rows of a window are complete without its neighbours. Where a window begins is a
`Position`, from which it can be made again without what lies before.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sconce.data.encode import Encoded, EncodedBatch
from sconce.data.sources import DocumentRule, Source

_BATCH_BYTES = 2**22  # of text that is tokenised at once, whatever the documents


@dataclass(frozen=True, slots=True)
class Position:
    """Token `token` of document `record` of file `file`, which is document `sample` of the stream; all from 0."""

    file: int
    record: int
    token: int
    sample: int


BEGIN = Position(0, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is read and how it is cut: everything but the tokenizer that decides what a window holds.

    Documents whose hash is at most `threshold` are held out. `batch_documents` are tokenised at once; only speed
    depends on it.
    """

    sources: Sequence[Source]
    rule: DocumentRule
    threshold: int
    max_samples: int | None
    seq_len: int
    rows: int
    batch_documents: int

    @property
    def window_tokens(self) -> int:
        """Of a whole window, the one it shares included."""
        return self.rows * self.seq_len + 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents to be tokenised, and where each is."""

    documents: list[bytes]
    places: list[Position]
    threshold: int


class Encode(Protocol):
    """Tokenises batches, in order: `data.encode.EncodingPool.map`."""

    def __call__(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, EncodedBatch]]: ...


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens of a window, and where the next one starts: None when nothing comes after.

    `held_out` is of the documents before the next window's, when this window begins the stream. The last window of a
    stream may have fewer rows than the others, or none.
    """

    rows: int
    tokens: Encoded
    held_out: Encoded
    after: Position | None


@dataclass(frozen=True, slots=True)
class _Document:
    """What of a document is not in a window yet."""

    place: Position
    ids: NDArray[np.uint32]
    size: int


class WriteHead:
    """Makes window after window of a corpus, from `start` on."""

    def __init__(self, cut: Cut, encode: Encode, start: Position, on_file: Callable[[Source], None]) -> None:
        """`on_file` hears of each source that is read to its end."""
        self._cut, self._start = cut, start
        self._encoded = encode(_batches(cut, start, on_file))
        self._train: list[_Document] = []
        self._held_out: list[_Document] = []
        self._ready = 0  # tokens in _train
        self._begins = start == BEGIN

    def next(self) -> Window:
        """The next window. Raises what reading and tokenising raise; then it cannot be asked again."""
        wanted = self._cut.window_tokens
        while self._ready < wanted and (item := next(self._encoded, None)) is not None:
            self._take(*item)
        if self._ready < wanted:
            rows = max(0, self._ready - 1) // self._cut.seq_len
            tokens, after = self._cut_off(rows * self._cut.seq_len + 1 if rows else 0), None
        else:
            rows, tokens = self._cut.rows, self._cut_off(wanted)
            after = self._train[0].place
        known = [one for one in self._held_out if after is None or one.place.sample < after.sample]
        self._held_out, self._begins = [], False
        return Window(rows, tokens, _joined([one.ids for one in known], [one.size for one in known]), after)

    def _take(self, batch: Batch, encoded: EncodedBatch) -> None:
        train, held_out = _split(encoded.train), _split(encoded.held_out)
        for at, is_held_out in zip(batch.places, encoded.is_held_out, strict=True):
            if not is_held_out:
                ids, size = next(train)
                skip = self._start.token if at.sample == self._start.sample else 0
                place = Position(at.file, at.record, skip, at.sample)
                self._train.append(_Document(place, ids[skip:], size if skip == 0 else 0))
                self._ready += len(ids) - skip
            else:
                ids, size = next(held_out)
                if self._begins:
                    self._held_out.append(_Document(at, ids, size))

    def _cut_off(self, count: int) -> Encoded:
        """The first `count` tokens; the last of them stays, to be the first of what comes next."""
        parts: list[NDArray[np.uint32]] = []
        sizes: list[int] = []
        left, index = count, 0
        while left:
            document = self._train[index]
            parts.append(document.ids[:left])
            sizes.append(document.size)
            left -= len(parts[-1])
            index += 1
        if count:
            last, taken = self._train[index - 1], len(parts[-1]) - 1
            place = last.place
            rest = _Document(
                Position(place.file, place.record, place.token + taken, place.sample),
                last.ids[taken:],
                last.size if taken == 0 else 0,
            )
            self._train[:index] = [rest]
            self._ready -= count - 1
        return _joined(parts, sizes)


def _batches(cut: Cut, start: Position, on_file: Callable[[Source], None]) -> Iterator[Batch]:
    documents: list[bytes] = []
    places: list[Position] = []
    size, sample = 0, start.sample
    for file in range(start.file, len(cut.sources)):
        source = cut.sources[file]
        for record, document in source.numbered(cut.rule, start.record if file == start.file else 0):
            if sample == cut.max_samples:
                break
            documents.append(document)
            places.append(Position(file, record, 0, sample))
            size, sample = size + len(document), sample + 1
            if len(documents) == cut.batch_documents or size >= _BATCH_BYTES:
                yield Batch(documents, places, cut.threshold)
                documents, places, size = [], [], 0
        if sample == cut.max_samples:
            break
        on_file(source)
    if documents:
        yield Batch(documents, places, cut.threshold)


def _split(encoded: Encoded) -> Iterator[tuple[NDArray[np.uint32], int]]:
    ends = np.cumsum(encoded.lengths).tolist()
    for start, end, size in zip([0, *ends], ends, encoded.sizes.tolist(), strict=False):
        yield encoded.ids[start:end], size


def _joined(parts: Sequence[NDArray[np.uint32]], sizes: Sequence[int]) -> Encoded:
    ids = np.concatenate(parts) if parts else np.empty(0, np.uint32)
    return Encoded(ids, np.array([len(part) for part in parts], np.int64), np.array(sizes, np.int64))
