"""The report as one HTML file that needs nothing else: its style, its script and all figures are inside."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sconce
from sconce.checkpoint.listing import Listed
from sconce.errors import SconceError
from sconce.files import write_atomic
from sconce.report.charts import CHARTS, HELD_OUT
from sconce.report.gather import RunView
from sconce.report.series import MOST_POINTS, decimate

GENERATOR = '<meta name="generator" content="sconce report">'


def write_page(views: Sequence[RunView], path: Path, now: datetime) -> None:
    """Write the report of these runs to `path`, in place of an earlier report.

    Raises SconceError when something else is there.
    """
    if path.exists() and GENERATOR.encode() not in path.read_bytes()[:2000]:
        raise SconceError(f"{path}: exists and is no report: choose another --out")
    if not path.parent.is_dir():
        raise SconceError(f"{path.parent}: no such folder: make it, or choose another --out")
    write_atomic(path, render(page_data(views, now)))


def render(data: dict[str, object]) -> str:
    """The page around the data."""
    # A "</script>" in a sample must not end the data, and HTML knows other ways out of a script too.
    inside = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = _part("page.html")
    for name, text in (("style", _part("style.css")), ("script", _part("charts.js") + _part("page.js"))):
        page = page.replace(f"/* {name} */", text)
    return page.replace("/* data */", inside)


def _part(name: str) -> str:
    return resources.files("sconce.report").joinpath(name).read_text(encoding="utf-8")


def page_data(views: Sequence[RunView], now: datetime) -> dict[str, object]:
    """What the page shows, as JSON. Its size is bounded: more runs have fewer points each."""
    most = min(MOST_POINTS, max(200, 4 * MOST_POINTS // len(views)))
    drawn = [chart for chart in CHARTS if any({*chart.figures} & {*view.metrics.curves} for view in views)]
    return {
        "version": sconce.__version__,
        "made": now.isoformat(timespec="seconds"),
        "charts": [_only(chart, "name", "title", "unit", "figures", "noisy") for chart in drawn],
        "held_out": sorted(HELD_OUT),
        "runs": [_run(view, most) for view in views],
    }


def _run(view: RunView, most: int) -> dict[str, object]:
    curves = {}
    for chart in CHARTS:
        for figure in chart.figures:
            if figure in view.metrics.curves:
                curves[figure] = _curve(view, figure, chart.factor, most)
    return {
        "name": view.name,
        "path": str(view.path),
        "step": view.step,
        "total_steps": view.total_steps,
        "headline": _headline(view),
        "lines": view.metrics.lines,
        "curves": curves,
        "samples": [asdict(sample) for sample in view.samples],
        "config": view.config,
        "data": view.data,
        "hardware": view.hardware,
        "checkpoints": [_checkpoint(listed) for listed in view.checkpoints],
        "evaluations": [_only(evaluated, "checkpoint", "results") for evaluated in view.evaluations],
        "notes": view.notes,
    }


def _only(value: object, *names: str) -> dict[str, object]:
    """Some of an object's attributes."""
    return {name: getattr(value, name) for name in names}


def _curve(view: RunView, figure: str, factor: float, most: int) -> dict[str, object]:
    points = decimate(view.metrics.curves[figure], most)
    curve: dict[str, object] = {
        "step": points.step.astype(np.int64).tolist(),
        "tokens": points.tokens.astype(np.int64).tolist(),
        "seconds": _short(points.seconds),
        "mean": _short(points.mean * factor),
        "behind": points.behind,
    }
    if points.behind > 1:
        curve |= {"low": _short(points.low * factor), "high": _short(points.high * factor)}
    return curve


def _short(values: NDArray[np.float64]) -> list[float]:
    """Six significant digits: more than a screen shows."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _headline(view: RunView) -> dict[str, float | None]:
    """The figures that a run is judged by."""
    curves = view.metrics.curves
    held_out = curves.get("eval_loss")
    seconds = max((float(curve.seconds[-1]) for curve in curves.values()), default=None)
    tokens = max((float(curve.tokens[-1]) for curve in curves.values()), default=None)
    return {
        "loss": view.metrics.last("loss"),
        "best_eval_loss": None if held_out is None else float(held_out.values.min()),
        "best_step": None if held_out is None else float(held_out.step[held_out.values.argmin()]),
        "bits_per_byte": view.metrics.last("bits_per_byte"),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": _median(view, "tokens_per_second"),
        "mfu": _median(view, "mfu"),
        "mfu_measured": _median(view, "mfu_measured"),
        "memory_bytes": view.metrics.last("memory_bytes"),
        "parameters": view.parameters,
    }


def _median(view: RunView, figure: str) -> float | None:
    curve = view.metrics.curves.get(figure)
    return None if curve is None else float(np.median(curve.values))


def _checkpoint(listed: Listed) -> dict[str, object]:
    record = listed.record
    return {
        "name": listed.path.name,
        "bytes": listed.bytes,
        "fault": listed.fault,
        "latest": listed.is_latest,
        "best": listed.is_best,
        "tokens": None if record is None else record.tokens,
        "backend": None if record is None else record.backend,
        "files": {} if record is None else {name: file.sha256 for name, file in record.files.items()},
    }
