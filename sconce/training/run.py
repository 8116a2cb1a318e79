"""Opening a run: everything it needs, checked against what its folder already holds."""

import fcntl
import hashlib
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sconce.backend import Backend, Hardware, Learner, load_backend
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.checkpoint.store import CheckpointStore
from sconce.config import (
    RunConfig,
    differences,
    micro_batch_size,
    model_spec,
    precision,
    sequence_length,
    to_json,
)
from sconce.data.batches import NO_ROWS, num_rows
from sconce.data.corpus import Corpus
from sconce.data.order import TrainOrder
from sconce.data.prepare import is_current, prepare
from sconce.data.shards import TokenData, open_tokens
from sconce.errors import CheckpointError, ConfigError, DataError
from sconce.flops import count_flops
from sconce.init import InitialWeights
from sconce.interop.hf import caution
from sconce.planning.devices import of_backend
from sconce.planning.probe import matmul_flops_per_second
from sconce.planning.utilization import Yardstick, tera
from sconce.schedule import Schedule
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.certificate import Witness
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
        """Own the folder while inside; the system gives it up when the process ends, however it ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(f"{self.root}: another sconce process is training in this folder") from None
            yield


@dataclass(slots=True, kw_only=True)
class Run:
    """A run, ready to take its next update. `step` counts updates done; `best` is (step, held-out loss).

    `rows_sha256` is the chain over the rows of all updates done: see `data.batches.chain_rows`. `resumed_from` is the
    checkpoint that it was opened at, if any; `yardstick` is what its speed is measured against.
    """

    config: RunConfig
    folder: RunFolder
    tokenizer: Tokenizer
    tokens: TokenData
    spec: ModelSpec
    backend: Backend
    learner: Learner
    store: CheckpointStore
    schedule: Schedule
    order: TrainOrder
    reporter: Reporter
    step: int
    best: tuple[int, float] | None
    rows_sha256: str
    resumed_from: LoadedCheckpoint | None
    yardstick: Yardstick

    @property
    def witness(self) -> Witness:
        """What certifies the run as it stands."""
        return Witness(
            learner=self.learner,
            device=self.backend.device(),
            precision=precision(self.config),
            tokens=self.tokens.train,
            order=self.order,
            seq_len=sequence_length(self.config),
            micro_batch_size=micro_batch_size(self.config),
        )


def open_run(config: RunConfig, folder: RunFolder, *, hardware: Hardware, resume: bool, reporter: Reporter) -> Run:
    """Load or prepare everything, at step 0 or where the newest intact checkpoint stands.

    Raises CheckpointError when the folder holds checkpoints and `resume` is off, or when they are of another
    model, tokenizer or corpus; ConfigError, DataError and BackendError for what cannot be used.
    """
    store = CheckpointStore(folder.checkpoints, keep=config.runtime.checkpoint.max_keep)
    loaded = _find_checkpoint(store, folder, resume, reporter)
    assert config.tokenizer.tokenizer_json is not None, "load_config asks for it"
    tokenizer = load_tokenizer(config.tokenizer.tokenizer_json)
    spec = model_spec(config, tokenizer.vocab_size)
    if loaded is not None:
        check_same_run(config, tokenizer, loaded)
    backend = load_backend(hardware)
    device = backend.device()
    reporter.say(
        f"hardware: {device.kind} ({device.name}, {device.memory_bytes / 2**30:.0f} GiB) "
        f"through {device.backend} {device.version}, {precision(config)}"
    )
    yardstick = measure_device(config, spec, backend)
    reporter.say(describe_yardstick(yardstick, precision(config)))
    config, fitted = fit_to_device(config, spec, device, loaded)
    tokens = _open_tokens(config, folder, tokenizer, loaded, reporter)
    rows = num_rows(tokens.train, sequence_length(config))
    _check_fits(config, spec, tokenizer, tokens)
    order = TrainOrder(rows, config.data.batch_size, config.runtime.seed)
    schedule = make_schedule(config, rows)
    reporter.say(
        f"model: {spec.num_params:,} parameters; {schedule.total_steps} steps of "
        f"{config.data.batch_size * sequence_length(config):,} tokens, "
        f"{order.epoch(schedule.total_steps):.1f} epochs"
    )
    reporter.say(fitted)
    if (note := caution(spec)) is not None:
        reporter.say(f"note: {note}")
    return Run(
        config=config,
        folder=folder,
        tokenizer=tokenizer,
        tokens=tokens,
        spec=spec,
        backend=backend,
        learner=_make_learner(config, spec, backend, loaded),
        store=store,
        schedule=schedule,
        order=order,
        reporter=reporter,
        step=loaded.record.step if loaded else 0,
        best=loaded.record.best if loaded else None,
        rows_sha256=str(loaded.record.cursor.get("rows_sha256", NO_ROWS)) if loaded else NO_ROWS,
        resumed_from=loaded,
        yardstick=yardstick,
    )


def measure_device(config: RunConfig, spec: ModelSpec, backend: Backend) -> Yardstick:
    """What the run's speed will be measured against; multiplies matrices for up to a third of a second."""
    kind = precision(config)
    return Yardstick(
        flops_per_token=count_flops(spec, sequence_length(config)).training,
        peak=of_backend(backend.device()).peak(kind),
        measured=matmul_flops_per_second(lambda size, repeats: backend.matmul_seconds(kind, size, repeats)),
    )


