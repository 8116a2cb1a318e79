"""The seam between the shared training code and a framework: one optimizer step, and what surrounds it."""

import importlib
import importlib.util
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from sconce.data.batches import Batch
from sconce.errors import BackendError, CheckpointError
from sconce.optim import OptimSpec
from sconce.spec import ModelSpec

Hardware = Literal["auto", "mlx", "cuda", "cpu"]
Precision = Literal["fp32", "bf16", "fp16"]
AttentionKind = Literal["auto", "fused", "reference"]
WEIGHTS = "model"

TensorSource = Mapping[str, NDArray[np.float32]]
"""float32 arrays by name: "model/<parameter>" and "<slot>/<parameter>", slots as in `optim`; may read lazily."""


@dataclass(frozen=True, slots=True)
class StepScalars:
    """What changes from step to step besides the data. `step` is the number of updates already done.

    `seed` and `step` decide what dropout drops.
    """

    step: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Figures of one finished update: mean nats a scored token before it, and the gradient norm before clipping."""

    loss: float
    grad_norm: float
    tokens: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Where a backend runs: `kind` is metal, cuda or cpu; `memory_bytes` is what the device can hold."""

    backend: str
    version: str
    kind: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptions:
    """How to compute, never what: master weights and slots are float32 whatever is chosen here.

    `compile` None lets the backend decide (yes on a GPU, no on a CPU, where compiling outlasts the gain).
    `attention` "reference" makes the probabilities as an array; "fused" never does, but for dropout; "auto" lets the
    backend decide. Every `recompute_every`-th block is computed again for its gradient instead of kept; 0 keeps all.
    Logits are made for at most `loss_chunk` tokens at a time; None makes them all at once.
    """

    precision: Precision = "fp32"
    compile: bool | None = None
    attention: AttentionKind = "auto"
    recompute_every: int = 0
    loss_chunk: int | None = None


@dataclass(frozen=True, slots=True)
class LossScale:
    """fp16's dynamic loss scale (Micikevicius et al. 2018, section 3.2), and clean updates since it last changed.

    Gradients that overflow halve it and skip the update; LOSS_SCALE_INTERVAL clean updates in a row double it.
    """

    scale: float
    clean_updates: int


INITIAL_LOSS_SCALE = LossScale(2.0**15, 0)
LOSS_SCALE_INTERVAL = 200
LOSS_SCALE_RANGE = (1.0, 2.0**24)


class Pending(Protocol):
    """An update that the device may still be working on."""

    def ready(self) -> bool:
        """Whether `read` would return at once, as far as the host can tell without waiting."""
        ...

    def read(self) -> StepMetrics:
        """Wait for the update and return its figures: the only place where the host waits for the device."""
        ...


