"""One optimizer step in PyTorch, and the state it changes."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sconce.backend import (
    INITIAL_LOSS_SCALE,
    WEIGHTS,
    Batch,
    ComputeOptions,
    LossScale,
    StepMetrics,
    StepScalars,
    TensorSource,
    check_names,
    state_names,
    take,
)
from sconce.dropout import row_keys
from sconce.heap import give_back_free_memory, keep_freed_memory
from sconce.optim import OptimSpec
from sconce.spec import ModelSpec
from sconce_torch.compile import Compiler, CompilingFailed
from sconce_torch.decode import DecodeWeights, TorchDecoder
from sconce_torch.loss import nats_and_grads, score_targets, summed_nats
from sconce_torch.memory import out_of_memory
from sconce_torch.model import Model
from sconce_torch.optim import LossScaler, Optimizer
from sconce_torch.products import linear

SHALLOW = 2  # layers, up to which one graph of everything, with fewer calls, still compiles in 20 seconds on two cores


class TorchPending:
    """Figures on their way from the device; on CUDA through pinned memory, so that reading stalls nothing."""

    def __init__(self, figures: Tensor, tokens: int) -> None:
        self.tokens = tokens
        self.event: torch.cuda.Event | None = None
        if figures.is_cuda:
            self.figures = torch.empty_like(figures, device="cpu", pin_memory=True)
            self.figures.copy_(figures, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.figures = figures

    def ready(self) -> bool:
        """On a CPU always: PyTorch computes as it is called."""
        return self.event is None or self.event.query()

    def read(self) -> StepMetrics:
        """Wait for this update only, not for those queued after it."""
        if self.event is not None:
            self.event.synchronize()
        loss, grad_norm = self.figures.tolist()
        return StepMetrics(loss=loss, grad_norm=grad_norm, tokens=self.tokens)


class TorchLearner:
    """Model and optimizer on one device."""

    def __init__(
        self,
        spec: ModelSpec,
        optim: OptimSpec,
        run: ComputeOptions,
        weights: TensorSource,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.device = device
        if device.type == "cpu":  # where whoever recomputes is short of memory
            keep_freed_memory(keep=not run.recompute_every)
        wanted = run.compile if run.compile is not None else device.type == "cuda"
        self.compiler = compiler = Compiler(wanted=wanted, device=device)
        with torch.device(device):
            self.model = Model(spec, run, compiler)
        self.params = dict(self.model.named_parameters())
        check_names([(param.name, param.shape) for param in spec.params()], weights)
        for param in spec.params():
            self.params[param.name].detach().copy_(torch.from_numpy(take(weights, param.name, param.shape)))
        self.state_names = state_names(spec, optim)
        self.optim = Optimizer(spec, optim, self.params)
        self.loss_chunk = run.loss_chunk or sys.maxsize
        self.scaler = LossScaler(device) if run.precision == "fp16" else None
        self.compiled_for: set[tuple[int, ...]] = set()
        self.scorer = compiler(nats_and_grads)
        if compiler.works and spec.num_layers <= SHALLOW:
            self._summed_nats = compiler(self._summed_nats)

    def step(self, batches: Sequence[Batch], scalars: StepScalars) -> TorchPending:
        """Accumulate over the micro-batches, clip, update."""
        tokens = max(1, sum(int((batch.targets >= 0).sum()) for batch in batches))
        scale = None if self.scaler is None else self.scaler.scale
        loss = None
        with out_of_memory(intact=True):
            while loss is None:
                try:
                    loss = self._accumulate(batches, scalars, tokens, scale)
                except CompilingFailed as error:  # in any of its parts: again without all of them
                    self.compiler.give_up(error)
        with out_of_memory(intact=False):
            norm = self.optim.update(scalars.learning_rate, scalars.step, scale)
        if self.scaler is not None:
            self.scaler.update(norm.isfinite())
        self._clean_up_after_compiling(batches[0].inputs.shape)
        return TorchPending(torch.stack((loss, norm)), tokens)

    def nats(self, batch: Batch) -> NDArray[np.float32]:
        """Per-token loss (batch, seq), nothing dropped; 0 where the target is -1."""
        with out_of_memory(intact=True), torch.inference_mode():
            inputs, targets, segments = self._put_batch(batch)
            x_BTH = self.model.hidden(inputs, segments, None)
            head = partial(linear, weight=self.model.head_weight.to(x_BTH.dtype))
            nats_BT, _ = score_targets(x_BTH, head, targets, self.loss_chunk)
            return nats_BT.cpu().numpy()

    def decoder(self, rows: int, max_len: int) -> TorchDecoder:
        """A decoder over the present weights."""
        with out_of_memory(intact=True):
            return TorchDecoder(DecodeWeights(self.model, self.spec), rows, max_len)

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Weights, then slots, as float32 on the host."""
        for name, _ in self.state_names:
            yield name, self._tensor(name).cpu().numpy()

    def loss_scale(self) -> LossScale | None:
        """The present one; waits for the device."""
        return None if self.scaler is None else self.scaler.read()

    def load(self, tensors: TensorSource, step: int, loss_scale: LossScale | None = None) -> None:
        """Replace weights, slots and loss scale; the step itself comes back with the next scalars."""
        check_names(self.state_names, tensors)
        for name, shape in self.state_names:
            self._tensor(name).copy_(torch.from_numpy(take(tensors, name, shape)))
        if self.scaler is not None:
            self.scaler.set(loss_scale or INITIAL_LOSS_SCALE)

    def _tensor(self, name: str) -> Tensor:
        part, parameter = name.split("/", 1)
        return self.params[parameter].detach() if part == WEIGHTS else self.optim.slots[parameter][part]

    def _accumulate(self, batches: Sequence[Batch], scalars: StepScalars, tokens: int, scale: Tensor | None) -> Tensor:
        """The mean loss over the micro-batches; its gradients, times `scale`, are left with the parameters."""
        for param in self.params.values():
            param.grad = None
        loss = torch.zeros((), device=self.device)
        first_row = 0
        for batch in batches:
            keys_B = self._dropout_keys(scalars, first_row, len(batch.inputs))
            first_row += len(batch.inputs)
            part = self._summed_nats(*self._put_batch(batch), keys_B) / tokens
            (part if scale is None else part * scale).backward()
            loss += part.detach()
        return loss

    def _summed_nats(
        self, inputs_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None, keys_B: Tensor | None
    ) -> Tensor:
        x_BTH = self.model.hidden(inputs_BT, segments_BT, keys_B)
        return summed_nats(x_BTH, self.model.head_weight, targets_BT, self.loss_chunk, self.scorer)

    def _clean_up_after_compiling(self, shape: tuple[int, ...]) -> None:
        """What the compiler held lies between the arrays of the step that it was called in: a fifth more memory."""
        if self.device.type == "cpu" and self.compiler.works and shape not in self.compiled_for:
            self.compiled_for.add(shape)
            give_back_free_memory()

    def _dropout_keys(self, scalars: StepScalars, first_row: int, rows: int) -> Tensor | None:
        if not self.spec.drops:
            return None
        return self._put(row_keys(scalars.seed, scalars.step, first_row, rows).view(np.int32))

    def _put_batch(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        segments = None if batch.segments is None else self._put(batch.segments)
        return self._put(batch.inputs).long(), self._put(batch.targets).long(), segments

    def _put(self, array: NDArray[np.int32]) -> Tensor:
        """On CUDA through pinned memory, so that the host does not wait for what the device has queued."""
        host = torch.from_numpy(array)
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)
