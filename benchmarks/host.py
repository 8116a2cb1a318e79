"""What a training step costs beside the device's work: the loop around it, its Python, and the wait for data.

    python benchmarks/host.py [--backend cpu|mlx|cuda] [--shape S] [--compile]

loop      the real training loop, from one update's figures to the next update's call, metrics and log included, with
          a learner that does nothing: processor time of its thread
step      the learner's own Python and calls, as `sconce bench` finds them (`sconce.training.bench.host_seconds`):
          processor time of its thread
data      waited for the thread that reads ahead, in real steps: by the clock, as a share of the step

Processor time, as far as it is one, does not count what other work on the machine takes; but a busy machine's caches
make it up to twice as long.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

from shapes import SHAPES, write_config

from sconce.backend import StepMetrics
from sconce.config import load_config
from sconce.training.bench import bench_config
from sconce.training.loop import train
from sconce.training.metrics import Silent
from sconce.training.run import RunFolder, open_run

UPDATES = 400


class Done:
    """An update that took no time."""

    def ready(self) -> bool:
        return True

    def read(self) -> StepMetrics:
        return StepMetrics(loss=1.0, grad_norm=1.0, tokens=1)


def loop_seconds(config, hardware: str, folder: Path) -> float:
    """Processor seconds an update that the loop's thread takes; log lines come every 10th, as is the default."""
    marks: list[float] = []

    def step(*_: object) -> Done:
        marks.append(time.thread_time())
        return Done()

    run = open_run(config, RunFolder(folder), hardware=hardware, resume=False, reporter=Silent())
    with (
        mock.patch.object(run.learner, "step", step),
        mock.patch("sconce.training.loop._Trainer.save"),
        mock.patch("sconce.training.loop.rows_sha256", return_value="0" * 64),  # of the other thread
    ):
        train(run, stop_at=UPDATES)
    return (marks[-1] - marks[20]) / (len(marks) - 21)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu", choices=["cpu", "mlx", "cuda"])
    parser.add_argument("--shape", default="S", choices=SHAPES)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    changes = [
        f"runtime.compile={str(arguments.compile).lower()}",
        "runtime.evaluation.every_n_steps=100000",
        "runtime.checkpoint.every_n_steps=100000",
        "runtime.sample.every_n_steps=100000",
    ]
    with tempfile.TemporaryDirectory() as place:
        config = load_config(write_config(SHAPES[arguments.shape], Path(place)), changes)
        loop = loop_seconds(config, arguments.backend, Path(place) / "run")
        found = bench_config(config, hardware=arguments.backend, steps=arguments.steps, reporter=Silent())
    step, wait = found.host_ms.median, found.data_wait_ms.median
    print(f"loop  {1e3 * loop:6.2f} ms of processor time a step")
    print(f"step  {step:6.2f} ms ({found.host_ms.low:.2f} to {found.host_ms.high:.2f})")
    print(f"host  {1e3 * loop + step:6.2f} ms, of steps that took {found.step_ms.median:.1f} ms by the clock")
    share = wait / found.step_ms.median
    print(f"data  {wait:6.3f} ms waited, {share:.3%} of the step; {found.data_ms.median:.1f} ms to read")


if __name__ == "__main__":
    main()
