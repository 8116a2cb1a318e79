"""What checkpoints a run has, looked at without reading a tensor and without changing anything."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sconce.checkpoint.load import check_sizes, checkpoints_folder, pointed_at, step_folders
from sconce.checkpoint.record import Checkpoint, read_manifest
from sconce.errors import CheckpointError

_SET_ASIDE = re.compile(r"\.bad-step-(\d+)(?:-\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One step folder. `record` is None when its manifest cannot be read; `fault` says what is wrong, if anything.

    `fault` comes from the manifest and the sizes alone: it takes the hashes to call a checkpoint intact.
    """

    path: Path
    step: int
    bytes: int
    record: Checkpoint | None
    fault: str | None
    set_aside: bool
    is_latest: bool
    is_best: bool


def list_checkpoints(run: Path) -> list[Listed]:
    """Every checkpoint of a run folder (or `checkpoints` folder), newest first, then those set aside as damaged.

    Raises CheckpointError when there is not one.
    """
    home = checkpoints_folder(run)
    folders = step_folders(home)
    aside = _set_aside_folders(home)
    if not folders and not aside:
        what = "no checkpoint here" if run.is_dir() else "no such run folder"
        raise CheckpointError(f"{run}: {what}")
    latest, best = pointed_at(home / "LATEST"), pointed_at(home / "BEST")
    return [
        *_look_at_all([(int(path.name.removeprefix("step-")), path) for path in folders], latest, best),
        *_look_at_all(aside, None, None),
    ]


def _look_at_all(folders: list[tuple[int, Path]], latest: Path | None, best: Path | None) -> Iterator[Listed]:
    """What is there, but for folders that a run under way deletes meanwhile."""
    for step, path in folders:
        try:
            yield _look_at(path, step, latest, best)
        except FileNotFoundError:
            if path.exists():
                raise


def _set_aside_folders(home: Path) -> list[tuple[int, Path]]:
    if not home.is_dir():
        return []
    named = ((_SET_ASIDE.fullmatch(path.name), path) for path in home.iterdir())
    return sorted(((int(match[1]), path) for match, path in named if match and path.is_dir()), reverse=True)


def _look_at(path: Path, step: int, latest: Path | None, best: Path | None) -> Listed:
    record, fault = None, None
    try:
        record = read_manifest(path)
        check_sizes(path, record)
    except CheckpointError as error:
        fault = str(error)
    return Listed(
        path=path,
        step=step,
        bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        record=record,
        fault=fault,
        set_aside=path.name.startswith("."),
        is_latest=path == latest,
        is_best=path == best,
    )
