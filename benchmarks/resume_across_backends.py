"""A run that moves between MLX and PyTorch and back, against the same run that never moves.

    python benchmarks/resume_across_backends.py --input corpus.txt

Each leg is a `sconce train` process of its own, as a user would start it. For every optimizer, rate and precision it
prints the largest difference of any step's loss from the uninterrupted run in the first backend, and checks that both
saw the same rows. bf16 is judged by how far bf16 itself drifts from fp32, printed beside it.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 200
LEGS = (100, 150, 200)
LIMIT = 5e-5

# 4 layers of 128, grouped queries, norms on them, 8 rows of 64 tokens a step.
SHAPE = [
    "model.hidden_size=128",
    "model.num_layers=4",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2",
    "model.qk_norm=true",
    "model.max_position_embeddings=64",
    "data.batch_size=8",
    f"scheduler.total_steps={STEPS}",
    "scheduler.warmup_steps=10",
    "scheduler.strategy=cosine_with_warmup",
    "runtime.log_every_n_steps=1",
    "runtime.checkpoint.every_n_steps=1000",
    "runtime.evaluation.every_n_steps=1000",
    "runtime.evaluation.max_batches=4",
    "runtime.logging.tensorboard=false",
]


def sconce(*words: object) -> str:
    code = "from sconce_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise SystemExit(f"sconce {' '.join(map(str, words))}\n{done.stdout}")
    return done.stdout


def run(config: Path, folder: Path, overrides: list[str], legs: list[tuple[str, int]]) -> tuple[list[float], list[str]]:
    """Losses and row hashes of every step of a run whose legs are (backend, last step)."""
    options = [part for pair in overrides for part in ("--override", pair)]
    for backend, end in legs:
        stop = [] if end == STEPS else ["--stop-at", end]
        sconce("train", "-c", config, "--run-dir", folder, "--resume", "--backend", backend, *stop, "--quiet", *options)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1)), "a step is missing or twice"
    return [line["loss"] for line in steps], [line["rows_sha256"] for line in steps]


def worst(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="text to train on")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--optimizers", nargs="+", default=["adam_w", "muon"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--dropout", type=float, default=0.0)
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        sconce("tokenizer", "train", "--input", arguments.input, "--out", root / "tokenizer", "--vocab-size", 512)
        config = root / "run.json"
        sections = {
            "tokenizer": {"tokenizer_json": str(root / "tokenizer" / "tokenizer.json")},
            "data": {"train_shards": [str(arguments.input.resolve())], "cache_dir": str(root / "cache")},
        }
        config.write_text(json.dumps(sections))
        print(f"{'optimizer':9} {'rate':>7} {'precision':9} {'legs':18} {'max loss difference':>20}  drift bf16-fp32")
        cases = itertools.product(arguments.optimizers, arguments.rates, arguments.precisions)
        for number, (optimizer, rate, precision) in enumerate(cases):
            overrides = [*SHAPE, f"optimizer.algorithm={optimizer}", f"optimizer.learning_rate={rate}"]
            overrides += [f"model.{site}_dropout={arguments.dropout}" for site in ("attn", "residual")]
            for first, second in (("mlx", "cpu"), ("cpu", "mlx")):
                home = root / f"{number}-{first}"
                now = [*overrides, f"runtime.precision={precision}"]
                whole, rows = run(config, home / "whole", now, [(first, STEPS)])
                backends = (first, second, first)
                moved, moved_rows = run(config, home / "moved", now, list(zip(backends, LEGS, strict=True)))
                assert rows == moved_rows, "the two runs saw different rows"
                difference, drift = worst(whole, moved), ""
                if precision == "bf16":
                    full, _ = run(config, home / "fp32", overrides, [(first, STEPS)])
                    drift = f"{worst(whole, full):.1e}"
                    failed |= difference > worst(whole, full)
                else:
                    failed |= difference > LIMIT
                legs = " -> ".join({"cpu": "torch"}.get(backend, backend) for backend in backends)
                print(f"{optimizer:9} {rate:7.0e} {precision:9} {legs:18} {difference:20.1e}  {drift}", flush=True)
    raise SystemExit(f"a difference is above {LIMIT}, or above the drift" if failed else 0)


if __name__ == "__main__":
    main()
