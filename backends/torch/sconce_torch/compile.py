"""torch.compile, and going on without it where a C++ compiler or Triton is missing, or does not know the GPU."""

import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from importlib import import_module
from threading import Thread
from typing import ParamSpec, TypeVar

import torch
import torch._dynamo.config as dynamo
import torch._functorch.config as functorch
import torch._inductor.config as inductor
from torch._dynamo.exc import ShortenTraceback

from sconce_torch.products import X86

log = logging.getLogger("sconce")
SHAPES = 64
CompilingFailed = ShortenTraceback  # what a compiler raised, or that there is none
P = ParamSpec("P")
R = TypeVar("R")


SMALLEST = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" void kernel(float* out_ptr0) { at::vec::Vectorized<float>(0.0f).store(out_ptr0); }
"""


def _begin_with_headers() -> None:
    """Compile a kernel, beside what else is to be done before the first of the model's.

    With it PyTorch precompiles its headers, once a machine, which takes 6 seconds and else holds all kernels up.
    """
    compiler = import_module("torch._inductor.async_compile").AsyncCompile()

    def compile_smallest() -> None:
        with suppress(Exception):  # the model's first kernel will meet it, too
            compiler.cpp_pybinding(["float*"], SMALLEST)

    Thread(target=copy_context().run, args=(compile_smallest,), daemon=True).start()


class Compiler:
    """Compiles functions for fixed shapes, each at the first call with them, until that has failed once."""

    def __init__(self, *, wanted: bool, device: torch.device) -> None:
        # Each stage of a run may have shapes of its own, and each shape a layer and the last norm; beyond the limit, 8,
        # PyTorch would go on uncompiled.
        dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * SHAPES)
        # Else PyTorch compiles a program to see whether vectors work, and starts another Python to load it: seconds of
        # the first step, for what on x86 every compiler has that knows PyTorch's C++.
        if inductor.cpp.vec_isa_ok is None and X86:
            inductor.cpp.vec_isa_ok = True
        self.works = wanted
        # Graphs with functions that have gradients of their own are kept on disk like others (pytorch#149751, off by
        # default). Ours are of nothing but their arguments: numbers among those are in the graph, and so in its key.
        if wanted:
            functorch.autograd_cache_allow_custom_autograd_functions = True
        if wanted and device.type == "cpu":
            _begin_with_headers()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, compiled as long as that works. Raises CompilingFailed, as a backward pass may, too."""
        if not self.works:
            return function
        compiled: Callable[P, R] = torch.compile(function, dynamic=False)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return compiled(*args, **kwargs) if self.works else function(*args, **kwargs)

        return call

    def give_up(self, error: CompilingFailed) -> None:
        """Compile nothing more and say so; memory that did not suffice is no reason and is raised again."""
        reason = getattr(error, "inner_exception", error)
        if isinstance(reason, torch.OutOfMemoryError):
            raise reason from None
        log.warning(
            "torch.compile does not work here (%s): going on without it, slower; runtime.compile = false says so",
            (str(reason).strip() or type(reason).__name__).splitlines()[0],
        )
        self.works = False
