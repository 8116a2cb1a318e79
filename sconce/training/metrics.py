"""Where a run's figures go: `metrics.jsonl`, TensorBoard, and whoever watches."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tensorboardX import SummaryWriter

from sconce.files import write_atomic

Record = Mapping[str, float | int]
"""One line of figures; always with `step`, the number of updates done."""

TENSORBOARD_TAGS = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "eval_loss": "eval/loss",
    "perplexity": "eval/perplexity",
    "bits_per_byte": "eval/bits_per_byte",
}


class Reporter(Protocol):
    """Whoever watches a run: a terminal, a pipe, nobody."""

    def say(self, line: str) -> None:
        """One line the user should know."""
        ...

    def start(self, step: int, total_steps: int) -> None:
        """Training is about to go on from `step`."""
        ...

    def update(self, record: Record, logged: bool) -> None:
        """One finished update; `logged` when its record also went to the files."""
        ...

    def evaluation(self, record: Record) -> None:
        """A held-out evaluation."""
        ...

    def sample(self, step: int, text: str) -> None:
        """Text the model wrote."""
        ...

    def finish(self) -> None:
        """Training has stopped, for whatever reason."""
        ...


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, cut back to the resumed step so that no step appears twice."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= resumed_step]
        write_atomic(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one record; it reaches the operating system before this returns."""
        self._file.write(json.dumps(dict(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _complete_lines(path: Path) -> list[str]:
    """The file's lines without a last one that a kill cut short."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All records of a run so far."""
    return [json.loads(line) for line in _complete_lines(path)]


class TensorBoard:
    """Event files that TensorBoard reads; steps beyond the resumed one are purged from what it shows."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else None)

    def write(self, record: Record) -> None:
        """One scalar for every figure that has a tag."""
        for key, tag in TENSORBOARD_TAGS.items():
            if key in record:
                self._writer.add_scalar(tag, record[key], int(record["step"]))

    def text(self, step: int, text: str) -> None:
        """A sample, shown under TensorBoard's text tab."""
        self._writer.add_text("sample", text, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
