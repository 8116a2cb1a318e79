"""The report's charts as PNGs."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sconce.files import write_atomic
from sconce.png import png_bytes
from sconce.report.charts import CHARTS, HELD_OUT, Chart
from sconce.report.gather import RunView
from sconce.report.series import Floats, Points, decimate
from sconce.training.plot import running_mean

COLOURS = ("#2a66c8", "#d1571b", "#128270", "#9b3fb5", "#ab7d08", "#c92f55", "#4f7324", "#5c6675")
_POSITIONS = (("step", "step", 1.0), ("tokens", "tokens", 1.0), ("seconds", "hours of training", 1 / 3600))


def draw_charts(views: Sequence[RunView], folder: Path) -> list[Path]:
    """One PNG a chart over steps, and the loss over tokens and time too; the files made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for chart in CHARTS:
        if not any({*chart.figures} & {*view.metrics.curves} for view in views):
            continue
        for position, label, unit in _POSITIONS if chart.name == "loss" else _POSITIONS[:1]:
            suffix = "" if position == "step" else f"_over_{position}"
            made.append(folder / f"{chart.name}{suffix}.png")
            _draw(chart, views, (position, label, unit), made[-1])
    return made


def _draw(chart: Chart, views: Sequence[RunView], position: tuple[str, str, float], path: Path) -> None:
    name, label, unit = position
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for index, view in enumerate(views):
        colour = COLOURS[index % len(COLOURS)]
        for key in chart.figures:
            if key not in view.metrics.curves:
                continue
            points = decimate(view.metrics.curves[key])
            at, mean = _positions(points, name) * unit, points.mean * chart.factor
            if key in HELD_OUT:
                axes.plot(at, mean, "o--", color=colour, markersize=4, label=f"{view.name}, held out")
            elif chart.noisy:
                _draw_noisy(axes, at, points, chart.factor, colour)
                axes.plot(at, running_mean(mean.tolist()), color=colour, linewidth=1.8, label=view.name)
            else:
                axes.plot(at, mean, color=colour, linewidth=1.8, label=view.name)
    if name != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(title=chart.title, xlabel=label, ylabel=chart.unit)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_atomic(path, png_bytes(figure))


def _positions(points: Points, name: str) -> Floats:
    return {"step": points.step, "tokens": points.tokens, "seconds": points.seconds}[name]


def _draw_noisy(axes: Axes, at: Floats, points: Points, factor: float, colour: str) -> None:
    """Behind the running mean, what was measured: each value, or the range that a point stands for."""
    if points.behind > 1:
        axes.fill_between(at, points.low * factor, points.high * factor, color=colour, alpha=0.2, linewidth=0)
    else:
        axes.plot(at, points.mean * factor, color=colour, alpha=0.35, linewidth=0.8)
