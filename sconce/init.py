"""Initial values from (seed, parameter name): the same bits in every backend, on every machine."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from sconce.spec import ModelSpec, ParamSpec


def initial_value(param: ParamSpec, seed: int) -> NDArray[np.float32]:
    """The value of one parameter before step 1, float32, `param.shape`."""
    if param.init == "ones":
        return np.ones(param.shape, np.float32)
    if param.init == "zeros":
        return np.zeros(param.shape, np.float32)
    digest = hashlib.sha256(f"{seed}:{param.name}".encode()).digest()
    key = np.frombuffer(digest[:16], "<u8").astype(np.uint64)
    # Drawn in float64 and rounded once: the platform's log and exp differ in their last bit, the float32 does not.
    draw = np.random.Generator(np.random.Philox(key=key)).standard_normal(param.size)
    return (draw * param.std).astype(np.float32).reshape(param.shape)


class InitialWeights(Mapping[str, NDArray[np.float32]]):
    """All initial values of a model by name, each computed when it is asked for."""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self._params = {param.name: param for param in spec.params()}
        self._seed = seed

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return initial_value(self._params[name], self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)
