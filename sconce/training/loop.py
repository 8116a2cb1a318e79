"""The training loop: updates in order, and everything periodic between them."""

import gc
import math
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sconce.backend import Pending, StepMetrics, StepScalars
from sconce.config import RunConfig, micro_batch_at, micro_batch_size, precision, with_micro_batch
from sconce.data.batches import Batch, chain_rows, regroup, rows_sha256
from sconce.data.prefetch import Prefetcher
from sconce.data.rows import read_in_parts
from sconce.errors import CheckpointError, ConfigError, DataError, OutOfMemoryError, TrainingError
from sconce.files import write_atomic
from sconce.generation.generate import generate
from sconce.generation.sampling import Sampling
from sconce.interop.hf import loads_in_transformers
from sconce.log import phase
from sconce.planning.choice import smaller
from sconce.schedule import learning_rate
from sconce.training.awake import kept_awake
from sconce.training.evaluate import Evaluation, evaluate
from sconce.training.metrics import MetricsFile, Record, read_metrics
from sconce.training.plot import loss_png
from sconce.training.run import Run, reload_state
from sconce.training.save import save_checkpoint
from sconce.training.signals import StopRequest, catch_stop_signals
from sconce.training.throughput import Throughput

if TYPE_CHECKING:
    from sconce.training.tensorboard import TensorBoard

PATIENCE = 3  # skipped updates in a row: on so many batches it is not the batch
FP16_PATIENCE = 25  # from the largest loss scale, 2^24, down to the least, 1
IN_FLIGHT = 2  # updates the device may be behind the host: it never starves, and queued work stays bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where a run stood when it stopped. `stopped_by` is None when it went all the way.

    `extend` is an override that would make the run twice as long; `hugging_face` says whether its checkpoints load
    in transformers.
    """

    step: int
    total_steps: int
    stopped_by: str | None
    trained: bool
    hugging_face: bool
    extend: str
    evaluation: Evaluation | None
    sample: str | None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, as shells expect; else 0: a SIGTERM that was obeyed is a success."""
        return 130 if self.stopped_by == "SIGINT" else 0


@dataclass(frozen=True, slots=True)
class _Queued:
    """An update handed to the device; `step` counts it, so the first is 1."""

    step: int
    lr: float
    rows_sha256: str
    pending: Pending


@dataclass(frozen=True, slots=True)
class _StepData:
    """The micro-batches of one update, and the hash of their rows."""

    batches: list[Batch]
    sha256: str


def train(run: Run, stop_at: int | None = None) -> Outcome:
    """Take a run from where it stands to `stop_at` or the schedule's end, and save it there.

    SIGINT and SIGTERM stop it after the update in progress. Raises TrainingError when the loss is not finite,
    OutOfMemoryError when the device does not hold even one sequence.
    """
    total = run.schedule.total_steps
    _check_end(run, stop_at)
    end = total if stop_at is None else min(stop_at, total)
    trainer = _Trainer(run)
    started_at = run.step
    run.reporter.start(run.step, total)
    try:
        with catch_stop_signals() as request, _frozen_heap(), kept_awake():
            trainer.run_to(end, request)
            trainer.save_if_new()  # inside: a signal that comes only now must not end the save
            finished = run.step == total
            outcome = Outcome(
                step=run.step,
                total_steps=total,
                stopped_by=None if finished else request.signal.name if request.signal else f"--stop-at {end}",
                trained=run.step > started_at,
                hugging_face=loads_in_transformers(run.spec),
                extend=_extend(run),
                evaluation=(trainer.evaluation or trainer.score()) if finished else None,
                sample=trainer.sample() if finished else None,
            )
    except OutOfMemoryError as error:
        raise OutOfMemoryError(trainer.explain(error), intact=error.intact) from None
    except DataError as error:
        raise DataError(trainer.explain_data(error)) from error
    finally:
        run.reporter.finish()
        trainer.close()
        run.close()
    write_atomic(run.folder.plot, loss_png(read_metrics(run.folder.metrics)))
    return outcome


