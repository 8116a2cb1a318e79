"""A config file to plain tables, whatever its format."""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic_core import from_json

from sconce.errors import ConfigError

Table = dict[str, Any]
TOO_DEEP = "nests too deeply"


def read_table(path: Path) -> Table:
    """Parse by extension: .toml, .tml or none is TOML; .yaml, .yml; .json. Raises ConfigError, with the line."""
    readers: dict[str, Callable[[str], object]] = {
        **dict.fromkeys((".toml", ".tml", ""), tomllib.loads),
        **dict.fromkeys((".yaml", ".yml"), _load_yaml),
        ".json": _load_json,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path}: unsupported extension {path.suffix}; expected .toml, .yaml, .yml or .json")
    try:
        parsed = reader(_decode(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_of_another_format(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}: line {line}: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{path}: the character U+{error.character:04X} is not allowed in YAML") from error
    except RecursionError:
        raise ConfigError(f"{path}: {TOO_DEEP}") from None
    except ValueError as error:  # tomllib and json say where themselves
        raise ConfigError(f"{path}: {error}") from error
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path}: expected tables of keys, found {type(parsed).__name__}")
    table = cast(Table, parsed)
    _check_values(path, table)
    return table


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key as section.name with its value, tables within tables spelt out."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flat(cast(Table, value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def inner_table(table: Table, names: Iterable[str]) -> Table | None:
    """The table at a path of names, None where the file has something else or nothing."""
    for name in names:
        value: object = table.get(name)
        if not isinstance(value, dict):
            return None
        table = cast(Table, value)
    return table


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")  # some editors mark UTF-8 with a BOM
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8") from error


def _of_another_format(path: Path) -> str:
    """Where there is a file of this name with another ending, the question whether that was meant."""
    near = [path.with_suffix(end) for end in (".toml", ".yaml", ".yml", ".json") if path.with_suffix(end).is_file()]
    return f"; did you mean {near[0]}?" if near else ""


def _check_values(path: Path, table: Table) -> None:
    """Refuse what the schema's JSON parser cannot take in at all, and so could not name the key of."""
    try:
        from_json(json.dumps(table, default=str))
    except RecursionError:
        raise ConfigError(f"{path}: {TOO_DEEP}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {TOO_DEEP}, or holds half of a surrogate pair such as \\ud800") from error


def _load_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: Iterable[tuple[str, object]]) -> Table:
    table: Table = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key} appears twice")
        table[key] = value
    return table


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.1 reads 3e-4 as text and lets a key appear twice; people mean a number, and once."""


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Table:
    table: Table = {}
    for key_node, value_node in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
        key = str(cast(object, loader.construct_object(key_node, deep=True)))
        if key in table:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key} appears twice", key_node.start_mark)
        table[key] = loader.construct_object(value_node, deep=True)
    return table


_YamlLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _load_yaml(text: str) -> object:
    return yaml.load(text, Loader=_YamlLoader)
