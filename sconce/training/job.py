"""`sconce train` as one call."""

from contextlib import ExitStack
from pathlib import Path

from sconce.backend import Hardware
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.config import RunConfig, differences, to_json
from sconce.errors import ConfigError
from sconce.files import write_json
from sconce.training.certificate import check_certificate
from sconce.training.loop import Outcome, train
from sconce.training.metrics import Reporter
from sconce.training.recipe import make_compute
from sconce.training.run import Run, RunFolder, describe_compiling, open_run


def is_own_config(config: Path, folder: RunFolder) -> bool:
    """Whether a config file lies in the run folder itself: to train it again can only mean to go on."""
    return config.resolve().parent == folder.root.resolve()


def train_config(
    config: RunConfig,
    folder: RunFolder,
    *,
    hardware: Hardware,
    resume: bool,
    reporter: Reporter,
    stop_at: int | None = None,
    certificate: bool = True,
) -> Outcome:
    """Train a config into a folder, from the start or from its newest intact checkpoint.

    A resumed run must reproduce its checkpoint's certificate, unless `certificate` is off.
    """
    if not (certificate or resume):
        raise ConfigError("--no-certificate: there is nothing to skip without --resume")
    with folder.locked():
        run = start(config, folder, hardware=hardware, resume=resume, reporter=reporter, certificate=certificate)
        if resume and run.resumed_from is None:
            reporter.say(f"no checkpoint in {folder.checkpoints}: starting at step 0")
        return train(run, stop_at)


def start(
    config: RunConfig,
    folder: RunFolder,
    *,
    hardware: Hardware,
    resume: bool,
    reporter: Reporter,
    certificate: bool = True,
) -> Run:
    """Everything of `train_config` before the first update, in a folder that is locked."""
    run = open_run(config, folder, hardware=hardware, resume=resume, reporter=reporter)
    with ExitStack() as stack:
        stack.callback(run.close)  # unless it comes to train
        _begin(run, reporter, certificate)
        stack.pop_all()
    return run


def _begin(run: Run, reporter: Reporter, certificate: bool) -> None:
    """Check that the run is the one that was saved, say what is left to say, and write its config down."""
    if run.resumed_from is not None:
        reporter.say(_describe_resume(run, run.resumed_from))
        unchecked = "not checked; nothing shows that this is the run that was saved"
        found = check_certificate(run.witness, run.resumed_from) if certificate else unchecked
        reporter.say(f"certificate: {found}")
    if (chunk := make_compute(run.config, run.spec, run.backend.device().kind).loss_chunk) is not None:
        reporter.say(f"loss: logits of {chunk:,} tokens at a time")
    if (note := describe_compiling(run)) is not None:
        reporter.say(note)
    write_json(run.folder.config, to_json(run.config))


def _describe_resume(run: Run, loaded: LoadedCheckpoint) -> str:
    record, device = loaded.record, run.backend.device()
    here, there = (device.backend, device.kind), (record.backend, record.hardware.get("kind"))
    moved = ""
    if record.is_imported:
        moved = ", which was imported"
    elif here != there:
        moved = f", written by {there[0]} on {there[1]}, going on with {here[0]} on {here[1]}"
    changed = differences(loaded.run_config, to_json(run.config))
    changes = "; ".join(f"{change.key} from {change.old} to {change.new}" for change in changed)
    return f"resuming from {loaded.path.name}{moved}" + (f"; changed: {changes}" if changes else "")
