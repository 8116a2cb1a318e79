"""A checkpoint's Hugging Face files in a folder of their own."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from sconce.checkpoint.load import LoadedCheckpoint, open_checkpoint
from sconce.checkpoint.stream import OPTIMIZER, RUN
from sconce.errors import CheckpointError
from sconce.files import fsync_file, new_folder, sha256_file
from sconce.interop.hf import class_for, spec_from_config

OURS = (OPTIMIZER, RUN)  # of a checkpoint's files, what other tools know nothing of


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and which class it is for."""

    checkpoint: Path
    model_type: str
    files: tuple[str, ...]


def export_checkpoint(place: Path, out: Path, model_type: str | None = None) -> Exported:
    """Copy what other tools load of the checkpoint at `place` (or the latest of that run) to the new folder `out`.

    Raises CheckpointError when it is damaged, or no class (not the `model_type` asked for) computes its model;
    SconceError when `out` holds something already.
    """
    checkpoint = open_checkpoint(place)  # every hash, so that nothing damaged is passed on
    found = class_for(spec_from_config(checkpoint.table("config.json")), model_type)
    names = tuple(name for name in checkpoint.record.files if name not in OURS)
    with new_folder(out) as folder:
        for name in names:
            _copy(checkpoint, name, folder / name)
    return Exported(checkpoint.path, found, names)


def _copy(checkpoint: LoadedCheckpoint, name: str, target: Path) -> None:
    shutil.copyfile(checkpoint.path / name, target)
    with target.open("rb") as file:
        fsync_file(file.fileno())
    if sha256_file(target) != checkpoint.record.files[name].sha256:
        raise CheckpointError(f"{target}: not what {checkpoint.path / name} holds: the copy went wrong")
