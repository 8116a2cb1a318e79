"""The tensors of a safetensors file that another program wrote."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sconce.errors import CheckpointError
from sconce.tensorfile import TensorEntry, read_header, read_tensor

Array = NDArray[np.float32]

_PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}  # what safetensors calls them, and we


class RawTensors(Mapping[str, Array]):
    """The tensors of a safetensors file as float32."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError when it is no such file, or holds a tensor that is not fp32, fp16 or bf16."""
        self.path = path
        self.entries = _entries(path)

    def __getitem__(self, name: str) -> Array:
        array = read_tensor(self.path, self.entries[name])
        if not np.isfinite(array).all():
            raise CheckpointError(f"{self.path}: {name} holds NaN or infinity")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def precision_of(self, name: str) -> str:
        """What the values of one tensor are stored in."""
        return _PRECISIONS[self.entries[name].dtype]

    @property
    def precision(self) -> str:
        """What the values were stored in: fp32, fp16, bf16 or several."""
        return " and ".join(sorted({self.precision_of(name) for name in self.entries}))


def _entries(path: Path) -> dict[str, TensorEntry]:
    try:
        entries = read_header(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    others = [f"{name} is {entry.dtype}" for name, entry in entries.items() if entry.dtype not in _PRECISIONS]
    if others:
        raise CheckpointError(f"{path}: {', '.join(others)}; expected {', '.join(_PRECISIONS)}")
    return entries
