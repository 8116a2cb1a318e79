"""The configs that come with Sconce, by name: `configs/` of the checkout, and in the wheel `sconce/configs/`."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from sconce.config.load import config_from, load_table
from sconce.config.read import Table
from sconce.config.schema import RunConfig
from sconce.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def preset_names() -> list[str]:
    """What `--profile` may be."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def preset_path(name: str) -> Path:
    """The preset's file. Raises ConfigError, with the names there are, for another name."""
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        guess = f"did you mean {near[0]}? There are " if near else "there are "
        raise ConfigError(f"--profile {name}: no such preset; {guess}{', '.join(names)}")
    return _folder() / f"{name}.toml"


def preset_table(name: str) -> Table:
    """The preset's tables, unchecked. Its paths are as if it lay in `configs/` of the working directory: `../corpus`
    is `corpus` where the user stands. Raises ConfigError."""
    table, _ = load_table(preset_path(name), Path.cwd() / "configs")
    return table


def load_preset(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The preset as a config, with overrides applied. Raises ConfigError."""
    return config_from(preset_table(name), f"preset {name}", overrides)


def _folder() -> Path:
    return next(folder for folder in _FOLDERS if folder.is_dir())
