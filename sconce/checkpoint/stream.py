"""Writing a checkpoint's files one tensor at a time, hashed on the way to the disk.

`safetensors.numpy.save_file` wants every tensor in memory at once: for weights and two moments, three times the
model. The format is a JSON header and then raw bytes, and names and shapes are known before the first value.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sconce.checkpoint.record import FileRecord
from sconce.errors import CheckpointError
from sconce.files import fsync_file
from sconce.log import log
from sconce.tensorfile import as_stored

Shape = tuple[int, ...]
State = Iterator[tuple[str, NDArray[np.float32]]]

MODEL = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
OPTIMIZER = "optimizer.safetensors"
RUN = "run.json"  # the run's resolved config
MODEL_PREFIX = "model/"
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}  # by what safetensors calls a type


@dataclass(frozen=True, slots=True)
class TensorFile:
    """One safetensors file to be: what it holds, in order. `prefix` + a name is what the state calls it."""

    name: str
    prefix: str
    tensors: Sequence[tuple[str, Shape]]
    dtype: str = "F32"

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return len(_header(self)) + self.data_bytes

    @property
    def data_bytes(self) -> int:
        """Size of the values."""
        return _data_bytes(self.tensors, self.dtype)


def plan_files(state: Sequence[tuple[str, Shape]], max_shard_bytes: int) -> list[TensorFile]:
    """The files that hold a state, in its order: the model, in shards if it is too large for one, then the rest."""
    size = len(MODEL_PREFIX)
    model = [(name[size:], shape) for name, shape in state if name.startswith(MODEL_PREFIX)]
    rest = [(name, shape) for name, shape in state if not name.startswith(MODEL_PREFIX)]
    return [*plan_model(model, max_shard_bytes), TensorFile(OPTIMIZER, "", rest)]


def plan_model(model: Sequence[tuple[str, Shape]], max_shard_bytes: int, dtype: str = "F32") -> list[TensorFile]:
    """The files that hold a model's parameters, in their order: one, or shards if that would be too large."""
    shards = _split(model, max_shard_bytes, dtype)
    count = len(shards)
    names = [MODEL] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return [TensorFile(name, MODEL_PREFIX, shard, dtype) for name, shard in zip(names, shards, strict=True)]


def model_index(files: Sequence[TensorFile]) -> bytes | None:
    """Hugging Face's model.safetensors.index.json, or None when one file holds the whole model."""
    shards = [file for file in files if file.prefix == MODEL_PREFIX]
    if len(shards) == 1:
        return None
    index = {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards)},
        "weight_map": {name: shard.name for shard in shards for name, _ in shard.tensors},
    }
    return json.dumps(index, indent=2).encode()


def write_tensors(folder: Path, file: TensorFile, state: State) -> FileRecord:
    """Take the file's tensors off `state`, which must have them next and in order, and write them."""
    return write_hashed(folder / file.name, _tensor_chunks(file, state))


def write_hashed(path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a new file, chunk after chunk, through to the medium."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            del chunk  # else it stays alive while the next one is made
        file.flush()
        fsync_file(file.fileno())
    log.debug("wrote %s, %d bytes", path, size)
    return FileRecord(size, digest.hexdigest())


def _tensor_chunks(file: TensorFile, state: State) -> Iterator[bytes | memoryview]:
    yield _header(file)
    for name, shape in file.tensors:
        yield _raw_bytes(next(state, None), file.prefix + name, shape, file.dtype)


def _raw_bytes(item: tuple[str, NDArray[np.float32]] | None, name: str, shape: Shape, dtype: str) -> memoryview:
    assert item is not None, f"the state ends before {name}"
    assert item[0] == name, f"the state has {item[0]} where {name} belongs"
    array = item[1]
    assert array.dtype == np.float32, f"{name} is {array.dtype}, not float32"
    assert array.shape == shape, f"{name} has shape {array.shape}, not {shape}"
    try:
        stored = np.ascontiguousarray(array, "<f4") if dtype == "F32" else as_stored(array, dtype)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}: choose another type") from None
    return stored.reshape(-1).view(np.uint8).data


def _header(file: TensorFile) -> bytes:
    # Older transformers refuse a file that does not name its framework; "pt" is what every tool accepts.
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in file.tensors:
        end = start + ITEM_BYTES[file.dtype] * math.prod(shape)
        entries[name] = {"dtype": file.dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the first value to 8 bytes
    return len(text).to_bytes(8, "little") + text


def _data_bytes(tensors: Sequence[tuple[str, Shape]], dtype: str) -> int:
    return ITEM_BYTES[dtype] * sum(math.prod(shape) for _, shape in tensors)


def _split(tensors: Sequence[tuple[str, Shape]], max_bytes: int, dtype: str) -> list[list[tuple[str, Shape]]]:
    """Runs of tensors of at most `max_bytes` each; a larger tensor has a run to itself."""
    runs: list[list[tuple[str, Shape]]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _data_bytes([tensor], dtype)
        if runs[-1] and filled + size > max_bytes:
            runs.append([])
            filled = 0
        runs[-1].append(tensor)
        filled += size
    return runs
