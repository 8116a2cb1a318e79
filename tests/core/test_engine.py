"""Requests that share a decoder, which here is arithmetic: the next token is a function of all that a row was fed."""

import numpy as np
import pytest

from sconce.cache import CHUNK, Rows
from sconce.errors import DataError
from sconce.generation.engine import COHORT, Engine, Request
from sconce.generation.sampling import Sampling

VOCAB = 101


def logits_after(tokens):
    """What a row holds decides everything, its order included."""
    return np.random.default_rng([7, *tokens]).standard_normal(VOCAB).astype(np.float32)


class RememberingModel:
    """Decodes by remembering every row's tokens; `fed` counts tokens that were worth something."""

    def __init__(self):
        self.fed = 0
        self.rows = {}

    def decoder(self, rows, max_len):
        self.max_rows, self.max_len = rows, max_len
        return self

    def feed(self, tokens, *, first_row=0, lengths=None):
        assert first_row + len(tokens) <= self.max_rows
        assert tokens.shape[1] <= CHUNK
        counts = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
        logits = np.full((len(tokens), VOCAB), np.nan, np.float32)
        for index, count in enumerate(counts):
            row = self.rows.setdefault(first_row + index, [])
            row += tokens[index, :count].tolist()
            self.fed += count
            assert len(row) <= self.max_len
            if count:
                logits[index] = logits_after(row)
        return logits

    def move(self, source, target):
        self.rows[target] = list(self.rows[source])

    def clear(self, first_row=0):
        self.rows = {row: tokens for row, tokens in self.rows.items() if row < first_row}


def alone(request):
    """What a request gives by itself, by the definition."""
    rng = np.random.default_rng([request.seed, request.choice])
    held, drawn = list(request.prompt), []
    while len(drawn) < request.max_tokens:
        logits = logits_after(held).astype(np.float64)
        p = np.exp(logits - logits.max())
        token = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum(), side="right"))
        if token in request.stop_ids:
            break
        drawn.append(token)
        held.append(token)
    return drawn


def requests(count, longest=40):
    rng = np.random.default_rng(3)
    return [
        Request(
            prompt=rng.integers(0, VOCAB, rng.integers(1, longest)).tolist(),
            max_tokens=int(rng.integers(1, 30)),
            sampling=Sampling(temperature=1.0, top_k=0),
            seed=index,
            stop_ids=frozenset({5, 6}),
        )
        for index in range(count)
    ]


def run(engine, tickets):
    """Everything to the end; tokens by ticket."""
    drawn = {ticket: [] for ticket in tickets}
    while not engine.idle:
        for event in engine.step():
            if event.token is not None:
                drawn[event.ticket].append(event.token)
    return [drawn[ticket] for ticket in tickets]


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_each_request_gives_what_it_gives_alone(rows):
    asked = requests(30)
    model = RememberingModel()
    engine = Engine(model, rows=rows, max_len=100)
    drawn = run(engine, [engine.add(request) for request in asked])
    assert drawn == [alone(request) for request in asked]
    assert model.rows == {}, "rows that have ended are forgotten"


def test_nothing_is_fed_twice():
    asked = requests(12)
    model = RememberingModel()
    engine = Engine(model, rows=5, max_len=100)
    drawn = run(engine, [engine.add(request) for request in asked])
    # Every prompt once, and every drawn token but a last one that nothing follows.
    ended = [len(tokens) == request.max_tokens for tokens, request in zip(drawn, asked, strict=True)]
    assert model.fed == sum(len(request.prompt) for request in asked) + sum(map(len, drawn)) - sum(ended)


def test_requests_join_and_leave_while_others_run():
    asked = requests(20)
    engine = Engine(RememberingModel(), rows=4, max_len=100)
    drawn, tickets, cancelled = {}, [], set()
    for turn in range(2000):
        if len(tickets) < len(asked) and turn % 3 == 0:
            tickets.append(engine.add(asked[len(tickets)]))
        if turn % 11 == 10 and tickets:
            cancelled.add(tickets[-1])
            engine.cancel(tickets[-1])
        for event in engine.step():
            assert event.ticket not in cancelled
            if event.token is not None:
                drawn.setdefault(event.ticket, []).append(event.token)
        assert engine.running <= 4
    assert engine.idle
    kept = [index for index, ticket in enumerate(tickets) if ticket not in cancelled]
    assert 10 < len(kept) < len(asked)
    assert [drawn.get(tickets[index], []) for index in kept] == [alone(asked[index]) for index in kept]


