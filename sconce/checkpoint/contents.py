"""What is in a checkpoint's tensors: which parts its state has, and figures of every tensor, read one at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sconce.checkpoint.load import LoadedCheckpoint

CHUNK = 2**16  # values looked at in float64 at once, so that figures cost little beside the tensor itself

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Everything of a state under one name before the slash: the model, or one thing the optimizer remembers."""

    name: str
    tensors: int
    values: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """Figures of one tensor. `rms`, `minimum` and `maximum` are of its finite values, None when it has none."""

    name: str
    shape: Shape
    rms: float | None
    minimum: float | None
    maximum: float | None
    non_finite: int


def split_name(name: str) -> tuple[str, str]:
    """A state's name as (part, parameter)."""
    part, _, parameter = name.partition("/")
    return part, parameter


def chunks(tensor: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """The values in storage order, (at most CHUNK,) at a time."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK].astype(np.float64)


def state_parts(checkpoint: LoadedCheckpoint) -> list[Part]:
    """The parts as the files have them, the model first, then the optimizer's by name."""
    tensors = checkpoint.tensors
    counts: dict[str, tuple[int, int]] = {}
    for name in tensors:
        part = split_name(name)[0]
        number, values = counts.get(part, (0, 0))
        counts[part] = (number + 1, values + math.prod(tensors.kind(name)[1]))
    order = sorted(counts, key=lambda part: (part != "model", part))
    return [Part(part, *counts[part]) for part in order]


def tensor_facts(checkpoint: LoadedCheckpoint) -> Iterator[TensorFacts]:
    """Figures of every tensor, one in memory at a time."""
    tensors = checkpoint.tensors
    for name in tensors:
        yield _facts(name, tensors[name])


def _facts(name: str, tensor: NDArray[np.float32]) -> TensorFacts:
    squares, count, low, high = 0.0, 0, math.inf, -math.inf
    for chunk in chunks(tensor):
        finite = chunk[np.isfinite(chunk)]
        if finite.size:
            squares += float(np.dot(finite, finite))
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            count += finite.size
    return TensorFacts(
        name=name,
        shape=tensor.shape,
        rms=math.sqrt(squares / count) if count else None,
        minimum=low if count else None,
        maximum=high if count else None,
        non_finite=tensor.size - count,
    )
