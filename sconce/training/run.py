"""Opening a run: everything it needs, checked against what its folder already holds."""

import fcntl
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sconce.backend import WEIGHTS, Backend, Hardware, Learner, load_backend, state_names
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.checkpoint.store import CheckpointStore
from sconce.config import (
    RunConfig,
    differences,
    micro_batch_at,
    model_spec,
    precision,
    to_json,
)
from sconce.data.batches import NO_ROWS
from sconce.data.order import Order
from sconce.errors import CheckpointError, ConfigError, SconceError
from sconce.init import InitialWeights
from sconce.interop.hf import caution
from sconce.log import log, phase
from sconce.planning.devices import of_backend
from sconce.planning.probe import matmul_flops_per_second
from sconce.planning.utilization import Yardstick, tera
from sconce.ramp import Stage
from sconce.schedule import Schedule
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.certificate import Witness
from sconce.training.data import RunData, open_data
from sconce.training.fit import fit_to_device
from sconce.training.metrics import Reporter
from sconce.training.recipe import make_compute, make_optim, make_schedule


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run keeps what."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Step folders, LATEST and BEST."""
        return self.root / "checkpoints"

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint, or what is left of one: its tokenizer and tokens are settled then."""
        return any(self.checkpoints.glob("*step-*"))

    @property
    def config(self) -> Path:
        """The resolved config that the run was last opened with."""
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """One text file for each sampled step."""
        return self.root / "samples"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def plot(self) -> Path:
        """The loss curve."""
        return self.root / "loss.png"

    @contextmanager
    def locked(self) -> Generator[None]:
        """Own the folder while inside; the system gives it up when the process ends, however it ends.

        What is refused before it wrote anything leaves no new folder behind.
        """
        made = not self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(f"{self.root}: another sconce process is training in this folder") from None
            try:
                yield
            except SconceError:
                if made and [path.name for path in self.root.iterdir()] == [".lock"]:
                    shutil.rmtree(self.root)
                raise


@dataclass(slots=True, kw_only=True)
class Run:
    """A run, ready to take its next update. `step` counts updates done; `best` is (step, held-out loss).

    `rows_sha256` is the chain over the rows of all updates done here: see `data.batches.chain_rows`. Those that
    another system did before an import, `imported_steps`, are not in it. `resumed_from` is the checkpoint that it was
    opened at, if any; `yardstick` is what the speed of its longest rows is measured against.
    """

    config: RunConfig
    folder: RunFolder
    tokenizer: Tokenizer
    data: RunData
    spec: ModelSpec
    backend: Backend
    learner: Learner
    store: CheckpointStore
    schedule: Schedule
    reporter: Reporter
    step: int
    best: tuple[int, float] | None
    rows_sha256: str
    imported_steps: int
    resumed_from: LoadedCheckpoint | None
    yardstick: Yardstick

    @property
    def order(self) -> Order:
        """Which rows each step trains on."""
        return self.data.order

    def yardstick_of(self, stage: Stage) -> Yardstick:
        """What the speed of a stage's updates is measured against."""
        packed = self.config.data.packing == "bestfit"
        return replace(self.yardstick, flops_per_token=self.data.flops_per_token(self.spec, stage, packed))

    def close(self) -> None:
        """End what runs beside the training."""
        self.data.close()

    @property
    def witness(self) -> Witness:
        """What certifies the run as it stands."""
        return Witness(
            learner=self.learner,
            device=self.backend.device(),
            precision=precision(self.config),
            rows=self.data.rows,
            order=self.order,
            micro_batch_size=micro_batch_at(self.config, self.step),
            # A stream's next rows may not be here yet, and must not keep a run from being saved.
            steps_back=0 if self.data.streamed is None else 1,
        )


