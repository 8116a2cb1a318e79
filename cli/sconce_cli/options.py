"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Hardware(StrEnum):
    """What to train on."""

    auto = "auto"
    mlx = "mlx"
    cuda = "cuda"
    cpu = "cpu"


BackendOption = Annotated[
    Hardware, typer.Option("--backend", help="auto: MLX on Apple Silicon, else CUDA, else the CPU.")
]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option(
        "--override", metavar="KEY=VALUE", help="Change one config key, e.g. scheduler.total_steps=500. Repeatable."
    ),
]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="Folder that the run owns.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one value a line, instead of text.")]


def chosen_run_dir(option: Path | None, configured: Path | None, config: Path) -> Path:
    """The run's folder: as the option says, else the config, else named after the config's file."""
    return option or configured or Path("runs") / config.stem
