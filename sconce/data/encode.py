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

from sconce.data.corpus import document_hash

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
    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """All token ids in a row, and the length of each text in tokens, (len(texts),)."""
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
        held = [threshold >= 0 and document_hash(document) <= threshold for document in documents]
        train, held_out = (list(compress(documents, chosen)) for chosen in (map(not_, held), held))
        return EncodedBatch(self._encode(train), self._encode(held_out), held)

    def check(self) -> None:
        """Compare the two programs on texts that are hard to get right; raises EncodersDiffer."""
        if self.fast is not None:
            self._compare(_HARD)

    def _encode(self, documents: Sequence[bytes]) -> Encoded:
        texts = [document.decode() for document in documents]
        if not texts:
            flat, lengths = np.empty(0, np.uint32), np.empty(0, np.int64)
        elif self.fast is None:
            flat, lengths = self._encode_slowly(texts)
        else:
            self._compare([_sample(texts)])
            flat, lengths = self.fast.encode_flat(texts)
        ends = np.cumsum(lengths + 1)
        ids = np.full(len(flat) + len(lengths), self.tokenizer.eos_id, np.uint32)
        is_text = np.ones(len(ids), bool)
        is_text[ends - 1] = False
        ids[is_text] = flat
        return Encoded(ids, lengths + 1, np.array([len(document) for document in documents], np.int64))

    def _encode_slowly(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        flat: list[NDArray[np.uint32]] = []
        lengths: list[int] = []
        for first in range(0, len(texts), _TOGETHER):
            parts = self.tokenizer.encode_batch(texts[first : first + _TOGETHER])
            flat.append(np.fromiter(chain.from_iterable(parts), np.uint32))
            lengths += map(len, parts)
        return np.concatenate(flat), np.array(lengths, np.int64)

    def _compare(self, texts: Sequence[str]) -> None:
        assert self.fast is not None
        flat, lengths = self.fast.encode_flat(texts)
        expected = self.tokenizer.encode_batch(texts)
        same_lengths = lengths.tolist() == [len(part) for part in expected]
        if not same_lengths or flat.tolist() != [token for part in expected for token in part]:
            raise EncodersDiffer


def _sample(texts: Sequence[str]) -> str:
    """A piece of one of the texts, from anywhere in it, but of the same texts always the same."""
    chance = sum(map(len, texts)) * 2654435761 % 2**32  # Knuth's multiplicative hash
    text = texts[chance % len(texts)]
    start = chance % max(1, len(text) - _SAMPLE_CHARS)
    return text[start : start + _SAMPLE_CHARS]


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
