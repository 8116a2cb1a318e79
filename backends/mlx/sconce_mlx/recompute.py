"""Activation checkpointing (Chen et al. 2016) that MLX cannot undo by computing the second time too early."""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

Result = TypeVar("Result", mx.array, list[mx.array])


def recomputed(function: Callable[..., Result], *modules: nn.Module) -> Callable[..., Result]:
    """`function` of arrays and of the modules' weights, keeping neither what it computes nor what that needs.

    The second time waits for the gradient of the result, and the gradient of the arguments for that of the weights,
    which lets go of all that was computed. `mlx.nn.utils.checkpoint` leaves both to the order in which MLX happens to
    compute: breadth first, everything is held at once.
    """

    def call(*args: mx.array) -> Result:
        trees = [module.trainable_parameters() for module in modules]
        names, weights = zip(*tree_flatten(trees), strict=True)

        def forward(*arrays: mx.array) -> Result:
            given = tree_unflatten(list(zip(names, arrays[: len(names)], strict=True)))
            for module, tree in zip(modules, given, strict=True):
                module.update(tree)
            return function(*arrays[len(names) :])

        def backward(primals: Sequence[mx.array], cotangent: Result, _output: Result) -> tuple[mx.array, ...]:
            cotangents = [cotangent] if isinstance(cotangent, mx.array) else cotangent
            _, grads = mx.vjp(forward, mx.depends(list(primals), cotangents), cotangents)
            of_weights, of_args = grads[: len(names)], grads[len(names) :]
            return (*of_weights, *mx.depends(of_args, of_weights))

        wrapped = mx.custom_function(forward)
        wrapped.vjp(backward)
        return cast(Result, wrapped(*weights, *args))

    return call
