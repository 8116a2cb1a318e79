"""Where a run's figures go: `metrics.jsonl`, and whoever watches."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from sconce.files import write_atomic

Record = Mapping[str, float | int]
"""One line of figures; always with `step`, the number of updates done."""


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


class Silent:
    """A reporter that says nothing."""

    def say(self, line: str) -> None: ...
    def start(self, step: int, total_steps: int) -> None: ...
    def update(self, record: Record, logged: bool) -> None: ...
    def evaluation(self, record: Record) -> None: ...
    def sample(self, step: int, text: str) -> None: ...
    def finish(self) -> None: ...


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, cut back to the resumed step so that no step appears twice."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        kept = [record for record in read_metrics(path) if record["step"] <= resumed_step]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record, without figures that JSON cannot say; it reaches the operating system on return."""
        said = {key: value for key, value in record.items() if not isinstance(value, float) or math.isfinite(value)}
        self._file.write(json.dumps(said) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All records of a run so far; a line that a kill or a crash left unreadable is passed over."""
    if not path.exists():
        return []
    records = [_parse(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [record for record in records if record is not None]


def _parse(line: str) -> dict[str, float] | None:
    try:
        record: object = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(cast(dict[str, object], record).get("step"), int)
    return cast(dict[str, float], record) if is_record else None
