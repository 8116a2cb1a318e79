"""Text to text: documents written anew as shards of lines or JSON lines, which every reader of text takes.

<folder>/train/train-00000.jsonl            one document a line; .txt, .gz too
<folder>/validation/validation-00000.jsonl  those held out by a hash of their text
<folder>/manifest.json                      written last
"""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from sconce.data.corpus import Corpus, Split, document_hash
from sconce.data.sources import Source
from sconce.errors import DataError
from sconce.files import fsync_file, fsync_folder, sha256_file, write_json

FORMAT = "sconce-text-1"
_MANIFEST = "manifest.json"

TextFormat = Literal["txt", "jsonl"]
Existing = Literal["refuse", "reuse", "force"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How shards are cut: at most `lines` documents or `size` bytes of text each, if given, but one at least.

    `validation_fraction` of the documents goes to a folder of its own.
    """

    format: TextFormat = "jsonl"
    lines: int | None = None
    size: int | None = None
    gzip: bool = False
    validation_fraction: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShard:
    """One file: `bytes` of text before compression, `sha256` of the file."""

    path: str
    split: Split
    documents: int
    bytes: int
    sha256: str


def shard_text(corpus: Corpus, folder: Path, options: TextOptions, existing: Existing) -> tuple[dict[str, Any], bool]:
    """Write the documents of a corpus as text shards; their manifest, and whether they were there already.

    Raises DataError when something is there and is not to be replaced, or cannot be used.
    """
    sources = corpus.sources()

    def documents() -> Iterator[bytes]:
        for source in sources:
            yield from source.documents(corpus.rule)

    request = text_request("shard", corpus, options, {})
    return make_text(request, sources, documents, folder, options, existing, dict[str, Any])


def has_text_shards(folder: Path) -> bool:
    """Whether `folder` holds text shards that are complete."""
    return _kept(folder) is not None


def are_shards_of(folder: Path, corpus: Corpus, options: TextOptions) -> bool:
    """Whether `folder` holds what `shard_text` would write, judged by its files' sizes. Raises DataError."""
    kept, request, sources = _kept(folder), text_request("shard", corpus, options, {}), corpus.sources()
    return kept is not None and _is_current(kept, folder, request, sources, verify=False)


def make_text(
    request: Mapping[str, Any],
    sources: list[Source],
    documents: Callable[[], Iterable[bytes]],
    folder: Path,
    options: TextOptions,
    existing: Existing,
    findings: Callable[[], dict[str, Any]],
) -> tuple[dict[str, Any], bool]:
    """Write `documents()` as `options` say, unless `folder` holds the same already and `existing` is "reuse".

    `request` is everything that decides what is written; `findings()`, called last, goes into the manifest too.
    """
    kept = _kept(folder)
    if existing == "reuse" and kept is not None and _is_current(kept, folder, request, sources):
        return kept, True
    if existing != "force" and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        why = "is not what is asked for now" if existing == "reuse" else "is there: --reuse takes it as it is"
        raise DataError(f"{folder}: {why}, --force replaces it")
    if existing == "force" and folder.exists() and kept is None and any(folder.iterdir()):
        raise DataError(f"{folder}: holds something other than text shards: choose another folder")
    new, old = (folder.with_name(f".{folder.name}.tmp-{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        shards = _write(documents(), new, options)
        manifest = {
            "format": FORMAT,
            "request": dict(request),
            **findings(),
            "shards": [asdict(shard) for shard in shards],
            "sources": [_source_facts(source) for source in sources],
        }
        write_json(new / _MANIFEST, manifest)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        fsync_folder(folder.parent)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)
    return manifest, False


def _write(documents: Iterable[bytes], folder: Path, options: TextOptions) -> list[TextShard]:
    threshold = int(options.validation_fraction * 2**64) if options.validation_fraction else -1
    writers: dict[Split, _Writer] = {}
    try:
        for number, document in enumerate(documents):
            split: Split = "validation" if document_hash(document) <= threshold else "train"
            if split not in writers:
                writers[split] = _Writer(folder, split, options)
            writers[split].add(document, number)
        if "train" not in writers:
            raise DataError("no document is left to write")
        return [shard for split in sorted(writers) for shard in writers[split].finish()]
    finally:
        for writer in writers.values():
            writer.abandon()


class _Writer:
    def __init__(self, folder: Path, split: Split, options: TextOptions) -> None:
        self._root, self._options = folder, options
        self._split: Split = split
        self._shards: list[TextShard] = []
        self._file: BinaryIO | None = None
        self._raw: BinaryIO | None = None
        self._documents = self._bytes = 0
        (folder / split).mkdir()

    def add(self, document: bytes, number: int) -> None:
        line = _line(document, number, self._options.format)
        full = self._documents == self._options.lines or (
            self._options.size is not None and self._bytes + len(line) > self._options.size
        )
        if self._file is not None and full:
            self._close()
        if self._file is None:
            self._open()
        assert self._file is not None
        self._file.write(line)
        self._documents += 1
        self._bytes += len(line)

    def finish(self) -> list[TextShard]:
        if self._file is not None:
            self._close()
        return self._shards

    def abandon(self) -> None:
        for file in (self._file, self._raw):
            if file is not None:
                with suppress(OSError):
                    file.close()

    def _path(self) -> Path:
        suffix = self._options.format + (".gz" if self._options.gzip else "")
        return Path(self._split) / f"{self._split}-{len(self._shards):05d}.{suffix}"

    def _open(self) -> None:
        self._raw = (self._root / self._path()).open("wb")
        self._documents = self._bytes = 0
        # No name and no time inside: the same documents give the same file.
        compressed = gzip.GzipFile("", "wb", 6, self._raw, mtime=0) if self._options.gzip else self._raw
        self._file = cast(BinaryIO, compressed)

    def _close(self) -> None:
        assert self._file is not None
        assert self._raw is not None
        if self._file is not self._raw:
            self._file.close()
        self._raw.flush()
        fsync_file(self._raw.fileno())
        self._raw.close()
        path = self._path()
        self._shards.append(
            TextShard(
                path=path.as_posix(),
                split=self._split,
                documents=self._documents,
                bytes=self._bytes,
                sha256=sha256_file(self._root / path),
            )
        )
        self._file = self._raw = None


def _line(document: bytes, number: int, kind: TextFormat) -> bytes:
    if kind == "jsonl":
        return json.dumps({"text": document.decode()}, ensure_ascii=False).encode() + b"\n"
    if len(document.splitlines()) > 1 or document.endswith((b"\n", b"\r")):
        raise DataError(
            f"document {number:,} (from 0) has several lines, and in .txt shards a line is a document: use --format "
            "jsonl, or --document line"
        )
    return document + b"\n"


def text_request(kind: str, corpus: Corpus, options: TextOptions, more: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides what is written, for the manifest."""
    rule = {"rule": corpus.rule, "text_field": corpus.text_field, "on_error": corpus.on_error}
    return {"kind": kind, **rule, **asdict(options), **more}


def _source_facts(source: Source) -> dict[str, Any]:
    return {
        "path": source.name,
        "size": source.size,
        "mtime_ns": source.mtime_ns,
        "sha256": source.sha256,
        "skipped": source.skipped,
    }


def _kept(folder: Path) -> dict[str, Any] | None:
    """The manifest of text shards in `folder`; None where there are none."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        return manifest if manifest["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_current(
    kept: dict[str, Any], folder: Path, request: Mapping[str, Any], sources: list[Source], *, verify: bool = True
) -> bool:
    try:
        same = kept["request"] == dict(request) and len(kept["sources"]) == len(sources)
        return (
            same
            and all(_is_intact(folder / shard["path"], shard, verify) for shard in kept["shards"])
            and all(_is_same(source, facts) for source, facts in zip(sources, kept["sources"], strict=True))
        )
    except (OSError, KeyError, TypeError):
        return False


def _is_intact(path: Path, shard: Mapping[str, Any], verify: bool) -> bool:
    if verify:
        return sha256_file(path) == shard["sha256"]
    return path.stat().st_size == shard["bytes"] or path.suffix == ".gz"


def _is_same(source: Source, facts: dict[str, Any]) -> bool:
    if (source.name, source.size) != (facts["path"], facts["size"]):
        return False
    return source.mtime_ns == facts["mtime_ns"] or sha256_file(source.path) == facts["sha256"]
