"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass

from sconce.config.schema import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """All a learning rate depends on. `step` counts updates done, so the first update uses step 0."""

    strategy: Strategy
    peak_lr: float
    total_steps: int
    warmup_steps: int = 0
    min_lr: float = 0.0
    power: float = 1.0
    decay_steps: int = 0


def learning_rate(schedule: Schedule, step: int) -> float:
    """The rate that update number `step` (from 0) uses.

    Every strategy climbs linearly over `warmup_steps`, reaching the peak on its last warm-up step. `wsd` holds
    the peak and falls over the last `decay_steps` as 1 - sqrt(progress) (Hägele et al. 2024, eq. 1).
    """
    if step < schedule.warmup_steps:
        return schedule.peak_lr * (step + 1) / schedule.warmup_steps
    return schedule.min_lr + (schedule.peak_lr - schedule.min_lr) * _remaining(schedule, step)


def _remaining(schedule: Schedule, step: int) -> float:
    """Fraction of the way from `min_lr` up to the peak, after warm-up."""
    if schedule.strategy in ("constant", "linear_warmup"):
        return 1.0
    if schedule.strategy == "wsd":
        progress = _progress(step, schedule.total_steps - schedule.decay_steps, schedule.total_steps)
        return 1.0 - math.sqrt(progress)
    progress = _progress(step, schedule.warmup_steps, schedule.total_steps)
    if schedule.strategy == "polynomial":
        return (1.0 - progress) ** schedule.power
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
