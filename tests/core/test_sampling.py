"""The sampler against probabilities worked out by hand, and the generate loop against a decoder that counts."""

import numpy as np
import pytest

from sconce.errors import CheckpointError, ConfigError
from sconce.generation.generate import generate
from sconce.generation.sampling import Sampling, likeliest, sample_token

LOGITS = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32))


def frequencies(sampling, draws=20000):
    rng = np.random.default_rng(0)
    return np.bincount([sample_token(LOGITS, sampling, rng) for _ in range(draws)], minlength=5) / draws


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0, top_k=0), [0.5, 0.25, 0.125, 0.0625, 0.0625]),
        (Sampling(temperature=0.5, top_k=0), np.array([64, 16, 4, 1, 1]) / 86),  # squares of the probabilities
        (Sampling(temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=0, top_p=0.8), [4 / 7, 2 / 7, 1 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_k=0, top_p=0.5), [1, 0, 0, 0, 0]),
        (Sampling(temperature=0.0), [1, 0, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=0, top_p=0.0), [1, 0, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=0, min_p=0.2), [4 / 7, 2 / 7, 1 / 7, 0, 0]),  # at least a fifth of 0.5
        (Sampling(temperature=1.0, top_k=4), np.array([8, 4, 2, 1, 0]) / 15),  # of two alike the lower id
        (Sampling(temperature=1e-300, top_k=0), [1, 0, 0, 0, 0]),
    ],
)
def test_frequencies(sampling, expected):
    # 20000 draws: four standard deviations of the likeliest are 0.014
    np.testing.assert_allclose(frequencies(sampling), expected, atol=0.014)


@pytest.mark.parametrize(("scale", "top_p"), [(3.0, 0.5), (0.05, 0.05)])
def test_a_large_vocabulary_keeps_the_smallest_set_that_holds_top_p(scale, top_p):
    """Of 3,000 tokens the set has a few, or over a hundred; of ties the lower ids come first."""
    logits = np.round(np.random.default_rng(0).standard_normal(3000) * scale, 2).astype(np.float32)
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    expected, held = set(), 0.0
    for token in sorted(range(3000), key=lambda token: (-logits[token], token)):
        if held >= top_p:
            break
        expected.add(token)
        held += probabilities[token]
    rng, sampling = np.random.default_rng(0), Sampling(temperature=1.0, top_k=0, top_p=top_p)
    assert {sample_token(logits, sampling, rng) for _ in range(12 * len(expected))} == expected
    best = likeliest(logits.astype(np.float64), 50).tolist()
    assert best == sorted(range(3000), key=lambda token: (-logits[token], token))[:50]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"top_p": 1.5},
        {"min_p": -0.1},
        *({"repetition_penalty": value} for value in (0, 5e-324, 1e-308, 0.009, 101, np.nan)),
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0, 100.0])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (5e-324, 0.0), (0.9, 1.0)])
def test_no_option_makes_of_finite_logits_what_is_no_number(penalty, temperature, top_p, min_p):
    """A penalty near 0 once left no candidate at all."""
    sampling = Sampling(temperature=temperature, top_k=0, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    most, seen = np.finfo(np.float32).max, np.array([True, False, True, False])
    rng = np.random.default_rng(0)
    with np.errstate(invalid="raise", divide="raise"):
        for logits in ([most, -most, 1e-45, 0], [-most, -most, -most, -most], [most, most, most, 0], [0, 0, 0, 0]):
            assert 0 <= sample_token(np.array(logits, np.float32), sampling, rng, seen) < 4


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(CheckpointError, match="not finite"):
        sample_token(np.array([0, np.nan], np.float32), Sampling(), np.random.default_rng(0))


class CountingLearner:
    """Its decoder's likeliest next token is the last one plus one; it keeps what it was fed."""

    def __init__(self):
        self.fed = []

    def decoder(self, rows, max_len):
        self.max_len = max_len
        return self

    def feed(self, tokens, first_row=0, lengths=None):
        self.fed.append(tokens[0].tolist())
        return np.eye(100, dtype=np.float32)[[tokens[0, -1] + 1]]

    def clear(self, first_row=0):
        pass


def test_generate_prefills_once_then_feeds_one_token_at_a_time():
    learner = CountingLearner()
    greedy = Sampling(temperature=0.0)
    assert list(generate(learner, [5, 6, 7], max_tokens=4, sampling=greedy, seed=0)) == [8, 9, 10, 11]
    assert learner.fed == [[5, 6, 7], [8], [9], [10]]
    assert learner.max_len >= 7


def test_generate_stops_at_the_stop_token_without_yielding_it():
    tokens = generate(CountingLearner(), [5], max_tokens=9, sampling=Sampling(temperature=0.0), seed=0, stop_id=8)
    assert list(tokens) == [6, 7]
