"""Token shards on disk, and reading them.

<folder>/train-00000.bin   token ids, raw little-endian uint16 (uint32 for vocabularies above 65536)
<folder>/train-00000.idx   where each document starts, in tokens from the shard's start, little-endian uint64
<folder>/manifest.json     written last: the folder is complete if and only if it is there
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from sconce.data.corpus import Split
from sconce.data.encode import usable_cores
from sconce.data.sources import DocumentRule, OnError, Source
from sconce.errors import DataError
from sconce.files import sha256_file
from sconce.typed import checked

FORMAT = "sconce-tokens-2"
_READABLE = (FORMAT, "sconce-tokens-1")  # which differs in what some source files were read as
MANIFEST = "manifest.json"
PACKING = "packing"  # a folder beside the shards: packing plans, which can always be made again
_REMEDY = "delete the folder and prepare the data again"

_KNOWN_KEYS = ConfigDict(extra="forbid")

Dtype = Literal["uint16", "uint32"]
TokenArray = NDArray[np.uint16] | NDArray[np.uint32]


def dtype_for(vocab_size: int) -> Dtype:
    """What holds the ids of so many tokens."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


class ShardFile(NamedTuple):
    """A file of a shard, as it should be; `size` in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One pair of files, <name>.bin and <name>.idx. `utf8_bytes` is of the text, without end-of-text tokens."""

    __pydantic_config__: ClassVar = _KNOWN_KEYS
    name: str
    split: Split
    tokens: int
    documents: int
    utf8_bytes: int
    bin_sha256: str
    idx_sha256: str

    def files(self, dtype: Dtype) -> tuple[ShardFile, ShardFile]:
        """Its tokens, which are of `dtype`, and its index."""
        return (
            ShardFile(f"{self.name}.bin", self.tokens * np.dtype(dtype).itemsize, self.bin_sha256),
            ShardFile(f"{self.name}.idx", self.documents * 8, self.idx_sha256),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """A file as it was when it was read; size and hash are of its raw bytes.

    `skipped` counts what of it could not be used: records, lines of text, rests of damaged files.
    """

    __pydantic_config__: ClassVar = _KNOWN_KEYS
    path: str
    size: int
    mtime_ns: int
    sha256: str
    skipped: int = 0

    def is_of(self, source: Source) -> bool:
        """Whether the file is the same still: by name and size, and by time or else content."""
        if (source.name, source.size) != (self.path, self.size):
            return False
        return source.mtime_ns == self.mtime_ns or sha256_file(source.path) == self.sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a build.

    `path_tokens` are the training tokens of each of `paths`, which lie one after the other, and `held_out_tokens` the
    validation's of each of `validation_paths`, or without those of `paths`; empty in a build from before they were
    counted. `threshold` is None when the validation text was given as files of its own. `cut` says that this is a
    window of a stream, whose last training document may go on in the next one. `commits` are those of the paths that
    are data sets of the hub, by address.
    """

    __pydantic_config__: ClassVar = _KNOWN_KEYS
    format: str
    tokenizer_sha256: str
    dtype: Dtype
    vocab_size: int
    eos_id: int
    rule: DocumentRule
    paths: list[str]
    validation_paths: list[str]
    validation_fraction: float
    threshold: int | None
    shards: list[Shard]
    sources: list[SourceRecord]
    text_field: str = "text"
    on_error: OnError = "stop"
    path_tokens: list[int] = field(default_factory=list[int])
    held_out_tokens: list[int] = field(default_factory=list[int])
    cut: bool = False
    commits: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class DocumentSpan:
    """Document `index` of its split, counted from 0: tokens start .. end - 1 of the split, its EOS the last."""

    index: int
    start: int
    end: int


class TokenStore:
    """One split: its shards, memory-mapped, as a single sequence of tokens."""

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: Dtype) -> None:
        self.num_tokens = sum(shard.tokens for shard in shards)
        self.num_documents = sum(shard.documents for shard in shards)
        self.utf8_bytes = sum(shard.utf8_bytes for shard in shards)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._token_files = [folder / f"{shard.name}.bin" for shard in shards]
        self._mapped: list[memoryview | None] = [None] * len(shards)
        self._ends = list(accumulate(shard.tokens for shard in shards))
        self._shard_ends = np.array(self._ends, np.int64)
        self._index_files = [folder / f"{shard.name}.idx" for shard in shards]
        self._document_ends = np.cumsum([shard.documents for shard in shards], dtype=np.int64)

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """A copy of tokens start .. start + count - 1, (count,)."""
        assert 0 <= start <= start + count <= self.num_tokens, f"tokens {start}+{count} of {self.num_tokens}"
        if count == 0:
            return np.empty(0, np.int32)
        return self.read_pieces(np.array([start]), np.array([count])).astype(np.int32)

    def read_rows(self, starts: NDArray[np.int64], count: int) -> TokenArray:
        """For each start a copy of tokens start .. start + count - 1, (len(starts), count)."""
        return self.read_pieces(starts, np.full_like(starts, count)).reshape(-1, count)

    def read_pieces(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> TokenArray:
        """A copy of tokens start .. start + length - 1 of each piece, one piece after the other, (sum(lengths),)."""
        shards: list[int] = np.searchsorted(self._shard_ends, starts, side="right").tolist()
        width = self._dtype.itemsize
        # From the shard's end, in bytes.
        firsts = (starts - self._shard_ends[shards]) * width
        lasts = firsts + lengths * width
        found: list[memoryview] = []
        # Not one gather a shard: of a large corpus, a batch has about as many shards as rows.
        for shard, first, last in zip(shards, firsts.tolist(), lasts.tolist(), strict=True):
            raw = self._mapped[shard] or self._map(shard)
            found.append(raw[first : last if last < 0 else None])
            if last > 0:
                found += self._following(shard, last)
        return np.frombuffer(b"".join(found), self._dtype)

    def _following(self, shard: int, size: int) -> Iterator[memoryview]:
        """The first `size` bytes of the shards after this one."""
        while size > 0:
            shard += 1
            raw = self._mapped[shard] or self._map(shard)
            yield raw[:size]
            size -= len(raw)

    def _map(self, shard: int) -> memoryview:
        """A shard's bytes, mapped when first asked for: a run may have thousands, and begins with few of them."""
        # As a plain view, whose slices cost a fraction of a memmap's.
        raw: memoryview = np.memmap(self._token_files[shard], np.uint8, mode="r").data
        self._mapped[shard] = raw
        return raw

    def document_starts(self, count: int) -> Iterator[NDArray[np.int64]]:
        """Where documents start in the split, `count` at a time, and last of each where the one after them does."""
        for starts, first, end in zip(self._document_starts, [0, *self._ends], self._ends, strict=False):
            for at in range(0, len(starts), count):
                some = np.array(starts[at : at + count + 1], np.int64) + first
                yield some if at + count < len(starts) else np.append(some, end)

    def documents(self, start: int, count: int) -> Iterator[DocumentSpan]:
        """The documents that tokens start .. start + count - 1 are of, in order; found by bisection."""
        assert 0 <= start < start + count <= self.num_tokens, f"tokens {start}+{count} of {self.num_tokens}"
        at = start
        while at < start + count:
            span = self._document_at(at)
            yield span
            at = span.end

    def _document_at(self, token: int) -> DocumentSpan:
        shard = bisect_right(self._ends, token)
        starts, first = self._document_starts[shard], ([0, *self._ends])[shard]
        size = self._ends[shard] - first
        # A key of another type would make searchsorted convert, and so read, the whole file.
        local = int(np.searchsorted(starts, np.uint64(token - first), side="right")) - 1
        end = int(starts[local + 1]) if local + 1 < len(starts) else size
        before = int(self._document_ends[shard]) - len(starts)
        return DocumentSpan(before + local, first + int(starts[local]), first + end)

    @cached_property
    def _document_starts(self) -> list[NDArray[np.uint64]]:
        """Of each shard, in tokens from its start; mapped when first asked for, since training never does."""
        return [np.memmap(path, np.dtype("<u8"), mode="r") for path in self._index_files]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenData:
    """A complete build, open for reading."""

    folder: Path
    manifest: Manifest
    train: TokenStore
    validation: TokenStore

    @property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the tokenizer.json that made these tokens."""
        return self.manifest.tokenizer_sha256

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id that can occur."""
        return self.manifest.vocab_size

    @property
    def eos_id(self) -> int:
        """The token after every document."""
        return self.manifest.eos_id

    @property
    def fingerprint(self) -> str:
        """SHA-256 that two builds share if and only if they hold the same tokens; paths and times do not enter."""
        facts = [self.manifest.dtype, self.tokenizer_sha256]
        facts += [f"{shard.split} {shard.bin_sha256} {shard.idx_sha256}" for shard in self.manifest.shards]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def open_tokens(folder: Path, verify: bool = True) -> TokenData:
    """Open a build. Sizes are always checked, the shards' hashes with `verify`.

    Raises DataError, naming the file, when something is missing or damaged.
    """
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        if shard.tokens < 1 or shard.documents < 1:
            raise DataError(f"{folder / shard.name}.bin: damaged, the manifest knows of no tokens in it: {_REMEDY}")
        for file in shard.files(manifest.dtype):
            _check_size(folder / file.name, file.size)
    if verify:
        _check_hashes(folder, [file for shard in manifest.shards for file in shard.files(manifest.dtype)])
    train, validation = (
        TokenStore(folder, [shard for shard in manifest.shards if shard.split == split], manifest.dtype)
        for split in ("train", "validation")
    )
    return TokenData(folder=folder, manifest=manifest, train=train, validation=validation)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the shape of a build's manifest; DataError when there is none or it is damaged."""
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_bytes())
        if fields["format"] not in _READABLE:
            raise DataError(f"{path}: format {fields['format']!r}, expected {FORMAT}: {_REMEDY}")
        return checked(_manifest_type(), fields)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), so the folder is no complete build") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error}): {_REMEDY}") from error


@cache
def _manifest_type() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise DataError(f"{path}: missing: {_REMEDY}") from None
    if found != size:
        raise DataError(f"{path}: damaged, {found} bytes instead of {size}: {_REMEDY}")


def _check_hashes(folder: Path, files: Sequence[ShardFile]) -> None:
    """On all cores: a run of a large corpus should not wait for one of them when it starts."""
    paths = [folder / file.name for file in files]
    with ThreadPoolExecutor(usable_cores()) as pool:
        for file, path, found in zip(files, paths, pool.map(sha256_file, paths), strict=True):
            if found != file.sha256:
                raise DataError(f"{path}: damaged, its content does not match its sha256: {_REMEDY}")
