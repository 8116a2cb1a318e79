"""Which device MLX runs on, and what it has."""

import os
import platform
import resource
import sys
import time
from importlib.metadata import version

import mlx.core as mx

from sconce.backend import ComputeOptions, DeviceInfo, Precision, TensorSource
from sconce.optim import OptimSpec
from sconce.spec import ModelSpec
from sconce_mlx.blas import preload_openblas
from sconce_mlx.inference import MLXLanguageModel
from sconce_mlx.learner import MLXLearner
from sconce_mlx.memory import out_of_memory
from sconce_mlx.model import DTYPES


class MLXBackend:
    """MLX on its default device: Metal on Apple Silicon, the CPU on Linux."""

    name = "mlx"

    def device(self) -> DeviceInfo:
        """The chip's name and the memory it shares with the processor."""
        metal = mx.metal.is_available()
        info = mx.device_info()
        name = str(info.get("device_name", platform.machine())) if metal else platform.machine()
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return DeviceInfo("mlx", version("mlx"), "metal" if metal else "cpu", name, memory_bytes)

    def facts(self) -> dict[str, str]:
        """The chip and how much of the memory Metal would use; on Linux, which BLAS is at work."""
        if mx.metal.is_available():
            info = mx.device_info()
            working_set = int(info.get("max_recommended_working_set_size", 0))
            return {
                "Metal chip": f"{info.get('device_name', 'unknown')} ({info.get('architecture', 'unknown')})",
                "recommended working set": f"{working_set / 2**30:.1f} GiB" if working_set else "unknown",
            }
        preloaded = preload_openblas()
        return {"OpenBLAS before MLX": "loaded" if preloaded else "not found, so slow: apt-get install libopenblas0"}

    def memory(self) -> int:
        """Peak bytes: of arrays on Metal; on a CPU of the process, where MLX would count what it only queued."""
        if mx.metal.is_available():
            return mx.get_peak_memory()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux

    def matmul_seconds(self, precision: Precision, size: int, repeats: int) -> float:
        """Seconds for that many products, the device waited for."""
        a, b = (mx.ones((size, size), DTYPES[precision]) for _ in range(2))
        mx.eval(a, b)
        started = time.perf_counter()
        for _ in range(repeats):
            mx.eval(a @ b)
        return time.perf_counter() - started

    def language_model(self, spec: ModelSpec, run: ComputeOptions, weights: TensorSource) -> MLXLanguageModel:
        """The model, to be used as it is."""
        return MLXLanguageModel(spec, run, weights)

    def learner(self, spec: ModelSpec, optim: OptimSpec, run: ComputeOptions, weights: TensorSource) -> MLXLearner:
        """A learner at step 0."""
        with out_of_memory(intact=True):
            return MLXLearner(spec, optim, run, weights)


def open_backend(device: str) -> MLXBackend:
    """MLX on its default device; `device` is "auto", the only one there is."""
    assert device == "auto", device
    if mx.metal.is_available():
        # Otherwise macOS may page out weights and moments that a step needs again at once. The cache of freed arrays
        # keeps MLX's own limit: with fixed shapes every step frees what the next one needs.
        working_set = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(working_set)
        # MLX's own is half as much again, where macOS swaps: beyond this it waits for what is under way before it asks
        # for more.
        mx.set_memory_limit(working_set)
    return MLXBackend()
