"""Which files a path stands for: itself, the files of a folder, what a pattern matches, a data set on disk."""

import json
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import cast

from sconce.data.kinds import READ, kind_of
from sconce.data.splits import training_files
from sconce.errors import DataError

_ABOUT_DATA = (  # what lies beside data sets, and is not their text
    "manifest.json",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files at `paths`, in order. A pattern stands for its matches, sorted; `**` reaches into folders.

    A folder stands for the text and record files anywhere in it, by relative path, hidden ones and JSON that describes
    data sets (dataset_info.json, manifest.json) passed over. Where it holds a training split, what is held out is
    passed over, see `splits`; beside records also README.md, which is about them, and says which are for training where
    it is a data set's card. A folder that `datasets` saved to disk stands for its table, of several splits the one
    named train.
    Raises DataError for a path that is not there, or stands for nothing, or for configurations without a default.
    """
    return [file for path in paths for file in _files(path)]


def exists(path: Path) -> bool:
    """Whether something is at the path, or matches it."""
    return path.exists() or bool(_matches(path))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return _saved(path) or _of_folder(path)
    if path.exists() or not has_magic(str(path)):
        return [path]
    matches = _matches(path)
    files = [match for match in matches if match.is_file()] or find_files(matches)
    if not files:
        raise DataError(f"{path}: no file matches this pattern")
    return files


def _matches(path: Path) -> list[Path]:
    if not has_magic(str(path)):
        return []
    return [Path(match) for match in sorted(glob(str(path), recursive=True))]  # noqa: PTH207 - takes a whole path


def _of_folder(folder: Path) -> list[Path]:
    inside = sorted((path.relative_to(folder) for path in _usable(folder)), key=lambda path: path.as_posix())
    if any(kind_of(path).is_records for path in inside):
        inside = [path for path in inside if path.name.lower() != "readme.md"]
    inside = training_files(folder, inside)
    if not inside:
        raise DataError(f"{folder}: no text files in this folder; looked for {READ}")
    return [folder / path for path in inside]


def _usable(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.name not in _ABOUT_DATA and path.is_file() and kind_of(path).known:
            yield path


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a data set that `datasets` saved to disk, in order; none if this is none."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        if "train" not in splits:
            raise DataError(f"{folder}: a data set without a split named train: name one, of {', '.join(splits)}")
        return _saved(folder / "train")
    state = folder / "state.json"
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return []
    try:
        files = cast(list[dict[str, str]], json.loads(state.read_bytes())["_data_files"])
        return [folder / file["filename"] for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state}: damaged: {error!r}") from None
