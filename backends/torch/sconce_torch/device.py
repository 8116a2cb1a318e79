"""Which device PyTorch runs on, and what it has."""

import os
import platform
import resource
import sys
import time
import warnings

import torch

from sconce.backend import ComputeOptions, DeviceInfo, Precision, TensorSource
from sconce.errors import BackendError
from sconce.optim import OptimSpec
from sconce.spec import ModelSpec
from sconce_torch.inference import TorchLanguageModel
from sconce_torch.learner import TorchLearner
from sconce_torch.memory import out_of_memory
from sconce_torch.model import DTYPES
from sconce_torch.products import matmul


class TorchBackend:
    """PyTorch on one device."""

    name = "torch"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def device(self) -> DeviceInfo:
        """The GPU's name and memory, or the processor's."""
        if self._device.type == "cuda":
            properties = torch.cuda.get_device_properties(self._device)
            name, memory_bytes = properties.name, properties.total_memory
        else:
            name = f"{platform.machine()}, {torch.get_num_threads()} threads"
            memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return DeviceInfo("torch", torch.__version__, self._device.type, name, memory_bytes)

    def facts(self) -> dict[str, str]:
        """Each GPU, or how many threads compute."""
        if self._device.type != "cuda":
            return {"PyTorch threads": str(torch.get_num_threads())}
        facts = {"CUDA that PyTorch was built for": str(torch.version.cuda or torch.version.hip)}
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if gpu.major >= 8 or torch.version.hip else "no bf16 in hardware"
            capability = f"compute capability {gpu.major}.{gpu.minor}"
            facts[f"cuda:{index}"] = f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, {capability}, {bf16}"
        return facts

    def memory(self) -> int:
        """Peak bytes: of tensors on CUDA, of the process on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux

    def matmul_seconds(self, precision: Precision, size: int, repeats: int) -> float:
        """Seconds for that many products, the device waited for."""
        a, b = (torch.ones(size, size, dtype=DTYPES[precision], device=self._device) for _ in range(2))
        self._synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            matmul(a, b)
        self._synchronize()
        return time.perf_counter() - started

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def language_model(self, spec: ModelSpec, run: ComputeOptions, weights: TensorSource) -> TorchLanguageModel:
        """The model, to be used as it is."""
        return TorchLanguageModel(spec, run, weights, self._device)

    def learner(self, spec: ModelSpec, optim: OptimSpec, run: ComputeOptions, weights: TensorSource) -> TorchLearner:
        """A learner at step 0."""
        with out_of_memory(intact=True):
            return TorchLearner(spec, optim, run, weights, self._device)


def open_backend(device: str) -> TorchBackend:
    """PyTorch on "cuda", "cpu", or for "auto" the first of the two that is here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "--backend cuda: PyTorch sees no CUDA device; check nvidia-smi, or install a CUDA build of torch"
        )
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    # fp32 means fp32: TF32 would round a product's factors to 11 bits. bf16 is there for speed, whatever PyTorch's
    # compiler advises.
    torch.set_float32_matmul_precision("highest")
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    return TorchBackend(torch.device("cuda" if use_cuda else "cpu"))
