"""PyTorch's ways of saying that the memory does not suffice, as one error."""

from collections.abc import Generator
from contextlib import contextmanager

from sconce.errors import OutOfMemoryError, let_go

PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


@contextmanager
def out_of_memory(*, intact: bool) -> Generator[None]:
    """Turn PyTorch's error into OutOfMemoryError; `intact`: whatever happens inside, the state is as before."""
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
