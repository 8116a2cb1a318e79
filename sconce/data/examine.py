"""What a build of token shards holds, and whether it holds together; a piece at a time, whatever its size."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sconce.data.corpus import Split
from sconce.data.shards import MANIFEST, PACKING, Manifest, Shard, ShardFile, TokenArray, read_manifest
from sconce.files import sha256_file

_PIECE = 2**21  # tokens, or documents, at once
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStats:
    """One split in figures. A document's length is in tokens, without its EOS; quantiles go with QUANTILES.

    `length_counts` says how many documents have which length, `token_counts` how often each id occurs, (vocab,).
    """

    split: Split
    shards: int
    documents: int
    tokens: int
    utf8_bytes: int
    quantiles: list[int]
    length_counts: dict[int, int]
    token_counts: NDArray[np.int64]

    @property
    def mean_length(self) -> float:
        """Tokens a document, without its EOS."""
        return (self.tokens - self.documents) / max(1, self.documents)

    @property
    def tokens_per_byte(self) -> float:
        """Tokens, without EOS, over bytes of text."""
        return (self.tokens - self.documents) / max(1, self.utf8_bytes)

    def top_tokens(self, count: int) -> list[tuple[int, int]]:
        """The most frequent ids and how often they occur, the smaller id first among equals."""
        order = np.argsort(-self.token_counts, kind="stable")[:count]
        return [(int(token), int(self.token_counts[token])) for token in order if self.token_counts[token]]


def split_stats(folder: Path, manifest: Manifest, split: Split) -> SplitStats:
    """Read one split of the build in `folder`. Ids beyond the vocabulary are not counted: `faults` tells of them."""
    shards = [shard for shard in manifest.shards if shard.split == split]
    tokens = np.zeros(manifest.vocab_size, np.int64)
    lengths: Counter[int] = Counter()
    for shard in shards:
        for _, piece in _pieces(_mapped(folder, shard, ".bin", manifest.dtype)):
            tokens += np.bincount(piece, minlength=manifest.vocab_size)[: manifest.vocab_size]
        for length in _lengths(_mapped(folder, shard, ".idx", "uint64"), shard.tokens):
            values, counts = np.unique(length, return_counts=True)
            lengths.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return SplitStats(
        split=split,
        shards=len(shards),
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        utf8_bytes=sum(shard.utf8_bytes for shard in shards),
        quantiles=_quantiles(lengths),
        length_counts=dict(sorted(lengths.items())),
        token_counts=tokens,
    )


def faults(folder: Path) -> Iterator[str]:
    """Everything that is wrong with the build in `folder`; nothing if it is whole. Raises DataError without manifest.

    Checked are each file's size and sha256, that every id is of the vocabulary, that documents start one after the
    other and end with EOS, that shards are numbered without a gap, and that no file is there that is no part of it.
    """
    manifest = read_manifest(folder)
    yield from _wrong_names(folder, manifest)
    for shard in manifest.shards:
        wrong = [fault for file in shard.files(manifest.dtype) if (fault := _wrong_file(folder, file)) is not None]
        # Its content is worth reading only where nothing is wrong with its files.
        yield from wrong or _wrong_content(folder, shard, manifest)


def _wrong_names(folder: Path, manifest: Manifest) -> Iterator[str]:
    shards = manifest.shards
    for split in ("train", "validation"):
        names = [shard.name for shard in shards if shard.split == split]
        if names != [f"{split}-{number:05d}" for number in range(len(names))]:
            yield f"{folder}: {split} shards are not numbered one after the other: {', '.join(names)}"
    known = {MANIFEST, PACKING, *(file.name for shard in shards for file in shard.files(manifest.dtype))}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            yield f"{path}: no part of this build"


def _wrong_file(folder: Path, file: ShardFile) -> str | None:
    path = folder / file.name
    if not path.is_file():
        return f"{path}: missing"
    if (found := path.stat().st_size) != file.size:
        return f"{path}: {found:,} bytes, the manifest says {file.size:,}"
    return None if sha256_file(path) == file.sha256 else f"{path}: its content does not match its sha256"


def _wrong_content(folder: Path, shard: Shard, manifest: Manifest) -> Iterator[str]:
    name = folder / shard.name
    tokens, starts = _mapped(folder, shard, ".bin", manifest.dtype), _mapped(folder, shard, ".idx", "uint64")
    for start, piece in _pieces(tokens):
        if (beyond := np.flatnonzero(piece >= manifest.vocab_size)).size:
            token, at = int(piece[beyond[0]]), start + int(beyond[0])
            yield f"{name}.bin: token {at:,} is {token}, beyond the vocabulary of {manifest.vocab_size:,}"
            break
    if (fault := _wrong_starts(starts, shard.tokens)) is not None:
        yield f"{name}.idx: {fault}"
        return
    for first, piece in _pieces(starts):
        ends = np.append(piece[1:], starts[first + len(piece)] if first + len(piece) < len(starts) else shard.tokens)
        if manifest.cut and shard.split == "train" and first + len(piece) == len(starts):
            ends = ends[:-1]
        if (open_ended := np.flatnonzero(tokens[ends.astype(np.int64) - 1] != manifest.eos_id)).size:
            yield f"{name}.bin: document {first + int(open_ended[0]):,} does not end with token {manifest.eos_id}"
            break


def _wrong_starts(starts: NDArray[Any], tokens: int) -> str | None:
    if not len(starts):
        return "no documents" if tokens else None
    if starts[0]:
        return f"the first document starts at token {int(starts[0]):,}, not at 0"
    for first, length in enumerate(_lengths(starts, tokens)):
        if (wrong := np.flatnonzero(length < 0)).size:
            return (
                f"document {first * _PIECE + int(wrong[0]) + 1:,} does not start after the one before, inside the shard"
            )
    return None


def _lengths(starts: NDArray[Any], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Lengths of the documents without their EOS; below 0 where a start does not follow the one before."""
    for first, piece in _pieces(starts):
        after = first + len(piece)
        end = starts[after] if after < len(starts) else tokens
        yield np.diff(np.append(piece, end).astype(np.int64)) - 1


def _pieces(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(0, len(array), _PIECE):
        yield start, np.array(array[start : start + _PIECE])


def _mapped(folder: Path, shard: Shard, suffix: str, dtype: str) -> TokenArray:
    return np.memmap(folder / f"{shard.name}{suffix}", np.dtype(dtype).newbyteorder("<"), mode="r")


def _quantiles(lengths: Counter[int]) -> list[int]:
    """The lengths below which (or at which) a share of the documents lies, without interpolation."""
    if not lengths:
        return [0] * len(QUANTILES)
    values = np.array(sorted(lengths))
    ends = np.cumsum([lengths[int(value)] for value in values])
    return [int(values[int((ends < share * ends[-1]).sum())]) for share in QUANTILES]
