"""`sconce config`: check a file, or read what every key means."""

from pathlib import Path
from typing import Annotated

import typer

from sconce_cli.options import OverrideOption

app = typer.Typer(help="Check a config file, or print the reference of every key.", no_args_is_help=True)


@app.command()
def check(config: Annotated[Path, typer.Argument(help="TOML, YAML or JSON.")], override: OverrideOption = None) -> None:
    """Report every fault of a config file together, without training."""
    from sconce.config import load_config

    load_config(config, override or [])
    typer.echo(f"{config}: no faults")


@app.command()
def docs() -> None:
    """Print the reference of every key: type, default, check and meaning."""
    from sconce.config import reference

    typer.echo(reference(), nl=False)
