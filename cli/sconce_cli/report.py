"""`sconce report`: runs as a page to look at."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; a run under way too.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page. Default: report.html, in the run's folder if it is one."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FOLDER", help="Write each chart as a PNG too, into this folder.")
    ] = None,
) -> None:
    """Put runs on one page: curves, samples, configs and what differs, data, hardware and checkpoints.

    The page is one HTML file that needs no network and nothing beside it.
    """
    from datetime import datetime

    from sconce.files import readable_size
    from sconce.report.gather import view_runs
    from sconce.report.page import write_page

    views = view_runs(runs)
    made: list[Path] = []
    if png is not None:
        from sconce.report.figures import draw_charts

        made = draw_charts(views, png)
    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    write_page(views, page, datetime.now().astimezone())
    lines = sum(view.metrics.lines for view in views)
    what = views[0].name if len(views) == 1 else f"{len(views)} runs"
    typer.echo(f"{page}: {what}, {lines:,} lines of figures, {readable_size(page.stat().st_size)}")
    if png is not None:
        typer.echo(f"{png}: {', '.join(path.name for path in made) or 'nothing, as there are no figures yet'}")
    for view in views:
        for note in view.notes:
            typer.echo(f"note: {view.name}: {note}", err=True)
