"""One thread that owns a model and decodes for everyone: requests join its batch, and leave it, between steps."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from sconce.errors import SconceError
from sconce.generation.engine import Engine, Request
from sconce.generation.model import Piece, Prompt, TextModel, Writer

Deliver = Callable[[Piece | SconceError], None]


class BusyError(SconceError):
    """The line is full: try again later."""


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

    Used as a context: the thread runs inside it.
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

    def submit(self, prompts: list[Prompt], deliver: Deliver) -> list[Job]:
        """Put prompts in line; their pieces carry their place in the list.

        Raises BusyError, with nothing in line, when they do not all fit, and DataError for a prompt too long.
        """
        jobs = [Job(prompt, self.model.request(prompt), index, deliver) for index, prompt in enumerate(prompts)]
        with self._changed:
            if self._open + len(jobs) > self.rows + self.queue:
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
        engine = self.model.engine(self.rows)
        while True:
            with self._changed:
                while not (self._arrived or self._stopping or self._jobs):
                    self._changed.wait()
                arrived, self._arrived = self._arrived, []
                if self._stopping:
                    return
            self._take_in(engine, arrived)
            try:
                self._deliver(engine)
            except (SconceError, RuntimeError) as error:  # RuntimeError: the frameworks', out of memory above all
                self._fail(error)
                engine = self.model.engine(self.rows)

    def _take_in(self, engine: Engine, arrived: list[Job]) -> None:
        for job in arrived:
            ticket = engine.add(job.request)
            self._jobs[ticket] = job, Writer(self.model.tokenizer, job.prompt, job.index)
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

    def _fail(self, error: Exception) -> None:
        failed = SconceError(f"the model could not go on: {error}")
        for ticket, (job, _) in list(self._jobs.items()):
            self._end(ticket)
            job.deliver(failed)

    def _end(self, ticket: int) -> None:
        del self._jobs[ticket]
        with self._changed:
            self._open -= 1
