"""Tokens a second of training proper: evaluations, checkpoints and samples do not count as training time."""

from collections import deque
from collections.abc import Callable

MIN_UPDATES = 8  # whose figures may arrive in a burst, as the host runs ahead of the device


class Throughput:
    """A stopwatch that runs only while updates are under way. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy = 0.0
        self._since = clock()
        self._tokens = 0
        self._lap = (0.0, 0)
        self._recent: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=MIN_UPDATES)

    def pause(self) -> None:
        """Something other than training begins."""
        self._busy += self._clock() - self._since

    def resume(self) -> None:
        """Training goes on."""
        self._since = self._clock()

    def add(self, tokens: int) -> float:
        """Count the tokens of a finished update; tokens a second since the last lap, or over the last few updates."""
        then, before = min(self._lap, self._recent[0])
        self._tokens += tokens
        now = self._busy + self._clock() - self._since
        self._recent.append((now, self._tokens))
        return (self._tokens - before) / max(now - then, 1e-9)

    def restart(self) -> None:
        """Updates of another size begin, whose rate says nothing of those before."""
        now = (self._busy + self._clock() - self._since, self._tokens)
        self._lap = now
        self._recent = deque([now], maxlen=MIN_UPDATES)

    def lap(self) -> None:
        """Start a new interval: the present rate has been logged."""
        self._lap = self._recent[-1]
