"""What a run reads, and which of it is held out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from sconce.data.discover import exists
from sconce.data.sources import DocumentRule, OnError, Source, list_sources
from sconce.hub_address import is_hub, pinned

Split = Literal["train", "validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Files of text or records, folders, patterns or data sets of the hub. With `validation_paths` nothing else is
    held out. `commits` are those at which to read data sets, by address; others are read as they are now.
    """

    paths: tuple[Path, ...]
    validation_paths: tuple[Path, ...] = ()
    rule: DocumentRule = "passage"
    validation_fraction: float = 0.01
    text_field: str = "text"
    on_error: OnError = "stop"
    # Not in repr, by which shards in a cache are found.
    commits: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, hash=False)

    def sources(self) -> list[Source]:
        """The files of `paths`."""
        return [source for some in self.sources_of_paths() for source in some]

    def sources_of_paths(self) -> list[list[Source]]:
        """The same, those of each path by themselves."""
        return [self._sources_of(path) for path in self.paths]

    def validation_sources(self) -> list[Source]:
        """The files of `validation_paths`."""
        return [source for some in self.validation_sources_of_paths() for source in some]

    def validation_sources_of_paths(self) -> list[list[Source]]:
        """The same, those of each path by themselves."""
        return [self._sources_of(path) for path in self.validation_paths]

    def check(self) -> None:
        """Raise DataError where a path is not there or stands for nothing: before anything is written."""
        self.sources()
        self.validation_sources()

    def _sources_of(self, path: Path) -> list[Source]:
        return list_sources((pinned(path, self.commits),), self.text_field, self.on_error)


def is_reachable(path: Path) -> bool:
    """Whether text may be read at a path: something is there, or it is an address of the hub, which is not asked."""
    return is_hub(path) or exists(path)


def document_hash(document: bytes) -> int:
    """64 bits of a document's text: what decides whether it is held out, wherever it stands in whatever corpus."""
    return int.from_bytes(blake2b(document, digest_size=8).digest(), "big")


def are_held_out(documents: Iterable[bytes], threshold: int) -> list[bool]:
    """Of each document whether its hash is at most `threshold`: none for -1, all for 2**64."""
    if not 0 <= threshold < 2**64:
        return [threshold >= 0 for _ in documents]
    last = threshold.to_bytes(8, "big")
    return [blake2b(document, digest_size=8).digest() <= last for document in documents]


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


def train_documents(corpus: Corpus, max_bytes: int | None = None) -> Iterator[str]:
    """The documents that are not held out, up to `max_bytes` of UTF-8: what a tokenizer may learn from.

    The first ones in order, and the one that reaches `max_bytes` is still whole.
    """
    sources = corpus.sources()
    threshold = -1 if corpus.validation_paths else split_threshold(corpus, sources)
    done = 0
    for document in (document for source in sources for document in source.documents(corpus.rule)):
        if document_hash(document) > threshold:
            yield document.decode()
            done += len(document)
            if max_bytes is not None and done >= max_bytes:
                return
