"""Choosing the next token from logits, the same way for every backend."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw: temperature 0 takes the likeliest token; top_k 0 and top_p 1 keep every candidate."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0


def sample_token(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """One token id from float32 logits (vocab,).

    Candidates are the `top_k` likeliest, then the smallest set of those that holds `top_p` of the probability
    (Holtzman et al. 2020). Computed in float64, so that both backends draw the same token.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    candidates = logits[order].astype(np.float64)
    probabilities = np.exp((candidates - candidates[0]) / sampling.temperature)
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities  # what the likelier candidates already hold
    kept = probabilities[(before < sampling.top_p) | (before == 0)]  # at least the likeliest
    return int(order[rng.choice(kept.size, p=kept / kept.sum())])