def open_run(config: RunConfig, folder: RunFolder, *, hardware: Hardware, resume: bool, reporter: Reporter) -> Run:
    """Load or prepare everything, at step 0 or where the newest intact checkpoint stands.

    Raises CheckpointError when the folder holds checkpoints and `resume` is off, or when they are of another
    model, tokenizer or corpus; ConfigError, DataError and BackendError for what cannot be used.
    """
    store = CheckpointStore(folder.checkpoints, keep=config.runtime.checkpoint.max_keep)
    with phase(f"looking for checkpoints in {folder.checkpoints}"):
        loaded = _find_checkpoint(store, folder, resume, reporter)
    log.debug("checkpoint: %s", loaded.path if loaded else "none")
    assert config.tokenizer.tokenizer_json is not None, "load_config asks for it"
    tokenizer = load_tokenizer(config.tokenizer.tokenizer_json)
    log.debug("tokenizer: %s, %d tokens, sha256 %s", tokenizer.path, tokenizer.vocab_size, tokenizer.sha256[:12])
    spec = model_spec(config, tokenizer.vocab_size)
    if loaded is not None:
        check_same_run(config, tokenizer, loaded)
    with phase(f"loading the backend for {hardware}"):
        backend = load_backend(hardware)
        device = backend.device()
    reporter.say(
        f"hardware: {device.kind} ({device.name}, {device.memory_bytes / 2**30:.0f} GiB) "
        f"through {device.backend} {device.version}, {precision(config)}"
    )
    with phase("multiplying matrices"):  # for up to a third of a second
        kind = precision(config)
        measured = matmul_flops_per_second(lambda size, repeats: backend.matmul_seconds(kind, size, repeats))
    config, fitted = fit_to_device(config, spec, device, loaded)
    _check_prompt(config, spec, tokenizer)
    with ExitStack() as stack:
        data = open_data(config, folder.root, tokenizer, loaded, reporter.say)
        stack.callback(data.close)  # unless the run comes to be, and closes it
        schedule = make_schedule(config, data.order)
        yardstick = Yardstick(
            flops_per_token=data.flops_per_token(
                spec, max(data.order.ramp.stages, key=lambda stage: stage.seq_len), config.data.packing == "bestfit"
            ),
            peak=of_backend(device).peak(kind),
            measured=measured,
        )
        reporter.say(describe_yardstick(yardstick, kind))
        reporter.say(f"model: {spec.num_params:,} parameters; {_describe_steps(data.order, schedule.total_steps)}")
        for line in (fitted, *data.describe(config, schedule.total_steps)):
            reporter.say(line)
        if (note := caution(spec)) is not None:
            reporter.say(f"note: {note}")
        run = Run(
            config=config,
            folder=folder,
            tokenizer=tokenizer,
            data=data,
            spec=spec,
            backend=backend,
            learner=_make_learner(config, spec, backend, loaded),
            store=store,
            schedule=schedule,
            reporter=reporter,
            step=loaded.record.step if loaded else 0,
            best=loaded.record.best if loaded else None,
            rows_sha256=str(loaded.record.cursor.get("rows_sha256", NO_ROWS)) if loaded else NO_ROWS,
            imported_steps=loaded.record.imported_steps if loaded else 0,
            resumed_from=loaded,
            yardstick=yardstick,
        )
        stack.pop_all()
    return run


def describe_compiling(run: Run) -> str | None:
    """A line to read while the first update takes so long; None where nothing is compiled."""
    compiled = run.config.runtime.compile
    if not (compiled or (compiled is None and run.backend.device().kind != "cpu")):
        return None
    shapes = {(stage.seq_len, micro_batch_at(run.config, stage.first_step)) for stage in run.order.ramp.stages}
    each = " of each stage" if len(shapes) > 1 else ""
    return f"compiling at the first update{each}, which takes longer; runtime.compile = false does without"


def describe_yardstick(yardstick: Yardstick, kind: str) -> str:
    """In a line: FLOPs a token, and the two speeds that utilization is a share of."""
    peak = "unknown" if yardstick.peak is None else tera(yardstick.peak)
    return (
        f"speed: {yardstick.flops_per_token:,} FLOPs a token; {kind} matrix products reach {tera(yardstick.measured)} "
        f"here; the vendor's peak is {peak}"
    )


