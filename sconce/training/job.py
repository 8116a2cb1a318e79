"""`sconce train` as one call."""

from sconce.backend import Hardware
from sconce.config import RunConfig
from sconce.training.certificate import check_certificate
from sconce.training.loop import Outcome, train
from sconce.training.metrics import Reporter
from sconce.training.run import RunFolder, open_run


def train_config(
    config: RunConfig,
    folder: RunFolder,
    *,
    hardware: Hardware,
    resume: bool,
    stop_at: int | None,
    certificate: bool = True,
    reporter: Reporter,
) -> Outcome:
    """Train `config` in `folder`, from its newest checkpoint with `resume`, up to `stop_at` or the end.

    A resumed run must reproduce its checkpoint's certificate, unless `certificate` is off.
    """
    with folder.locked():
        run = open_run(config, folder, hardware=hardware, resume=resume, reporter=reporter)
        if run.resumed_from is not None:
            unchecked = "not checked; nothing shows that this is the run that was saved"
            found = check_certificate(run.witness, run.resumed_from) if certificate else unchecked
            reporter.say(f"certificate: {found}")
        elif resume:
            reporter.say(f"no checkpoint in {folder.checkpoints}: starting at step 0")
        return train(run, stop_at)
