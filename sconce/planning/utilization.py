"""Model FLOPs utilization (Chowdhery et al. 2022): what of a device's speed a run turns into training."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """What a run's speed is measured against, in FLOP/s: the vendor's peak where it is known, and a measured product.

    `flops_per_token` is forward and backward by the spec; what is recomputed does not count as work done.
    """

    flops_per_token: int
    peak: float | None
    measured: float

    def shares(self, tokens_per_second: float) -> dict[str, float]:
        """`mfu` of the vendor's peak, where known, and `mfu_measured` of the measured product; 1 is all of it."""
        achieved = tokens_per_second * self.flops_per_token
        shares = {} if self.peak is None else {"mfu": round(achieved / self.peak, 4)}
        return {**shares, "mfu_measured": round(achieved / self.measured, 4)}


def tera(flops_per_second: float) -> str:
    """Such as "0.12 TFLOP/s"."""
    return f"{flops_per_second / 1e12:.3g} TFLOP/s"
