"""Who sees whom, and attention that leaves out the keys which no query of a block sees.

PyTorch's fused kernels skip the future of a plain row themselves; given a mask they compute all of it.
"""

from collections.abc import Generator

import torch
from torch import Tensor

from sconce_torch.products import attend, computed_in

BLOCK = 512  # queries
ALIGNED = 8  # keys; CUDA's memory-efficient kernel copies a bias whose rows are no multiple of that, in each layer


def visible(queries_T: Tensor, keys_S: Tensor, window: int | None) -> Tensor:
    """True (T, S) where the query at one position sees the key at another: itself and what came before."""
    distance_TS = queries_T[:, None] - keys_S
    return distance_TS >= 0 if window is None else (distance_TS >= 0) & (distance_TS < window)


def biases_of(
    length: int, window: int | None, segments_BT: Tensor | None, dtype: torch.dtype, device: torch.device, block: int
) -> tuple[Tensor, ...]:
    """What to add to the scores, `block` queries T at a time, each (1 or B, 1, T, S): 0 for a key seen, or -inf.

    The S keys of a block end with its last query, and begin about where the first is that any of it may see. Numbers
    and not bools, as each layer would make its own numbers of them and keep those for its gradient.
    """
    biases: list[Tensor] = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = 0 if window is None else max(0, start - window + 1) // ALIGNED * ALIGNED
        mask = visible(torch.arange(start, stop, device=device), torch.arange(first, stop, device=device), window)[None]
        if segments_BT is not None:
            mask = mask & (segments_BT[:, start:stop, None] == segments_BT[:, None, first:stop])
        biases.append(torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, float("-inf"))[:, None])
    return tuple(biases)


def attend_in_blocks(q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, biases: tuple[Tensor, ...]) -> Generator[Tensor]:
    """Attention of one block after the other, (B, N, T, D) each, as `biases_of` cuts them."""
    dtype, lengths = q_BNTD.dtype, [bias.shape[2] for bias in biases]
    made_in = computed_in(dtype, q_BNTD.device)  # cast here: `attend` would keep a copy for each block that sees it
    q_BNTD, k_BKTD, v_BKTD = q_BNTD.to(made_in), k_BKTD.to(made_in), v_BKTD.to(made_in)
    stop = 0
    for q, bias in zip(q_BNTD.split(lengths, dim=2), biases, strict=True):
        stop += bias.shape[2]
        seen = slice(stop - bias.shape[3], stop)
        yield attend(q, k_BKTD[:, :, seen], v_BKTD[:, :, seen], mask=bias, causal=False).to(dtype)
