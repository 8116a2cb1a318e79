"""The prefetch thread: order, bound, errors, and an end to it."""

import threading
import time

import pytest

from sconce.data.prefetch import Prefetcher


def test_results_come_in_order():
    with Prefetcher(lambda step: step * step, start=3) as batches:
        assert [batches.next() for _ in range(50)] == [step * step for step in range(3, 53)]


def test_it_runs_at_most_three_ahead():
    made = []
    with Prefetcher(made.append, start=0) as batches:
        batches.next()
        time.sleep(0.1)
        assert made == [0, 1, 2, 3]  # one taken, two waiting, one at the door


def test_errors_reach_the_consumer_every_time():
    def produce(step):
        if step == 2:
            raise ValueError("row 2 is bad")
        return step

    with Prefetcher(produce, start=0) as batches:
        assert [batches.next(), batches.next()] == [0, 1]
        for _ in range(3):
            with pytest.raises(ValueError, match="row 2 is bad"):
                batches.next()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread(taken):
    before = threading.active_count()
    for _ in range(20):
        with Prefetcher(lambda step: step, start=0) as batches:
            for _ in range(taken):
                batches.next()
    assert threading.active_count() == before


def test_closing_does_not_wait_for_a_stuck_producer():
    release = threading.Event()
    with Prefetcher(lambda step: release.wait(), start=0):
        started = time.monotonic()
    assert time.monotonic() - started < 3
    release.set()


def test_waiting_ends_when_it_is_asked_to():
    """As when a signal comes while a stream has nothing to train on."""
    asked, released = [], threading.Event()

    def produce(step):
        released.wait(5)
        return step

    with Prefetcher(produce, 0) as batches:
        assert batches.next(until=lambda: bool(asked.append(1)) or len(asked) > 2) is None
        released.set()
        assert batches.next(until=lambda: False) == 0
    assert len(asked) == 3
