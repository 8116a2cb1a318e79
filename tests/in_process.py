"""Small runs in this process, on a backend that a test may have tampered with."""

from commands import SMALL, write_corpus

from sconce.config import load_config
from sconce.orchestrate import LocalJob, orchestrate_local
from sconce.training.job import train_config
from sconce.training.run import RunFolder

STEPS = ("scheduler.total_steps=8", "runtime.checkpoint.every_n_steps=4", "data.batch_size=6")


class Quiet:
    """A reporter that remembers what was said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def __getattr__(self, name):
        return lambda *_: None


def prepare(root):
    """A config whose tokenizer and shards exist, trained for a few updates."""
    job = LocalJob(inputs=(write_corpus(root / "corpus.txt"),), vocab_size=300, overrides=(*SMALL, *STEPS))
    folder = RunFolder(root / "run")
    orchestrate_local(job, folder, hardware="cpu", reporter=Quiet())
    return folder.root / "training.toml"


def train(config_path, root, backend, *overrides, **options):
    config = load_config(config_path, (*SMALL, *STEPS, *overrides))
    reporter = Quiet()
    hardware = "mlx" if backend.name == "mlx" else "cpu"
    try:
        train_config(config, RunFolder(root), hardware=hardware, reporter=reporter, **options)
    finally:
        reporter.text = "\n".join(reporter.lines)
    return reporter
