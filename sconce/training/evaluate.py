"""Held-out loss, perplexity and bits per byte over fixed windows."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sconce.backend import Learner
from sconce.data.batches import Batch
from sconce.generation.score import Score, perplexity


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over every scored token. `bits_per_byte` leaves out special tokens, which stand for no text."""

    loss: float
    bits_per_byte: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity where that overflows."""
        return perplexity(self.loss)


def evaluate(learner: Learner, batches: Iterable[Batch], token_bytes: NDArray[np.int32]) -> Evaluation:
    """Score `batches` at the present weights; `token_bytes` (vocab,) is what each id stands for in UTF-8 bytes."""
    score = Score()
    for batch in batches:
        score.count(batch, learner.nats(batch), token_bytes)
    return Evaluation(score.loss, score.bits_per_byte, score.tokens)
