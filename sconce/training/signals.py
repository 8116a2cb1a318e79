"""SIGINT and SIGTERM as a request to finish the step, save and stop."""

import signal
from collections.abc import Callable, Generator
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
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # never exit code 0 for a save that was cut short

    for name in previous:
        signal.signal(name, handle)
    try:
        yield request
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


class _Terminated(SystemExit):
    """A SIGTERM, as an exception that nothing takes for an error."""


@contextmanager
def end_at_sigterm(say: Callable[[str], None]) -> Generator[None]:
    """Before and after the updates, where there is nothing to save, a SIGTERM ends the process with exit code 0.

    Whatever is being made is made atomically or journaled, so that the same command goes on from there.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated(0)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        say("stopped by SIGTERM outside of the updates; nothing is lost, and the same command goes on")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
