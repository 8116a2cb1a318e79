"""How well a model predicts text: loss, perplexity, bits per byte and accuracy over windows of tokens."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sconce.backend import LanguageModel
from sconce.data.batches import Batch

T = TypeVar("T")


class Tokens(Protocol):
    """A sequence of token ids, in memory or on disk."""

    num_tokens: int

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """Tokens start .. start + count - 1."""
        ...


class HeldTokens:
    """Token ids in memory."""

    def __init__(self, ids: NDArray[np.int32]) -> None:
        self._ids = ids
        self.num_tokens = ids.size

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """Tokens start .. start + count - 1."""
        return self._ids[start : start + count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """`size` predictions a window, each window `stride` tokens after the one before.

    Every token but the first is scored once: with a stride below the size the first size - stride predictions of a
    window, but for the first window, are there for context only. A stride of the size is fixed windows.
    """

    size: int
    stride: int
    batch_size: int = 8

    def batches(self, tokens: Tokens) -> Iterator[Batch]:
        """(batch_size, size) each; after the last token inputs are 0 and targets -1."""
        for rows in batched(self._rows(tokens), self.batch_size):
            missing = self.batch_size - len(rows)
            inputs = [row for row, _ in rows] + [np.zeros(self.size, np.int32)] * missing
            targets = [row for _, row in rows] + [np.full(self.size, -1, np.int32)] * missing
            yield Batch(np.stack(inputs), np.stack(targets))

    def _rows(self, tokens: Tokens) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        last = tokens.num_tokens - 1  # predictions there are
        for start in range(0, last, self.stride):
            count = min(self.size, last - start)
            held = tokens.read(start, count + 1)
            inputs, targets = np.zeros(self.size, np.int32), np.full(self.size, -1, np.int32)
            context = 0 if start == 0 else self.size - self.stride
            inputs[:count] = held[:-1]
            targets[context:count] = held[context + 1 :]
            yield inputs, targets
            if start + count == last:
                return


@dataclass(slots=True)
class Score:
    """Sums over scored tokens. Special tokens stand for no text: bits per byte leaves them out."""

    nats: float = 0.0
    tokens: int = 0
    hits: int = 0
    text_nats: float = 0.0
    text_bytes: int = 0

    def count(
        self,
        batch: Batch,
        nats_BT: NDArray[np.float32],
        token_bytes: NDArray[np.int32],
        hits_BT: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count a batch's scored tokens; `token_bytes` (vocab,) is what each id is in UTF-8 bytes."""
        exact_BT = nats_BT.astype(np.float64)
        scored_BT = batch.targets >= 0
        bytes_BT = np.where(scored_BT, token_bytes[np.maximum(batch.targets, 0)], 0)
        self.nats += float(exact_BT.sum())
        self.tokens += int(scored_BT.sum())
        self.hits += 0 if hits_BT is None else int((hits_BT & scored_BT).sum())
        self.text_nats += float(exact_BT[bytes_BT > 0].sum())
        self.text_bytes += int(bytes_BT.sum())

    def add(self, other: "Score") -> None:
        """Count another text's tokens too."""
        self.nats += other.nats
        self.tokens += other.tokens
        self.hits += other.hits
        self.text_nats += other.text_nats
        self.text_bytes += other.text_bytes

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / max(self.tokens, 1)

    @property
    def bits_per_byte(self) -> float:
        """Of text."""
        return self.text_nats / math.log(2) / max(self.text_bytes, 1)

    def figures(self) -> dict[str, float]:
        """Means: loss in nats a token, perplexity, bits per byte, and the share of tokens that were the likeliest."""
        return {
            "loss": self.loss,
            "perplexity": perplexity(self.loss),
            "bits_per_byte": self.bits_per_byte,
            "accuracy": self.hits / max(self.tokens, 1),
            "tokens": self.tokens,
            "bytes": self.text_bytes,
        }


def perplexity(loss: float) -> float:
    """exp(loss), or infinity where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def score_tokens(
    model: LanguageModel,
    tokens: Tokens,
    windows: Windows,
    token_bytes: NDArray[np.int32],
    max_batches: int | None = None,
) -> Score:
    """Score a sequence, or its first `max_batches`; `token_bytes` (vocab,) is what each id is in UTF-8 bytes."""
    score = Score()
    for batch in islice(windows.batches(tokens), max_batches):
        nats_BT, hits_BT = model.score(batch)
        score.count(batch, nats_BT, token_bytes, hits_BT)
    return score


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, `size` at a time; the last ones may be fewer."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
