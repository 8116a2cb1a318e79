"""Choosing the next token from logits, the same way for every backend."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sconce.errors import CheckpointError, ConfigError

PENALTIES = (0.01, 100)  # beyond, a penalty says no more, and far beyond, logits leave the range of numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw: temperature 0 takes the likeliest token.

    top_k 0, top_p 1 and min_p 0 keep every candidate; a repetition_penalty of 1 spares tokens that were there already.
    Raises ConfigError for a value out of range.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0 <= self.temperature <= 100, "from 0 to 100"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 <= self.top_p <= 1, "from 0 to 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (
                PENALTIES[0] <= self.repetition_penalty <= PENALTIES[1],
                f"from {PENALTIES[0]} to {PENALTIES[1]}",
            ),
        }
        for name, (allowed, expected) in limits.items():
            if not allowed:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected {expected}")


def sample_token(
    logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator, seen: NDArray[np.bool_] | None = None
) -> int:
    """One token id from float32 logits (vocab,); `seen` (vocab,) marks what the repetition penalty is for.

    First the penalty (Keskar et al. 2019), then the temperature; of the `top_k` likeliest, the smallest set that holds
    `top_p` of the probability (Holtzman et al. 2020), and of those the ones at least `min_p` times as likely as the
    likeliest (Nguyen et al. 2024). Computed in float64 and drawn with one uniform number over the candidates in the
    order of their ids, so that rounding in another backend or batch hardly ever changes the token.
    Raises CheckpointError for logits that are no numbers.
    """
    if not np.isfinite(logits).all():
        raise CheckpointError("the model's logits are not finite numbers: its weights are damaged, or diverged")
    scores = logits.astype(np.float64)
    if seen is not None and sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        scores = np.where(seen, np.where(scores > 0, scores / penalty, scores * penalty), scores)
    if sampling.temperature == 0:
        return int(scores.argmax())
    ids = _highest(scores, sampling.top_k)
    with np.errstate(over="ignore"):  # a tiny temperature: the unlikely ones become impossible
        probabilities = np.exp((scores[ids] - scores[ids].max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    kept = _nucleus(probabilities, sampling.top_p) & (probabilities >= sampling.min_p * probabilities.max())
    cumulated = np.cumsum(probabilities[kept])
    drawn = int((cumulated <= rng.random() * cumulated[-1]).sum())
    return int(ids[kept][min(drawn, cumulated.size - 1)])


def likeliest(scores: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The ids of the `count` highest scores (vocab,), the highest first; of equal ones the lower ids first."""
    ids = _highest(scores, count) if count else np.zeros(0, np.intp)
    return ids[np.argsort(-scores[ids], kind="stable")]


def _highest(scores: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The ids of the `count` highest scores, ascending; of equal ones the lower ids. All for 0."""
    if not 0 < count < scores.size:
        return np.arange(scores.size)
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    above = np.flatnonzero(scores > threshold)
    equal = np.flatnonzero(scores == threshold)[: count - above.size]
    return np.sort(np.concatenate((above, equal)))


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """True for the likeliest that together hold `top_p`, and at least for the first."""
    if top_p >= 1:
        return np.ones(probabilities.size, np.bool_)
    count = 64  # a few candidates mostly hold it, and to sort a large vocabulary takes longer than its logits
    while True:
        ids = likeliest(probabilities, count)
        held = np.cumsum(probabilities[ids])
        if held[-1] >= top_p or ids.size == probabilities.size:
            break
        count *= 16
    kept = np.zeros(probabilities.size, np.bool_)
    kept[ids[0]] = True
    kept[ids[1:][held[:-1] < top_p]] = True
    return kept


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """log p of every token (vocab,) as the model has it, before any sampling option."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - np.log(np.exp(shifted).sum())
