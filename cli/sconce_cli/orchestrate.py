"""`sconce orchestrate`: everything from text files to a trained model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sconce_cli.options import BackendOption, Hardware, JsonOption, OverrideOption, QuietOption


class Mode(StrEnum):
    """Where the work happens."""

    local = "local"


def orchestrate(
    mode: Annotated[Mode, typer.Option("--mode", help="local: on this machine.")] = Mode.local,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="FILE_OR_FOLDER",
            help="Text to learn from (.txt, .md, .gz). Repeatable. Without it: the language reference inside Python.",
        ),
    ] = None,
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Folder that the run owns.")] = Path("runs/local"),
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=259, help="Tokens of the new tokenizer. [default: 1024]")
    ] = None,
    backend: BackendOption = Hardware.auto,
    override: OverrideOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """From text files to a trained model: tokenizer, shards, training, evaluation, samples."""
    from sconce.orchestrate import LocalJob, orchestrate_local
    from sconce.training.run import RunFolder
    from sconce_cli.console import make_reporter
    from sconce_cli.summary import report_outcome, train_command

    assert mode is Mode.local
    reporter = make_reporter(quiet, as_json)
    folder = RunFolder(run_dir)
    job = LocalJob(inputs=tuple(inputs or ()), vocab_size=vocab_size, overrides=tuple(override or ()))
    outcome = orchestrate_local(job, folder, hardware=backend.value, reporter=reporter)
    again = train_command(run_dir / "training.toml", run_dir, backend.value, override or [])
    report_outcome(outcome, folder, again, reporter)
    raise typer.Exit(outcome.exit_code)
