"""Batch size and row length by step, and all that follows from them, in closed form."""

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """From the update after `first_step` updates on: `batch_size` rows of `seq_len` predictions each."""

    first_step: int
    batch_size: int
    seq_len: int


@dataclass(frozen=True, slots=True)
class Ramp:
    """The stages of a run by rising step, the first from step 0; every length divides the longest."""

    stages: tuple[Stage, ...]

    @property
    def longest(self) -> int:
        """Predictions of the longest rows: long rows, of which the shorter ones are parts."""
        return max(stage.seq_len for stage in self.stages)

    @property
    def largest_batch(self) -> int:
        """Rows of the largest update."""
        return max(stage.batch_size for stage in self.stages)

    def describe(self) -> str:
        """Every stage in words: "4 rows of 64; 8 rows of 64 from step 101"."""
        return "; ".join(
            f"{stage.batch_size} rows of {stage.seq_len}"
            + (f" from step {stage.first_step + 1}" if stage.first_step else "")
            for stage in self.stages
        )

    def number(self, step: int) -> int:
        """Which stage the update after `step` updates is of."""
        return bisect_right([stage.first_step for stage in self.stages], step) - 1

    def at(self, step: int) -> Stage:
        """The stage that the update after `step` updates is of."""
        return self.stages[self.number(step)]

    def parts(self, stage: Stage) -> int:
        """Rows of a stage that one long row makes."""
        return self.longest // stage.seq_len

    def rows(self, step: int) -> int:
        """Rows that `step` updates have trained on, of whatever length."""
        return sum(steps * stage.batch_size for stage, steps in self._taken(step))

    def places(self, step: int) -> int:
        """Predictions that `step` updates have made, empty places included."""
        return sum(steps * stage.batch_size * stage.seq_len for stage, steps in self._taken(step))

    def steps(self, places: int) -> int:
        """The most updates that make no more than so many predictions."""
        fitting = [stage for stage in self.stages if self.places(stage.first_step) <= places]
        last = fitting[-1]
        taken = last.first_step + (places - self.places(last.first_step)) // (last.batch_size * last.seq_len)
        following = self.stages[len(fitting) :]
        return min(taken, following[0].first_step) if following else taken

    def _taken(self, step: int) -> list[tuple[Stage, int]]:
        """How many of `step` updates each stage has."""
        ends = [*(stage.first_step for stage in self.stages[1:]), step]
        return [
            (stage, max(0, min(step, end) - stage.first_step)) for stage, end in zip(self.stages, ends, strict=True)
        ]


def constant(batch_size: int, seq_len: int = 1) -> Ramp:
    """One stage from beginning to end."""
    return Ramp((Stage(0, batch_size, seq_len),))
