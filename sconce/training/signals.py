"""SIGINT and SIGTERM as a request to finish the step, save and stop."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether, and by which signal, someone asked the run to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def catch_stop_signals() -> Generator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one ends the process at once."""
    request = StopRequest()
    previous = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        for name, handler in previous.items():
            signal.signal(name, handler)

    for name in previous:
        signal.signal(name, handle)
    try:
        yield request
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
