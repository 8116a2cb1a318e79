"""One optimizer step in MLX, and the state it changes."""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

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
from sconce.heap import keep_freed_memory
from sconce.optim import OptimSpec
from sconce.spec import ModelSpec
from sconce_mlx.blas import share_cores
from sconce_mlx.decode import DecodeWeights, MLXDecoder
from sconce_mlx.lanes import lanes, shares
from sconce_mlx.loss import score_targets, summed_nats
from sconce_mlx.memory import AT_ONCE, out_of_memory, settled
from sconce_mlx.model import Model
from sconce_mlx.optim import Optimizer, Tree, next_loss_scale


class MLXPending:
    """Figures that the device may still be computing."""

    def __init__(self, loss: mx.array, grad_norm: mx.array, tokens: int) -> None:
        self.loss, self.grad_norm, self.tokens = loss, grad_norm, tokens

    def ready(self) -> bool:
        """Never known: MLX has no way to ask."""
        return False

    def read(self) -> StepMetrics:
        """Wait for this update only, not for those queued after it."""
        with out_of_memory(intact=False):
            return StepMetrics(float(np.array(self.loss)), float(np.array(self.grad_norm)), self.tokens)


class MLXLearner:
    """Model and optimizer on one device.

    The state is flat dictionaries of arrays, one of weights and one a slot, replaced at every step; a module only
    spells the forward pass over them.
    """

    def __init__(self, spec: ModelSpec, optim: OptimSpec, run: ComputeOptions, weights: TensorSource) -> None:
        self.spec = spec
        self.run = run
        if not mx.metal.is_available():  # where whoever recomputes is short of memory
            keep_freed_memory(keep=not run.recompute_every)
        named = [(param.name, param.shape) for param in spec.params()]
        check_names(named, weights)
        self.params: Tree = {name: mx.array(take(weights, name, shape)) for name, shape in named}
        self.state_names = state_names(spec, optim)
        self.slots: dict[str, Tree] = {}
        for name, shape in self.state_names[len(named) :]:
            slot, parameter = name.split("/", 1)
            self.slots.setdefault(slot, {})[parameter] = mx.zeros(shape)
        module = Model(spec, run)
        assert {name for name, _ in tree_flatten(module.parameters())} == set(self.params)
        self.scales = run.precision == "fp16"
        self.scale, self.clean = mx.array(1.0), mx.array(0.0)
        self._set_scale(None)
        compiled = run.compile if run.compile is not None else mx.metal.is_available()
        self.lanes = lanes()
        share_cores(len(self.lanes))
        self.loss_chunk = run.loss_chunk and -(-run.loss_chunk // len(self.lanes))  # of each lane, at the same time
        # A function each, for what is compiled belongs to the stream that it was traced on.
        functions = [mx.value_and_grad(self._summed_nats) for _ in self.lanes]
        self._of_lane = [mx.compile(function) if compiled else function for function in functions]
        self.fits: set[tuple[int, ...]] = set()  # shapes of micro-batches that the device has held
        self.optim = Optimizer(spec, optim)
        self._update = mx.compile(self.optim.update) if compiled else self.optim.update

    def step(self, batches: Sequence[Batch], scalars: StepScalars) -> MLXPending:
        """Accumulate over the micro-batches, clip, update."""
        tokens = max(1, sum(int((batch.targets >= 0).sum()) for batch in batches))
        # An array and not a Python float: a compiled function freezes Python numbers into its trace.
        per_token = mx.array(1.0 / tokens)
        sums, first_row = None, 0
        # Where the device says it late, the first step of a shape, which is the one to fail, is waited for before
        # anything is replaced. Of a later one nobody knows which arrays are sound.
        shape = batches[0].inputs.shape
        with settled() if shape not in self.fits else out_of_memory(intact=AT_ONCE):
            for batch in batches:
                keys_B = self._dropout_keys(scalars, first_row, len(batch.inputs))
                first_row += len(batch.inputs)
                sums = self._nats_and_grads(batch, keys_B, per_token * self.scale, sums)
                mx.async_eval(sums)  # one micro-batch's activations at a time
        self.fits.add(shape)
        assert sums is not None, "a step needs at least one micro-batch"
        loss = sums[0] / self.scale
        numbers = mx.array(self.optim.scalars(scalars.learning_rate, scalars.step + 1))
        self.params, self.slots, norm = self._update(self.params, self.slots, sums[1], numbers, self.scale)
        del sums  # what has a name when it is computed does not give its memory away
        if self.scales:
            self.scale, self.clean = next_loss_scale(self.scale, self.clean, mx.isfinite(norm))
        with out_of_memory(intact=False):  # the old arrays are given up as the new ones are made
            mx.async_eval(loss, self.params, self.slots, norm, self.scale, self.clean)
        return MLXPending(loss, norm, tokens)

    def nats(self, batch: Batch) -> NDArray[np.float32]:
        """Per-token loss (batch, seq), nothing dropped; 0 where the target is -1."""
        with settled():
            model, parts = self._filled_model(self.params), []
            for stream, rows in zip(self.lanes, shares(len(batch.inputs), len(self.lanes)), strict=False):
                with mx.stream(stream):
                    inputs, targets, segments = _to_device(batch, rows)
                    x_BTH = model.hidden(inputs, segments, None, differentiated=False)
                    parts.append(score_targets(x_BTH, model.head_weight, targets, self.loss_chunk)[0])
            return np.array(mx.concatenate(parts))

    def decoder(self, rows: int, max_len: int) -> MLXDecoder:
        """A decoder over the present weights."""
        with settled():
            return MLXDecoder(DecodeWeights(self._filled_model(self.params), self.spec), rows, max_len)

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Weights, then slots, as float32 on the host."""
        with out_of_memory(intact=False):  # of updates that are only now waited for, and whose arrays may be garbage
            mx.eval(self.params, self.slots)
            mx.synchronize()
        for name, _ in self.state_names:
            part, parameter = name.split("/", 1)
            yield name, np.array(self._tree(part)[parameter])

    def loss_scale(self) -> LossScale | None:
        """The present one; waits for the device."""
        with out_of_memory(intact=False):
            return LossScale(float(np.array(self.scale)), int(np.array(self.clean))) if self.scales else None

    def load(self, tensors: TensorSource, step: int, loss_scale: LossScale | None = None) -> None:
        """Replace weights, slots and loss scale; the step itself comes back with the next scalars."""
        check_names(self.state_names, tensors)
        for name, shape in self.state_names:
            part, parameter = name.split("/", 1)
            self._tree(part)[parameter] = mx.array(take(tensors, name, shape))
        self._set_scale(loss_scale)

    def _set_scale(self, loss_scale: LossScale | None) -> None:
        if self.scales:
            given = loss_scale or INITIAL_LOSS_SCALE
            self.scale, self.clean = mx.array(given.scale), mx.array(float(given.clean_updates))

    def _tree(self, part: str) -> Tree:
        return self.params if part == WEIGHTS else self.slots[part]

    def _nats_and_grads(
        self, batch: Batch, keys_B: mx.array | None, scale: mx.array, sums: tuple[mx.array, Tree] | None
    ) -> tuple[mx.array, Tree]:
        """The scaled sum of a micro-batch's nats and its gradients, its rows shared out between the lanes.

        Added to `sums`, of earlier micro-batches: here, so that no part has a name when it is computed.
        """
        for lane, rows in enumerate(shares(len(batch.inputs), len(self.lanes))):
            with mx.stream(self.lanes[lane]):
                tensors = _to_device(batch, rows)
                keys = None if keys_B is None else keys_B[rows]
                nats, grads = self._of_lane[lane](self.params, *tensors, keys, scale)
            sums = (nats, grads) if sums is None else (sums[0] + nats, _add(sums[1], grads))
        assert sums is not None, "a micro-batch needs at least one row"
        return sums

    def _summed_nats(
        self,
        params: Tree,
        inputs_BT: mx.array,
        targets_BT: mx.array,
        segments_BT: mx.array | None,
        keys_B: mx.array | None,
        scale: mx.array,
    ) -> mx.array:
        model = self._filled_model(params)
        x_BTH = model.hidden(inputs_BT, segments_BT, keys_B, differentiated=True)
        return summed_nats(x_BTH, model.head_weight, targets_BT, self.loss_chunk) * scale

    def _dropout_keys(self, scalars: StepScalars, first_row: int, rows: int) -> mx.array | None:
        return mx.array(row_keys(scalars.seed, scalars.step, first_row, rows)) if self.spec.drops else None

    def _filled_model(self, params: Tree) -> Model:
        # A new module each time, which costs no arrays (they are lazy): a shared one would keep old weights alive,
        # and after a compiled trace hold arrays that no longer mean anything.
        model = Model(self.spec, self.run)
        model.update(tree_unflatten(list(params.items())))
        return model


def _to_device(batch: Batch, rows: slice) -> tuple[mx.array, mx.array, mx.array | None]:
    segments = None if batch.segments is None else mx.array(batch.segments[rows])
    return mx.array(batch.inputs[rows]), mx.array(batch.targets[rows]), segments


def _add(left: Tree, right: Tree) -> Tree:
    return {name: array + right[name] for name, array in left.items()}
