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


class Dtype(StrEnum):
    """What to compute in; weights are held in it too."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


BackendOption = Annotated[
    Hardware, typer.Option("--backend", help="auto: MLX on Apple Silicon, else CUDA, else the CPU.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Of weights, activations and the key/value cache.")]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder (its latest checkpoint) or a checkpoint folder.")
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
