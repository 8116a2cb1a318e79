"""Whether a checkpoint is what was written, and what was written is a state of its model: one check after another."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sconce.checkpoint.contents import split_name
from sconce.checkpoint.load import (
    POINTERS,
    LoadedCheckpoint,
    check_hashes,
    check_sizes,
    checkpoints_folder,
    find_folder,
    step_folders,
)
from sconce.checkpoint.record import FORMAT, DamagedCheckpointError, read_manifest
from sconce.checkpoint.stream import MODEL_PREFIX
from sconce.spec import ModelSpec

ReadSpec = Callable[[Mapping[str, object]], ModelSpec]
"""The model that a config.json describes; raises CheckpointError. Given, since reading one is interop's."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its name, and what it found. Not `passed` when there was nothing to check; a fault is raised."""

    name: str
    found: str
    passed: bool = True


def folders_to_verify(path: Path) -> list[Path]:
    """The one checkpoint that `path` names, or every one of the run at `path`, newest first.

    Raises CheckpointError when there is none.
    """
    if path.is_dir() and path.name.startswith(("step-", ".bad-step-")):
        return [path]  # also without a manifest: that is then the fault to report
    newest = find_folder(path)
    return [newest] if path.name in POINTERS or newest == path else step_folders(checkpoints_folder(path))


def verify(folder: Path, read_spec: ReadSpec) -> Iterator[Check]:
    """Yield each check as it passes, the cheap ones first; raises CheckpointError at the first fault."""
    record = read_manifest(folder)
    yield Check("manifest", f"checksum right, format {FORMAT}, step {record.step}")
    check_sizes(folder, record)
    size = sum(file.bytes for file in record.files.values())
    yield Check("sizes", f"{len(record.files)} files, {size:,} bytes")
    check_hashes(folder, record)
    yield Check("hashes", f"{len(record.files)} files as they were written")
    checkpoint = LoadedCheckpoint(folder, record)
    yield _check_names(checkpoint, read_spec)
    yield _check_finite(checkpoint)


def _check_names(checkpoint: LoadedCheckpoint, read_spec: ReadSpec) -> Check:
    """Every tensor is <part>/<parameter>, a float32 of that parameter's shape, and no parameter is missing."""
    spec = read_spec(checkpoint.table("config.json"))
    shapes = {param.name: param.shape for param in spec.params()}
    tensors = checkpoint.tensors
    missing = [name for name in shapes if MODEL_PREFIX + name not in tensors]
    if missing:
        raise DamagedCheckpointError(f"{checkpoint.path}: no tensor {missing[0]}, which config.json's model has")
    for name in tensors:
        parameter = split_name(name)[1]
        if parameter not in shapes:
            raise DamagedCheckpointError(f"{checkpoint.path}: tensor {name}: config.json's model has no {parameter!r}")
        dtype, shape = tensors.kind(name)
        if (dtype, shape) != ("F32", shapes[parameter]):
            raise DamagedCheckpointError(
                f"{checkpoint.path}: tensor {name} is {dtype} {list(shape)}, expected F32 {list(shapes[parameter])}"
            )
    parts = sorted({split_name(name)[0] for name in tensors} - {"model"})
    return Check("tensors", f"{len(tensors)} named and shaped as config.json says: model, {', '.join(parts)}")


def _check_finite(checkpoint: LoadedCheckpoint) -> Check:
    values = 0
    tensors = checkpoint.tensors
    for name in tensors:
        tensor = tensors[name]
        if bad := tensor.size - int(np.count_nonzero(np.isfinite(tensor))):
            raise DamagedCheckpointError(f"{checkpoint.path}: tensor {name}: {bad:,} of {tensor.size:,} not finite")
        values += tensor.size
    return Check("values", f"{values:,}, all finite")
