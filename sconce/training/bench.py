"""How fast a config trains here, phase by phase. Nothing is kept."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from sconce.backend import DeviceInfo, Hardware, Learner, StepScalars
from sconce.config import RunConfig, micro_batch_at
from sconce.data.batches import Batch, rows_sha256
from sconce.data.prefetch import Prefetcher
from sconce.data.rows import read_in_parts
from sconce.init import InitialWeights
from sconce.schedule import learning_rate
from sconce.training.metrics import Reporter
from sconce.training.recipe import make_compute, make_optim
from sconce.training.run import Run, RunFolder, describe_compiling, open_run

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

    `step` is until its figures are there. `forward_backward` is the difference between a step whose micro-batches are
    given twice and a plain one, `optimizer` what remains of the plain one. `data` is reading and hashing a step's rows,
    which a thread does meanwhile, and `data_wait` how long the step waited for it. `host` is processor time of the
    calling thread until the call for an update returns; on CUDA of the process, as another of its threads hands out the
    backward pass; where that call computes, `host_seconds`.
    """

    steps: int
    micro_batch_size: int
    tokens_per_step: int
    tokens_per_second: Spread
    data_ms: Spread
    data_wait_ms: Spread
    host_ms: Spread
    step_ms: Spread
    forward_backward_ms: float
    optimizer_ms: float
    first_step_seconds: float
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
    stage = run.order.ramp.stages[-1]
    tokens = stage.batch_size * stage.seq_len
    reading: list[float] = []

    def read(step: int) -> list[Batch]:
        started = clock()
        rows = run.order.rows(step)
        batches = read_in_parts(run.data.rows, rows, run.order.parts(step), micro_batch_at(run.config, step))
        rows_sha256(rows, batches)
        reading.append(clock() - started)
        return batches

    def scalars(step: int) -> StepScalars:
        rate = learning_rate(run.schedule, min(step, run.schedule.total_steps - 1))
        return StepScalars(step, rate, run.order.seed)

    if (note := describe_compiling(run)) is not None:
        run.reporter.say(note)
    waits: list[float] = []
    host: list[float] = []
    single: list[float] = []
    begin = stage.first_step + WARM_UP
    batches: list[Batch] | None = None
    first_step = 0.0
    with Prefetcher(read, stage.first_step, run.config.data.prefetch) as data:
        for step in range(stage.first_step, begin + steps):
            started = clock()
            batches = data.next()
            waits.append(clock() - started)
            assert batches is not None, "nothing ends the waiting but the data"
            on_host, done = _update(run.learner, batches, scalars(step), clock)
            first_step = first_step or done
            host.append(on_host)
            single.append(done)
    host = host[WARM_UP:]
    assert batches is not None
    peak = run.backend.memory()  # now: a step of twice the micro-batches may need more
    pairs = max(2, steps // 2)
    alone: list[float] = []
    once: list[float] = []
    twice: list[float] = []
    for step in range(begin + steps, begin + steps + pairs):
        on_host, done = _update(run.learner, batches, scalars(step), clock, time.process_time)
        alone.append(on_host)
        once.append(done)
        twice.append(_update(run.learner, [*batches, *batches], scalars(step), clock)[1])
    whole = median(single[WARM_UP:])
    share = (median(twice) - median(once)) / median(once)
    forward_backward = whole * min(max(share, 0.0), 1.0)
    device = run.backend.device()
    if computes_on_its_host(device):
        host = host_seconds(run, batches, steps)
    elif device.kind == "cuda":
        host = alone  # when nothing reads ahead any more
    rate = _spread([tokens / seconds for seconds in single[WARM_UP:]], 1.0)
    return Bench(
        steps=steps,
        micro_batch_size=micro_batch_at(run.config, stage.first_step),
        tokens_per_step=tokens,
        tokens_per_second=rate,
        data_ms=_spread(reading[WARM_UP:], 1e3),
        data_wait_ms=_spread(waits[WARM_UP:], 1e3),
        host_ms=_spread(host, 1e3),
        step_ms=_spread(single[WARM_UP:], 1e3),
        forward_backward_ms=1e3 * forward_backward,
        optimizer_ms=1e3 * (whole - forward_backward),
        first_step_seconds=first_step,
        memory_bytes=peak,
        utilization=run.yardstick_of(stage).shares(rate.median),
    )


def computes_on_its_host(device: DeviceInfo) -> bool:
    """Whether a call computes what it asks for, so that host and device cannot be told apart by who waits."""
    return device.backend == "torch" and device.kind == "cpu"


def host_seconds(run: Run, batches: Sequence[Batch], steps: int) -> list[float]:
    """Processor time of the calling thread in each of some updates that leave nothing to compute.

    The same layers, parameters, micro-batches and chunks of the loss, all of the least size: what is left is Python
    and the calls of kernels, which do not depend on the sizes. So it is found where a call computes itself.
    """
    compute, tokens = make_compute(run.config, run.spec, run.backend.device().kind), batches[0].inputs.size
    rows = -(-tokens // (compute.loss_chunk or tokens))  # as many chunks of the loss, a token each
    least = replace(
        run.spec,
        vocab_size=2,
        hidden_size=2,
        intermediate_size=2,
        head_dim=2,
        max_position_embeddings=1,
        rope_scaling=None,
    )
    options = replace(compute, loss_chunk=None if rows == 1 else 1)
    learner = run.backend.learner(least, make_optim(run.config), options, InitialWeights(least, 0))
    ids = np.zeros((rows, 1), np.int32)
    one = Batch(ids, ids, None if batches[0].segments is None else ids)
    scalars = [StepScalars(step, 1e-3, 0) for step in range(WARM_UP + steps)]
    return [_update(learner, [one] * len(batches), each, time.perf_counter)[0] for each in scalars][WARM_UP:]


def _update(
    learner: Learner,
    batches: Sequence[Batch],
    scalars: StepScalars,
    clock: Callable[[], float],
    processor: Callable[[], float] = time.thread_time,
) -> tuple[float, float]:
    """The thread's `processor` time until the call returned, and seconds until its figures were there.

    What of the update the device then still has to do, the next one pays for: over many it evens out.
    """
    started, worked = clock(), processor()
    pending = learner.step(batches, scalars)
    worked = processor() - worked
    pending.read()
    return worked, clock() - started


def _spread(values: Sequence[float], unit: float) -> Spread:
    low, middle, high = np.percentile(np.array(values) * unit, (25, 50, 75)).tolist()
    return Spread(median=middle, low=low, high=high)
