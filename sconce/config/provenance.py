"""Where each value of a config comes from."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from sconce.config.fields import fields
from sconce.config.read import Table, inner_table
from sconce.config.resolve import to_json
from sconce.config.schema import RunConfig

Origin = Literal["file", "preset", "override", "derived", "default", "unset"]


@dataclass(frozen=True, slots=True)
class Setting:
    """A key's resolved value. `derived` follows from other keys; `unset` is left to the device, or means none."""

    key: str
    value: object
    origin: Origin


def settings(
    config: RunConfig, given: Table, overridden: Collection[str], source: Literal["file", "preset"]
) -> Iterator[Setting]:
    """Every key in the schema's order; `given` is what the file or preset held, before the overrides."""
    resolved = to_json(config)
    for key, field in fields().items():
        value = _at(resolved, key)
        default: object = field.get_default(call_default_factory=True)
        if key in overridden:
            origin: Origin = "override"
        elif _at(given, key) is not None:
            origin = source
        elif value is None:
            origin = "unset"
        else:
            origin = "default" if value == default or isinstance(default, tuple) else "derived"
        yield Setting(key, value, origin)


def _at(table: Table, key: str) -> object:
    """The value of a dotted key, None where there is none."""
    *sections, name = key.split(".")
    section = inner_table(table, sections)
    return None if section is None else section.get(name)
