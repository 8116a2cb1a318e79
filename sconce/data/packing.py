"""Best-fit packing: which documents share a row, so that hardly a place is empty and no token is dropped.

A row has room for as many tokens as it has predictions. A longer document is cut into whole rows and a rest; rests and
short documents are packed by best-fit decreasing, a million documents at a time. Where that leaves too much empty, as
pieces of more than half a row do, some are cut again: rests, and passages of running text, which were cut out of it to
begin with. Any other document that fits into a row is never cut.

The plan is made once and kept beside the token shards, from which it can always be made again:

<shards>/packing/train-bestfit-1024.pieces   (token, length) of each piece, row by row, little-endian (uint64, uint32)
<shards>/packing/train-bestfit-1024.rows     the first piece of each row, and the number of pieces, uint64
<shards>/packing/train-bestfit-1024.json     sizes and hashes, written last
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sconce.data.corpus import Split
from sconce.data.kinds import kind_of
from sconce.data.shards import PACKING, Manifest, TokenData, TokenStore
from sconce.errors import DataError
from sconce.files import fsync_file, sha256_file, write_json

FORMAT = "sconce-bestfit-2"
PIECE = np.dtype([("start", "<u8"), ("length", "<u4")])
_BLOCK_DOCUMENTS = 2**20
_EMPTY = 0.005  # of all places: what packing may leave before more is cut

Say = Callable[[str], None]
Block = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Starts and lengths of documents in tokens, EOS included, (documents,) each."""


