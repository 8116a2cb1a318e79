"""Text to token shards, once: built beside its place, then renamed into it, and reused as long as it fits."""

import fcntl
import hashlib
import shutil
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from sconce.data.corpus import Corpus, Split, split_documents, split_threshold
from sconce.data.shards import (
    FORMAT,
    MANIFEST,
    Dtype,
    Manifest,
    Shard,
    SourceRecord,
    TokenData,
    open_tokens,
    read_manifest,
)
from sconce.data.sources import Source, list_sources
from sconce.errors import DataError
from sconce.files import fsync_file, fsync_folder, sha256_file, write_json

SHARD_TOKENS = 2**26
_BATCH_BYTES = 2**22  # of text encoded at once: enough for every core, little beside a model

Progress = Callable[[int, int], None]
"""Called with the bytes of the source files read so far, and of all of them."""


class TextEncoder(Protocol):
    """What preparing needs of a tokenizer."""

    @property
    def sha256(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


def prepare(
    corpus: Corpus,
    tokenizer: TextEncoder,
    folder: Path,
    *,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> TokenData:
    """The corpus as token shards in `folder`: built, or reused when those there are intact and of this corpus.

    Of this corpus means the same tokenizer, document rule, split and paths, and source files of the same name,
    size, and time or else content. A build whose sources are gone is reused too, so that a run folder can move
    to another machine without them. Of two processes that prepare one folder, the second waits and reuses.
    `say` hears of a damaged build that is made anew.
    Raises DataError for text or paths that cannot be used; an older build then stays as it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for leftover in folder.parent.glob(f".{folder.name}.tmp-*"):
            shutil.rmtree(leftover)  # of a killed build: nobody else has the lock
        if is_current(corpus, tokenizer, folder):
            try:
                return open_tokens(folder)
            except DataError as error:
                if _sources_are_gone(corpus):
                    raise
                if say is not None:
                    say(f"WARNING: {error}; making them anew of the text")
        _check_replaceable(folder)
        new, old = (folder.with_name(f".{folder.name}.tmp-{name}") for name in ("new", "old"))
        try:
            new.mkdir()
            _build(corpus, tokenizer, new, shard_tokens, progress)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            fsync_folder(folder.parent)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
        finally:
            for rest in (new, old):
                shutil.rmtree(rest, ignore_errors=True)
        return open_tokens(folder, verify=False)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    with ExitStack() as stack:
        # Where nothing can be written, or nothing locked (some network disks), go on: a build may be there.
        with suppress(OSError):
            lock = stack.enter_context(folder.with_name(f".{folder.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it however the process ends
        yield


def _check_replaceable(folder: Path) -> None:
    """Raise DataError rather than delete a folder, or a file, that is not ours."""
    entries = list(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    if not all(entry.name == MANIFEST or entry.suffix in (".bin", ".idx") for entry in entries):
        raise DataError(f"{folder}: is there and holds something other than token shards: choose another folder")


def _build(corpus: Corpus, tokenizer: TextEncoder, folder: Path, shard_tokens: int, progress: Progress | None) -> None:
    train, validation = list_sources(corpus.paths), list_sources(corpus.validation_paths)
    threshold = None if validation else split_threshold(corpus, train)
    total = sum(source.size for source in (*train, *validation))
    done = 0

    def on_read(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    documents = split_documents(corpus, train, validation, -1 if threshold is None else threshold, on_read)
    dtype: Dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    with ExitStack() as stack:
        writers: dict[Split, _SplitWriter] = {
            "train": _SplitWriter(folder, "train", dtype, shard_tokens),
            "validation": _SplitWriter(folder, "validation", dtype, shard_tokens),
        }
        for writer in writers.values():
            stack.callback(writer.close)
        for split, size, ids in _encoded(documents, tokenizer):
            writers[split].add(ids, size)
    manifest = Manifest(
        format=FORMAT,
        tokenizer_sha256=tokenizer.sha256,
        dtype=dtype,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        rule=corpus.rule,
        paths=[str(path) for path in corpus.paths],
        validation_paths=[str(path) for path in corpus.validation_paths],
        validation_fraction=corpus.validation_fraction,
        threshold=threshold,
        shards=[shard for writer in writers.values() for shard in writer.shards],
        sources=[
            SourceRecord(path=str(source.path), size=source.size, mtime_ns=source.mtime_ns, sha256=source.sha256)
            for source in (*train, *validation)
        ],
    )
    write_json(folder / MANIFEST, asdict(manifest))


def _encoded(
    documents: Iterable[tuple[Split, bytes]], tokenizer: TextEncoder
) -> Iterator[tuple[Split, int, list[int]]]:
    """Each document's split, UTF-8 bytes and token ids with EOS, in order."""
    for batch in _batches(documents):
        encoded = tokenizer.encode_batch([document.decode() for _, document in batch])
        for (split, document), ids in zip(batch, encoded, strict=True):
            yield split, len(document), [*ids, tokenizer.eos_id]


def _batches(documents: Iterable[tuple[Split, bytes]]) -> Iterator[list[tuple[Split, bytes]]]:
    batch: list[tuple[Split, bytes]] = []
    size = 0
    for split, document in documents:
        batch.append((split, document))
        size += len(document)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _SplitWriter:
    """Writes one split's documents to shards of at most `shard_tokens`, or of one longer document."""

    def __init__(self, folder: Path, split: Split, dtype: Dtype, shard_tokens: int) -> None:
        self.shards: list[Shard] = []
        self._folder = folder
        self._split: Split = split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = shard_tokens
        self._open: _ShardFile | None = None

    def add(self, ids: list[int], utf8_bytes: int) -> None:
        if self._open is not None and self._open.tokens + len(ids) > self._shard_tokens:
            self.close()
        if self._open is None:
            self._open = _ShardFile(self._folder / f"{self._split}-{len(self.shards):05d}")
        self._open.add(np.array(ids, self._dtype).tobytes(), len(ids), utf8_bytes)

    def close(self) -> None:
        if self._open is not None:
            self.shards.append(self._open.finish(self._split))
            self._open = None


class _ShardFile:
    def __init__(self, stem: Path) -> None:
        self.tokens = 0
        self._stem = stem
        self._utf8_bytes = 0
        self._starts = array("Q")
        self._digest = hashlib.sha256()
        self._file = stem.with_suffix(".bin").open("wb")

    def add(self, raw: bytes, tokens: int, utf8_bytes: int) -> None:
        self._file.write(raw)
        self._digest.update(raw)
        self._starts.append(self.tokens)
        self.tokens += tokens
        self._utf8_bytes += utf8_bytes

    def finish(self, split: Split) -> Shard:
        starts = np.array(self._starts, "<u8").tobytes()
        with self._file as tokens, self._stem.with_suffix(".idx").open("wb") as index:
            index.write(starts)
            for file in (tokens, index):
                file.flush()
                fsync_file(file.fileno())
        return Shard(
            name=self._stem.name,
            split=split,
            tokens=self.tokens,
            documents=len(self._starts),
            utf8_bytes=self._utf8_bytes,
            bin_sha256=self._digest.hexdigest(),
            idx_sha256=hashlib.sha256(starts).hexdigest(),
        )


def is_current(corpus: Corpus, tokenizer: TextEncoder, folder: Path) -> bool:
    """Whether the build in `folder`, if there is one, is of this corpus; nothing is said of its shards."""
    try:
        manifest = read_manifest(folder)
    except DataError:
        return False
    same_request = (
        manifest.tokenizer_sha256 == tokenizer.sha256
        and manifest.rule == corpus.rule
        and manifest.paths == [str(path) for path in corpus.paths]
        and manifest.validation_paths == [str(path) for path in corpus.validation_paths]
        and (corpus.validation_paths != () or manifest.validation_fraction == corpus.validation_fraction)
    )
    if not same_request or _sources_are_gone(corpus):
        return same_request
    sources = list_sources((*corpus.paths, *corpus.validation_paths))
    return len(sources) == len(manifest.sources) and all(map(_is_same, sources, manifest.sources))


def _sources_are_gone(corpus: Corpus) -> bool:
    return not any(path.exists() for path in (*corpus.paths, *corpus.validation_paths))


def _is_same(source: Source, record: SourceRecord) -> bool:
    if (str(source.path), source.size) != (record.path, record.size):
        return False
    return source.mtime_ns == record.mtime_ns or sha256_file(source.path) == record.sha256
