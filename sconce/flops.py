"""Floating-point operations of a model, counted from its spec. A multiply-add is two."""

from collections.abc import Sequence
from dataclasses import dataclass

from sconce.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """FLOPs a token, forward, by part. Norms, rotations and activations are not counted: they are not matrix products.

    `projections` are the blocks' linear layers, `attention` is q.k and p.v over the keys that are seen, `head` makes
    the logits. `recomputed` is what activation checkpointing computes a second time, in one training step.
    """

    projections: int
    attention: int
    head: int
    recomputed: int

    @property
    def forward(self) -> int:
        """One pass over a token."""
        return self.projections + self.attention + self.head

    @property
    def training(self) -> int:
        """Forward and backward, which costs twice as much (Kaplan et al. 2020); without what is recomputed."""
        return 3 * self.forward


def count_flops(spec: ModelSpec, seq_len: int, recompute_every: int = 0, pieces: Sequence[int] | None = None) -> Flops:
    """FLOPs a token of a model at rows of `seq_len`, averaged over their positions.

    `pieces` are the lengths, in tokens, of what attention does not leave: documents that share rows. Without them that
    is the row.
    """
    projections = 2 * sum(param.size for param in spec.params() if param.group == "matrix")
    lengths = pieces or [seq_len]
    pairs = sum(keys_seen(length, spec.sliding_window) for length in lengths)
    attention = spec.num_layers * 4 * spec.num_heads * spec.head_dim * pairs // sum(lengths)
    blocks = -(-spec.num_layers // recompute_every) if recompute_every else 0
    return Flops(
        projections=projections,
        attention=attention,
        head=2 * spec.vocab_size * spec.hidden_size,
        recomputed=(projections + attention) * blocks // spec.num_layers,
    )


def keys_seen(seq_len: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees, over a row: the causal half, cut to the window."""
    width = min(window or seq_len, seq_len)
    return width * (width + 1) // 2 + (seq_len - width) * width
