"""Paths of a config file, and `key=value` overrides, into its tables."""

import json
import re
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
        inner: object = table
        for step in tables:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and name in inner:
            inner[name] = _rebase(cast(object, inner[name]), base)


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
    if kind == PATHS:
        items = json.loads(raw) if raw.startswith("[") else [item for item in raw.split(",") if item]
        return _rebase(items, Path.cwd())
    if any(kind is number for number in (int, float, bool)):
        try:
            return json.loads(raw.lower())
        except ValueError:
            return raw
    return raw
