"""Keys and values of every layer in PyTorch, in memory that grows page by page."""

from typing import NamedTuple

import torch
from torch import Tensor

from sconce.cache import PAGE, Placement, Rows
from sconce.spec import ModelSpec


class Target(NamedTuple):
    """Where the tokens of one feed go in every layer: side by side into `slots`, or each to its own (B, T) of them."""

    rows: slice
    slots: slice | Tensor
    rows_B1: Tensor | None
    seen: int


class Cache:
    """(2, rows, K, slots, D) a layer, keys before values; `sconce.cache` says what lies where."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        self.rows = Rows(max_len, spec.sliding_window)
        self.spec = spec
        self.layers = [
            torch.zeros((2, 0, spec.num_kv_heads, 0, spec.head_dim), dtype=dtype, device=device)
            for _ in range(spec.num_layers)
        ]

    def place(self, first_row: int, rows: int, length: int) -> tuple[Placement, Target]:
        """Places for `length` tokens, at most CHUNK, appended to each of `rows` rows, with memory for them."""
        stop = first_row + rows
        self.rows.reserve(stop)
        place = self.rows.place(first_row, rows, length)
        self._reserve(stop, place.seen)
        if place.start is not None:
            slots = slice(place.start, place.start + length)
            return place, Target(slice(first_row, stop), slots, None, place.seen)
        device = self.layers[0].device
        rows_B1 = torch.arange(first_row, stop, device=device)[:, None]
        return place, Target(slice(first_row, stop), torch.from_numpy(place.slots).to(device), rows_B1, place.seen)

    def _reserve(self, rows: int, slots: int) -> None:
        """Have memory for so many rows and slots; what is there stays."""
        held_rows, held_slots = self.layers[0].shape[1], self.layers[0].shape[3]
        if held_rows >= rows and held_slots >= slots:
            return
        pages = min(-(-slots // PAGE) * PAGE, self.rows.num_slots)
        shape = (2, max(held_rows, rows), self.spec.num_kv_heads, max(held_slots, pages), self.spec.head_dim)
        for layer, held in enumerate(self.layers):
            # Zeros: a masked slot still enters a product, where a stray NaN would not vanish.
            grown = held.new_zeros(shape)
            grown[:, :held_rows, :, :held_slots] = held
            self.layers[layer] = grown

    def store(self, layer: int, target: Target, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Put new keys and values in; all that the tokens may see, (2, B, K, seen, D), the new ones among it."""
        cache = self.layers[layer]
        if target.rows_B1 is None:
            cache[0, target.rows, :, target.slots] = k_BTKD.transpose(1, 2)
            cache[1, target.rows, :, target.slots] = v_BTKD.transpose(1, 2)
        else:
            cache[0][target.rows_B1, :, target.slots] = k_BTKD.to(cache.dtype)
            cache[1][target.rows_B1, :, target.slots] = v_BTKD.to(cache.dtype)
        return cache[:, target.rows, :, : target.seen]

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        filled = self.rows.filled
        filled[target] = filled[source]
        seen = min(int(filled[source]), self.rows.num_slots)
        for cache in self.layers:
            cache[:, target, :, :seen] = cache[:, source, :, :seen]

    def clear(self, first_row: int) -> None:
        """Forget the rows from `first_row` on; with the last of them the memory goes too."""
        self.rows.filled[first_row:] = 0
        if first_row == 0:
            self.layers = [cache.new_zeros((2, 0, *cache.shape[2:3], 0, cache.shape[4])) for cache in self.layers]
