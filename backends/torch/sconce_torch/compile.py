"""torch.compile that a machine without its tools, a C++ compiler or Triton, does without."""

import logging
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch
import torch._dynamo.config as dynamo
from torch._dynamo.exc import BackendCompilerFailed

log = logging.getLogger("sconce")
SHAPES = 64
P = ParamSpec("P")
R = TypeVar("R")


class Compiled(Generic[P, R]):
    """A function compiled for fixed shapes at the first call with them, or not at all, which is said once."""

    def __init__(self, function: Callable[P, R]) -> None:
        # Each stage of a run may have shapes of its own; beyond the limit, 8, PyTorch would go on uncompiled.
        dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
        self._plain = function
        self._function: Callable[P, R] = torch.compile(function, dynamic=False)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return self._function(*args, **kwargs)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, torch.OutOfMemoryError):
                raise error.inner_exception from None
            log.warning(
                "torch.compile does not work here (%s): going on without it, slower; runtime.compile = false says so",
                str(error.inner_exception).strip().splitlines()[0],
            )
            self._function = self._plain
            return self._plain(*args, **kwargs)
