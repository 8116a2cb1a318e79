"""Paths of a config file, and `key=value` overrides, into its tables."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from sconce.config.fields import PATHS, expected, fields, is_optional, unknown, value_type
from sconce.config.read import Table


def absolutize(table: Table, base: Path) -> None:
    """Resolve the paths of a config file against its own folder."""
    for key, field in fields().items():
        if not (value_type(field) is Path or value_type(field) == PATHS):
            continue
        *tables, name = key.split(".")
        section = _section(table, tables)
        if section is not None and name in section:
            section[name] = _rebase(section[name], base)


def _section(table: Table, names: Sequence[str]) -> Table | None:
    """The inner table of that path, None where the file has something else or nothing."""
    for name in names:
        value: object = table.get(name)
        if not isinstance(value, dict):
            return None
        table = cast(Table, value)
    return table


def _rebase(value: object, base: Path) -> object:
    if isinstance(value, str):
        return str(base / Path(value).expanduser())
    if isinstance(value, list):
        return [_rebase(item, base) for item in cast(list[object], value)]
    return value


def apply_override(table: Table, key: str, text: str) -> str | None:
    """Put one override into `table`; returns what is wrong with it, if anything."""
    match = re.fullmatch(r"([\w.]+)(?:\[(\d+)\])?", key)
    if "=" not in text or match is None:
        return "expected key=value, with a dotted key such as scheduler.total_steps"
    name, index = match[1], match[2]
    field = fields().get(name)
    if field is None:
        return unknown(name)
    raw = text.partition("=")[2].strip()
    kind = value_type(field)
    inner: Table = table
    *tables, last = name.split(".")
    for step in tables:
        if not isinstance(inner.setdefault(step, {}), dict):
            return None  # the file holds something else there, which is a fault of the file's
        inner = inner[step]
    if index is None:
        inner[last] = _override_value(raw, kind, is_optional(field))
        return None
    if kind != PATHS:
        return f"is not a list; expected {expected(field)}"
    items = cast(list[object], inner.setdefault(last, []))
    if int(index) > len(items):
        return f"index {index} is beyond the list's end, {len(items)}"
    items[int(index) : int(index) + 1] = [_rebase(raw, Path.cwd())]
    return None


def _override_value(raw: str, kind: object, optional: bool) -> object:
    """The text as the field's type; what does not fit stays text, for validation to report."""
    if optional and raw.lower() in ("none", "null"):
        return None
    if kind is Path:
        return _rebase(raw, Path.cwd())
    if kind == PATHS and not raw.startswith("["):
        return _rebase([item for item in raw.split(",") if item], Path.cwd())
    if kind == PATHS:
        return _rebase(_json(raw), Path.cwd())
    return _json(raw.lower()) if any(kind is number for number in (int, float, bool)) else raw


def _json(raw: str) -> object:
    try:
        return json.loads(raw)
    except ValueError:
        return raw
