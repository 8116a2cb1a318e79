"""Where the tensors of a safetensors file lie, read once: opening such a file anew for each tensor costs its header."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: its type as safetensors spells it, its shape, and its first byte, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of the file by name, sorted. Raises ValueError when it is no safetensors file."""
    try:
        with safe_open(path, framework="numpy"):  # checks every size and offset
            pass
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file ({error})") from None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = cast(dict[str, dict[str, object]], json.loads(file.read(size)))
    header.pop("__metadata__", None)
    entries = {
        name: TensorEntry(
            dtype=cast(str, tensor["dtype"]),
            shape=tuple(cast(list[int], tensor["shape"])),
            start=8 + size + cast(list[int], tensor["data_offsets"])[0],
        )
        for name, tensor in header.items()
    }
    return dict(sorted(entries.items()))


def read_tensor(path: Path, entry: TensorEntry) -> NDArray[np.float32]:
    """One tensor of the file as float32. Raises ValueError for a type other than fp32, fp16 and bf16."""
    if entry.dtype not in _STORED:
        raise ValueError(f"{entry.dtype}, expected {', '.join(_STORED)}")
    raw = np.fromfile(path, _STORED[entry.dtype], math.prod(entry.shape), offset=entry.start).reshape(entry.shape)
    # A bfloat16 is the upper half of a float32.
    wide = (raw.astype(np.uint32) << 16).view(np.float32) if entry.dtype == "BF16" else raw
    return wide.astype(np.float32, copy=False)


def as_stored(array: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """The values as a file has them, rounded to the nearest, ties to even; bfloat16 as its 16 bits.

    Raises ValueError where a finite value would become infinite.
    """
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            bits = np.ascontiguousarray(array, "<f4").view(np.uint32)
            stored = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
            overflows = bool(((stored & 0x7F80) == 0x7F80).any())
        else:
            stored = array.astype(_STORED[dtype])
            overflows = not np.isfinite(stored).all()
    if overflows and np.isfinite(array).all():
        raise ValueError(f"{np.abs(array).max():.3g} is too large for {dtype}")
    return stored
