"""`sconce train` as one call."""

from sconce.backend import Hardware
from sconce.config import RunConfig
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
    reporter: Reporter,
) -> Outcome:
    """Train `config` in `folder`, from its newest checkpoint with `resume`, up to `stop_at` or the end."""
    with folder.locked():
        run = open_run(config, folder, hardware=hardware, resume=resume, reporter=reporter)
        if resume and run.step == 0:
            reporter.say(f"no checkpoint in {folder.checkpoints}: starting at step 0")
        return train(run, stop_at)
