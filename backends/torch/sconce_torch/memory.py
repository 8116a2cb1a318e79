"""PyTorch's ways of saying that the memory does not suffice, as one error."""

from collections.abc import Generator
from contextlib import contextmanager
from traceback import clear_frames

from sconce.errors import OutOfMemoryError

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
        # The error holds the frames, which hold the arrays that are to be freed; and the one below may hold the error.
        clear_frames(error.__traceback__)
    else:
        return
    raise OutOfMemoryError(message or "the host's memory is full", intact=intact)
