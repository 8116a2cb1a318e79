"""How two checkpoints differ, tensor by tensor: one pair in memory at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sconce.checkpoint.contents import Shape, chunks, split_name
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.config import Difference, differences


@dataclass(slots=True)
class Distance:
    """How far B is from A over the positions where both are finite; `non_finite` counts the other positions.

    `identical` is bit for bit. Sums are of one tensor, or of all tensors of a part.
    """

    identical: bool = True
    max_abs: float = 0.0
    max_abs_a: float = 0.0
    non_finite: int = 0
    dot: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0

    @property
    def relative(self) -> float | None:
        """Largest difference / largest value of A; None when A is all zero and B is not."""
        if self.max_abs_a == 0.0:
            return 0.0 if self.max_abs == 0.0 else None
        return self.max_abs / self.max_abs_a

    @property
    def cosine(self) -> float | None:
        """Of the angle between A and B as vectors; None when either is all zero."""
        product = math.sqrt(self.squares_a) * math.sqrt(self.squares_b)
        return max(-1.0, min(1.0, self.dot / product)) if product > 0.0 else None

    def add(self, other: "Distance") -> None:
        """Take in the distance over other positions."""
        self.identical = self.identical and other.identical
        self.max_abs = max(self.max_abs, other.max_abs)
        self.max_abs_a = max(self.max_abs_a, other.max_abs_a)
        self.non_finite += other.non_finite
        self.dot += other.dot
        self.squares_a += other.squares_a
        self.squares_b += other.squares_b


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor that both have, of the same shape."""

    name: str
    shape: Shape
    distance: Distance


@dataclass(frozen=True, slots=True)
class ShapeDifference:
    """One tensor that both have, and cannot be compared."""

    name: str
    a: Shape
    b: Shape


@dataclass(slots=True)
class PartDifference:
    """All tensors of one part that were compared."""

    name: str
    tensors: int = 0
    changed: int = 0
    distance: Distance = field(default_factory=Distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything about two checkpoints' tensors and configs. `tensors` has the most different first."""

    tensors: Sequence[TensorDifference]
    shapes: Sequence[ShapeDifference]
    only_a: Sequence[str]
    only_b: Sequence[str]
    config: Sequence[Difference]

    @property
    def identical(self) -> bool:
        """Whether both hold the same tensors bit for bit. Nothing is said of anything else."""
        same_names = not (self.shapes or self.only_a or self.only_b)
        return same_names and all(tensor.distance.identical for tensor in self.tensors)

    @property
    def parts(self) -> list[PartDifference]:
        """A summary of each part, the model first, then by name."""
        parts: dict[str, PartDifference] = {}
        for tensor in self.tensors:
            name = split_name(tensor.name)[0]
            part = parts.setdefault(name, PartDifference(name))
            part.tensors += 1
            part.changed += not tensor.distance.identical
            part.distance.add(tensor.distance)
        return sorted(parts.values(), key=lambda part: (part.name != "model", part.name))


def compare(a: LoadedCheckpoint, b: LoadedCheckpoint) -> Comparison:
    """Hold every tensor of `a` against the one of the same name in `b`, and the two run configs."""
    left, right = a.tensors, b.tensors
    tensors: list[TensorDifference] = []
    shapes: list[ShapeDifference] = []
    for name in left:
        if name not in right:
            continue
        shape, other = left.kind(name)[1], right.kind(name)[1]
        if shape == other:
            tensors.append(TensorDifference(name, shape, distance(left[name], right[name])))
        else:
            shapes.append(ShapeDifference(name, shape, other))
    return Comparison(
        tensors=sorted(tensors, key=_by_distance, reverse=True),
        shapes=shapes,
        only_a=[name for name in left if name not in right],
        only_b=[name for name in right if name not in left],
        config=differences(a.run_config, b.run_config),
    )


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> Distance:
    """How far `b` is from `a`, of the same shape; sums are in float64."""
    total = Distance(identical=np.array_equal(a.view(np.uint32), b.view(np.uint32)))
    for one, other in zip(chunks(a), chunks(b), strict=True):
        finite = np.isfinite(one) & np.isfinite(other)
        x, y = one[finite], other[finite]
        total.non_finite += finite.size - x.size
        if x.size:
            total.max_abs = max(total.max_abs, float(np.abs(x - y).max()))
            total.max_abs_a = max(total.max_abs_a, float(np.abs(x).max()))
            total.dot += float(np.dot(x, y))
            total.squares_a += float(np.dot(x, x))
            total.squares_b += float(np.dot(y, y))
    return total


def _by_distance(tensor: TensorDifference) -> tuple[bool, float, float]:
    """What sorts the worst last: no longer finite, then by relative difference."""
    distance = tensor.distance
    relative = distance.relative
    broken = distance.non_finite > 0 and not distance.identical
    return broken, math.inf if relative is None else relative, distance.max_abs
