"""A config file of the earlier system, in any of the three formats, to one of ours in TOML."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import tomli_w

from sconce.config.earlier import migrate, paths_base
from sconce.config.fields import map_paths
from sconce.config.load import config_from
from sconce.config.overrides import absolutize
from sconce.config.read import Table, read_table
from sconce.config.streaming_file import apply_streaming_file

HEADER = """\
# Converted from {name} by `sconce config convert`. Paths are relative to this file.
# Every key is explained in docs/configuration.md (`sconce config docs`).
"""


def convert_config(path: Path, home: Path, overrides: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The file as TOML for the folder `home`, and a line for each key that changed, with the reason.

    `overrides` are written into it. Raises ConfigError with every fault when what comes out could not be trained.
    """
    table = read_table(path)
    base = paths_base(table, path.resolve().parent)
    notes = migrate(table) + apply_streaming_file(table, path.parent)
    absolutize(table, base)
    config_from(table, str(path), overrides)  # which also puts the overrides into the table
    written = copy.deepcopy(table)
    base = home.resolve()
    map_paths(written, lambda path: os.path.relpath(path, base))
    lines = [f"#   {note}" for note in notes]
    changed = "\n".join(["# What is not as it was:", *lines, ""]) if lines else ""
    return HEADER.format(name=path.name) + changed + "\n" + tomli_w.dumps(_without_none(written)), notes


def _without_none(table: Table) -> Table:
    """TOML has no null: such a key is left out."""
    return {
        key: _without_none(cast(Table, value)) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }
