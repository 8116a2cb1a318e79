"""Keys and values of every layer in PyTorch, in memory that grows page by page."""

import torch
from torch import Tensor

from sconce.cache import PAGE, Placement, Rows
from sconce.spec import ModelSpec


class Cache:
    """(2, rows, K, slots, D) a layer, keys before values; `sconce.cache` says what lies where."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        self.rows = Rows(max_len, spec.sliding_window)
        self.spec = spec
        self.layers = [
            torch.zeros((2, 0, spec.num_kv_heads, 0, spec.head_dim), dtype=dtype, device=device)
            for _ in range(spec.num_layers)
        ]

    def reserve(self, rows: int, slots: int) -> None:
        """Have memory for so many rows and slots; what is there stays."""
        self.rows.reserve(rows)
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

    def store(self, layer: int, place: Placement, first_row: int, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        """Put new keys and values in; all that the tokens may see, (2, B, K, seen, D), the new ones among it."""
        rows, length = k_BKTD.shape[0], k_BKTD.shape[2]
        cache = self.layers[layer][:, first_row : first_row + rows]
        if place.start is not None:
            end = place.start + length
            cache[0, :, :, place.start : end] = k_BKTD
            cache[1, :, :, place.start : end] = v_BKTD
        else:
            rows_B1 = torch.arange(rows, device=cache.device)[:, None]
            slots_BT = torch.from_numpy(place.slots).to(cache.device)
            cache[0][rows_B1, :, slots_BT] = k_BKTD.transpose(1, 2)
            cache[1][rows_B1, :, slots_BT] = v_BKTD.transpose(1, 2)
        return cache[:, :, :, : place.seen]

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
