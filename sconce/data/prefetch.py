"""The next batches, made by a thread while the device works on this one."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

T = TypeVar("T")
_ASK_SECONDS = 0.2  # how soon a signal is obeyed while a stream has nothing to train on


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class Prefetcher(Generic[T]):
    """Calls `produce(start)`, `produce(start + 1)`, ... in one thread, `ahead` results before `next` asks."""

    def __init__(self, produce: Callable[[int], T], start: int, ahead: int = 2) -> None:
        self._produce = produce
        self._ready: queue.Queue[T | _Failure] = queue.Queue(maxsize=ahead)
        self._closing = threading.Event()
        # A daemon, so that a read that never returns cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, args=(start,), name="sconce-prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next(self, until: Callable[[], bool] | None = None) -> T | None:
        """The next result in order; raises what `produce` raised for it, and from then on again.

        None when `until`, asked now and then while there is nothing yet, says not to wait any longer.
        """
        while True:
            try:
                item = self._ready.get(timeout=None if until is None else _ASK_SECONDS)
                break
            except queue.Empty:
                if until is not None and until():
                    return None
        if isinstance(item, _Failure):
            self._ready.put(item)  # the thread has ended: without this another call would wait for ever
            raise item.error
        return item

    def close(self) -> None:
        """Stop after the call in progress. Returns within a second, whatever that call does."""
        self._closing.set()
        while not self._ready.empty():
            self._ready.get_nowait()  # the thread puts at most one more, and now has room for it
        self._thread.join(timeout=1.0)

    def _run(self, step: int) -> None:
        try:
            while not self._closing.is_set():
                self._ready.put(self._produce(step))
                step += 1
        except BaseException as error:  # noqa: BLE001 - not swallowed: `next` raises it
            self._ready.put(_Failure(error))
