"""Reading a checkpoint: finding it, checking it against its manifest, and its tensors one by one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sconce.checkpoint.record import MANIFEST, Checkpoint, DamagedCheckpointError, read_manifest
from sconce.checkpoint.stream import MODEL_PREFIX, OPTIMIZER, RUN
from sconce.config.read import Table, read_table
from sconce.errors import CheckpointError, ConfigError
from sconce.files import sha256_file
from sconce.tensorfile import TensorEntry, read_header, read_tensor

POINTERS = ("LATEST", "BEST")
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


class StoredTensors(Mapping[str, NDArray[np.float32]]):
    """Tensors of a checkpoint's files by name, each read when it is asked for."""

    def __init__(self, prefixes: Mapping[Path, str]) -> None:
        """`prefixes` are the safetensors files, each with what goes before its own names."""
        self._prefixes = prefixes

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        path, entry = self._places[name]
        try:
            return read_tensor(path, entry)
        except ValueError as error:
            raise DamagedCheckpointError(f"{path}: tensor {name} is {error}") from None

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Data type, as safetensors spells it, and shape of one tensor, whose values stay unread."""
        entry = self._places[name][1]
        return entry.dtype, entry.shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def _places(self) -> dict[str, tuple[Path, TensorEntry]]:
        places: dict[str, tuple[Path, TensorEntry]] = {}
        for path, prefix in self._prefixes.items():
            try:
                places.update({prefix + key: (path, entry) for key, entry in read_header(path).items()})
            except ValueError as error:
                raise DamagedCheckpointError(f"{path}: {error}") from None
        return places


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint that agrees with its manifest. No tensor is in memory before it is asked for."""

    path: Path
    record: Checkpoint

    @property
    def tensors(self) -> StoredTensors:
        """The whole state, by the names of `state_names`: what a learner resumes from."""
        return StoredTensors({**self._files(MODEL_PREFIX), self.path / OPTIMIZER: ""})

    @property
    def weights(self) -> StoredTensors:
        """The model alone, by parameter name: what a learner starts from."""
        return StoredTensors(self._files(""))

    def read(self, name: str) -> bytes:
        """The content of one of its files. Raises CheckpointError when it has no such file."""
        if name not in self.record.files:
            raise CheckpointError(f"{self.path}: no {name} in this checkpoint")
        return (self.path / name).read_bytes()

    def table(self, name: str) -> Table:
        """One of its JSON files. Raises CheckpointError when it has no such file, or no JSON object in it."""
        if name not in self.record.files:
            raise CheckpointError(f"{self.path}: no {name} in this checkpoint")
        try:
            return read_table(self.path / name)
        except ConfigError as error:
            raise DamagedCheckpointError(str(error)) from None

    @property
    def run_config(self) -> Table:
        """The resolved config of the run that wrote it, its keys unchecked. Raises as `table`."""
        return self.table(RUN)

    def _files(self, prefix: str) -> dict[Path, str]:
        names = [name for name in self.record.files if name.endswith(".safetensors") and name != OPTIMIZER]
        return {self.path / name: prefix for name in names}


def open_checkpoint(path: Path, verify: bool = True) -> LoadedCheckpoint:
    """The checkpoint at `path`, which nothing here changes.

    `path` is a checkpoint's folder, a LATEST or BEST file, or a run folder or its `checkpoints` folder, which stand
    for their newest. Raises CheckpointError when there is none or it is damaged. `verify` off skips the hashes,
    never the sizes.
    """
    return load_folder(find_folder(path), verify)


def open_model(path: Path) -> LoadedCheckpoint:
    """As `open_checkpoint`, for the model alone: the optimizer's file, two thirds of it all, is not hashed."""
    loaded = load_folder(find_folder(path), verify=False)
    check_hashes(loaded.path, loaded.record, unread=(OPTIMIZER,))
    return loaded


def load_folder(folder: Path, verify: bool) -> LoadedCheckpoint:
    """The checkpoint in this very folder. Raises DamagedCheckpointError when it is not what was written."""
    record = read_manifest(folder)
    check_sizes(folder, record)
    if verify:
        check_hashes(folder, record)
    return LoadedCheckpoint(folder, record)


def check_sizes(folder: Path, record: Checkpoint) -> None:
    """Raise DamagedCheckpointError for a folder of another step, or the first file missing or not as long as it was."""
    named = _STEP_FOLDER.fullmatch(folder.name)
    if named is not None and int(named[1]) != record.step:
        raise DamagedCheckpointError(f"{folder}: its {MANIFEST} is of step {record.step}")
    for name, file in record.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{path}: missing")
        if (size := path.stat().st_size) != file.bytes:
            raise DamagedCheckpointError(f"{path}: {size:,} bytes, expected {file.bytes:,}")


def check_hashes(folder: Path, record: Checkpoint, unread: Sequence[str] = ()) -> None:
    """Raise DamagedCheckpointError for the first file whose content is not what was written.

    Reads every byte of every file but the `unread` ones.
    """
    for name, file in record.files.items():
        if name not in unread and sha256_file(folder / name) != file.sha256:
            raise DamagedCheckpointError(f"{folder / name}: its content changed since it was written")


def newest_intact(folder: Path) -> LoadedCheckpoint | None:
    """The newest checkpoint in a `checkpoints` folder whose manifest and sizes are right, damaged ones left alone."""
    for step_folder in step_folders(folder):
        try:
            return load_folder(step_folder, verify=False)
        except DamagedCheckpointError:
            continue
    return None


def step_folders(folder: Path) -> list[Path]:
    """The step folders in a `checkpoints` folder, newest first, damaged or not."""
    if not folder.is_dir():
        return []
    named = ((_STEP_FOLDER.fullmatch(path.name), path) for path in folder.iterdir())
    found = [(int(match[1]), path) for match, path in named if match and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def checkpoints_folder(path: Path) -> Path:
    """The `checkpoints` folder of the run at `path`, which may be that folder itself."""
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def pointed_at(pointer: Path) -> Path | None:
    """The step folder that a LATEST or BEST file names, if both are there."""
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    target = pointer.with_name(name) if _STEP_FOLDER.fullmatch(name) else None
    return target if target is not None and target.is_dir() else None


def find_folder(path: Path) -> Path:
    """The step folder that `path` stands for, as in `open_checkpoint`; CheckpointError when there is none."""
    if (path / MANIFEST).is_file():
        return path
    if path.name in POINTERS:
        target = pointed_at(path)
        if target is None:
            raise CheckpointError(f"{path}: names no checkpoint that is here")
        return target
    folders = step_folders(checkpoints_folder(path))
    if not folders:
        what = "no checkpoint here" if path.is_dir() else "not a folder" if path.exists() else "no such folder"
        raise CheckpointError(f"{path}: {what}; expected a run folder, or a step-… folder with a {MANIFEST}")
    return folders[0]