class Plan:
    """Which tokens each row holds; mapped, not read."""

    def __init__(self, stem: Path) -> None:
        # As plain arrays, whose slices cost a fraction of a memmap's.
        pieces = np.asarray(np.memmap(stem.with_suffix(".pieces"), PIECE, mode="r"))
        self._starts, self._lengths = pieces["start"], pieces["length"]
        self._firsts = np.asarray(np.memmap(stem.with_suffix(".rows"), np.dtype("<u8"), mode="r"))
        self.num_rows = len(self._firsts) - 1

    def pieces_of(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All pieces of these rows, row by row: which of the rows, first token, length, and place in the row."""
        firsts = self._firsts[rows].astype(np.int64)
        counts = self._firsts[rows + 1].astype(np.int64) - firsts
        row = np.repeat(np.arange(len(rows)), counts)
        piece = np.arange(len(row)) + (firsts - np.cumsum(counts) + counts)[row]
        lengths = self._lengths[piece].astype(np.int64)
        ends = np.cumsum(lengths)
        before = np.append(0, ends)[np.cumsum(counts) - counts]  # of all rows' tokens, those of the rows before
        return row, self._starts[piece].astype(np.int64), lengths, ends - lengths - before[row]

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """The row's pieces in order of the corpus: their tokens start .. end - 1 of the split."""
        first, last = int(self._firsts[row]), int(self._firsts[row + 1])
        starts, lengths = self._starts[first:last].tolist(), self._lengths[first:last].tolist()
        return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def open_plan(
    tokens: TokenData, split: Split, seq_len: int, part: tuple[int, int] | None = None, say: Say | None = None
) -> Plan:
    """The plan of a split, or of its tokens first .. last - 1, for rows of `seq_len`.

    The one that is kept with the shards if it is intact, else made anew, of which `say` hears.
    Raises DataError where it cannot be written.
    """
    store = tokens.train if split == "train" else tokens.validation
    first, last = part or (0, store.num_tokens)
    name = f"{split}-bestfit-{seq_len}" + (f"-{first}-{last}" if part else "")
    stem = tokens.folder / PACKING / name
    facts = {"format": FORMAT, "fingerprint": tokens.fingerprint, "sequence_length": seq_len}
    if not _is_intact(stem, facts):
        if say is not None:
            say(f"making the packing plan {stem}, which is missing or damaged")
        try:
            stem.parent.mkdir(exist_ok=True)
            _make(_blocks(store, first, last), seq_len, stem, facts, are_passages(tokens.manifest))
        except OSError as error:
            raise DataError(f"{stem.parent}: cannot be written: {error.strerror}") from error
    return Plan(stem)


def best_fit(lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """The row of each piece, (pieces,), where rows have `room` tokens: best-fit decreasing.

    The longest piece comes first, and each goes to the row with the least room that it fits in, else to a new one.
    Pieces of one length are placed together: into a row with room r go r // length of them before the next row.
    """
    assert len(lengths) == 0 or 1 <= lengths.min() <= lengths.max() <= room, "pieces that fit"
    rows = np.empty(len(lengths), np.int64)
    order: NDArray[np.int64] = np.argsort(-lengths, kind="stable")
    at = 0
    roomy: defaultdict[int, list[NDArray[np.int64]]] = defaultdict(list)  # by the room they have left
    num_rows = 0
    for length, count in zip(*(part[::-1].tolist() for part in np.unique(lengths, return_counts=True)), strict=True):
        todo = order[at : at + count]
        at += count
        for left in sorted(left for left in roomy if left >= length):
            if not len(todo):
                break
            fitting = np.concatenate(roomy.pop(left))
            taken = min(len(fitting), -(-len(todo) // (left // length)))
            if taken < len(fitting):
                roomy[left].append(fitting[taken:])
            todo = _fill(fitting[:taken], todo, left, length, rows, roomy)
        new = -(-len(todo) // (room // length))
        _fill(np.arange(num_rows, num_rows + new, dtype=np.int64), todo, room, length, rows, roomy)
        num_rows += new
    return rows


def _fill(
    into: NDArray[np.int64],
    todo: NDArray[np.int64],
    left: int,
    length: int,
    rows: NDArray[np.int64],
    roomy: defaultdict[int, list[NDArray[np.int64]]],
) -> NDArray[np.int64]:
    """Put pieces of one length into rows with `left` of room, as many as fit; the rest of the pieces."""
    each = left // length
    placed, rest = todo[: each * len(into)], todo[each * len(into) :]
    rows[placed] = np.repeat(into, each)[: len(placed)]
    full, more = divmod(len(placed), each)
    for some, room in ((into[:full], left - each * length), (into[full : full + 1], left - more * length)):
        if len(some) and room:
            roomy[room].append(some)
    return rest


def pour(
    pieces: NDArray[Any], rows: NDArray[np.int64], may_cut: NDArray[np.bool_], room: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Pieces and their rows, where rows of what may be cut alone are dissolved until hardly a place is empty.

    The least full ones go, no more of them than needed. Their pieces flow, in order, into what the other rows have
    left, the largest room first, cut where a row is full.
    """
    lengths = pieces["length"].astype(np.int64)
    used = np.bincount(rows, lengths).astype(np.int64)
    spare = np.bincount(rows, ~may_cut) == 0
    spare_rows = np.flatnonzero(spare)
    spare_rows = spare_rows[np.argsort(used[spare_rows], kind="stable")]
    flowing, left = used[spare_rows], room - used
    possible = int((np.cumsum(flowing) <= left.sum() - np.cumsum(room - flowing)).sum())
    wanted = len(used) - int(used.sum() / (room * (1 - _EMPTY)))
    gone = spare_rows[: max(0, min(possible, wanted))]
    if not len(gone):
        return pieces, rows
    moving = np.isin(rows, gone)
    left[gone] = 0
    into = np.argsort(-left, kind="stable")
    piece_ends, row_ends = np.cumsum(lengths[moving]), np.cumsum(left[into])
    ends = np.union1d(piece_ends, row_ends[row_ends < piece_ends[-1]])
    starts = np.append(0, ends[:-1])
    piece = np.searchsorted(piece_ends, starts, side="right")
    poured = np.empty(len(ends), PIECE)
    poured["start"] = pieces["start"][moving][piece] + (starts - (piece_ends - lengths[moving])[piece])
    poured["length"] = ends - starts
    to = into[np.searchsorted(row_ends, starts, side="right")]
    all_rows = np.concatenate([rows[~moving], to])
    return np.concatenate([pieces[~moving], poured]), np.unique(all_rows, return_inverse=True)[1]


def are_passages(manifest: Manifest) -> bool:
    """Whether documents are passages of running text, all of them."""
    return manifest.rule == "passage" and not any(kind_of(source.path).is_records for source in manifest.sources)


def _make(blocks: Iterator[Block], seq_len: int, stem: Path, facts: dict[str, Any], passages: bool) -> None:
    paths = [stem.with_suffix(suffix) for suffix in (".pieces", ".rows")]
    halves = [path.with_name(f".{path.name}.tmp-{os.getpid()}") for path in paths]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(half.open("wb")) for half in halves]
            _write(blocks, seq_len, passages, *files)
            for file in files:
                file.flush()
                fsync_file(file.fileno())
        hashes = {path.suffix: sha256_file(half) for path, half in zip(paths, halves, strict=True)}
        sizes = {path.suffix: half.stat().st_size for path, half in zip(paths, halves, strict=True)}
        for path, half in zip(paths, halves, strict=True):
            half.replace(path)
        write_json(stem.with_suffix(".json"), {**facts, "bytes": sizes, "sha256": hashes})
    finally:
        for half in halves:
            half.unlink(missing_ok=True)


def _write(blocks: Iterator[Block], seq_len: int, passages: bool, pieces_file: BinaryIO, rows_file: BinaryIO) -> None:
    done = 0
    for starts, lengths in blocks:
        pieces = _cut(starts, lengths, seq_len)
        may_cut = (pieces["length"] < seq_len) & (passages | ~np.isin(pieces["start"], starts))
        pieces, rows = pour(pieces, best_fit(pieces["length"].astype(np.int64), seq_len), may_cut, seq_len)
        in_order = np.argsort(pieces["start"], kind="stable")
        pieces, rows = pieces[in_order], rows[in_order]
        # Rows are numbered by their first token, so that the first rows of a split are no other kind than the last.
        _, firsts, rows = np.unique(rows, return_index=True, return_inverse=True)
        rank = np.empty_like(firsts)
        rank[np.argsort(firsts)] = np.arange(len(firsts))
        rows = rank[rows]
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum(np.bincount(rows))
        pieces_file.write(pieces[order].tobytes())
        rows_file.write((done + np.append(0, ends[:-1])).astype("<u8").tobytes())
        done += len(pieces)
    rows_file.write(np.array([done], "<u8").tobytes())


def _blocks(store: TokenStore, first: int, last: int) -> Iterator[Block]:
    """The documents of tokens first .. last - 1, some at a time."""
    for starts in store.document_starts(_BLOCK_DOCUMENTS):
        inside = (starts[:-1] >= first) & (starts[:-1] < last)
        if inside.any():
            yield starts[:-1][inside], np.diff(starts)[inside]


def _cut(starts: NDArray[np.int64], lengths: NDArray[np.int64], seq_len: int) -> NDArray[Any]:
    """Documents as pieces of at most `seq_len` tokens, in order."""
    counts = -(-lengths // seq_len)
    number = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces = np.empty(len(number), PIECE)
    pieces["start"] = np.repeat(starts, counts) + number * seq_len
    pieces["length"] = np.minimum(np.repeat(lengths, counts) - number * seq_len, seq_len)
    return pieces


def _is_intact(stem: Path, facts: dict[str, Any]) -> bool:
    try:
        kept = json.loads(stem.with_suffix(".json").read_bytes())
        return facts.items() <= kept.items() and all(
            stem.with_suffix(suffix).stat().st_size == kept["bytes"][suffix]
            and sha256_file(stem.with_suffix(suffix)) == kept["sha256"][suffix]
            for suffix in (".pieces", ".rows")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