def test_a_long_prompt_is_read_in_chunks_while_others_go_on():
    long = Request(prompt=[9] * (3 * CHUNK + 5), max_tokens=2, sampling=Sampling(temperature=0))
    short = Request(prompt=[4], max_tokens=50, sampling=Sampling(temperature=0))
    engine = Engine(RememberingModel(), rows=2, max_len=2000)
    first = engine.add(short)
    engine.step()
    engine.add(long)
    assert [[event.ticket for event in engine.step()] for _ in range(3)] == [[first]] * 3
    assert len({event.ticket for event in engine.step()}) == 2


def test_a_cohort_is_bounded():
    engine = Engine(RememberingModel(), rows=100, max_len=100)
    for request in requests(3 * COHORT):
        engine.add(request)
    engine.step()
    assert engine.running <= COHORT
    assert engine.waiting == 2 * COHORT


def test_room_ends_a_request_and_a_prompt_without_room_is_refused():
    engine = Engine(RememberingModel(), rows=1, max_len=10)
    ticket = engine.add(Request(prompt=[1] * 7, max_tokens=99, sampling=Sampling(temperature=0)))
    assert len(run(engine, [ticket])[0]) == 3
    with pytest.raises(DataError, match="10 tokens long, and there is room for 10"):
        engine.add(Request(prompt=[1] * 10, max_tokens=1))


def test_log_probabilities_are_the_models_whatever_the_sampling():
    engine = Engine(RememberingModel(), rows=1, max_len=10)
    engine.add(Request(prompt=[1], max_tokens=1, sampling=Sampling(temperature=0.01, top_k=1), alternatives=3))
    (event,) = engine.step()
    logits = logits_after([1]).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert event.logprob == pytest.approx(expected[event.token])
    assert [index for index, _ in event.alternatives] == np.argsort(-expected)[:3].tolist()
    assert [p for _, p in event.alternatives] == pytest.approx(np.sort(expected)[::-1][:3])


@pytest.mark.parametrize("window", [None, 1, 7, 300])
def test_places_in_the_cache(window):
    """Against rows of (position, payload) kept by a naive store: what a token may see is there, and nothing else."""
    rng = np.random.default_rng(0)
    rows = Rows(max_len=900, window=window)
    rows.reserve(3)
    held = np.full((3, rows.num_slots), -1)  # the position that was last written to each slot
    rows.filled[:] = [0, 5, 2]
    held[1, :5], held[2, :2] = np.arange(5), np.arange(2)
    while rows.filled.max() < 600:
        length = int(rng.choice([1, 1, 1, 3, 40, CHUNK]))
        place = rows.place(0, 3, length)
        counts = rng.integers(1, length + 1, 3)
        for row in range(3):
            held[row, place.slots[row]] = place.positions[row]
        for row in range(3):
            for index in range(counts[row]):
                position = place.positions[row, index]
                assert position == rows.filled[row] + index
                first = 0 if window is None else max(0, position - window + 1)
                seen = held[row, : place.seen]
                seen = seen[seen <= position] if place.mask is None else seen[place.mask[row, 0, index]]
                assert sorted(seen) == list(range(first, position + 1))
        rows.filled += counts


def test_figures_count_what_was_written_and_time_what_was_decoded():
    """The first token comes with the prompt, so it is no step's; where it is the only one there is no speed."""
    engine = Engine(RememberingModel(), rows=4, max_len=100)
    for count, new in ((5, 12), (3, 1)):
        engine.add(Request(prompt=[2] * count, max_tokens=new))
    while not engine.idle:
        engine.step()
    figures = engine.figures
    assert (figures.prompt_tokens, figures.new_tokens, figures.decoded_tokens) == (8, 13, 11)
    assert figures.speed() == f"{11 / figures.decoding_seconds:,.0f} tok/s"
    single = Engine(RememberingModel(), rows=1, max_len=100)
    single.add(Request(prompt=[2], max_tokens=1))
    single.step()
    assert (single.figures.new_tokens, single.figures.decoded_tokens, single.figures.speed()) == (1, 0, "")
