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
    """Compiles functions for fixed shapes, each at the first call with them, until that has failed once."""

    def __init__(self, *, wanted: bool) -> None:
        # Each stage of a run may have shapes of its own, and each shape a layer and the last norm; beyond the limit, 8,
        # PyTorch would go on uncompiled.
        dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * SHAPES)
        self.works = wanted

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, compiled as long as that works. Raises BackendCompilerFailed, as a backward pass may, too."""
        if not self.works:
            return function
        compiled: Callable[P, R] = torch.compile(function, dynamic=False)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return compiled(*args, **kwargs) if self.works else function(*args, **kwargs)

        return call

    def give_up(self, error: BackendCompilerFailed) -> None:
        """Compile nothing more and say so; memory that did not suffice is no reason and is raised again."""
        reason = error.inner_exception
        if isinstance(reason, torch.OutOfMemoryError):
            raise reason from None
        log.warning(
            "torch.compile does not work here (%s): going on without it, slower; runtime.compile = false says so",
            (str(reason).strip() or type(reason).__name__).splitlines()[0],
        )
        self.works = False
