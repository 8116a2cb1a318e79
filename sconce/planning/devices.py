"""Devices as vendors describe them: peaks, memory, bandwidth and price. The figures are in devices.toml."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from sconce.backend import DeviceInfo
from sconce.errors import ConfigError

Kind = Literal["metal", "cuda", "cpu"]

# Of the whole memory, what a run may plan with: not of what is free, so that the same device always gets the same
# plan. The rest is for the system, and for what the estimate does not know (allocator, kernels' workspaces).
USABLE = {"cuda": 0.85, "metal": 0.65, "cpu": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device to plan for. `tflops` are dense vendor peaks by precision; empty where no vendor names one.

    `bandwidth` is in GB/s, `price` in dollars an hour.
    """

    name: str
    kind: str
    framework: str
    memory_bytes: int
    tflops: Mapping[str, float]
    bandwidth: float | None = None
    price: float | None = None
    source: str | None = None

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill."""
        return int(self.memory_bytes * USABLE[self.kind])

    def peak(self, precision: str) -> float | None:
        """The vendor's FLOP/s in a precision."""
        tflops = self.tflops.get(precision)
        return None if tflops is None else tflops * 1e12


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("sconce.planning").joinpath("devices.toml").read_text(encoding="utf-8"))


def price_basis() -> str:
    """Whose prices these are and of when, in words. Network volumes are for RunPod's secure cloud alone."""
    return f"RunPod's community cloud in {_table()['prices_as_of']}, and its secure cloud asks more"


def known_names() -> list[str]:
    """Every name that `named` knows, e.g. a100-80 and m3-max-64."""
    return [name for family in _families() for name in _names(family)]


def named(name: str) -> Device:
    """The device of that name. Raises ConfigError, with the nearest names, when there is none."""
    for family in _families():
        for known, memory in _names(family).items():
            if known == name:
                return _device(family, known, memory * 2**30)
    sizes = [known for known in known_names() if known.startswith(name)]
    near = sizes or difflib.get_close_matches(name, known_names(), n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(near)}?" if near else "."
    raise ConfigError(f"--device {name}: not known{hint} Known are {', '.join([*_families(), 'cpu'])}, with the memory")


def of_backend(info: DeviceInfo) -> Device:
    """The device a backend runs on, with its vendor's figures where its name is known."""
    for family, figures in _families().items():
        if info.name in figures["names"]:
            return _device(family, info.name, info.memory_bytes, info.backend)
    return Device(name=info.name, kind=info.kind, framework=info.backend, memory_bytes=info.memory_bytes, tflops={})


def _families() -> dict[str, dict[str, Any]]:
    return {name: value for name, value in _table().items() if isinstance(value, dict)}


def _names(family: str) -> dict[str, int]:
    """Names of the family's members, and their memory in GiB; the size is left out where there is only one."""
    sizes: list[int] = _families()[family]["memory_gib"]
    return {family: sizes[0]} if len(sizes) == 1 else {f"{family}-{size}": size for size in sizes}


def _device(family: str, name: str, memory_bytes: int, framework: str | None = None) -> Device:
    figures = _families()[family]
    fewer: dict[str, Any] = figures.get("fewer_cores", {})
    if round(memory_bytes / 2**30) in fewer.get("memory_gib", ()):
        figures = {**figures, **fewer}
    apple = "Apple" in figures["names"][0]
    return Device(
        name=name,
        kind="metal" if apple else "cuda",
        framework=framework or ("mlx" if apple else "torch"),
        memory_bytes=memory_bytes,
        tflops=figures["tflops"],
        bandwidth=figures["bandwidth"],
        price=figures.get("price"),
        source=figures["source"],
    )
