"""Activation checkpointing (Chen et al. 2016) that MLX cannot undo by computing the second time too early."""

from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten


def recomputed(module: nn.Module, function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """`function` of arrays and of `module`'s weights, keeping neither what it computes nor what that needs.

    The second time waits for the gradient of the result, and the gradient of the arguments for that of the weights,
    which lets go of all that was computed. `mlx.nn.utils.checkpoint` leaves both to the order in which MLX happens to
    compute: breadth first, everything is held at once.
    """

    def call(*args: mx.array) -> mx.array:
        names, weights = zip(*tree_flatten(module.trainable_parameters()), strict=True)

        def forward(*arrays: mx.array) -> mx.array:
            module.update(tree_unflatten(list(zip(names, arrays[: len(names)], strict=True))))
            return function(*arrays[len(names) :])

        def backward(primals: Sequence[mx.array], cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
            _, grads = mx.vjp(forward, mx.depends(list(primals), [cotangent]), [cotangent])
            of_weights, of_args = grads[: len(names)], grads[len(names) :]
            return (*of_weights, *mx.depends(of_args, of_weights))

        wrapped = mx.custom_function(forward)
        wrapped.vjp(backward)
        return cast(mx.array, wrapped(*weights, *args))

    return call
