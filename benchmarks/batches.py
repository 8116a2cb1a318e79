"""How soon a run's first batch is there, and how fast batches come, by the size of the shards.

    python benchmarks/batches.py --rows 1_000_000_000 --megabytes 400

The start is opening the shards, making the order and reading the first batch, with all libraries loaded; a billion rows
are shards whose files are sparse, so that nothing of the disk is measured. Batches are read in the order of training,
shuffled, by one thread, from shards that the system has in memory; tokens are targets. The second figure is by that
thread's CPU time: what a core of its own would give on a busy machine.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from sconce.data.order import block_counts, make_order
from sconce.data.rows import ConcatRows, MixedRows, Rows, open_rows
from sconce.data.shards import Dtype, Manifest, Shard, TokenData, TokenStore
from sconce.ramp import Ramp, Stage

SHARD_TOKENS = 2**26
SEED = 1


def make_data(folder: Path, num_tokens: int, filled: bool) -> TokenData:
    """Shards of random tokens in documents of 700 on average, or sparse files of zeros."""
    rng = np.random.default_rng(SEED)
    shards: list[Shard] = []
    for number, first in enumerate(range(0, num_tokens, SHARD_TOKENS)):
        tokens = min(SHARD_TOKENS, num_tokens - first)
        name = f"train-{number:05d}"
        with (folder / f"{name}.bin").open("wb") as file:
            if filled:
                file.write(rng.integers(0, 50_000, tokens).astype("<u2").tobytes())
            file.truncate(2 * tokens)
        starts = np.unique(np.append(0, rng.integers(0, tokens, tokens // 700))) if filled else np.zeros(1)
        (folder / f"{name}.idx").write_bytes(starts.astype("<u8").tobytes())
        shards.append(
            Shard(
                name=name,
                split="train",
                tokens=tokens,
                documents=len(starts),
                utf8_bytes=0,
                bin_sha256="",
                idx_sha256="",
            )
        )
    return _open(folder, shards)


def _open(folder: Path, shards: list[Shard]) -> TokenData:
    dtype: Dtype = "uint16"
    manifest = Manifest(
        format="",
        tokenizer_sha256="",
        dtype=dtype,
        vocab_size=50_000,
        eos_id=0,
        rule="line",
        paths=[],
        validation_paths=[],
        validation_fraction=0.0,
        threshold=None,
        shards=shards,
        sources=[],
    )
    train = TokenStore(folder, shards, dtype)
    return TokenData(folder=folder, manifest=manifest, train=train, validation=TokenStore(folder, [], dtype))


def start_up(num_rows: int, seq_len: int, batch_size: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sconce-batches-") as folder:
        data = make_data(Path(folder), num_rows * seq_len + 1, filled=False)
        stages = Ramp((Stage(0, batch_size, seq_len // 4), Stage(1000, 2 * batch_size, seq_len)))
        half = data.train.num_tokens // 2
        for name, ramp, weights in (
            ("one source", Ramp((Stage(0, batch_size, seq_len),)), ()),
            ("two mixed", Ramp((Stage(0, batch_size, seq_len),)), [(0, block_counts((1, 3)))]),
            ("with stages", stages, ()),
        ):
            seconds: list[float] = []
            for _ in range(5):
                started = time.perf_counter()
                store = TokenStore(data.folder, data.manifest.shards, "uint16")
                parts = ((0, half), (half, store.num_tokens)) if weights else (None,)
                sources = [ConcatRows(store, seq_len, part) for part in parts]
                rows = MixedRows(sources) if weights else sources[0]
                order = make_order(rows.sizes, weights, ramp, SEED)
                rows.batch(order.rows(123_456), order.parts(123_456))
                seconds.append(time.perf_counter() - started)
            print(f"start    {name:12}  {rows.num_rows:,} rows: {1e3 * median(seconds):.1f} ms to the batch of a step")


def speed(rows: Rows, ramp: Ramp, name: str, seconds: float) -> None:
    order = make_order(rows.sizes, (), ramp, SEED)
    rows.batch(order.rows(0), order.parts(0))
    started, cpu_started, step = time.perf_counter(), time.thread_time(), 0
    while time.perf_counter() - started < seconds:
        batch = rows.batch(order.rows(step), order.parts(step))
        step += 1
    wall, cpu = time.perf_counter() - started, time.thread_time() - cpu_started
    count, length = batch.targets.shape
    tokens = step * count * length / 1e6
    print(f"batches  {name:24}  {tokens / wall:6,.0f} {tokens / cpu:6,.0f} M tokens/s ({count} rows of {length})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**9, help="rows of the start that is timed")
    parser.add_argument("--start-length", type=int, default=16, help="their length")
    parser.add_argument("--megabytes", type=int, default=200, help="of shards that batches are read from")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    start_up(options.rows, options.start_length, options.batch_size)
    with tempfile.TemporaryDirectory(prefix="sconce-batches-") as folder:
        data = make_data(Path(folder), options.megabytes * 500_000, filled=True)
        for length in options.lengths:
            ramp = Ramp((Stage(0, options.batch_size, length),))
            for packing in ("concat", "bestfit"):
                speed(open_rows(data, "train", length, packing), ramp, f"{packing}, {length}", options.seconds)
        parts = Ramp((Stage(0, options.batch_size, 1024 // 4), Stage(4 * 10**6, 1, 1024)))
        rows = open_rows(data, "train", 1024, "bestfit")
        speed(rows, parts, "bestfit, 1024 in parts", options.seconds)


if __name__ == "__main__":
    main()