def describe_yardstick(yardstick: Yardstick, kind: str) -> str:
    """In a line: FLOPs a token, and the two speeds that utilization is a share of."""
    peak = "unknown" if yardstick.peak is None else tera(yardstick.peak)
    return (
        f"speed: {yardstick.flops_per_token:,} FLOPs a token; {kind} matrix products reach {tera(yardstick.measured)} "
        f"here; the vendor's peak is {peak}"
    )


def _check_fits(config: RunConfig, spec: ModelSpec, tokenizer: Tokenizer, tokens: TokenData) -> None:
    """Raise DataError when nothing is held out, ConfigError when the prompt fills the model."""
    if tokens.validation.num_tokens < 2:
        raise DataError(
            "the text is a single document, so nothing can be held out: give more text, or name held-out files in "
            "data.validation_shards"
        )
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


def corpus_of(config: RunConfig) -> Corpus:
    """The text that a config names, and how it falls into documents."""
    data = config.data
    return Corpus(
        paths=data.train_shards,
        validation_paths=data.validation_shards,
        rule=data.document,
        validation_fraction=data.validation_fraction,
    )


def shards_folder(config: RunConfig, folder: RunFolder, tokenizer: Tokenizer) -> Path:
    """Where the run's token shards are, or will be."""
    if config.data.cache_dir is None:
        return folder.root / "data"
    key = hashlib.sha256(repr((tokenizer.sha256, corpus_of(config))).encode()).hexdigest()
    return config.data.cache_dir / key[:16]  # several runs may share a cache, each corpus has its own place


def _open_tokens(
    config: RunConfig, folder: RunFolder, tokenizer: Tokenizer, loaded: LoadedCheckpoint | None, reporter: Reporter
) -> TokenData:
    """The run's token shards: those it began with if they are intact, else made of its text."""
    corpus, place = corpus_of(config), shards_folder(config, folder, tokenizer)
    tokens = _own_tokens(place, loaded)
    if tokens is None:
        announce = _Announcer(reporter, time.monotonic)
        tokens = prepare(corpus, tokenizer, place, progress=announce, say=reporter.say)
        check_same_tokens(tokens, loaded)
    elif not is_current(corpus, tokenizer, place):
        reporter.say("note: the text has changed since this run began; the run goes on with the tokens it began with")
    reporter.say(
        f"data: {tokens.train.num_tokens:,} training and {tokens.validation.num_tokens:,} held-out tokens, "
        f"from {tokens.train.utf8_bytes + tokens.validation.utf8_bytes:,} bytes of text"
    )
    return tokens


def _own_tokens(place: Path, loaded: LoadedCheckpoint | None) -> TokenData | None:
    """What the checkpoint's run was trained on, if it is there and intact."""
    if loaded is None:
        return None
    try:
        tokens = open_tokens(place)
    except DataError:
        return None
    return tokens if tokens.fingerprint == loaded.record.cursor.get("fingerprint") else None


class _Announcer:
    """Says how far reading has come, every few seconds: nothing for a small corpus, patience for a large one."""

    def __init__(self, reporter: Reporter, clock: Callable[[], float], every_seconds: float = 10.0) -> None:
        self._reporter, self._clock, self._every = reporter, clock, every_seconds
        self._started = self._said = clock()

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if now - self._said >= self._every:
            self._said = now
            rate = done / 1e6 / (now - self._started)
            self._reporter.say(f"data: {done / max(total, 1):.0%} of {total / 1e6:,.0f} MB read, {rate:.1f} MB/s")


def check_same_tokens(tokens: TokenData, loaded: LoadedCheckpoint | None) -> None:
    """Raise CheckpointError if the checkpoint's run, should there be one, was trained on other tokens."""
    if loaded is None or loaded.record.cursor["fingerprint"] is None:  # None: imported, and goes on with any text
        return
    if loaded.record.cursor["fingerprint"] != tokens.fingerprint:
        raise CheckpointError(
            f"{tokens.folder}: not the tokens this run was trained on (fingerprint {tokens.fingerprint[:12]}, "
            f"{loaded.path} has {str(loaded.record.cursor['fingerprint'])[:12]}): the text, its split or the "
            "document rule changed; put the text back, or train in another --run-dir"
        )


def _make_learner(config: RunConfig, spec: ModelSpec, backend: Backend, loaded: LoadedCheckpoint | None) -> Learner:
    weights = InitialWeights(spec, config.runtime.seed) if loaded is None else loaded.weights
    learner = backend.learner(spec, make_optim(config), make_compute(config, spec), weights)
    if loaded is not None:
        learner.load(loaded.tensors, loaded.record.step, loaded.record.loss_scale)
    return learner
