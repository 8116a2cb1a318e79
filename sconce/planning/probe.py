"""How fast a device really multiplies matrices: the ceiling that a run's speed is measured against."""

from collections.abc import Callable

SIZES = (256, 512, 1024, 2048, 4096, 8192)
BUDGET_SECONDS = 0.25


def matmul_flops_per_second(seconds: Callable[[int, int], float]) -> float:
    """The best rate over square products of growing size, in FLOP/s.

    `seconds(size, repeats)` times `repeats` products of two (size, size) matrices. A size is left out when, at the
    rate seen so far, the whole would take more than BUDGET_SECONDS; the first size always runs.
    """
    best = spent = 0.0
    for size in SIZES:
        flops = 2 * size**3
        if best and spent + 2 * flops / best > BUDGET_SECONDS:
            break
        spent += seconds(size, 1)  # the first call of a size chooses kernels and allocates
        repeats = max(1, min(100, int(0.02 * best / flops)))
        took = seconds(size, repeats)
        spent += took
        best = max(best, repeats * flops / max(took, 1e-9))
    return best
