"""Paths of a config file, and `key=value` overrides, into its tables."""

import json
import re
from functools import partial
from pathlib import Path
from typing import cast

from sconce.config.earlier import override_of
from sconce.config.fields import (
    PATHS,
    STAGES,
    STEPS,
    WEIGHTS,
    expected,
    fields,
    is_optional,
    map_path,
    map_paths,
    tables,
    unknown,
    value_type,
)
from sconce.config.read import Table, inner_table


def absolutize(table: Table, base: Path) -> None:
    """Resolve the paths of a config file against its own folder."""
    map_paths(table, partial(_rebase, base))


def _rebase(base: Path, path: str) -> str:
    return str(canonical(base / _expand_home(path)))


def _from_here(value: object, kind: object) -> object:
    """A path of the command line, or a list of them, made absolute."""
    return map_path(value, kind, partial(_rebase, Path.cwd()))


def _expand_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~nobody: kept, as a shell does, so that opening it says what is not there
        return Path(path)


def canonical(path: Path) -> Path:
    """The one absolute spelling of a path. A link keeps its own name, by whose ending a file is read."""
    return path.parent.resolve() / path.name


def apply_override(table: Table, key: str, text: str) -> str | None:
    """Put one override into `table`; returns what is wrong with it, if anything."""
    match = re.fullmatch(r"([\w.]+)(?:\[(\d{1,9})\])?", key)
    if "=" not in text or match is None:
        return "expected key=value, with a dotted key such as scheduler.total_steps"
    name, index = match[1], match[2]
    raw = text.partition("=")[2]
    if not _is_unicode(raw):
        return "is not UTF-8 text"
    field = fields().get(name)
    if index is None and (turned := _of_earlier(name, raw)) is not None:
        held = inner_table(table, name.split(".")[:-1])
        if held is not None:
            held.pop(name.rpartition(".")[2], None)
        for ours, value in turned.items():
            inner, last = _inner_of(table, ours), ours.rpartition(".")[2]
            if value is None:
                inner.pop(last, None)
            else:
                inner[last] = _from_here(value, value_type(fields()[ours]))
        return None
    if field is None:
        return "is a table; set its keys one by one" if name in tables() else unknown(name)
    kind, inner, last = value_type(field), _inner_of(table, name), name.rpartition(".")[2]
    if index is None:
        inner[last] = _override_value(raw, kind, is_optional(field))
        return None
    if kind != PATHS:
        return f"is not a list; expected {expected(field)}"
    return _set_item(inner.setdefault(last, []), int(index), raw.strip())


def keys_of(text: str) -> set[str]:
    """The keys that one override sets, which has been found right."""
    key, _, raw = text.partition("=")
    name, _, index = key.strip().partition("[")
    return set((None if index else _of_earlier(name, raw)) or (name,))


def _inner_of(table: Table, name: str) -> Table:
    """The table that holds the key, made where there is none; where a file holds something else there, which is a
    fault of the file's, one that nobody reads."""
    for step in name.split(".")[:-1]:
        inner = table.setdefault(step, {})
        if not isinstance(inner, dict):
            return {}
        table = cast(Table, inner)
    return table


def _of_earlier(name: str, raw: str) -> dict[str, object] | None:
    """What an override says that means something to the earlier system alone: a key that is not ours, or no value
    where ours has one."""
    field, value = fields().get(name), None if raw.strip().lower() == "null" else _json(raw.strip())
    if field is not None and (value is not None or is_optional(field)):
        return None
    return override_of(name, value)


def _set_item(held: object, index: int, raw: str) -> str | None:
    if not isinstance(held, list):
        return None  # a fault of the file's, again
    items = cast(list[object], held)
    if index > len(items):
        return f"index {index} is beyond the list's end, {len(items)}"
    items[index : index + 1] = [_from_here(raw, Path)]
    return None


def _override_value(raw: str, kind: object, optional: bool) -> object:
    """The text as the field's type; what does not fit stays text, for validation to report."""
    trimmed = raw.strip()
    if optional and trimmed.lower() in ("none", "null"):
        return None
    if kind is str:
        return raw  # to the last space: it may be a prompt
    if kind == PATHS and not trimmed.startswith("["):
        return _from_here([item.strip() for item in raw.split(",") if item.strip()], kind)
    if kind == PATHS:
        return _from_here(_json(trimmed), kind)
    if any(kind is number for number in (int, float, bool)) or kind in (WEIGHTS, STEPS, STAGES):
        return _json(trimmed.lower())
    return _from_here(trimmed, kind)


def _json(raw: str) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw


def _is_unicode(text: str) -> bool:
    """False where the command line held bytes that are not UTF-8, which Python keeps as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
