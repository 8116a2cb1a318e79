"""A config file, with overrides, to a RunConfig; every fault of it in one message."""

import copy
import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from pydantic import ValidationError

from sconce.config.earlier import paths_base, translate
from sconce.config.fields import expected, field_of_item, fields, unknown
from sconce.config.overrides import absolutize, apply_override, keys_of
from sconce.config.read import Table, flat, read_table
from sconce.config.relations import relation_faults
from sconce.config.schema import RunConfig
from sconce.config.streaming_file import apply_streaming_file
from sconce.errors import ConfigError
from sconce.log import log


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with one key."""

    place: str
    key: str
    message: str

    def __str__(self) -> str:
        text = f"{self.place}: {self.key}: {self.message}"
        return re.sub(
            r"^  (\w+) = (.*)$", lambda line: f"  {self._written(line[1], line[2])}", text, flags=re.MULTILINE
        )

    def _written(self, name: str, value: str) -> str:
        """A line to write instead, as it is written there: in the file's format, or as an option where none is."""
        if self.place.lower().endswith((".yaml", ".yml")):
            return f"{name}: {value}"
        if self.place.lower().endswith(".json"):
            return f'"{name}": {value},'
        if self.place.startswith(("--override", "preset ", "the preset ")):
            section = self.key.rpartition(".")[0]
            return f"--override {shlex.quote(f'{section}.{name}={value}')}"
        return f"{name} = {value}"


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read TOML, YAML or JSON, apply `key=value` overrides, check everything.

    Paths in the file are relative to the file, those in overrides to the working directory. Raises ConfigError
    with every fault on a line of its own, below it where there are several the lines to write instead.
    """
    table, _ = load_table(path)
    return config_from(table, str(path), overrides)


def config_from_tables(tables: Mapping[str, object], overrides: Sequence[str] = ()) -> RunConfig:
    """A config from nested tables, whose paths are relative to the working directory. Raises as `load_config`."""
    table: Table = copy.deepcopy(dict(tables))
    absolutize(table, Path.cwd())
    return config_from(table, "config", overrides)


def load_table(path: Path, base: Path | None = None) -> tuple[Table, list[str]]:
    """A file's tables, unchecked, with absolute paths and the earlier system's keys turned into ours, those of a
    streaming_config.json beside it too.

    Paths are relative to `base`, by default what `paths_base` says. The lines say which keys were turned. Raises
    ConfigError when the file cannot be read.
    """
    log.debug("config: %s", path)
    table, folder = read_table(path), path.resolve().parent
    base = base or paths_base(table, folder)
    notes = translate(table) + apply_streaming_file(table, path.parent)
    if base != folder:
        notes.append(f"paths: relative to {base}, as `orchestrate` of the system before Sconce wrote them")
    absolutize(table, base)
    return table, notes


def config_from(
    table: Table, source: str, overrides: Sequence[str] = (), *, may_lack: Collection[str] = ()
) -> RunConfig:
    """A config from plain tables with absolute paths; `source` names them in faults. Raises as `load_config`.

    `may_lack` are required keys that whoever trains has yet to give.
    """
    faults: list[Fault] = []
    overridden: set[str] = set()
    for text in overrides:
        key = text.partition("=")[0].strip()
        message = apply_override(table, key, text)
        if message is not None:
            faults.append(Fault("--override", key, message))
        elif not key.endswith("]"):  # an item is always right: what is wrong with its list is the list's own
            overridden |= keys_of(text)

    def place(key: str) -> str:
        return "--override" if key in overridden else source

    config, found = _validate(table, place)
    faults += [fault for fault in found if fault.key not in may_lack or fault.key in dict(flat(table))]
    if faults:
        raise ConfigError("\n".join(map(str, faults)))
    return config


def config_from_resolved(table: Table, source: str, *, may_lack: Collection[str] = ()) -> RunConfig:
    """The config that `to_json` made a table of: there a key at its default does not count as given.

    `may_lack` is as in `config_from`. Raises ConfigError where it has been edited into one that cannot be used.
    """
    defaults = {key: field.get_default(call_default_factory=True) for key, field in fields().items()}
    given = copy.deepcopy(table)
    for key, value in flat(table):
        if key in defaults and value == defaults[key]:
            _remove(given, key.split("."))
    return config_from(given, source, may_lack=may_lack)


def _validate(table: Table, place: Callable[[str], str]) -> tuple[RunConfig, list[Fault]]:
    """Field faults first; then relations between the fields that are right, defaults standing in for the rest."""
    faults: list[Fault] = []
    faulty: set[str] = set()
    cleaned = copy.deepcopy(table)
    try:
        config = _parse(table)
    except ValidationError as error:
        for detail in error.errors():
            steps = detail["loc"]
            names = [str(step) for step in takewhile(lambda step: isinstance(step, str), steps)]
            key = ".".join(names)
            inner = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps[len(names) :])
            faulty.add(key)
            faults.append(Fault(place(key), key + inner, _describe(key, inner, detail["type"], detail["input"])))
            _remove(cleaned, names)
        config = _parse(cleaned)
    for keys, message in relation_faults(config):
        if not any(key == bad or key.startswith(f"{bad}.") for key in keys for bad in faulty):
            faults.append(Fault(place(keys[0]), keys[0], message))
    return config, faults


def _parse(table: Table) -> RunConfig:
    # JSON mode: text becomes a path and a list a tuple, yet "128" is no integer and 1 no boolean.
    return RunConfig.model_validate_json(json.dumps(table, default=str), strict=True)


def _describe(key: str, inner: str, kind: str, value: object) -> str:
    """What is wrong with a key's value, or with what of it `inner` names, such as "[0].from_step"."""
    field = fields().get(key)
    if "." in inner and field is not None:
        within = field_of_item(field, inner.rpartition(".")[2])
        if within is None:
            return f"unknown key; expected {expected(field)}"
        found = "missing" if kind == "missing" else f"found {json.dumps(value, default=str)}"
        return f"{found}, expected {expected(within)}"
    if kind == "extra_forbidden":
        return unknown(key)
    wanted = expected(field) if field is not None else "a table of keys"
    return f"found {json.dumps(value, default=str)}, expected {wanted}"


def _remove(table: Table, steps: Sequence[str]) -> None:
    for step in steps[:-1]:
        table = table[step]
    table.pop(steps[-1], None)
