"""One thread that owns a model and decodes for everyone: requests join its batch, and leave it, between steps."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sconce.errors import SconceError
from sconce.generation.engine import Engine, Request
from sconce.generation.model import Piece, Prompt, TextModel, Writer
from sconce.log import log

Deliver = Callable[[Piece | SconceError], None]


class BusyError(SconceError):
    """The line is full: try again later."""


class EndedError(SconceError):
    """Nobody decodes any more."""


@dataclass(eq=False, slots=True)
class Job:
    """A prompt on its way. `deliver` is called in the scheduler's thread, last with a finish or an error."""

    prompt: Prompt
    request: Request
    index: int
    deliver: Deliver
    cancelled: bool = False


class Scheduler:
    """Decodes up to `rows` prompts at once and keeps up to `queue` more in line.

    Used as a context: the thread runs inside it. Whatever goes wrong there fails the requests that it concerns.
    """

    def __init__(self, model: TextModel, *, rows: int, queue: int) -> None:
        self.model = model
        self.rows, self.queue = rows, queue
        self._changed = threading.Condition()
        self._jobs: dict[int, tuple[Job, Writer]] = {}  # by the engine's ticket
        self._arrived: list[Job] = []
        self._open = 0  # jobs that have neither ended nor been cancelled
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def __enter__(self) -> "Scheduler":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def open(self) -> int:
        """Prompts that are being decoded or wait."""
        return self._open

    @property
    def ended(self) -> bool:
        """Whether the thread has run and runs no more."""
        return self._thread.ident is not None and not self._thread.is_alive()

    @property
    def most(self) -> int:
        """Prompts that fit when nobody else is there."""
        return self.rows + self.queue

    def submit(self, prompts: list[Prompt], deliver: Deliver) -> list[Job]:
        """Put prompts in line; their pieces carry their place in the list.

        Raises BusyError, with nothing in line, when they do not all fit, DataError for a prompt too long, and
        EndedError when the thread is gone.
        """
        if self.ended:
            raise EndedError("the server's decoding has ended: it has to be started anew")
        jobs = [Job(prompt, self.model.request(prompt), index, deliver) for index, prompt in enumerate(prompts)]
        with self._changed:
            if self._open + len(jobs) > self.most:
                raise BusyError(f"{self._open} prompts are being served or wait; try again later")
            self._open += len(jobs)
            self._arrived += jobs
            self._changed.notify()
        return jobs

    def cancel(self, jobs: list[Job]) -> None:
        """Nobody waits for these any more; nothing for those that have ended."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def _run(self) -> None:
        engine: Engine | None = None
        while (arrived := self._wait()) is not None:
            try:
                engine = engine or self.model.engine(self.rows)
                self._take_in(engine, arrived)
                self._deliver(engine)
            except Exception as error:  # noqa: BLE001 (the thread is everyone's: the next requests may fare better)
                failed = [job for job, _ in self._jobs.values()] + arrived
                self._jobs.clear()
                engine = None
                self._fail(failed, error)

    def _wait(self) -> list[Job] | None:
        """What has arrived, as soon as there is anything to do; None at the end."""
        with self._changed:
            while not (self._arrived or self._stopping or self._jobs):
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            return None if self._stopping else arrived

    def _take_in(self, engine: Engine, arrived: list[Job]) -> None:
        """Hand all that has arrived to the engine, and take from it what nobody waits for."""
        while arrived:
            job = arrived.pop(0)
            try:
                writer = Writer(self.model.tokenizer, job.prompt, job.index)
                ticket = engine.add(job.request)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is this request's own)
                self._fail([job], error)
            else:
                self._jobs[ticket] = job, writer
        for ticket in [ticket for ticket, (job, _) in self._jobs.items() if job.cancelled]:
            engine.cancel(ticket)
            self._end(ticket)

    def _deliver(self, engine: Engine) -> None:
        for event in engine.step():
            job, writer = self._jobs[event.ticket]
            piece = writer.piece(event)
            if piece.finish is not None:
                engine.cancel(event.ticket)
                self._end(event.ticket)
            job.deliver(piece)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """Tell those who wait, and the log what is no plain message: where it happened."""
        known = isinstance(error, SconceError)
        log.error("requests that failed: %d: %s", len(jobs), error, exc_info=None if known else error)
        with self._changed:
            self._open -= len(jobs)
        for job in jobs:
            job.deliver(SconceError(f"the model could not go on: {error if str(error) else type(error).__name__}"))

    def _end(self, ticket: int) -> None:
        del self._jobs[ticket]
        with self._changed:
            self._open -= 1
