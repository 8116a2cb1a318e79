"""Memory: PyTorch's ways of saying that it does not suffice, as one error, and what the processor's allocator keeps."""

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager

from sconce.errors import OutOfMemoryError

PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


@contextmanager
def out_of_memory(*, intact: bool) -> Generator[None]:
    """Turn PyTorch's error into OutOfMemoryError; `intact`: whatever happens inside, the state is as before."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = next(iter(str(error).splitlines()), "")
        if isinstance(error, RuntimeError) and not any(phrase in message for phrase in PHRASES):
            raise
    else:
        return
    # Outside the handler: the framework's error holds the frames, and they hold the arrays that are to be freed.
    raise OutOfMemoryError(message or "the host's memory is full", intact=intact)


def give_back_freed_memory() -> None:
    """Let glibc take every large block from the system and give it back when freed, from now on, in this process.

    Its heap of freed activations otherwise grows to a multiple of what is in use. Costs page faults, about a quarter
    of the processor's time; other C libraries have no such choice and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 4 * 2**20)
