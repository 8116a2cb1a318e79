"""`sconce data`: make token shards, and read what a run trains on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sconce_cli import shards, texts
from sconce_cli.options import JsonOption, OverrideOption, RunDirOption, chosen_run_dir

if TYPE_CHECKING:
    from sconce.data.show import Piece, ShownRow, ShownStep, StepReader

app = typer.Typer(help="Make token shards, and read what a run trains on.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Make token shards, and read what a run trains on."""


app.command()(texts.shard)
app.command()(texts.clean)
app.command()(shards.prepare)
app.command()(shards.inspect)
app.command()(shards.stats)
app.command()(shards.verify)


@app.command()
def show(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_CONFIG", help="A run folder, or the config file of a run, begun or not.")
    ],
    step: Annotated[
        int,
        typer.Option(
            "--step",
            metavar="N",
            help="The update that makes step N, as metrics.jsonl counts: step 1 is the first update. Any step, "
            "trained already or not.",
        ),
    ],
    row: Annotated[
        int | None, typer.Option("--row", metavar="K", help="Only the row at this position of the batch, from 0.")
    ] = None,
    run_dir: RunDirOption = None,
    override: OverrideOption = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print token ids too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the rows that one update trains on: where they come from, and their text.

    From a config file its text is made into token shards first, as `sconce train` would, if it is not yet.
    """
    import dataclasses
    import json

    reader = _open_reader(source, run_dir, override or [])
    shown = reader.show(step, row)
    if as_json:
        facts: dict[str, object] = {"shards": str(reader.data.folder), "fingerprint": reader.data.fingerprint}
        facts |= {"total_steps": reader.total_steps, "remarks": reader.remarks(step)}
        typer.echo(json.dumps({**facts, **dataclasses.asdict(shown)}, ensure_ascii=False))
        return
    _echo_step(reader, shown)
    for one in shown.rows:
        _echo_row(one, tokens)


def _open_reader(source: Path, run_dir: Path | None, override: list[str]) -> "StepReader":
    from sconce.config import load_config
    from sconce.errors import ConfigError
    from sconce.training.run import RunFolder
    from sconce.training.show import reader_of_config, reader_of_run

    if not source.is_dir():
        config = load_config(source, override)
        return reader_of_config(config, RunFolder(chosen_run_dir(run_dir, config.runtime.run_dir, source)), _note)
    if run_dir is not None or override:
        raise ConfigError(f"{source}: a run folder has its config: --run-dir and --override go with a config file")
    return reader_of_run(RunFolder(source), _note)


def _note(line: str) -> None:
    """Beside what is shown, which may be JSON."""
    typer.echo(f"note: {line}", err=True)


def _echo_step(reader: "StepReader", shown: "ShownStep") -> None:
    of = "the stream" if shown.num_rows is None else f"{shown.num_rows:,} rows"
    typer.echo(
        f"step {shown.step}: {shown.batch_size} rows of {shown.sequence_length} predictions, of {of} in "
        f"{reader.data.folder}"
    )
    typer.echo(f"row ids: {', '.join(map(str, shown.row_ids))}")
    for remark in reader.remarks(shown.step):
        typer.echo(f"note: {remark}")


def _echo_row(row: "ShownRow", with_tokens: bool) -> None:
    padding = f", {row.padding:,} places empty" if row.padding else ""
    source = f" of {row.source}" if row.source is not None else ""
    typer.echo(f"\n[{row.position}] row {row.row}{source}, epoch {row.epoch}{padding}")
    for piece in row.pieces:
        start, end = piece.start, piece.start + len(piece.tokens)
        whole = "start" if piece.offset == 0 else f"its token {piece.offset:,}"
        typer.echo(f"  document {piece.document:,} from {whole}: tokens {start:,} to {end - 1:,}")
        _echo_piece(piece, with_tokens)


def _echo_piece(piece: "Piece", with_tokens: bool) -> None:
    if piece.text:
        for line in piece.text.split("\n"):
            typer.echo(f"    | {_visible(line)}")
    if piece.ends:
        typer.echo("    = end of document")
    if with_tokens:
        typer.echo(f"    ids {' '.join(map(str, piece.tokens))}")


def _visible(line: str) -> str:
    """Control characters spelt out: a text must not steer the terminal."""
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in line)
