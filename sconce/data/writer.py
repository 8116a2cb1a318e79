"""Token shards while they are written, so that a build which was killed can be gone on with."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sconce.data.corpus import Split
from sconce.data.encode import Encoded
from sconce.data.shards import Dtype, Shard
from sconce.errors import DataError
from sconce.files import fsync_file


class SplitWriter:
    """Writes one split's documents to shards of at most `shard_tokens`, or of one longer document."""

    def __init__(self, folder: Path, split: Split, dtype: Dtype, shard_tokens: int) -> None:
        self.shards: list[Shard] = []
        self._folder = folder
        self._split: Split = split
        self._kind: Dtype = dtype
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = shard_tokens
        self._open: _ShardFile | None = None

    def add(self, encoded: Encoded) -> None:
        """Append the documents."""
        ends, first = np.cumsum(encoded.lengths), 0
        while first < len(ends):
            start = int(ends[first - 1]) if first else 0
            room = self._shard_tokens - (self._open.tokens if self._open is not None else 0)
            fitting = int(np.searchsorted(ends, start + room, side="right")) - first
            if fitting <= 0 and self._open is not None:
                self.close()
                continue
            last = first + max(fitting, 1)
            if self._open is None:
                self._open = _ShardFile(self._folder / f"{self._split}-{len(self.shards):05d}")
            ids = encoded.ids[start : int(ends[last - 1])].astype(self._dtype)
            self._open.add(ids.tobytes(), encoded.lengths[first:last], int(encoded.sizes[first:last].sum()))
            first = last

    def close(self) -> None:
        """Finish the shard that is open, if one is."""
        if self._open is not None:
            self.shards.append(self._open.finish(self._split))
            self._open = None

    def abandon(self) -> None:
        """Close the files as they are; that a full disk takes no more of them is known by then."""
        if self._open is not None:
            with suppress(OSError):
                self._open.close()

    def commit(self) -> dict[str, Any]:
        """Make all that was added durable, and say what `restore` needs to go on from here."""
        return {
            "shards": [asdict(shard) for shard in self.shards],
            "open": None if self._open is None else self._open.commit(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a commit, dropping what was written after it. Raises DataError if its files are not there."""
        self.shards = [Shard(**shard) for shard in state["shards"]]
        for shard in self.shards:
            for file in shard.files(self._kind):
                _check_size(self._folder / file.name, file.size, exact=True)
        if state["open"] is not None:
            stem = self._folder / f"{self._split}-{len(self.shards):05d}"
            self._open = _ShardFile(stem, state["open"], self._dtype.itemsize)


class _ShardFile:
    def __init__(self, stem: Path, state: Mapping[str, int] | None = None, width: int = 0) -> None:
        """A new shard, or the one that `state` says, whose tokens are `width` bytes each."""
        self.tokens = state["tokens"] if state is not None else 0
        self._documents = state["documents"] if state is not None else 0
        self._utf8_bytes = state["utf8_bytes"] if state is not None else 0
        self._stem = stem
        sizes = (self.tokens * width, self._documents * 8)
        if state is not None:
            for suffix, size in zip((".bin", ".idx"), sizes, strict=True):
                _check_size(stem.with_suffix(suffix), size, exact=False)
        mode = "r+b" if state is not None else "wb"
        self._files = tuple(stem.with_suffix(suffix).open(mode) for suffix in (".bin", ".idx"))
        self._digests = (hashlib.sha256(), hashlib.sha256())
        for file, digest, size in zip(self._files, self._digests, sizes, strict=True):
            file.truncate(size)
            if size:
                while block := file.read(2**20):
                    digest.update(block)

    def add(self, raw: bytes, lengths: np.ndarray[Any, np.dtype[np.int64]], utf8_bytes: int) -> None:
        starts = self.tokens + np.cumsum(lengths) - lengths
        for file, digest, content in zip(
            self._files, self._digests, (raw, starts.astype("<u8").tobytes()), strict=True
        ):
            file.write(content)
            digest.update(content)
        self.tokens += int(lengths.sum())
        self._documents += len(lengths)
        self._utf8_bytes += utf8_bytes

    def commit(self) -> dict[str, int]:
        for file in self._files:
            file.flush()
            fsync_file(file.fileno())
        return {"tokens": self.tokens, "documents": self._documents, "utf8_bytes": self._utf8_bytes}

    def close(self) -> None:
        with ExitStack() as stack:  # the second file also where the first cannot be flushed
            for file in self._files:
                stack.callback(file.close)

    def finish(self, split: Split) -> Shard:
        try:
            self.commit()
        finally:
            self.close()
        bin_sha256, idx_sha256 = (digest.hexdigest() for digest in self._digests)
        return Shard(
            name=self._stem.name,
            split=split,
            tokens=self.tokens,
            documents=self._documents,
            utf8_bytes=self._utf8_bytes,
            bin_sha256=bin_sha256,
            idx_sha256=idx_sha256,
        )


def _check_size(path: Path, size: int, *, exact: bool) -> None:
    found = path.stat().st_size if path.is_file() else -1
    if found < size or (exact and found != size):
        raise DataError(f"{path}: {found} bytes, expected {size}")
