"""What crosses from data to a backend: one micro-batch of token rows."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sconce.data.shards import TokenStore
from sconce.errors import DataError


class Batch(NamedTuple):
    """Rows of tokens and, one position later, what they should predict. A target of -1 is not scored.

    With `segments`, a token sees only those of its row that have its segment's number.
    """

    inputs: NDArray[np.int32]  # (batch, seq)
    targets: NDArray[np.int32]  # (batch, seq)
    segments: NDArray[np.int32] | None = None  # (batch, seq)


NO_ROWS = "0" * 64  # where the chain of `chain_rows` starts


def rows_sha256(rows: NDArray[np.int64], batches: Sequence[Batch]) -> str:
    """Hex SHA-256 of row numbers and their tokens; the same however the rows are split into batches."""
    digest = hashlib.sha256(rows.astype("<i8").tobytes())
    segments = [batch.segments for batch in batches if batch.segments is not None]
    for part in (*(batch.inputs for batch in batches), *(batch.targets for batch in batches), *segments):
        digest.update(np.ascontiguousarray(part, "<i4").data)
    return digest.hexdigest()


def chain_rows(so_far: str, step_sha256: str) -> str:
    """Extend the chain over every step's `rows_sha256`: two runs with equal chains have seen the same rows."""
    return hashlib.sha256(bytes.fromhex(so_far) + bytes.fromhex(step_sha256)).hexdigest()


def num_rows(store: TokenStore, seq_len: int) -> int:
    """Rows of `seq_len` predictions that the tokens give, one after the other: see `read_batch`.

    Raises DataError when there is not one row.
    """
    rows = (store.num_tokens - 1) // seq_len
    if rows < 1:
        raise DataError(
            f"corpus shorter than one row: {store.num_tokens} tokens, and data.sequence_length {seq_len} needs "
            f"{seq_len + 1}: set a smaller data.sequence_length or give more text"
        )
    return rows


def read_batch(store: TokenStore, rows: NDArray[np.int64], seq_len: int, first: int = 0) -> Batch:
    """The given rows, (len(rows), seq_len); row j is seq_len + 1 tokens from first + j*seq_len on.

    Neighbours share one token, the last target of one and the first input of the next.
    """
    tokens = store.read_rows(first + rows * seq_len, seq_len + 1)
    return Batch(tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32))


def regroup(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The same rows in the same order, `size` at a time."""
    inputs = np.concatenate([batch.inputs for batch in batches])
    targets = np.concatenate([batch.targets for batch in batches])
    known = [batch.segments for batch in batches if batch.segments is not None]
    segments = np.concatenate(known) if known else None
    return [
        Batch(inputs[i : i + size], targets[i : i + size], None if segments is None else segments[i : i + size])
        for i in range(0, len(inputs), size)
    ]


def validation_batches(
    store: TokenStore, seq_len: int, batch_size: int, max_batches: int | None = None
) -> Iterator[Batch]:
    """Every token but the first as a target once, in order; the first `max_batches` batches of that.

    All batches are (batch_size, seq_len): after the last token inputs are 0 and targets -1.
    """
    per_batch = batch_size * seq_len
    count = -(-(store.num_tokens - 1) // per_batch)
    for batch in range(count if max_batches is None else min(count, max_batches)):
        start = batch * per_batch
        scored = min(per_batch, store.num_tokens - 1 - start)
        tokens = store.read(start, scored + 1)
        inputs = np.zeros(per_batch, np.int32)
        targets = np.full(per_batch, -1, np.int32)
        inputs[:scored], targets[:scored] = tokens[:-1], tokens[1:]
        yield Batch(inputs.reshape(batch_size, seq_len), targets.reshape(batch_size, seq_len))
