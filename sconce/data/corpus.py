"""What a run reads, and which of it is held out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from sconce.data.sources import DocumentRule, OnError, Source, list_sources

Split = Literal["train", "validation"]
OnRead = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Files of text or records, folders or patterns. With `validation_paths` nothing else is held out."""

    paths: tuple[Path, ...]
    validation_paths: tuple[Path, ...] = ()
    rule: DocumentRule = "passage"
    validation_fraction: float = 0.01
    text_field: str = "text"
    on_error: OnError = "stop"

    def sources(self) -> list[Source]:
        """The files of `paths`."""
        return list_sources(self.paths, self.text_field, self.on_error)

    def sources_of_paths(self) -> list[list[Source]]:
        """The same, those of each path by themselves."""
        return [list_sources((path,), self.text_field, self.on_error) for path in self.paths]

    def validation_sources(self) -> list[Source]:
        """The files of `validation_paths`."""
        return list_sources(self.validation_paths, self.text_field, self.on_error)

    def validation_sources_of_paths(self) -> list[list[Source]]:
        """The same, those of each path by themselves."""
        return [list_sources((path,), self.text_field, self.on_error) for path in self.validation_paths]


def document_hash(document: bytes) -> int:
    """64 bits of a document's text: what decides whether it is held out, wherever it stands in whatever corpus."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "big")


def split_threshold(corpus: Corpus, sources: Iterable[Source]) -> int:
    """The largest `document_hash` that is held out: validation_fraction of 2**64, when both splits get a document.

    Else it is the smallest hash in the corpus, so that validation is not empty; and -1, which holds out nothing,
    for a single text. Reads only until both splits have a document.
    """
    threshold = int(corpus.validation_fraction * 2**64)
    lowest, highest = 2**64, -1
    for source in sources:
        for document in source.documents(corpus.rule):
            value = document_hash(document)
            lowest, highest = min(lowest, value), max(highest, value)
            if lowest <= threshold < highest:
                return threshold
    return lowest if lowest < highest else -1


def split_documents(
    corpus: Corpus,
    train: Sequence[Source],
    validation: Sequence[Source],
    threshold: int,
    on_read: OnRead | None = None,
) -> Iterator[tuple[Split, bytes]]:
    """Every document in order, with its split; `threshold` applies where there are no validation sources."""
    for source in train:
        for document in source.documents(corpus.rule, on_read):
            yield ("validation" if document_hash(document) <= threshold else "train"), document
    for document in chain.from_iterable(source.documents(corpus.rule, on_read) for source in validation):
        yield "validation", document


def train_documents(corpus: Corpus, max_bytes: int | None = None) -> Iterator[str]:
    """The documents that are not held out, up to `max_bytes` of UTF-8: what a tokenizer may learn from.

    The first ones in order, and the one that reaches `max_bytes` is still whole.
    """
    sources = corpus.sources()
    threshold = -1 if corpus.validation_paths else split_threshold(corpus, sources)
    done = 0
    for split, document in split_documents(corpus, sources, (), threshold):
        if split == "train":
            yield document.decode()
            done += len(document)
            if max_bytes is not None and done >= max_bytes:
                return
