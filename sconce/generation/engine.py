"""Many sequences decoded together: requests join and leave between steps, and none sees another.

The decoder's rows are a list: first those that are being decoded, then a cohort whose prompts are still being read.
What a request draws follows from its own seed alone, whatever else is in the batch.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sconce.backend import Decoder
from sconce.cache import CHUNK
from sconce.errors import DataError
from sconce.generation.sampling import Sampling, likeliest, log_probabilities, sample_token

COHORT = 8  # prompts read together; more would keep those that are decoding waiting for longer

Finish = Literal["stop", "length"]


class Decodes(Protocol):
    """A model that makes decoders: a LanguageModel, or a Learner in training."""

    def decoder(self, rows: int, max_len: int) -> Decoder:
        """A decoder for up to `rows` sequences of up to `max_len` tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to continue, and how. `choice` tells apart the draws of requests with the same seed.

    `alternatives` asks for the log-probability of each token and so many of the likeliest; None for neither.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    choice: int = 0
    stop_ids: frozenset[int] = frozenset()
    alternatives: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One more token of a request, or its end: `finish` is "stop" at a stop id, which is no token of the text.

    `logprob` is natural; `alternatives` are the likeliest (id, logprob), the likeliest first.
    """

    ticket: int
    token: int | None
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None


@dataclass(slots=True)
class Figures:
    """Tokens that were read and written, and the seconds that took.

    The first token of a sequence comes with its prompt. `decoded_tokens` are those that a step of their own was made
    for, in `decoding_seconds`; the step that finds the end of a document is one of them, and no token of the text.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    decoded_tokens: int = 0
    decoding_seconds: float = 0.0

    def speed(self) -> str:
        """Tokens a second after the first of each sequence; nothing where there was no other."""
        return f"{self.decoded_tokens / self.decoding_seconds:,.0f} tok/s" if self.decoded_tokens else ""


class _Row:
    """One request on its way."""

    def __init__(self, ticket: int, request: Request, room: int) -> None:
        self.ticket = ticket
        self.request = request
        self.left = min(request.max_tokens, room)
        self.rng = np.random.default_rng([request.seed, request.choice])
        self.token = -1
        self.logits: NDArray[np.float32] | None = None  # after the prompt, until the cohort has read all of theirs
        self.seen: NDArray[np.bool_] | None = None

    def draw(self, logits: NDArray[np.float32]) -> Event:
        """The next token, and whether it is the last."""
        request = self.request
        if request.sampling.repetition_penalty != 1 and self.seen is None:
            self.seen = np.zeros(logits.size, np.bool_)
            self.seen[list(request.prompt)] = True
        token = self.token = sample_token(logits, request.sampling, self.rng, self.seen)
        if token in request.stop_ids:
            return Event(self.ticket, None, finish="stop")
        if self.seen is not None:
            self.seen[token] = True
        self.left -= 1
        finish: Finish | None = "length" if self.left == 0 else None
        if request.alternatives is None:
            return Event(self.ticket, token, finish=finish)
        logprobs = log_probabilities(logits)
        best = tuple((int(index), float(logprobs[index])) for index in likeliest(logprobs, request.alternatives))
        return Event(self.ticket, token, float(logprobs[token]), best, finish)


class Engine:
    """Decodes up to `rows` requests at once, each of up to `max_len` tokens with its prompt; the rest wait in line."""

    def __init__(self, model: Decodes, *, rows: int, max_len: int) -> None:
        self.max_rows, self.max_len = rows, max_len
        self.figures = Figures()
        self._decoder = model.decoder(rows, max_len)
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._decoding = 0  # so many of the rows; the others are the cohort
        self._read = 0  # tokens of each of the cohort's prompts that were fed
        self._tickets = 0

    def add(self, request: Request) -> int:
        """Put a request in line; the ticket that its events carry.

        It ends where its `max_tokens` or the room in `max_len` does. Raises DataError when its prompt leaves none.
        """
        room = self.max_len - len(request.prompt)
        if room < 1:
            raise DataError(
                f"the prompt is {len(request.prompt)} tokens long, and there is room for {self.max_len}, with at "
                "least one to come"
            )
        assert request.prompt, "an empty prompt has no logits"
        assert request.max_tokens > 0
        self._tickets += 1
        self._waiting.append(_Row(self._tickets, request, room))
        return self._tickets

    def cancel(self, ticket: int) -> None:
        """Drop a request wherever it is; nothing if it has ended."""
        self._waiting = deque(row for row in self._waiting if row.ticket != ticket)
        for index, row in enumerate(self._rows):
            if row.ticket == ticket:
                self._remove(index)
                return

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._rows and not self._waiting

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._rows)

    def step(self) -> list[Event]:
        """One token for every row that is decoding, and one chunk of the cohort's prompts."""
        events = self._decode() if self._decoding else []
        if len(self._rows) == self._decoding:
            self._admit()
        if len(self._rows) > self._decoding:
            events += self._prefill()
        return events

    def _admit(self) -> None:
        self._read = 0
        while self._waiting and len(self._rows) < min(self.max_rows, self._decoding + COHORT):
            self._rows.append(self._waiting.popleft())

    def _prefill(self) -> list[Event]:
        started = time.perf_counter()
        cohort = self._rows[self._decoding :]
        left = np.array([len(row.request.prompt) - self._read for row in cohort])
        length = min(CHUNK, int(left.max()))
        lengths = np.clip(left, 0, length)
        tokens = np.zeros((len(cohort), length), np.int32)
        for index, row in enumerate(cohort):
            tokens[index, : lengths[index]] = row.request.prompt[self._read : self._read + length]
        logits = self._decoder.feed(tokens, first_row=self._decoding, lengths=lengths)
        self._read += length
        for index, row in enumerate(cohort):
            if 0 < left[index] <= length:
                row.logits = logits[index].copy()
        self.figures.prompt_tokens += int(lengths.sum())
        self.figures.prompt_seconds += time.perf_counter() - started
        if (left > length).any():
            return []
        first = self._decoding
        self._decoding = len(self._rows)
        drawn = [row.logits for row in cohort if row.logits is not None]
        assert len(drawn) == len(cohort)
        return self._draw(first, drawn)

    def _decode(self) -> list[Event]:
        started = time.perf_counter()
        tokens = np.array([[row.token] for row in self._rows[: self._decoding]], np.int32)
        logits = self._decoder.feed(tokens)
        events = self._draw(0, list(logits))
        self.figures.decoded_tokens += len(tokens)
        self.figures.decoding_seconds += time.perf_counter() - started
        return events

    def _draw(self, first: int, logits: Sequence[NDArray[np.float32]]) -> list[Event]:
        """Draw for the decoding rows from `first` on, and let those go that have ended."""
        events = [row.draw(own) for row, own in zip(self._rows[first:], logits, strict=False)]
        self.figures.new_tokens += sum(event.token is not None for event in events)
        for index in reversed(range(len(events))):
            if events[index].finish is not None:
                self._remove(first + index)
        return events

    def _remove(self, index: int) -> None:
        """The last row of each kind takes the place of the one before it that has gone."""
        if index < self._decoding:
            self._decoding -= 1
            self._take(index, self._decoding)
            index = self._decoding
        self._take(index, len(self._rows) - 1)
        self._rows.pop()
        self._decoder.clear(len(self._rows))

    def _take(self, target: int, source: int) -> None:
        if target != source:
            self._rows[target] = self._rows[source]
            self._decoder.move(source, target)