class Decoder(Protocol):
    """Incremental inference over a key/value cache. Each row is a sequence of its own, at its own length."""

    def feed(
        self, tokens: NDArray[np.int32], *, first_row: int = 0, lengths: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Append (batch, n) token ids to the rows from `first_row` on; float32 logits (batch, vocab) after the last.

        With `lengths` (batch,) only so many of a row's tokens count and the rest are padding, for which there must be
        room too; a row of which none counts has logits that mean nothing. Raises OutOfMemoryError; the cache is then
        not to be used any more.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        ...

    def clear(self, first_row: int = 0) -> None:
        """Forget the rows from `first_row` on; with the last of them the cache's memory goes too."""
        ...


class LanguageModel(Protocol):
    """A model alone, on one device: no optimizer, and weights in the compute precision."""

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Next-token logits at every position: (batch, n) ids to float32 (batch, n, vocab)."""
        ...

    def score(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Per-token loss (batch, seq), 0 where the target is -1; and where the likeliest token is the target."""
        ...

    def decoder(self, rows: int, max_len: int) -> Decoder:
        """A fresh decoder for up to `rows` sequences of up to `max_len` tokens."""
        ...


class Learner(Protocol):
    """A model and its optimizer on one device."""

    def step(self, batches: Sequence[Batch], scalars: StepScalars) -> Pending:
        """Accumulate gradients over the micro-batches, clip, update; return at once.

        The loss, and so the gradient, is summed nats over all micro-batches / scored tokens of all of them.
        An update with a non-finite gradient norm changes nothing, but for fp16's loss scale; its metrics show it.
        Raises OutOfMemoryError when the micro-batches are too large; the step may then be asked for again in smaller
        ones, if the error says that the state is intact.
        """
        ...

    def nats(self, batch: Batch) -> NDArray[np.float32]:
        """Per-token loss (batch, seq) at the present weights, nothing dropped; 0 where the target is -1."""
        ...

    def decoder(self, rows: int, max_len: int) -> Decoder:
        """A fresh decoder over a copy of the present weights for up to `rows` sequences of up to `max_len` tokens.

        Raises OutOfMemoryError, as its `feed` does; what it says of the state is of this learner's.
        """
        ...

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The whole state, in the order of `state_names`.

        Arrays may be views: they hold until the next step or load.
        """
        ...

    def loss_scale(self) -> LossScale | None:
        """The present loss scale, or None where the precision needs none."""
        ...

    def load(self, tensors: TensorSource, step: int, loss_scale: LossScale | None = None) -> None:
        """Replace the whole state by `tensors`, after `step` updates. Strict in names and shapes.

        A precision that scales its loss and is given no scale begins with the initial one.
        """
        ...


class Backend(Protocol):
    """One framework on one device."""

    @property
    def name(self) -> str:
        """Which framework: mlx or torch."""
        ...

    def device(self) -> DeviceInfo:
        """What hardware this backend runs on."""
        ...

    def facts(self) -> dict[str, str]:
        """What else is worth knowing of the device, as `sconce doctor` shows it: label to text, in order."""
        ...

    def memory(self) -> int:
        """Peak bytes in use so far: of the device where it has its own memory, else of this process."""
        ...

    def matmul_seconds(self, precision: Precision, size: int, repeats: int) -> float:
        """Seconds for `repeats` products of two (size, size) matrices, until the device has done them."""
        ...

    def language_model(self, spec: ModelSpec, run: ComputeOptions, weights: TensorSource) -> LanguageModel:
        """The model with these weights, by parameter name (no "model/" prefix), to be used as it is."""
        ...

    def learner(self, spec: ModelSpec, optim: OptimSpec, run: ComputeOptions, weights: TensorSource) -> Learner:
        """A learner at step 0 with these weights, by parameter name (no "model/" prefix), and zero slots.

        Raises OutOfMemoryError when they do not fit."""
        ...


def state_names(spec: ModelSpec, optim: OptimSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a learner's state, in the order `Learner.tensors` yields them.

    First all weights in the spec's order, "model/<name>"; then slot by slot, as "<slot>/<name>".
    """
    params = list(spec.params())
    slots = {slot: None for param in params for slot in optim.slots(param)}  # each once, in order of appearance
    weights = [(f"{WEIGHTS}/{param.name}", param.shape) for param in params]
    return weights + [
        (f"{slot}/{param.name}", param.shape) for slot in slots for param in params if slot in optim.slots(param)
    ]


def check_names(expected: Sequence[tuple[str, tuple[int, ...]]], tensors: TensorSource) -> None:
    """Raise CheckpointError naming the missing and the unknown tensors."""
    names = {name for name, _ in expected}
    missing = [name for name, _ in expected if name not in tensors]
    unknown = sorted(name for name in tensors if name not in names)
    if missing or unknown:
        parts = [f"missing {', '.join(missing[:5])}" + _more(missing)] if missing else []
        parts += [f"unknown {', '.join(unknown[:5])}" + _more(unknown)] if unknown else []
        raise CheckpointError(f"these tensors are not this model's: {'; '.join(parts)}")


def take(tensors: TensorSource, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Read one tensor, once. Raises CheckpointError when its shape is not the model's."""
    array = tensors[name]
    if array.shape != shape:
        raise CheckpointError(f"tensor {name} has shape {list(array.shape)}, expected {list(shape)}")
    return array


def _more(items: Sequence[str]) -> str:
    return f" and {len(items) - 5} more" if len(items) > 5 else ""


def framework_for(hardware: Hardware) -> Literal["mlx", "torch"]:
    """Which framework serves `hardware` on this machine; auto is MLX on Apple Silicon if it is installed."""
    apple_silicon = sys.platform == "darwin" and platform.machine() == "arm64"
    if hardware == "mlx" or (hardware == "auto" and apple_silicon and installed("mlx")):
        return "mlx"
    return "torch"


def load_backend(hardware: Hardware = "auto") -> Backend:
    """The backend for `hardware`; auto is MLX on Apple Silicon, else CUDA, else the CPU through PyTorch.

    Raises BackendError, saying what to install, when it is not here, and for hardware that nobody knows.
    """
    if hardware not in get_args(Hardware):
        raise BackendError(f"backend: found {hardware!r}, expected one of {', '.join(get_args(Hardware))}")
    framework = framework_for(hardware)
    if not installed(framework):
        raise BackendError(f"--backend {hardware} needs {framework}: {how_to_install(framework)}")
    module = importlib.import_module(f"sconce_{framework}")
    return cast(Backend, module.open_backend("auto" if framework == "mlx" else hardware))


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def how_to_install(framework: str) -> str:
    """The command for a framework that is missing."""
    extra = "" if framework == "torch" else ' (on Linux: pip install "mlx[cpu]")'
    return f"pip install {framework}{extra}"
