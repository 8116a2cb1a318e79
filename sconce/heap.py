"""What glibc does with the large blocks that a framework's arrays on a processor are: kept for the next, or given back.

Other C libraries have no such choice and are left alone.
"""

import ctypes
import sys
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**31 - 1  # bytes; what mallopt takes
LARGE = 4 * 2**20  # bytes; with it only the small change of a step stays in the heap


def keep_freed_memory(keep: bool) -> None:
    """Serve arrays from a heap that stays, or give each back to the system; from now on, in this process.

    A block from the system comes page by page, zeroed: that costs several times what adding two such arrays does, about
    a quarter of the processor's time in all. Kept, the heap of freed activations may grow to a multiple of what is in
    use.
    """
    if (mallopt := _from_glibc("mallopt")) is not None:
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, LARGEST if keep else LARGE)


def give_back_free_memory() -> None:
    """What is free now, all over the heap, to the system: large arrays then find room together."""
    if (malloc_trim := _from_glibc("malloc_trim")) is not None:
        malloc_trim(0)


def _from_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
