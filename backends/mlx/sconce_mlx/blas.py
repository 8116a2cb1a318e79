"""A fast BLAS for MLX on Linux, loaded before MLX itself."""

import ctypes
import sys
from functools import cache


@cache
def preload_openblas() -> bool:
    """Put OpenBLAS in front of MLX's bundled reference BLAS (10 to 40 times faster in float32).

    Only on Linux, before MLX loads, and never beside torch, whose results it would change. Returns whether it
    is in use; only the first call loads anything, and later ones repeat its answer.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules or "torch" in sys.modules:
        return False
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
