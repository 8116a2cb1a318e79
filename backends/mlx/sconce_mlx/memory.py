"""MLX's ways of saying that the memory does not suffice, as one error."""

from collections.abc import Generator
from contextlib import contextmanager, suppress

import mlx.core as mx

from sconce.errors import OutOfMemoryError, let_go

# The last two are of commands that took a Mac's GPU too long, for which smaller micro-batches are the remedy as well.
PHRASES = (
    "Unable to allocate",
    "unable to allocate",
    "[metal::malloc]",
    "Insufficient Memory",
    "out of memory",
    "Caused GPU Timeout",
    "Impacting Interactivity",
)

# Metal says so when it comes to it: in a later call, be it of a later step, when what depended on it is garbage.
AT_ONCE = not mx.metal.is_available()


@contextmanager
def out_of_memory(*, intact: bool) -> Generator[None]:
    """Turn MLX's error into OutOfMemoryError; `intact`: whatever happens inside, the state is as before."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = next(iter(str(error).splitlines()), "")
        if isinstance(error, RuntimeError) and not any(phrase in message for phrase in PHRASES):
            raise
        let_go(error)  # of the arrays that are to be freed
    else:
        return
    raise OutOfMemoryError(message or "the host's memory is full", intact=intact)


@contextmanager
def settled() -> Generator[None]:
    """Here an error is of what is asked for here, and the state is as before.

    Where errors come late, what was asked for before is waited for first, whose error is not that harmless, and what is
    asked for here at the end.
    """
    if AT_ONCE:
        with out_of_memory(intact=True):
            yield
        return
    with out_of_memory(intact=False):
        mx.synchronize()
    try:
        with out_of_memory(intact=True):
            yield
            mx.synchronize()
    except OutOfMemoryError:
        with suppress(OutOfMemoryError), out_of_memory(intact=False):
            mx.synchronize()  # else a second error of what was asked for here would come in what is tried next
        raise