@contextmanager
def _frozen_heap() -> Generator[None]:
    """Keep the garbage collector from walking, between updates, through all that imports and set-up have made."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _extend(run: Run) -> str:
    epochs = run.config.scheduler.total_epochs
    if epochs is not None:
        return f"scheduler.total_epochs={2 * epochs:g}"
    return f"scheduler.total_steps={2 * run.schedule.total_steps}"


def _check_end(run: Run, stop_at: int | None) -> None:
    """Raise ConfigError when the run already is beyond where it is asked to end."""
    total = run.schedule.total_steps
    if run.step > total:
        raise ConfigError(
            f"scheduler.total_steps: found {total}, but this run is already at step {run.step}; give the length it was "
            f"last resumed with, or a longer one: --override scheduler.total_steps=N"
        )
    if stop_at is not None and stop_at <= run.step < total:
        raise ConfigError(f"--stop-at {stop_at}: this run is already at step {run.step}; choose a later step")
    if stop_at is not None and stop_at > total:
        run.reporter.say(f"note: --stop-at {stop_at} lies beyond the last step, {total}")


class _Trainer:
    """One run under way: what it has open, and what it does between updates."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.metrics = MetricsFile(run.folder.metrics, run.step)
        self.tensorboard = _open_tensorboard(run) if run.config.runtime.logging.tensorboard else None
        self.throughput = Throughput(time.perf_counter)
        self.evaluation: Evaluation | None = None
        self.saved_step = run.step
        self.diverged: Path | None = None
        self.skipped = self.skipped_in_a_row = 0
        self.yardsticks = {stage.seq_len: run.yardstick_of(stage) for stage in run.order.ramp.stages}

    def close(self) -> None:
        self.metrics.close()
        if self.tensorboard is not None:
            self.tensorboard.close()

    def step_data(self, step: int) -> _StepData:
        """What the update after `step` updates trains on: any step's batches, in any order of asking."""
        order = self.run.order
        rows = order.rows(step)
        batches = read_in_parts(self.run.data.rows, rows, order.parts(step), micro_batch_at(self.run.config, step))
        return _StepData(batches, rows_sha256(rows, batches))

    def run_to(self, end: int, request: StopRequest) -> None:
        """Update until `end` or a stop request, from an earlier state again where memory ran out in mid-update."""
        while True:
            prefetcher = Prefetcher(self.step_data, self.run.step, self.run.config.data.prefetch)
            try:
                with prefetcher as data:
                    return self.run_updates(data, end, request)
            except OutOfMemoryError as error:
                if error.intact:
                    raise
                message = str(error)
            # Outside the handler: the error holds the frames, and they hold the arrays that are to be freed.
            if not self.go_back(message):
                raise OutOfMemoryError(message, intact=False)

    def run_updates(self, data: Prefetcher[_StepData], end: int, request: StopRequest) -> None:
        """Update until `end` or a stop request; the host reads an update's figures only when it is done anyway."""
        run, queue = self.run, deque[_Queued]()
        self.throughput.resume()
        while run.step < end and not request:
            try:
                batches = data.next(until=lambda: bool(request))
                if batches is None:
                    break
                queue.append(self.launch(batches))
            except (OutOfMemoryError, DataError) as error:
                # The updates before are done or under way, and sound; or what is on the device is not.
                while queue and (isinstance(error, DataError) or error.intact):
                    self.finish_update(queue.popleft())
                raise
            run.step += 1
            changes = run.order.ramp.at(run.step) != run.order.ramp.at(run.step - 1)
            pause = self.is_pause(run.step)
            while queue and (pause or changes or len(queue) > IN_FLIGHT or queue[0].pending.ready()):
                self.finish_update(queue.popleft())
            if pause:
                self.throughput.pause()
                self.between_updates()
                self.throughput.resume()
            if changes:
                self.change_stage()
        while queue:
            self.finish_update(queue.popleft())

    def change_stage(self) -> None:
        """Say what the updates from here on train on; speed is measured anew."""
        run, stage = self.run, self.run.order.ramp.at(self.run.step)
        if run.step < run.schedule.total_steps:
            run.reporter.say(
                f"step {run.step + 1}: from here on {stage.batch_size} rows of {stage.seq_len} an update, "
                f"{micro_batch_at(run.config, run.step)} at a time"
            )
        self.throughput.restart()

    def launch(self, data: _StepData) -> _Queued:
        """Hand the next update to the device."""
        run = self.run
        lr = learning_rate(run.schedule, run.step)
        pending = self.update(data.batches, StepScalars(run.step, lr, run.order.seed))
        run.rows_sha256 = chain_rows(run.rows_sha256, data.sha256)
        return _Queued(run.step + 1, lr, run.rows_sha256, pending)

    def update(self, batches: list[Batch], scalars: StepScalars) -> Pending:
        """One update, in smaller micro-batches if the memory does not suffice: the batch as a whole stays the same.

        Raises OutOfMemoryError when there is nothing smaller, or when a part of the update may have been applied.
        """
        while True:
            size = micro_batch_at(self.run.config, scalars.step)
            if len(batches[0].inputs) != size:  # read ahead, before the micro-batch became smaller
                batches = regroup(batches, size)
            try:
                return self.run.learner.step(batches, scalars)
            except OutOfMemoryError as error:
                fewer = self.smaller_micro_batch(scalars.step) if error.intact else None
                if fewer is None:
                    raise
            self.run.config = fewer
            self.run.reporter.say(
                f"step {scalars.step + 1}: out of memory with {size} sequences at a time; going on with "
                f"{micro_batch_at(fewer, scalars.step)}, and with the same "
                f"{sum(len(batch.inputs) for batch in batches)} an update"
            )

    def smaller_micro_batch(self, step: int) -> RunConfig | None:
        """The config with the next smaller micro-batch that is one at this step; None when there is none."""
        config, size = self.run.config, micro_batch_at(self.run.config, step)
        while (fewer := smaller(self.run.order.ramp.largest_batch, micro_batch_size(config))) is not None:
            config = with_micro_batch(config, fewer)
            if micro_batch_at(config, step) < size:
                return config
        return None

    def go_back(self, reason: str) -> bool:
        """Take up the last checkpoint, or the beginning, in smaller micro-batches: what is on the device is not sound.

        False where there is nothing smaller; and on a stream, whose rows from before may be gone.
        """
        run, failed = self.run, self.run.step + 1
        fewer = self.smaller_micro_batch(run.step)
        if fewer is None or run.data.streamed is not None:
            return False
        size, loaded = micro_batch_at(run.config, run.step), run.store.latest(run.reporter.say)
        reload_state(run, loaded)
        run.config = fewer
        self.saved_step = run.step
        self.skipped = self.skipped_in_a_row = 0
        self.close()
        self.metrics = MetricsFile(run.folder.metrics, run.step)
        self.tensorboard = _open_tensorboard(run) if self.tensorboard is not None else None
        self.throughput.restart()
        run.reporter.say(
            f"step {failed}, or one just before: out of memory in mid-update with {size} sequences at a time "
            f"({reason}); going on from step {run.step} with {micro_batch_at(fewer, run.step)}, and with as many an "
            "update as before"
        )
        return True

    def explain(self, error: OutOfMemoryError) -> str:
        """Save what is sound; what happened, where the run stands, and what to change."""
        saved = self.last_saved()
        if error.intact:
            try:
                self.save_if_new()
                saved = f"step {self.run.step} is saved"
            except OutOfMemoryError:
                pass
        ramp = self.run.order.ramp
        stage = ramp.at(self.run.step)
        shorter = "a shorter data.sequence_length"
        if stage.seq_len > ramp.at(0).seq_len:  # the run has trained on shorter rows in this memory
            shorter = f"shorter rows in data.stages ({stage.seq_len} long from step {stage.first_step + 1} on)"
        advice = (
            'Set runtime.activation_checkpointing = "block" or a smaller runtime.loss_chunk and --resume; or '
            f"begin a run with {shorter} or a smaller model"
        )
        size = micro_batch_at(self.run.config, self.run.step)
        return f"step {self.run.step + 1}: out of memory with {size} sequence(s) at a time ({error}); {saved}. {advice}"

    def explain_data(self, error: DataError) -> str:
        """Save what was trained; what is wrong with the data, and where the run stands."""
        with suppress(OutOfMemoryError, DataError, CheckpointError):  # what was saved before stays
            self.save_if_new()
        if not self.saved_step:
            return f"{error}; nothing was saved yet"
        return f"{error}; step {self.saved_step} is saved, and --resume goes on from there"

    def finish_update(self, queued: _Queued) -> None:
        """Read one update's figures and send them where they go."""
        run, step = self.run, queued.step
        metrics = queued.pending.read()
        self.count_skips(step, metrics)
        record = {
            "step": step,
            "loss": metrics.loss,
            "lr": queued.lr,
            "grad_norm": metrics.grad_norm,
            "tokens": run.order.ramp.places(step),
            "tokens_per_second": round(self.throughput.add(metrics.tokens), 1),
            "memory_bytes": run.backend.memory(),
        }
        record |= self.yardsticks[run.order.ramp.at(step - 1).seq_len].shares(record["tokens_per_second"])
        if self.skipped:
            record["skipped"] = self.skipped
        logged = step in (1, run.schedule.total_steps) or step % run.config.runtime.log_every_n_steps == 0
        if logged:
            self.write(record, rows_sha256=queued.rows_sha256[:16])
            self.throughput.lap()
        run.reporter.update(record, logged)

    def count_skips(self, step: int, metrics: StepMetrics) -> None:
        """An update whose figures are no numbers changed no weight: with fp16 a few are how its loss scale is found.

        Raises TrainingError when there are too many in a row, with the run saved.
        """
        run = self.run
        if math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm):
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row < (FP16_PATIENCE if precision(run.config) == "fp16" else PATIENCE):
            return
        with suppress(OutOfMemoryError, CheckpointError):  # what was saved before stays
            if self.saved_step != run.step:  # weights may be sound where only fp16 cannot hold their gradients
                self.save(is_best=False, diverged=precision(run.config) != "fp16")
        rows = run.order.rows(step - 1).tolist()
        listed = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        wider = ', or set runtime.precision = "bf16"' if precision(run.config) == "fp16" else ""
        apart = "" if self.diverged is None else f", and the state it is in now is kept in {self.diverged}"
        raise TrainingError(
            f"step {step}: loss {metrics.loss}, gradient norm {metrics.grad_norm}, on rows {listed}: "
            f"training diverged; {self.last_saved()}{apart}. Lower "
            f"optimizer.learning_rate or raise scheduler.warmup_steps{wider}, and --resume"
        )

    def last_saved(self) -> str:
        """Where a run that cannot go on may be taken up again."""
        return f"the last checkpoint is of step {self.saved_step}" if self.saved_step else "nothing was saved yet"

    def is_pause(self, step: int) -> bool:
        """Whether something periodic is due once `step` updates are done."""
        runtime = self.run.config.runtime
        return (
            step == self.run.schedule.total_steps
            or _is_due(step, runtime.evaluation.every_n_steps)
            or _is_due(step, runtime.checkpoint.every_n_steps)
            or _is_due(step, runtime.sample.every_n_steps)
        )

    def between_updates(self) -> None:
        """Evaluate, then save, then sample: whatever is due now."""
        run, runtime = self.run, self.run.config.runtime
        last = run.step == run.schedule.total_steps
        is_best = self.evaluate() if last or _is_due(run.step, runtime.evaluation.every_n_steps) else False
        if _is_due(run.step, runtime.checkpoint.every_n_steps) or (is_best and runtime.checkpoint.save_best):
            self.save(is_best)
        if not last and _is_due(run.step, runtime.sample.every_n_steps):
            self.sample()

    def score(self) -> Evaluation:
        """The held-out figures at the present weights."""
        run, evaluation = self.run, self.run.config.runtime.evaluation
        batch_size, count = evaluation.batch_size, evaluation.max_batches
        if batch_size is None:  # as much text whatever the micro-batch, which is the device's affair
            batch_size = math.gcd(micro_batch_size(run.config), run.config.data.batch_size)
            count = count and count * run.config.data.batch_size // batch_size
        batches = run.data.held_out.in_order(batch_size, count)
        return evaluate(run.learner, batches, run.tokenizer.token_bytes)

    def evaluate(self) -> bool:
        """Score, record, and say whether this is the best so far."""
        run = self.run
        with phase(f"evaluation at step {run.step}"):
            self.evaluation = self.score()
        record = {
            "step": run.step,
            "eval_loss": self.evaluation.loss,
            "perplexity": self.evaluation.perplexity,
            "bits_per_byte": self.evaluation.bits_per_byte,
            "eval_tokens": self.evaluation.tokens,
        }
        self.write(record)
        run.reporter.evaluation(record)
        loss = self.evaluation.loss
        is_best = math.isfinite(loss) and (run.best is None or loss < run.best[1])
        if is_best:
            run.best = (run.step, self.evaluation.loss)
        return is_best

    def save(self, is_best: bool, diverged: bool = False) -> None:
        """Write a checkpoint of this step; if training has diverged, one that is none to go on from."""
        if self.tensorboard is not None:
            self.tensorboard.flush()  # its files should not lag behind what a resumed run starts from
        folder, sound = save_checkpoint(self.run, is_best=is_best, diverged=diverged)
        if sound:
            self.saved_step = self.run.step
        else:
            self.diverged = folder

    def save_if_new(self) -> None:
        """Write a checkpoint unless this step has one."""
        if self.saved_step != self.run.step:
            best = self.run.best
            self.save(is_best=best is not None and best[0] == self.run.step)

    def sample(self) -> str | None:
        """Let the model write, and keep what it wrote; None from a model that cannot."""
        run, options = self.run, self.run.config.runtime.sample
        prompt = run.tokenizer.encode(options.prompt) or [run.tokenizer.eos_id]
        ids = generate(
            run.learner,
            prompt,
            max_tokens=min(options.max_tokens, run.spec.max_position_embeddings - len(prompt)),
            sampling=Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p),
            seed=int(np.random.SeedSequence([run.config.runtime.seed, run.step]).generate_state(1)[0]),
        )
        try:
            text = options.prompt + run.tokenizer.decode(list(ids))
        # To train it may be possible all the same; `count_skips` ends it where the model is no numbers.
        except (CheckpointError, OutOfMemoryError) as error:
            if isinstance(error, OutOfMemoryError) and not error.intact:
                raise
            run.reporter.say(f"step {run.step}: no sample: {error}")
            return None
        run.folder.samples.mkdir(exist_ok=True)
        write_atomic(run.folder.samples / f"step-{run.step:08d}.txt", text)
        if self.tensorboard is not None:
            self.tensorboard.text(run.step, text)
        run.reporter.sample(run.step, text)
        return text

    def write(self, record: Record, **more: str) -> None:
        """Append to the run's files."""
        self.metrics.write({**record, **more})
        if self.tensorboard is not None:
            self.tensorboard.write(record)


def _open_tensorboard(run: Run) -> "TensorBoard":
    # Late: tensorboardX imports torch, and a backend must have set the process up before that.
    from sconce.training.tensorboard import TensorBoard  # noqa: PLC0415

    return TensorBoard(run.folder.tensorboard, run.step)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
