"""Learning rates against the formulas of the papers, written out."""

import math

import pytest

from sconce.schedule import Schedule, learning_rate


def rates(strategy, **changes):
    schedule = Schedule(strategy=strategy, peak_lr=1.0, total_steps=100, **changes)
    return [learning_rate(schedule, step) for step in range(100)]


@pytest.mark.parametrize("strategy", ["constant", "linear_warmup", "cosine", "cosine_with_warmup", "polynomial", "wsd"])
def test_warmup_climbs_to_the_peak(strategy):
    assert rates(strategy, warmup_steps=10, decay_steps=20)[:10] == pytest.approx([k / 10 for k in range(1, 11)])


@pytest.mark.parametrize("strategy", ["constant", "linear_warmup"])
def test_constant_stays_at_the_peak(strategy):
    assert rates(strategy, warmup_steps=5)[5:] == [1.0] * 95


@pytest.mark.parametrize("strategy", ["cosine", "cosine_with_warmup"])
def test_cosine(strategy):
    got = rates(strategy, warmup_steps=20, min_lr=0.1)
    for step in range(20, 100):
        assert got[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2)
    assert got[60] == pytest.approx(0.55)  # half-way down


def test_polynomial():
    got = rates("polynomial", min_lr=0.2, power=2.0)
    assert got == pytest.approx([0.2 + 0.8 * (1 - step / 100) ** 2 for step in range(100)])


def test_wsd_holds_then_falls_as_one_minus_root():
    got = rates("wsd", warmup_steps=10, decay_steps=25)
    assert got[10:76] == [1.0] * 66
    assert got[76:] == pytest.approx([1 - math.sqrt(k / 25) for k in range(1, 25)])


def test_beyond_the_horizon_the_rate_stays_at_its_end():
    schedule = Schedule(strategy="cosine", peak_lr=1.0, total_steps=10, min_lr=0.1)
    assert learning_rate(schedule, 500) == pytest.approx(0.1)
