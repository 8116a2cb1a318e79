"""Options that several commands share."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sconce.config import RunConfig


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


class Document(StrEnum):
    """What one document of a text file is."""

    passage = "passage"
    line = "line"
    blank_line = "blank-line"
    file = "file"


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
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML, YAML or JSON; `sconce config docs` lists every key.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="A config that comes with Sconce instead, such as runpod_124m."),
]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="Folder that the run owns.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one value a line, instead of text.")]


def chosen_run_dir(option: Path | None, configured: Path | None, config: Path) -> Path:
    """The run's folder: as the option says, else the config, else named after the config's file."""
    if option is None and configured is not None:  # absolute: shown from where the user stands
        here = Path.cwd()
        return configured.relative_to(here) if configured.is_relative_to(here) else configured
    return option or Path("runs") / config.stem


def given(context: typer.Context, options: Mapping[str, str]) -> list[str]:
    """Which of these options, by their parameters, were typed."""
    sources = {name: context.get_parameter_source(name) for name in options}
    return [options[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def load_source(
    config: Path | None, profile: str | None, overrides: Sequence[str]
) -> "tuple[RunConfig, Sequence[str]]":
    """The config of a file or of a preset, and what of an earlier system's file was turned, a line each.

    Raises ConfigError, also unless exactly one of the two is given.
    """
    from sconce.config import config_from, load_preset, load_table

    check_source(config, profile)
    if profile is not None:
        return load_preset(profile, overrides), ()
    path = source_path(config)
    table, notes = load_table(path)
    return config_from(table, str(path), overrides), notes


def check_source(config: Path | None, profile: str | None) -> None:
    """Raise ConfigError unless exactly one of a file and a preset is given."""
    from sconce.config import preset_names
    from sconce.errors import ConfigError

    if (config is None) == (profile is None):
        found = "neither" if config is None else "both"
        raise ConfigError(
            f"found {found} of a config file and --profile, expected one of them; presets: {', '.join(preset_names())}"
        )


def source_path(config: Path | None) -> Path:
    """The config file, where `check_source` has found one."""
    assert config is not None
    return config
