"""What glibc does with the large blocks that a framework's arrays on a processor are: kept for the next, or given back.

Other C libraries have no such choice and are left alone.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**31 - 1  # bytes; what mallopt takes


def keep_freed_memory() -> None:
    """Serve arrays from the heap and keep it, from now on, in this process.

    A block over 32 MiB would otherwise come from the system each time, page by page, zeroed: that costs several times
    what adding two such arrays does.
    """
    _mallopt(M_MMAP_THRESHOLD, LARGEST)
    _mallopt(M_TRIM_THRESHOLD, LARGEST)


def give_back_freed_memory() -> None:
    """Take every large block from the system and give it back when freed, from now on, in this process.

    The heap of freed activations otherwise grows to a multiple of what is in use. Costs page faults, about a quarter
    of the processor's time.
    """
    _mallopt(M_MMAP_THRESHOLD, 4 * 2**20)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(parameter, value)
