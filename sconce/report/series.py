"""Curves out of `metrics.jsonl`, in bounded size however long the run was."""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_POINTS = 800  # of a curve: about as many as a wide screen can tell apart
_LARGEST = 1e300  # what is beyond is no measurement, and its sums would overflow


@dataclass(frozen=True, slots=True)
class Curve:
    """One figure over a run: where each value (n,) was measured, by step, tokens and seconds of training proper."""

    step: Floats
    tokens: Floats
    seconds: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class Points:
    """A curve of at most a given number of points. `mean`, `low` and `high` are those of the values behind a point.

    `behind` is the most values that any point stands for: with 1 the curve is as it was measured.
    """

    step: Floats
    tokens: Floats
    seconds: Floats
    mean: Floats
    low: Floats
    high: Floats
    behind: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """All curves of a run by figure; `lines` that were read, and those among them that were `broken`."""

    curves: dict[str, Curve] = field(default_factory=dict[str, Curve])
    lines: int = 0
    broken: int = 0

    def last(self, figure: str) -> float | None:
        """The newest value, or None where there is none."""
        curve = self.curves.get(figure)
        return None if curve is None else float(curve.values[-1])


def read_curves(path: Path) -> Metrics:
    """The figures in a `metrics.jsonl`, which a run may still be writing; none where there is no such file.

    A line that is no record is passed over and counted. Memory is some 16 bytes a figure.
    """
    columns: defaultdict[str, tuple[array[float], array[float]]] = defaultdict(lambda: (array("d"), array("d")))
    lines = broken = 0
    for line in _complete_lines(path):
        lines += 1
        record = _parse(line)
        if record is None:
            broken += 1
            continue
        step = record.pop("step")
        for figure, value in record.items():
            steps, values = columns[figure]
            steps.append(step)
            values.append(value)
    return Metrics(_place({name: _sorted(steps, values) for name, (steps, values) in columns.items()}), lines, broken)


def _complete_lines(path: Path) -> Iterator[bytes]:
    """Lines that end: the last may be half written."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _parse(line: bytes) -> dict[str, float] | None:
    try:
        record: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    fields = cast(dict[str, object], record).items()
    figures = {key: number for key, value in fields if (number := _number(value)) is not None}
    return figures if figures.get("step", -1) >= 0 else None


def _number(value: object) -> float | None:
    """A finite number that fits, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return None
    return float(value)


def _sorted(steps: "array[float]", values: "array[float]") -> tuple[Floats, Floats]:
    at, what = np.array(steps), np.array(values)
    order = np.argsort(at, kind="stable")
    return at[order], what[order]


def _place(columns: dict[str, tuple[Floats, Floats]]) -> dict[str, Curve]:
    """Give every value its tokens and seconds, between logged updates by interpolation."""
    nothing = np.zeros(0), np.zeros(0)
    known, tokens = columns.pop("tokens", nothing)
    seconds = _seconds(known, tokens, *columns.get("tokens_per_second", nothing))
    curves: dict[str, Curve] = {}
    for name, (steps, values) in columns.items():
        if known.size:
            curves[name] = Curve(steps, np.interp(steps, known, tokens), np.interp(steps, known, seconds), values)
        else:
            curves[name] = Curve(steps, np.zeros(steps.size), np.zeros(steps.size), values)
    return curves


def _seconds(steps: Floats, tokens: Floats, rate_steps: Floats, rates: Floats) -> Floats:
    """Seconds of training proper at each logged update: its rate is that of all tokens since the one before.

    So the time adds up over stops and resumptions, and evaluations, checkpoints and samples are not in it. Before the
    first logged update, one update's worth: an imported run did not train its first steps here.
    """
    if not (steps.size and rates.size):
        return np.zeros(steps.size)
    passed = np.diff(tokens, prepend=tokens[0] * (1 - 1 / max(steps[0], 1)))
    return np.cumsum(np.maximum(passed, 0) / np.maximum(np.interp(steps, rate_steps, rates), 1e-9))


def decimate(curve: Curve, most: int = MOST_POINTS) -> Points:
    """The curve in at most `most` points (at least 3): the first and the last value, and runs of equal length between.

    Each point has the least and the greatest value it stands for, so that no spike is lost.
    """
    n = curve.values.size
    if n <= most:
        edges = np.arange(n + 1)
    else:
        edges = np.concatenate(([0], np.linspace(1, n - 1, most - 1).astype(np.int64), [n]))
    starts, counts = edges[:-1], np.diff(edges)
    middle = starts + counts // 2
    return Points(
        step=curve.step[middle],
        tokens=curve.tokens[middle],
        seconds=curve.seconds[middle],
        mean=np.add.reduceat(curve.values, starts) / counts,
        low=np.minimum.reduceat(curve.values, starts),
        high=np.maximum.reduceat(curve.values, starts),
        behind=int(counts.max()),
    )