def _describe_steps(order: Order, steps: int) -> str:
    """How many, of how many tokens, in how many epochs; of a stream, whose length is not known, not the last."""
    each = [stage.batch_size * stage.seq_len for stage in order.ramp.stages]
    size = f"{each[0]:,}" if len(set(each)) == 1 else f"{min(each):,} to {max(each):,}"
    epochs = f", {order.epoch(steps):.1f} epochs" if order.num_rows else ""
    return f"{steps} steps of {size} tokens{epochs}"


def _check_prompt(config: RunConfig, spec: ModelSpec, tokenizer: Tokenizer) -> None:
    """Raise ConfigError when the prompt fills the model."""
    prompt = len(tokenizer.encode(config.runtime.sample.prompt))
    if prompt >= spec.max_position_embeddings:
        raise ConfigError(
            f"runtime.sample.prompt: {prompt} tokens long, and the model has {spec.max_position_embeddings} positions"
        )


def check_same_run(config: RunConfig, tokenizer: Tokenizer, loaded: LoadedCheckpoint) -> None:
    """Raise CheckpointError, naming every key that differs, if the checkpoint is not of this config."""
    if loaded.record.tokenizer_sha256 != tokenizer.sha256:
        raise CheckpointError(
            f"{tokenizer.path}: not the tokenizer this run was trained with; {loaded.path}/tokenizer.json is: "
            "put it back, or train in another --run-dir"
        )
    changed = differences(loaded.run_config, to_json(config))
    imported = loaded.record.is_imported  # whose rows were another system's: ours begin with this run
    forbidden = [change for change in changed if not (change.allowed or (imported and change.key.startswith("data.")))]
    if not forbidden:
        return
    lines = [f"{change.key}: {change.old!r} in the checkpoint, {change.new!r} now" for change in forbidden]
    allowed = [change.key for change in changed if change.allowed]
    also = f" (also changed, and allowed: {', '.join(allowed)})" if allowed else ""
    raise CheckpointError(
        f"{loaded.path}: the config changed in what a run cannot change: {'; '.join(lines)}{also}; "
        "change it back, or train in another --run-dir"
    )


def _find_checkpoint(
    store: CheckpointStore, folder: RunFolder, resume: bool, reporter: Reporter
) -> LoadedCheckpoint | None:
    loaded = store.latest(reporter.say)
    if loaded is not None and not resume:
        raise CheckpointError(
            f"{folder.root}: already holds a run at step {loaded.record.step}: add --resume to go on, or choose "
            "another --run-dir"
        )
    return loaded


def reload_state(run: Run, loaded: LoadedCheckpoint | None) -> None:
    """Make a run under way what it was at a checkpoint, or at step 0."""
    if loaded is None:
        run.learner.load(_InitialState(run), 0)
        run.step, run.best, run.rows_sha256 = 0, None, NO_ROWS
        return
    record = loaded.record
    run.learner.load(loaded.tensors, record.step, record.loss_scale)
    run.step, run.best = record.step, record.best
    run.rows_sha256 = str(record.cursor.get("rows_sha256", NO_ROWS))


class _InitialState(Mapping[str, NDArray[np.float32]]):
    """Initial weights and zero slots by the names of `state_names`, each made when it is asked for."""

    def __init__(self, run: Run) -> None:
        self._weights = InitialWeights(run.spec, run.config.runtime.seed)
        self._shapes = dict(state_names(run.spec, make_optim(run.config)))

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        part, parameter = name.split("/", 1)
        return self._weights[parameter] if part == WEIGHTS else np.zeros(self._shapes[name], np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _make_learner(config: RunConfig, spec: ModelSpec, backend: Backend, loaded: LoadedCheckpoint | None) -> Learner:
    weights = InitialWeights(spec, config.runtime.seed) if loaded is None else loaded.weights
    with phase("making the model and its optimizer"):
        compute = make_compute(config, spec, backend.device().kind)
        learner = backend.learner(spec, make_optim(config), compute, weights)
        if loaded is not None:
            learner.load(loaded.tensors, loaded.record.step, loaded.record.loss_scale)
    return learner
