"""Documents to token ids, in batches, on several threads, always in order."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, compress
from operator import not_
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sconce.data.corpus import are_held_out

_AHEAD = 2  # batches that wait beside those being encoded, so that no thread waits for the reader
_TOGETHER = 32  # texts that `tokenizers` encodes at once: its result takes tens of times the memory of the ids
_SAMPLE_CHARS = 2**11  # of every batch, encoded by both tokenizers
_HARD = (
    "",
    "Hello <|eos|> <|bos|> <|pad|> <|endoftext|> </s> world",
    " a  b   c\t\td\r\n\r\n  e\u00a0f\u2003g\u3000h \n \n\n",
    "don't we'll I'VE 12345678901234567890 3.14 1e-9 ½ ² Ⅷ ٣",
    "naïve cafe\u0301 Straße İstanbul ﬁ ﷺ \u200b\u200d\ufeff\u202e",
    "日本語のテキスト、한국어 텍스트 ไทย हिन्दी עברית العربية",
    "👩‍👩‍👧‍👦🏳️‍🌈 \U0010ffff \ue000 \ufffd \x01\x1b[0m\x7f\x85",
    "_".join("{}[]()<>=+-*/\\|&^%$#@!~`'\";:,.?") + "aA" * 40 + "\t" * 70 + " " * 130 + "x" * 300,
)


class TextEncoder(Protocol):
    """What preparing needs of a tokenizer. Several threads call it at once."""

    @property
    def sha256(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


class FlatEncoder(Protocol):
    """A faster program for the same tokenizer. Several threads call it at once."""

    @property
    def name(self) -> str: ...
    def encode_flat(self, documents: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of documents in UTF-8 without NUL, EOS after each, and each one's length with it, (documents,)."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """What tokenises: on how many threads (1: on the calling one), and by which faster program, if any."""

    workers: int = 1
    fast: FlatEncoder | None = None


ALONE = Engine()


class EncodersDiffer(Exception):  # noqa: N818 - what happened, and not for the user
    """The faster program gives other ids than the tokenizer."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Documents of one split: ids with EOS after each, lengths in tokens and in UTF-8 bytes, (documents,)."""

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64]


class EncodedBatch(NamedTuple):
    """The tokens of a batch's training documents, of those that are held out, and of all whether it is one of these."""

    train: Encoded
    held_out: Encoded
    is_held_out: list[bool]


@dataclass(frozen=True, slots=True)
class DocumentEncoder:
    """Turns a batch of documents into tokens."""

    tokenizer: TextEncoder
    fast: FlatEncoder | None = None

    def __call__(self, documents: Sequence[bytes], threshold: int) -> EncodedBatch:
        """A document whose hash is at most `threshold` is held out. Raises EncodersDiffer."""
        if self.fast is not None:
            self._compare(_sample(documents))
        held = are_held_out(documents, threshold)
        train, held_out = (list(compress(documents, chosen)) for chosen in (map(not_, held), held))
        return EncodedBatch(self._encode(train), self._encode(held_out), held)

    def check(self) -> None:
        """Compare the two programs on texts that are hard to get right; raises EncodersDiffer."""
        if self.fast is not None:
            self._compare([text.encode() for text in _HARD])

    def _encode(self, documents: Sequence[bytes]) -> Encoded:
        if not documents:
            ids, lengths = np.empty(0, np.uint32), np.empty(0, np.int64)
        elif self.fast is None:
            ids, lengths = self._encode_slowly(documents)
        else:
            ids, lengths = self.fast.encode_flat(documents)
        return Encoded(ids, lengths, np.fromiter(map(len, documents), np.int64))

    def _encode_slowly(self, documents: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        ids: list[NDArray[np.uint32]] = []
        lengths: list[int] = []
        eos = (self.tokenizer.eos_id,)
        for first in range(0, len(documents), _TOGETHER):
            texts = [document.decode() for document in documents[first : first + _TOGETHER]]
            parts = self.tokenizer.encode_batch(texts)
            ids.append(np.fromiter(chain.from_iterable(chain(part, eos) for part in parts), np.uint32))
            lengths += [len(part) + 1 for part in parts]
        return np.concatenate(ids), np.array(lengths, np.int64)

    def _compare(self, documents: Sequence[bytes]) -> None:
        assert self.fast is not None
        found, expected = self.fast.encode_flat(documents), self._encode_slowly(documents)
        if not all(map(np.array_equal, found, expected)):
            raise EncodersDiffer


def _sample(documents: Sequence[bytes]) -> list[bytes]:
    """A piece of a document and as many after it as are short: from anywhere, but of the same documents the same."""
    chance = sum(map(len, documents)) * 2654435761 % 2**32  # Knuth's multiplicative hash
    first = chance % len(documents)
    text = documents[first].decode()
    start = chance % max(1, len(text) - _SAMPLE_CHARS)
    sample = [text[start : start + _SAMPLE_CHARS].encode()]
    size = len(sample[0])
    for document in documents[first + 1 : first + _TOGETHER]:
        if (size := size + len(document)) > _SAMPLE_CHARS:
            break
        sample.append(document)
    return sample


B = TypeVar("B", bound="HasDocuments")


class HasDocuments(Protocol):
    """A batch: its documents, and the hash up to which they are held out."""

    @property
    def documents(self) -> Sequence[bytes]: ...
    @property
    def threshold(self) -> int: ...


class EncodingPool(Generic[B]):
    """Encodes batches on `workers` threads, or on the calling one; a context manager that ends them.

    Threads, because both libraries encode without Python's lock: a process each would cost a start and 130 MB.
    """

    def __init__(self, encoder: DocumentEncoder, workers: int) -> None:
        self._encoder, self._workers = encoder, workers
        self._pool = ThreadPoolExecutor(workers, "encode") if workers > 1 else None

    def __enter__(self) -> "EncodingPool[B]":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, batches: Iterable[B]) -> Iterator[tuple[B, EncodedBatch]]:
        """Each batch with its tokens, in the order of the batches. Raises EncodersDiffer."""
        if self._pool is None:
            yield from ((batch, self._encoder(batch.documents, batch.threshold)) for batch in batches)
            return
        waiting: deque[tuple[B, Future[EncodedBatch]]] = deque()
        for batch in batches:
            waiting.append((batch, self._pool.submit(self._encoder, batch.documents, batch.threshold)))
            if len(waiting) >= self._workers + _AHEAD:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(batch: B, future: Future[EncodedBatch]) -> tuple[B, EncodedBatch]:
    return batch, future.result()


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
