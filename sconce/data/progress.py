"""How far reading a corpus has come."""

from collections.abc import Callable

Progress = Callable[[int, int, int], None]
"""Called with the bytes of the source files read so far, of all of them, and the documents done so far."""

Say = Callable[[str], None]


class Announcer:
    """Says how far reading has come, every few seconds: nothing for a small corpus, patience for a large one."""

    def __init__(
        self, say: Say, clock: Callable[[], float], every_seconds: float = 10.0, documents: int | None = None
    ) -> None:
        """`clock` gives seconds. With `documents` reading ends after so many."""
        self._say, self._clock, self._every, self._wanted = say, clock, every_seconds, documents
        self._started = self._said = clock()
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int, documents: int) -> None:
        """`done` of `total` bytes are read, `documents` of them done; the first call says where a build goes on."""
        share = done / max(total, 1)
        if self._wanted is not None:
            share = max(share, documents / self._wanted)
        self._first = (done, share) if self._first is None else self._first
        now = self._clock()
        if now - self._said < self._every:
            return
        self._said = now
        bytes_before, share_before = self._first
        seconds = now - self._started
        left = _duration(seconds * (1 - share) / (share - share_before)) if share > share_before else "unknown time"
        of = f"{total / 1e6:,.0f} MB read" if self._wanted is None else f"{self._wanted:,} documents"
        self._say(
            f"data: {share:.0%} of {of}, {(done - bytes_before) / seconds / 1e6:.1f} MB/s, {documents:,} documents, "
            f"{left} left"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
