"""torch.compile that a machine without its tools, a C++ compiler or Triton, does without."""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch._dynamo.config as dynamo
from torch._dynamo.exc import BackendCompilerFailed

log = logging.getLogger("sconce")
SHAPES = 64
P = ParamSpec("P")
R = TypeVar("R")


class Compiler:
    """Compiles functions for fixed shapes, each at the first call with them, or none at all, which is said once."""

    def __init__(self, *, wanted: bool) -> None:
        # Each stage of a run may have shapes of its own; beyond the limit, 8, PyTorch would go on uncompiled.
        dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
        self.works = wanted

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, compiled as long as that works."""
        if not self.works:
            return function
        compiled: Callable[P, R] = torch.compile(function, dynamic=False)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not self.works:
                return function(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except BackendCompilerFailed as error:
                self._give_up(error.inner_exception)
                return function(*args, **kwargs)

        return call

    def _give_up(self, reason: Exception) -> None:
        if isinstance(reason, torch.OutOfMemoryError):
            raise reason from None
        log.warning(
            "torch.compile does not work here (%s): going on without it, slower; runtime.compile = false says so",
            str(reason).strip().splitlines()[0],
        )
        self.works = False
