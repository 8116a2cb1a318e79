"""Text shards while they are written, so that a build which was killed can be gone on with."""

import gzip
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from sconce.data.corpus import Split
from sconce.errors import DataError
from sconce.files import fsync_file, fsync_folder, sha256_file

TextFormat = Literal["txt", "jsonl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How shards are cut: at most `lines` documents or `size` bytes of text each, if given, but one at least.

    `validation_fraction` of the documents goes to a folder of its own. With `take` only the first so many are read.
    """

    format: TextFormat = "jsonl"
    lines: int | None = None
    size: int | None = None
    gzip: bool = False
    validation_fraction: float = 0.0
    take: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShard:
    """One file: `bytes` of text before compression, `sha256` of the file."""

    path: str
    split: Split
    documents: int
    bytes: int
    sha256: str


class TextWriter:
    """Writes one split's documents, a line each."""

    def __init__(self, root: Path, split: Split, options: TextOptions) -> None:
        self._root, self._options = root, options
        self._split: Split = split
        self._shards: list[TextShard] = []
        self._sizes: list[int] = []  # of their files
        self._raw: BinaryIO | None = None  # the shard that is open
        self._file: BinaryIO | None = None  # the same, or what compresses into it
        self._documents = self._bytes = 0

    def add(self, document: bytes, number: int) -> None:
        """Append document `number` of the corpus. Raises DataError for one that cannot be a line."""
        line = _line(document, number, self._options.format)
        full = self._documents == self._options.lines or (
            self._options.size is not None and self._bytes + len(line) > self._options.size
        )
        if self._raw is not None and full:
            self._close()
        if self._raw is None:
            (self._root / self._split).mkdir(exist_ok=True)
            self._raw, self._documents, self._bytes = (self._root / self._path()).open("wb"), 0, 0
        if self._file is None:
            # No name and no time inside: the same documents give the same file.
            compressed = gzip.GzipFile("", "wb", 6, self._raw, mtime=0) if self._options.gzip else self._raw
            self._file = cast(BinaryIO, compressed)
        self._file.write(line)
        self._documents += 1
        self._bytes += len(line)

    def finish(self) -> list[TextShard]:
        """Close the shard that is open, if one is; all shards."""
        if self._raw is not None:
            self._close()
        if self._shards:
            fsync_folder(self._root / self._split)
        return self._shards

    def abandon(self) -> None:
        """Close the files as they are; that a full disk takes no more of them is known by then."""
        for file in (self._file, self._raw):
            if file is not None:
                with suppress(OSError):
                    file.close()
        self._file = self._raw = None

    def commit(self) -> dict[str, Any]:
        """Make all that was added durable, and say what `restore` needs. Compressed data ends here and begins anew."""
        state: dict[str, Any] = {
            "shards": [asdict(shard) for shard in self._shards],
            "sizes": self._sizes,
            "open": None,
        }
        if self._raw is not None:
            self._flush()
            facts = {"documents": self._documents, "bytes": self._bytes}
            state["open"] = {**facts, "size": (self._root / self._path()).stat().st_size}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `commit` said. Raises DataError, or OSError, when the files are no longer so long."""
        self._shards = [TextShard(**shard) for shard in state["shards"]]
        self._sizes = list(state["sizes"])
        for shard, size in zip(self._shards, self._sizes, strict=True):
            if (self._root / shard.path).stat().st_size != size:
                raise DataError(f"{self._root / shard.path}: not {size} bytes")
        if (facts := state["open"]) is not None:
            path = self._root / self._path()
            if path.stat().st_size < facts["size"]:
                raise DataError(f"{path}: less than {facts['size']} bytes")
            self._raw, self._documents, self._bytes = path.open("r+b"), facts["documents"], facts["bytes"]
            self._raw.truncate(facts["size"])
            self._raw.seek(facts["size"])

    def _path(self) -> Path:
        suffix = self._options.format + (".gz" if self._options.gzip else "")
        return Path(self._split) / f"{self._split}-{len(self._shards):05d}.{suffix}"

    def _flush(self) -> None:
        assert self._raw is not None
        if self._file is not None and self._file is not self._raw:
            self._file.close()
        self._file = None
        self._raw.flush()
        fsync_file(self._raw.fileno())

    def _close(self) -> None:
        assert self._raw is not None
        self._flush()
        self._raw.close()
        path = self._path()
        self._sizes.append((self._root / path).stat().st_size)
        self._shards.append(
            TextShard(
                path=path.as_posix(),
                split=self._split,
                documents=self._documents,
                bytes=self._bytes,
                sha256=sha256_file(self._root / path),
            )
        )
        self._raw = None


def _line(document: bytes, number: int, kind: TextFormat) -> bytes:
    if kind == "jsonl":
        return json.dumps({"text": document.decode()}, ensure_ascii=False).encode() + b"\n"
    if b"\n" in document or b"\r" in document:
        raise DataError(
            f"document {number:,} (from 0) has several lines, and in .txt shards a line is a document: use --format "
            "jsonl, or --document line"
        )
    return document + b"\n"
