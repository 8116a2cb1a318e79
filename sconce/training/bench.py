"""How fast a config trains here, phase by phase. Nothing is kept."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from sconce.backend import Hardware, StepScalars
from sconce.config import RunConfig, micro_batch_at
from sconce.data.batches import Batch, rows_sha256
from sconce.data.rows import read_in_parts
from sconce.flops import count_flops
from sconce.schedule import learning_rate
from sconce.training.metrics import Reporter
from sconce.training.run import Run, RunFolder, open_run

WARM_UP = 3  # updates: the first compile, allocate and choose kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of repeated measurements, and their quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Milliseconds of one optimizer step by phase.

    `data` is reading and hashing its rows, which in training a thread does meanwhile; `host` is until the call for an
    update returns, `step` until its figures are there. `forward_backward` is the difference between a step whose
    micro-batches are given twice and a plain one, `optimizer` what remains of the plain one.
    """

    steps: int
    micro_batch_size: int
    tokens_per_step: int
    tokens_per_second: Spread
    data_ms: Spread
    host_ms: Spread
    step_ms: Spread
    forward_backward_ms: float
    optimizer_ms: float
    memory_bytes: int
    utilization: dict[str, float]

    def as_object(self) -> dict[str, object]:
        """All of it as JSON values."""
        return asdict(self)


def bench_config(
    config: RunConfig,
    *,
    hardware: Hardware,
    steps: int,
    reporter: Reporter,
    clock: Callable[[], float] = time.perf_counter,
) -> Bench:
    """Train `steps` updates in a folder that is thrown away, and time them. Raises as `open_run` does."""
    with tempfile.TemporaryDirectory(prefix="sconce-bench-") as place:
        run = open_run(config, RunFolder(Path(place)), hardware=hardware, resume=False, reporter=reporter)
        with closing(run):
            return bench_run(run, steps, clock)


def bench_run(run: Run, steps: int, clock: Callable[[], float]) -> Bench:
    """Time `steps` updates of an open run, after a warm-up: those of its last stage."""
    data: list[float] = []
    host: list[float] = []
    single: list[float] = []
    double: list[float] = []
    stage = run.order.ramp.stages[-1]
    tokens = stage.batch_size * stage.seq_len
    yardstick = replace(run.yardstick, flops_per_token=count_flops(run.spec, stage.seq_len).training)
    begin = stage.first_step + WARM_UP
    for step in range(stage.first_step, begin):
        _update(run, _read(run, step), step, clock)
    peak = run.backend.memory()  # now: a step of twice the micro-batches may need more
    for step in range(begin, begin + steps):
        started = clock()
        batches = _read(run, step)
        data.append(clock() - started)
        returned, done = _update(run, batches, step, clock)
        host.append(returned)
        single.append(done)
        double.append(_update(run, [*batches, *batches], step, clock)[1])
    once = median(single)
    forward_backward = min(max(median(double) - once, 0.0), once)
    rate = _spread([tokens / seconds for seconds in single], 1.0)
    return Bench(
        steps=steps,
        micro_batch_size=micro_batch_at(run.config, stage.first_step),
        tokens_per_step=tokens,
        tokens_per_second=rate,
        data_ms=_spread(data, 1e3),
        host_ms=_spread(host, 1e3),
        step_ms=_spread(single, 1e3),
        forward_backward_ms=1e3 * forward_backward,
        optimizer_ms=1e3 * (once - forward_backward),
        memory_bytes=peak,
        utilization=yardstick.shares(rate.median),
    )


def _read(run: Run, step: int) -> list[Batch]:
    rows = run.order.rows(step)
    batches = read_in_parts(run.data.rows, rows, run.order.parts(step), micro_batch_at(run.config, step))
    rows_sha256(rows, batches)
    return batches


def _update(run: Run, batches: Sequence[Batch], step: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds until the call returned, and until its figures were there.

    What of the update the device then still has to do, the next one pays for: over many it evens out.
    """
    started = clock()
    rate = learning_rate(run.schedule, min(step, run.schedule.total_steps - 1))
    pending = run.learner.step(batches, StepScalars(step, rate, run.order.seed))
    returned = clock() - started
    pending.read()
    return returned, clock() - started


def _spread(values: Sequence[float], unit: float) -> Spread:
    low, middle, high = np.percentile(np.array(values) * unit, (25, 50, 75)).tolist()
    return Spread(median=middle, low=low, high=high)
