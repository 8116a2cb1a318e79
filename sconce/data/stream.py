"""Training behind the write head: a thread makes the windows of a stream in order, training reads those that are done.

What a step trains on follows from the corpus at its commit and the cut alone, never from how fast windows come. Those
that training has left behind are deleted when the disk they may take is full, and made again when they are asked for.
"""

import fcntl
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sconce.data.batches import Batch as TokenBatch
from sconce.data.encode import DocumentEncoder, EncodersDiffer, EncodingPool, Engine, TextEncoder
from sconce.data.hub import HubError
from sconce.data.journal import Entry, Journal
from sconce.data.shards import DocumentSpan, Manifest, TokenData, TokenStore
from sconce.data.sources import Source, cut_lines_note
from sconce.data.window_cache import WindowCache
from sconce.data.windows import Batch, Cut, Window, WriteHead
from sconce.errors import DataError

AHEAD = 8  # windows made before they are asked for: they bridge a network that is away
_MANIFEST_BYTES = 2**12
_INDEX_BYTES = 4  # at most, a token: 8 for a document, which has two tokens at least
_BIDE_SECONDS = 30.0
_SAY_SECONDS = 15.0  # of waiting, before somebody may wonder
_BEHIND = 2**40  # farther than anything ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """Everything about a stream. `fingerprint` identifies what decides its rows.

    `needed_rows` is where the run ends, beyond which no window is made ahead. `open_at_once` windows are read from at
    the same time, at most. `template` is a window's manifest but for its shards.
    """

    cut: Cut
    fingerprint: str
    template: Manifest
    needed_rows: int
    open_at_once: int
    cache_bytes: int

    @property
    def window_bytes(self) -> int:
        """The most that a window takes on disk."""
        return self.cut.window_tokens * (np.dtype(self.template.dtype).itemsize + _INDEX_BYTES) + _MANIFEST_BYTES


class Stream:
    """The windows of a stream in `folder`, and the thread that makes them; a context manager that ends it."""

    def __init__(
        self, plan: StreamPlan, tokenizer: TextEncoder, engine: Engine, folder: Path, say: Callable[[str], None]
    ) -> None:
        """Raises DataError when the folder is in use, or data.cache_limit_gb is too little for this stream."""
        self._plan, self._tokenizer, self._engine, self._say = plan, tokenizer, engine, say
        self.folder, self.fingerprint, self.window_rows = folder, plan.fingerprint, plan.cut.rows
        _check_limit(plan)
        self._cache = WindowCache(folder)
        with ExitStack() as stack:
            stack.enter_context(_locked(folder))
            self._cache.sweep()
            if Journal.fingerprint_in(folder) != plan.fingerprint:
                self._cache.clear()
            self.journal = Journal(plan.fingerprint, plan.cut.rows, folder)
            self._stack = stack.pop_all()
        self._cached = self._cache.windows()
        self._held_out_bytes = self._cache.held_out_bytes()
        if not self._held_out_bytes:
            self._forget(0)  # it is made of what window 0 is made of
        self._told: set[str] = set()
        self._changed = threading.Condition()
        self._open: OrderedDict[int, TokenStore] = OrderedDict()
        self._asked: dict[int, int] = {}  # windows that somebody waits for, and how many do
        self._cursor = 0
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="sconce-stream", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made: see `Journal.facts`. Raises DataError when it is of another stream."""
        self.journal.restore(facts)
        self._cursor = min((window for window, *_ in facts["windows"]), default=0)

    def close(self) -> None:
        """End the thread, in the middle of a window if need be, and let others use the folder."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        self._open.clear()
        self._stack.close()

    def window(self, window: int) -> TokenStore:
        """The tokens of a window, as soon as it is made. Raises what making it raised."""
        with self._changed:
            self._cursor = window
            self._start()
            self._changed.notify_all()
            if window not in self._open:
                while len(self._open) >= self._plan.open_at_once:
                    self._open.popitem(last=False)
                self._wait(window, lambda: window in self._cached)
                self._open[window] = self._read(window)
            self._open.move_to_end(window)
            return self._open[window]

    def total_rows(self, row: int) -> int | None:
        """Rows of the whole stream, or None as long as its end has not been seen.

        Waits until the row of that number is there or the stream has ended. Raises what making windows raised.
        """
        window = row // self._plan.cut.rows
        with self._changed:
            self._wait(window, lambda: self.journal.total_rows is not None or self.journal.is_made(window))
            total = self.journal.total_rows
        if total == 0:
            raise DataError(
                f"the stream has less than one row of data.sequence_length {self._plan.cut.seq_len} to train on: set "
                "a smaller one, or a larger data.max_samples, or choose another data set"
            )
        return total

    def held_out(self) -> TokenData:
        """What is held out, as soon as window 0 is made. Raises as `window` does, and when it is nothing."""
        with self._changed:
            self._wait(0, lambda: self._held_out_bytes > 0)
        tokens = self._cache.held_out()
        if tokens.validation.num_tokens < 2:
            raise DataError(
                f"nothing is held out among the {self._plan.cut.window_tokens:,} tokens of the stream's first window: "
                "set a larger data.validation_fraction or data.window_tokens"
            )
        return tokens

    def _wait(self, window: int, done: Callable[[], bool]) -> None:
        """Ask for a window and wait; the lock is held."""
        if done():
            return
        self._start()
        self._asked[window] = self._asked.get(window, 0) + 1
        self._changed.notify_all()
        patience = time.monotonic() + _SAY_SECONDS
        try:
            while not done():
                if time.monotonic() > patience:
                    self._say(f"data: waiting for window {window} of the stream to be read and tokenised")
                    patience = float("inf")
                if self._error is not None:
                    raise self._error
                if self._closing:
                    raise DataError("the stream was closed")
                self._changed.wait(timeout=1.0)
        finally:
            self._asked[window] -= 1
            if not self._asked[window]:
                del self._asked[window]

    def _start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def _read(self, window: int) -> TokenStore:
        """Open a window that is cached, or one made anew where it is damaged; the lock is held."""
        try:
            return self._cache.open(window).train
        except DataError as error:
            self._say(f"WARNING: {error}; making it anew")
            self._forget(window)
            self._wait(window, lambda: window in self._cached)
            return self._cache.open(window).train

    def _forget(self, window: int) -> None:
        self._cached.pop(window, None)
        self._cache.remove(window)

    # The thread.

    def _work(self) -> None:
        engine = self._engine
        try:
            while not self._closing:
                try:
                    self._make_windows(engine)
                except EncodersDiffer:
                    assert engine.fast is not None
                    self._say(f"note: {engine.fast.name} gives other ids than tokenizers: going on without it")
                    engine = replace(engine, fast=None)
                except HubError as error:
                    if not self._bide(error):
                        raise
        except BaseException as error:  # noqa: BLE001 - not swallowed: whoever waits raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _bide(self, error: HubError) -> bool:
        """Wait a little with windows that nobody waits for yet; False where somebody does."""
        with self._changed:
            if self._asked:
                return False
            self._say(f"note: {error}; training goes on with the windows that are here")
            self._changed.wait_for(lambda: self._closing or bool(self._asked), timeout=_BIDE_SECONDS)
        return True

    def _make_windows(self, engine: Engine) -> None:
        encoder = DocumentEncoder(self._tokenizer, engine.fast)
        encoder.check()
        with EncodingPool[Batch](encoder, engine.workers) as pool:
            head: WriteHead | None = None
            at = 0
            while (wanted := self._next()) is not None:
                nearest = self.journal.nearest(wanted)
                if head is None or not nearest <= at <= wanted:
                    start, at = self.journal.start(nearest), nearest
                    assert start is not None
                    head = WriteHead(
                        self._plan.cut, lambda batches: pool.map(self._until_closed(batches)), start, self._finish
                    )
                made = head.next()
                self._keep(at, made, at == wanted)
                head, at = (None, 0) if made.after is None else (head, at + 1)

    def _until_closed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self._closing:
                return
            yield batch

    def _finish(self, source: Source) -> None:
        if source.name in self._told:  # read once more, for windows that were passed over or deleted
            return
        self._told.add(source.name)
        if source.skipped:
            self._say(f"WARNING: skipped {source.skipped:,} in {source.name}; the first: {source.first_fault}")
        if source.cut_lines:
            self._say(f"note: {cut_lines_note(source.cut_lines)}, in {source.name}")

    def _next(self) -> int | None:
        """The window to make next, as soon as there is one and room for it; None when it is over."""
        with self._changed:
            while not self._closing:
                window = self._missing()
                if window is not None and self._make_room(window):
                    return window
                self._changed.wait(timeout=1.0)
        return None

    def _missing(self) -> int | None:
        """The first window that is to be made; the lock is held."""
        count = self._count_windows()
        asked = [window for window in sorted(self._asked) if count is None or window < count]
        ahead = [self._cursor + distance for distance in range(AHEAD + 1)]
        if count is None:
            last = (self._plan.needed_rows - 1) // self._plan.cut.rows
            ahead = [window for window in ahead if window <= last]
        else:
            ahead = [window % count for window in ahead] if count else []
        missing = (window for window in (*asked, *ahead) if window not in self._cached)
        return next(missing, None) if self._held_out_bytes else 0

    def _count_windows(self) -> int | None:
        total = self.journal.total_rows
        return None if total is None else -(-total // self._plan.cut.rows)

    def _distance(self, window: int) -> int:
        """How long it takes until training comes to a window."""
        count = self._count_windows()
        if count:
            return (window - self._cursor) % count
        return window - self._cursor if window >= self._cursor else _BEHIND + self._cursor - window

    def _make_room(self, window: int) -> bool:
        """Delete what is needed later than `window`, until it surely fits; the lock is held.

        Raises DataError when somebody waits for it and it cannot fit.
        """
        plan = self._plan
        kept = self._held_out_bytes + self.journal.size
        while sum(self._cached.values()) + kept + plan.window_bytes > plan.cache_bytes:
            idle = [one for one in self._cached if one not in self._open and one not in self._asked]
            farthest = max(idle, key=self._distance, default=None)
            asked = window in self._asked
            if farthest is None or not (asked or self._distance(farthest) > self._distance(window)):
                if asked and not idle:
                    raise DataError(_too_little(plan, kept))
                return False
            self._forget(farthest)
        return True

    def _keep(self, window: int, made: Window, wanted: bool) -> None:
        """Put a window into the cache, and what is known of it into the journal."""
        if self._closing:
            return
        plan, sha256 = self._plan, ""
        if window == 0 and not self._held_out_bytes:
            self._cache.write_held_out(made.held_out, plan.template)
        if wanted and made.rows:
            sha256 = self._cache.write(window, made.tokens, plan.template)
        elif made.rows:
            sha256 = tokens_sha256(made.tokens.ids, plan.template.dtype)
        with self._changed:
            try:
                self.journal.add(Entry(window, made.rows, sha256, made.after))
            except DataError:
                self._cache.remove(window)
                raise
            self._held_out_bytes = self._cache.held_out_bytes()
            if wanted and made.rows:
                self._cached[window] = self._cache.size(window)
            self._changed.notify_all()


class StreamRows:
    """The rows of a stream: row j is seq_len + 1 tokens of window j // rows."""

    def __init__(self, window: Callable[[int], TokenStore], rows: int, seq_len: int) -> None:
        """`rows` a window; `window` opens one."""
        self._window, self._rows, self.seq_len = window, rows, seq_len

    def batch(self, rows: NDArray[np.int64], parts: int = 1) -> TokenBatch:
        """The given rows, (len(rows), seq_len // parts). Waits for windows, and raises what making them raised."""
        size, window_tokens = self.seq_len // parts, self._rows * self.seq_len
        windows, starts = np.divmod(rows * size, window_tokens)
        tokens = np.empty((len(rows), size + 1), np.int32)
        for window in dict.fromkeys(windows.tolist()):  # in the order in which training comes to them
            here = windows == window
            tokens[here] = self._window(window).read_rows(starts[here], size + 1)
        return TokenBatch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))

    def spans(self, row: int, parts: int = 1) -> list[tuple[int, int]]:
        """The row's tokens, start .. end - 1 of the stream."""
        size = self.seq_len // parts
        return [(row * size, (row + 1) * size + 1)]

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """Tokens start .. start + count - 1 of the stream, which are of one row."""
        window, first = self._at(start)
        return self._window(window).read(start - first, count)

    def documents(self, start: int, count: int) -> Iterator[DocumentSpan]:
        """The documents that these tokens are of; each window counts its own from 0, the rest of one among them."""
        window, first = self._at(start)
        for span in self._window(window).documents(start - first, count):
            yield DocumentSpan(span.index, span.start + first, span.end + first)

    def _at(self, token: int) -> tuple[int, int]:
        """The window whose row a token begins, and that window's first token."""
        size = self._rows * self.seq_len
        return token // size, token // size * size


def tokens_sha256(ids: NDArray[np.uint32], dtype: str) -> str:
    """Hex SHA-256 of tokens as a shard holds them."""
    return hashlib.sha256(ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """The folder, made and not used by another process; DataError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
    with lock:
        with suppress(OSError):  # some network disks lock nothing
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{folder}: another process streams into this folder") from None
        yield


def _check_limit(plan: StreamPlan) -> None:
    if plan.cache_bytes < (plan.open_at_once + 1) * plan.window_bytes:
        raise DataError(_too_little(plan, 0))


def _too_little(plan: StreamPlan, held_out: int) -> str:
    needed = held_out + (plan.open_at_once + 1) * plan.window_bytes
    return (
        f"data.cache_limit_gb: found {plan.cache_bytes / 1e9:g}, expected at least {needed / 1e9:.2g}: a step needs "
        f"{plan.open_at_once} windows of up to {plan.window_bytes / 1e6:,.1f} MB and room for the next; or set a "
        "smaller data.window_tokens"
    )
