"""Tokens a second of training proper: evaluations, checkpoints and samples do not count as training time."""

from collections.abc import Callable


class Throughput:
    """A stopwatch that runs only while updates are under way. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy = 0.0
        self._since = clock()
        self._lap_busy = 0.0
        self._lap_tokens = 0

    def pause(self) -> None:
        """Something other than training begins."""
        self._busy += self._clock() - self._since

    def resume(self) -> None:
        """Training goes on."""
        self._since = self._clock()

    def add(self, tokens: int) -> float:
        """Count the tokens of a finished update; returns tokens a second since the last lap."""
        self._lap_tokens += tokens
        elapsed = self._busy + self._clock() - self._since - self._lap_busy
        return self._lap_tokens / max(elapsed, 1e-9)

    def lap(self) -> None:
        """Start a new interval: the present rate has been logged."""
        self._lap_busy = self._busy + self._clock() - self._since
        self._lap_tokens = 0
