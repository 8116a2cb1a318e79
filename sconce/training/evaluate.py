"""Held-out loss, perplexity and bits per byte over fixed windows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sconce.backend import Learner
from sconce.data.batches import Batch


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over every scored token. `bits_per_byte` leaves out special tokens, which stand for no text."""

    loss: float
    bits_per_byte: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(learner: Learner, batches: Iterable[Batch], token_bytes: NDArray[np.int32]) -> Evaluation:
    """Score `batches` at the present weights; `token_bytes` (vocab,) is what each id stands for in UTF-8 bytes."""
    nats = text_nats = 0.0
    tokens = text_bytes = 0
    for batch in batches:
        nats_BT = learner.nats(batch).astype(np.float64)
        bytes_BT = np.where(batch.targets >= 0, token_bytes[np.maximum(batch.targets, 0)], 0)
        nats += float(nats_BT.sum())
        tokens += int((batch.targets >= 0).sum())
        text_nats += float(nats_BT[bytes_BT > 0].sum())
        text_bytes += int(bytes_BT.sum())
    return Evaluation(nats / max(tokens, 1), text_nats / math.log(2) / max(text_bytes, 1), tokens)
