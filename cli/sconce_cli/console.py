"""What a person, a log file or another program sees of a run."""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sconce.training.metrics import Record, Reporter


class Terminal(Reporter, Protocol):
    """A reporter that also tells how a run ended."""

    def outcome(self, event: str, fields: Mapping[str, object], text: str) -> None:
        """`event` is finished or stopped; the same facts as fields and as text."""
        ...


def make_reporter(quiet: bool, as_json: bool) -> Terminal:
    """The reporter that fits the options and where standard output goes."""
    if as_json:
        return JsonReporter()
    if quiet:
        return QuietReporter()
    return TerminalReporter() if sys.stdout.isatty() else PlainReporter()


class QuietReporter:
    """Says nothing."""

    def say(self, line: str) -> None: ...
    def start(self, step: int, total_steps: int) -> None: ...
    def update(self, record: Record, logged: bool) -> None: ...
    def evaluation(self, record: Record) -> None: ...
    def sample(self, step: int, text: str) -> None: ...
    def finish(self) -> None: ...
    def outcome(self, event: str, fields: Mapping[str, object], text: str) -> None: ...


class JsonReporter(QuietReporter):
    """One JSON object a line, each with `event`; `metrics.jsonl` has the same figures."""

    def _print(self, event: str, fields: Mapping[str, object]) -> None:
        write_line(json.dumps({"event": event, **fields}, ensure_ascii=False))

    def say(self, line: str) -> None:
        self._print("note", {"text": line})

    def update(self, record: Record, logged: bool) -> None:
        if logged:
            self._print("step", record)

    def evaluation(self, record: Record) -> None:
        self._print("evaluation", record)

    def sample(self, step: int, text: str) -> None:
        self._print("sample", {"step": step, "text": text})

    def outcome(self, event: str, fields: Mapping[str, object], text: str) -> None:
        self._print(event, fields)


class PlainReporter(QuietReporter):
    """Lines for a log file."""

    total_steps = 0

    def say(self, line: str) -> None:
        write_line(line)

    def start(self, step: int, total_steps: int) -> None:
        self.total_steps = total_steps

    def update(self, record: Record, logged: bool) -> None:
        if logged:
            self.say(f"step {record['step']:>6}/{self.total_steps}  {describe_update(record)}")

    def evaluation(self, record: Record) -> None:
        self.say(f"step {record['step']:>6}  {describe_evaluation(record)}")

    def sample(self, step: int, text: str) -> None:
        self.say(f"step {step:>6}  sample:\n{indent(text)}")

    def outcome(self, event: str, fields: Mapping[str, object], text: str) -> None:
        self.say(text)


class TerminalReporter(QuietReporter):
    """A progress bar with the latest figures, and lines above it."""

    def __init__(self) -> None:
        self._console = Console()
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        self._live: Live | None = None
        self._task = self._progress.add_task("training", total=None, figures="")
        self._smooth: float | None = None
        self._drawn = 0.0

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def start(self, step: int, total_steps: int) -> None:
        self._progress.reset(self._task, total=total_steps, completed=step, figures="")
        self._live = Live(self._progress, console=self._console, refresh_per_second=8)
        self._live.start()

    def update(self, record: Record, logged: bool) -> None:
        loss = record["loss"]
        self._smooth = loss if self._smooth is None else self._smooth + 0.1 * (loss - self._smooth)
        last = record["step"] == self._progress.tasks[0].total
        if last or time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            shown = {**record, "loss": self._smooth}
            self._progress.update(self._task, completed=int(record["step"]), figures=describe_update(shown))

    def evaluation(self, record: Record) -> None:
        self.say(f"step {record['step']}: {describe_evaluation(record)}")

    def sample(self, step: int, text: str) -> None:
        self.say(f"step {step}, sample:\n{indent(text)}")

    def outcome(self, event: str, fields: Mapping[str, object], text: str) -> None:
        self.say(text)

    def finish(self) -> None:
        if self._live is not None:
            self._progress.refresh()
            self._live.stop()
            self._live = None


def write_line(line: str) -> None:
    """Print at once. A reader that has gone (`| head`) must not end a training run: from then on, silence."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe_update(record: Record) -> str:
    """Loss, speed and memory in a few words."""
    memory = record["memory_bytes"] / 2**20
    size = f"{memory / 1024:.1f} GiB" if memory >= 1024 else f"{memory:.0f} MiB"
    skipped = f"  {record['skipped']:.0f} updates skipped" if "skipped" in record else ""
    return (
        f"loss {record['loss']:.3f}  {record['tokens_per_second']:,.0f} tok/s  {describe_utilization(record)}  "
        f"{size}{skipped}"
    )


def describe_utilization(record: Record) -> str:
    """Such as "MFU 41% of peak, 52% of matmul"."""
    parts = [f"{record['mfu']:.1%} of peak"] if "mfu" in record else []
    return "MFU " + ", ".join([*parts, f"{record['mfu_measured']:.1%} of matmul"])


def describe_evaluation(record: Record) -> str:
    """Held-out figures in one line."""
    return (
        f"held-out loss {record['eval_loss']:.4f}  perplexity {record['perplexity']:.2f}  "
        f"{record['bits_per_byte']:.4f} bits per byte"
    )


def indent(text: str) -> str:
    """The text moved in by four columns, so that it stands apart from our own lines."""
    return "\n".join(f"    {line}" for line in text.strip("\n").splitlines())
