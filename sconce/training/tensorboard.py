"""TensorBoard files. Import this only once a backend is loaded: tensorboardX imports torch where it finds it."""

from pathlib import Path

from tensorboardX import SummaryWriter

from sconce.training.metrics import Record

TENSORBOARD_TAGS = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "mfu": "train/mfu",
    "mfu_measured": "train/mfu_measured",
    "eval_loss": "eval/loss",
    "perplexity": "eval/perplexity",
    "bits_per_byte": "eval/bits_per_byte",
}


class TensorBoard:
    """Event files that TensorBoard reads; steps beyond the resumed one are purged from what it shows."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, record: Record) -> None:
        """One scalar for every figure that has a tag."""
        for key, tag in TENSORBOARD_TAGS.items():
            if key in record:
                self._writer.add_scalar(tag, record[key], int(record["step"]))

    def text(self, step: int, text: str) -> None:
        """A sample, shown under TensorBoard's text tab."""
        self._writer.add_text("sample", text, step)

    def flush(self) -> None:
        """Put what was written so far onto the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
