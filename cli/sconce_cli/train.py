"""`sconce train`: run a config, or go on with its run."""

from pathlib import Path
from typing import Annotated

import typer

from sconce_cli.options import (
    BackendOption,
    ConfigOption,
    Hardware,
    JsonOption,
    OverrideOption,
    ProfileOption,
    QuietOption,
    RunDirOption,
    chosen_run_dir,
    load_source,
)


def train(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    run_dir: RunDirOption = None,
    backend: BackendOption = Hardware.auto,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Go on from the newest intact checkpoint, if there is one, or refuse to. Without either: go on if the "
            "config is the run folder's own, as orchestrate writes it.",
        ),
    ] = None,
    stop_at: Annotated[
        int | None,
        typer.Option("--stop-at", min=1, metavar="STEP", help="Save and stop there; the schedule keeps its horizon."),
    ] = None,
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate/--no-certificate",
            help="Reproduce the checkpoint's next loss before going on. Without: nothing shows that weights, data and "
            "settings are those that were saved.",
        ),
    ] = True,
    override: OverrideOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the model that a config describes, or go on where its run folder stopped."""
    from sconce.training.job import is_own_config, train_config
    from sconce.training.run import RunFolder
    from sconce.training.signals import end_at_sigterm
    from sconce_cli.console import make_reporter
    from sconce_cli.summary import report_outcome, train_command

    loaded, notes = load_source(config, profile, override or [])
    source = profile or config
    assert source is not None
    folder = RunFolder(chosen_run_dir(run_dir, loaded.runtime.run_dir, Path(source)))
    reporter = make_reporter(quiet, as_json)
    for note in notes:
        reporter.say(f"note: {note}")
    with end_at_sigterm(reporter.say):
        outcome = train_config(
            loaded,
            folder,
            hardware=backend.value,
            resume=resume if resume is not None else config is not None and is_own_config(config, folder),
            stop_at=stop_at,
            certificate=certificate,
            reporter=reporter,
        )
    again = train_command(source, folder.root, backend.value, override or [])
    longer = train_command(source, folder.root, backend.value, [*(override or []), outcome.extend])
    report_outcome(outcome, folder, again, longer, reporter)
    raise typer.Exit(outcome.exit_code)
