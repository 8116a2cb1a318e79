"""Running the `sconce` command as a user does, and small inputs for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

TEXT = "The quick brown fox jumps over the lazy dog, and number {} of the dogs answers {}.\n"

# A run of a few seconds: 1 layer of 16, and everything periodic happens several times.
SMALL = [
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.max_position_embeddings=32",
    "data.batch_size=4",
    "scheduler.total_steps=30",
    "scheduler.warmup_steps=3",
    "runtime.log_every_n_steps=5",
    "runtime.checkpoint.every_n_steps=10",
    "runtime.evaluation.every_n_steps=15",
    "runtime.sample.every_n_steps=15",
    "runtime.sample.max_tokens=8",
]


def overrides(*more: str) -> list[str]:
    """--override options for SMALL and then `more`."""
    return [part for pair in (*SMALL, *more) for part in ("--override", pair)]


def write_corpus(path: Path, lines: int = 600) -> Path:
    """A text of passages that differ."""
    parts = []
    for number in range(lines):
        parts.append(TEXT.format(number, number * number))
        if number % 20 == 19:
            parts.append("\n")
    path.write_text("".join(parts), encoding="utf-8")
    return path


def start(*arguments: object, **options) -> subprocess.Popen:
    """The command in a process of its own."""
    code = "from sconce_cli.main import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLX_DISABLE_COMPILE": "1", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def sconce(*arguments: object, **options) -> subprocess.CompletedProcess:
    """The command, run to its end."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def records(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoints(run: Path) -> list[str]:
    """Names of the committed checkpoints, oldest first."""
    return sorted(path.parent.name for path in (run / "checkpoints").glob("step-*/manifest.json"))


def weights(run: Path, step: int) -> dict[str, bytes]:
    """What the checkpoint of a step holds, as bytes by file."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}
