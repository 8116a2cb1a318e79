"""The thread that decodes for everyone: a fault costs the requests that it concerns, and no others."""

import queue

import numpy as np
import pytest

from sconce.errors import SconceError
from sconce.generation.engine import Engine, Request
from sconce.generation.model import Prompt
from sconce.generation.sampling import Sampling
from sconce.serving.scheduler import BusyError, EndedError, Scheduler

VOCAB = 50


class Words:
    """A tokenizer whose ids are their own text."""

    def decode(self, ids, skip_special=True):
        return " ".join(map(str, ids))

    def token_text(self, token_id):
        return f"{token_id} ".encode()


class Faulty:
    """A model that fails as its prompts say, which are numbers; see tests/core/test_engine.py for decoders."""

    tokenizer = Words()

    def __init__(self, engines_that_fail=0):
        self.engines_that_fail = engines_that_fail

    def request(self, prompt):
        return Request(prompt=[int(prompt.text)], max_tokens=3, sampling=Sampling(temperature=0))

    def engine(self, rows):
        if self.engines_that_fail:
            self.engines_that_fail -= 1
            raise MemoryError
        return FaultyEngine(rows)


class FaultyEngine(Engine):
    """Prompt 48 fails where it is put in line, 49 in the middle of a step, 47 as nothing goes on after."""

    def __init__(self, rows):
        super().__init__(CountingModel(), rows=rows, max_len=20)
        self.prompts = set()

    def add(self, request):
        if request.prompt == [48]:
            raise ZeroDivisionError("no such luck")
        self.prompts.add(request.prompt[0])
        return super().add(request)

    def step(self):
        if 49 in self.prompts:
            raise IndexError("list index out of range")
        if 47 in self.prompts:
            raise SystemExit
        return super().step()


class CountingModel:
    """The likeliest next token is one more than the last."""

    def decoder(self, rows, max_len):
        return self

    def feed(self, tokens, first_row=0, lengths=None):
        return np.eye(VOCAB, dtype=np.float32)[tokens[:, -1] + 1]

    def move(self, source, target):
        pass

    def clear(self, first_row=0):
        pass


def result(scheduler, *texts):
    """The text of each prompt, or its error, when all have ended."""
    heard, said = queue.Queue(), {}
    for index, text in enumerate(texts):
        scheduler.submit([Prompt(text=text)], lambda item, index=index: heard.put((index, item)))
    open_ones = set(range(len(texts)))
    while open_ones:
        index, item = heard.get(timeout=10)
        if isinstance(item, SconceError):
            said[index] = str(item)
            open_ones.remove(index)
        else:
            said[index] = said.get(index, "") + item.text
            open_ones -= {index} if item.finish else set()
    return [said[index] for index in range(len(texts))]


def test_a_step_that_fails_fails_those_in_it_and_the_next_go_on():
    with Scheduler(Faulty(), rows=2, queue=4) as scheduler:
        assert result(scheduler, "49") == ["the model could not go on: list index out of range"]
        assert result(scheduler, "5", "9") == ["6 7 8 ", "10 11 12 "]
        assert (scheduler.open, scheduler.ended) == (0, False)


def test_a_request_that_cannot_be_put_in_line_fails_alone():
    with Scheduler(Faulty(), rows=2, queue=4) as scheduler:
        assert result(scheduler, "5", "48", "9") == ["6 7 8 ", "the model could not go on: no such luck", "10 11 12 "]
        assert scheduler.open == 0


def test_an_engine_that_cannot_be_made_is_tried_again():
    with Scheduler(Faulty(engines_that_fail=1), rows=2, queue=4) as scheduler:
        assert result(scheduler, "5") == ["the model could not go on: MemoryError"]
        assert result(scheduler, "5") == ["6 7 8 "]
        assert scheduler.open == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_asks_a_thread_that_is_gone_is_told():
    scheduler = Scheduler(Faulty(), rows=1, queue=1)
    assert not scheduler.ended, "it has not begun"
    with scheduler:
        scheduler.submit([Prompt(text="47")], lambda _: None)
        scheduler._thread.join(10)
        assert scheduler.ended
        with pytest.raises(EndedError):
            scheduler.submit([Prompt(text="5")], lambda _: None)


def test_a_line_that_is_full_takes_nothing():
    scheduler = Scheduler(Faulty(), rows=1, queue=1)
    with pytest.raises(BusyError):
        scheduler.submit([Prompt(text="5")] * 3, lambda _: None)
    assert (scheduler.open, scheduler.most) == (0, 2)


def test_never_more_than_the_rows_are_decoded_at_once(monkeypatch):
    decoded, step = [], Engine.step

    def watched(engine):
        events = step(engine)
        decoded.append(engine.running)
        return events

    monkeypatch.setattr(Engine, "step", watched)
    with Scheduler(Faulty(), rows=3, queue=9) as scheduler:
        assert result(scheduler, *map(str, range(12))) == [f"{i + 1} {i + 2} {i + 3} " for i in range(12)]
    assert max(decoded) == 3
