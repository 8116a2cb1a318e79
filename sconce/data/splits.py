"""Which files of a data set on disk are for training: by the words in their paths, or by what its card says."""

import re
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path, PurePath
from typing import Any, Literal, cast

import yaml

from sconce.data.kinds import kind_of
from sconce.errors import DataError

Split = Literal["train", "held out"]

_TRAIN = "(?:train|training)"
_HELD_OUT = "(?:validation|valid|val|dev|test|testing|eval|evaluation)"
_PART_OF_TRAIN, _PART_OF_HELD_OUT = (
    re.compile(rf"(?:^|[-._ 0-9]){words}(?:[-._ 0-9]|$)", re.IGNORECASE) for words in (_TRAIN, _HELD_OUT)
)
_IS_TRAIN, _IS_HELD_OUT = (re.compile(rf"{words}(?:\..*)?", re.IGNORECASE) for words in (_TRAIN, _HELD_OUT))
_CARD = "README.md"
_SHOWN = 8  # names in a message, at most


def training_files(folder: Path, files: Sequence[PurePath]) -> list[PurePath]:
    """Of `files`, paths inside `folder`, those to train on: by the card of the data set there, else by their names.

    Raises DataError where the card tells apart configurations, several of them are here, and none is the default.
    """
    return _by_card(folder, files) or without_held_out(files)


def split_of(path: PurePath) -> Split | None:
    """The split of a file of records, by its path inside the data set; None where no name in it tells.

    The words that `datasets` knows do, as a part of a name (test-00000-of-00002.parquet, de/test/0.parquet): of the
    nearest folder that has one, else of the file. A name with words of both is of train.
    """
    for name in (*reversed(path.parts[:-1]), path.name):
        if _PART_OF_TRAIN.search(name):
            return "train"
        if _PART_OF_HELD_OUT.search(name):
            return "held out"
    return None


def without_held_out(files: Sequence[PurePath]) -> list[PurePath]:
    """The files less those of splits that are held out, where a training split is there to take instead.

    Of records by `split_of`. Of running text, where such words are usual, only what has no other name than test,
    validation or the like, file or folder, and has train beside it.
    """
    splits = {path: split_of(path) for path in files if kind_of(path).is_records}
    any_train = "train" in splits.values()
    beside = {place.parent for path in files for place in _places(path) if _IS_TRAIN.fullmatch(place.name)}

    def is_held_out(path: PurePath) -> bool:
        if path in splits:
            return any_train and splits[path] == "held out"
        return any(_IS_HELD_OUT.fullmatch(place.name) and place.parent in beside for place in _places(path))

    return [path for path in files if not is_held_out(path)]


def _places(path: PurePath) -> tuple[PurePath, ...]:
    """The file and the folders that it is in."""
    return (path, *path.parents[:-1])


def _by_card(folder: Path, files: Sequence[PurePath]) -> list[PurePath]:
    """Those that the card names for training; of several configurations that have files here the default one, as on
    the hub: they may be languages, or parts of each other. None where there is no card, or it names no file.
    """
    configs = _configs(folder)
    here = {name: inside for name, config in configs.items() if (inside := _train_files(folder, config, files))}
    if not here:
        return []
    chosen = [name for name in here if len(here) == 1 or name == "default" or configs[name].get("default") is True]
    if len(chosen) != 1:
        shown = ", ".join([*here][:_SHOWN]) + (f" and {len(here) - _SHOWN} more" if len(here) > _SHOWN else "")
        raise DataError(
            f"{folder}: its {_CARD} tells apart the configurations {shown}: name the folder or the files of one of "
            f'them, such as "{folder / _patterns(configs[next(iter(here))])[0]}"'
        )
    return here[chosen[0]]


def _configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """What the card says of each configuration; nothing where it says none, or cannot be read."""
    try:
        text = (folder / _CARD).read_text(encoding="utf-8")
        _, head, _ = re.split(r"^---[ \t]*$", text, maxsplit=2, flags=re.MULTILINE)
        return {str(config["config_name"]): config for config in yaml.safe_load(head)["configs"]}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}


def _train_files(folder: Path, config: Mapping[str, Any], files: Sequence[PurePath]) -> list[PurePath]:
    found: set[PurePath] = set()
    for pattern in _patterns(config):
        # Path.glob takes ** as folders alone before Python 3.13.
        found |= {PurePath(name) for name in glob(pattern, root_dir=folder, recursive=True)}  # noqa: PTH207
    inside = [path for path in files if path in found]
    return inside if "data_files" in config else without_held_out(inside)


def _patterns(config: Mapping[str, Any]) -> list[str]:
    """Those of a configuration's training files: one, several, or some for each split; else those of its folder."""
    given: Any = config.get("data_files", f"{config.get('data_dir', '.')}/**")
    patterns: list[str] = []
    for entry in _as_list(given):
        if isinstance(entry, Mapping):
            of_split = cast(Mapping[str, Any], entry)
            patterns += map(str, _as_list(of_split.get("path")) if of_split.get("split") == "train" else [])
        else:
            patterns.append(str(entry))
    return patterns


def _as_list(value: object) -> list[object]:
    return cast(list[object], value) if isinstance(value, list) else [value]
