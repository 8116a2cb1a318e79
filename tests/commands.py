"""Running the `sconce` command as a user does, and small inputs for it."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from sconce_cli.main import main

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


def sconce_here(*arguments: object, cwd: Path | str = ".") -> subprocess.CompletedProcess:
    """The command in this process, which spares the frameworks' start; what is not caught fails the test."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", ["sconce", *map(str, arguments)])
    with redirect_stdout(out), redirect_stderr(err), chdir(cwd), argv:
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@contextmanager
def serving(run: Path, backend: str, *arguments: object) -> Iterator[tuple[str, subprocess.Popen]]:
    """`sconce serve` on a free port: its address and its process, which ends with the block."""
    process = start("serve", run, "--port", 0, "--backend", backend, *arguments)
    try:
        for line in process.stderr:
            if (found := re.search(r"at (http://\S+)/v1", line)) is not None:
                break
        else:
            raise AssertionError("the server ended before it served")
        yield found[1], process
    finally:
        process.terminate()
        process.communicate(timeout=20)


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


def sign(folder: Path, changes: dict[str, object] | None = None) -> None:
    """Make a checkpoint's manifest agree with its files again, then change its keys: no hash can tell any more."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for name, file in manifest["files"].items():
        content = (folder / name).read_bytes()
        file.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest |= changes or {}
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Apply `change` to the object in a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
