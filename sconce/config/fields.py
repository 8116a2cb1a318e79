"""The schema as a flat table: dotted key to field, and a field's check in words."""

import difflib
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import PositiveInt
from pydantic.fields import FieldInfo

from sconce.config.advice import ADVICE
from sconce.config.read import Table, inner_table
from sconce.config.schema import DataStage, RunConfig, Section, Weight
from sconce.hub_address import is_hub

PATHS: object = tuple[Path, ...]
WEIGHTS: object = tuple[tuple[Weight, ...], ...]
STEPS: object = tuple[PositiveInt, ...]
STAGES: object = tuple[DataStage, ...]
TYPE_NAMES: dict[object, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a path",
    PATHS: "a list of paths",
    WEIGHTS: "a list of lists of numbers >= 0",
    STEPS: "a list of integers > 0",
    STAGES: "a list of tables with from_step, and batch_size or sequence_length",
}


@cache
def fields() -> dict[str, FieldInfo]:
    """Every key that holds a value, e.g. "runtime.checkpoint.max_keep"."""
    return dict(_leaves(RunConfig, ""))


def _leaves(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


@cache
def tables() -> frozenset[str]:
    """Every key that holds a table, e.g. "runtime.checkpoint"."""
    names = (key.split(".")[:-1] for key in fields())
    return frozenset(".".join(name[:depth]) for name in names for depth in range(1, len(name) + 1))


def value_type(field: FieldInfo) -> object:
    """The field's type without `| None`."""
    annotation = cast(object, field.annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return next(arg for arg in get_args(annotation) if arg is not type(None))
    return annotation


@cache
def path_keys() -> tuple[str, ...]:
    """Every key that holds a path or a list of paths."""
    return tuple(key for key, field in fields().items() if value_type(field) in (Path, PATHS))


def map_paths(table: Table, function: Callable[[str], str]) -> None:
    """Put `function` of each local path of the tables in its place."""
    for key in path_keys():
        *sections, name = key.split(".")
        section = inner_table(table, sections)
        if section is not None and name in section:
            section[name] = map_path(section[name], value_type(fields()[key]), function)


def map_path(value: object, kind: object, function: Callable[[str], str]) -> object:
    """`function` of a local path, or of each in a list; what is not of the `kind` stays, for validation to report."""
    if kind is Path and isinstance(value, str):
        return value if is_hub(value) else function(value)
    if kind == PATHS and isinstance(value, list):
        return [map_path(item, Path, function) for item in cast(list[object], value)]
    return value


def is_optional(field: FieldInfo) -> bool:
    """Whether the key may be left without a value."""
    return type(None) in get_args(field.annotation)


def field_of_item(field: FieldInfo, name: str) -> FieldInfo | None:
    """A key of the tables that a field is a list of."""
    kind = next(iter(get_args(value_type(field))), None)
    return kind.model_fields.get(name) if isinstance(kind, type) and issubclass(kind, Section) else None


def expected(field: FieldInfo) -> str:
    """What the field accepts, in words: "an integer >= 1", "one of a, b"."""
    kind = value_type(field)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return " ".join([TYPE_NAMES[kind], " and ".join(_bounds(field))]).strip()


def _bounds(field: FieldInfo) -> Iterator[str]:
    for check in field.metadata:
        match check:
            case Ge(ge):
                yield f">= {ge}"
            case Gt(gt):
                yield f"> {gt}"
            case Le(le):
                yield f"<= {le}"
            case Lt(lt):
                yield f"< {lt}"
            case MultipleOf(multiple):
                yield f"a multiple of {multiple}"
            case _:
                pass


def nearest(key: str) -> str | None:
    """The key that `key` was probably meant to be: a like-named one of the same table, else of any."""
    table, _, name = key.rpartition(".")
    everywhere = [*fields(), *sorted(tables())]
    here = [known for known in everywhere if known.rpartition(".")[0] == table]
    initials = {"".join(word[0] for word in _name(known).split("_")): known for known in here if known in fields()}
    if name in initials:  # lr for learning_rate
        return initials[name]
    for candidates in (here, everywhere):
        match = difflib.get_close_matches(name.lower(), {_name(known): None for known in candidates}, n=1, cutoff=0.7)
        if match:
            named = [known for known in candidates if _name(known) == match[0]]
            return max(named, key=lambda known: difflib.SequenceMatcher(None, key, known).ratio())
    return None


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def unknown(key: str) -> str:
    """The message for a key that does not exist."""
    for known in (key, key.rpartition(".")[0]):
        if known in ADVICE:
            return f"a key of the earlier system: {ADVICE[known]}"
    guess = nearest(key)
    return f"unknown key; did you mean {guess}?" if guess else "unknown key; `sconce config docs` lists them all"
