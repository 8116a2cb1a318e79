"""Keys and values of every layer in MLX, in memory that grows page by page."""

from typing import NamedTuple

import mlx.core as mx

from sconce.cache import PAGE, Placement, Rows
from sconce.spec import ModelSpec


class Target(NamedTuple):
    """Where the tokens of one feed go in every layer: side by side into `slots`, or each to its own (B, T) of them."""

    rows: slice
    slots: slice | mx.array
    rows_B1: mx.array | None
    seen: int


class Cache:
    """Keys and values, (rows, K, slots, D) each, a layer; `sconce.cache` says what lies where."""

    def __init__(self, spec: ModelSpec, dtype: mx.Dtype, max_len: int) -> None:
        self.rows = Rows(max_len, spec.sliding_window)
        self.spec = spec
        self.dtype = dtype
        self.layers: list[list[mx.array]] = []
        self._empty()

    def place(self, first_row: int, rows: int, length: int) -> tuple[Placement, Target]:
        """Places for `length` tokens, at most CHUNK, appended to each of `rows` rows, with memory for them."""
        stop = first_row + rows
        self.rows.reserve(stop)
        place = self.rows.place(first_row, rows, length)
        self._reserve(stop, place.seen)
        if place.start is not None:
            slots = slice(place.start, place.start + length)
            return place, Target(slice(first_row, stop), slots, None, place.seen)
        rows_B1 = mx.arange(first_row, stop)[:, None]
        return place, Target(slice(first_row, stop), mx.array(place.slots), rows_B1, place.seen)

    def _reserve(self, rows: int, slots: int) -> None:
        """Have memory for so many rows and slots; what is there stays."""
        held_rows, _, held_slots, _ = self.layers[0][0].shape
        if held_rows >= rows and held_slots >= slots:
            return
        pages = min(-(-slots // PAGE) * PAGE, self.rows.num_slots)
        shape = (max(held_rows, rows), self.spec.num_kv_heads, max(held_slots, pages), self.spec.head_dim)
        for pair in self.layers:
            for index, held in enumerate(pair):
                # Zeros: a masked slot still enters a product, where a stray NaN would not vanish.
                grown = mx.zeros(shape, self.dtype)
                if held.size:
                    grown[:held_rows, :, :held_slots] = held
                pair[index] = grown

    def store(self, layer: int, target: Target, k_BKTD: mx.array, v_BKTD: mx.array) -> tuple[mx.array, mx.array]:
        """Put new keys and values in; all that the tokens may see, (B, K, seen, D) each, the new ones among it."""
        keys, values = self.layers[layer]
        if target.rows_B1 is None:
            keys[target.rows, :, target.slots] = k_BKTD
            values[target.rows, :, target.slots] = v_BKTD
        else:
            keys[target.rows_B1, :, target.slots] = k_BKTD.swapaxes(1, 2)
            values[target.rows_B1, :, target.slots] = v_BKTD.swapaxes(1, 2)
        return keys[target.rows, :, : target.seen], values[target.rows, :, : target.seen]

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        filled = self.rows.filled
        filled[target] = filled[source]
        seen = min(int(filled[source]), self.rows.num_slots)
        for pair in self.layers:
            for cache in pair:
                cache[target, :, :seen] = cache[source, :, :seen]

    def clear(self, first_row: int) -> None:
        """Forget the rows from `first_row` on; with the last of them the memory goes too."""
        self.rows.filled[first_row:] = 0
        if first_row == 0:
            self._empty()

    def _empty(self) -> None:
        shape = (0, self.spec.num_kv_heads, 0, self.spec.head_dim)
        self.layers = [[mx.zeros(shape, self.dtype) for _ in range(2)] for _ in range(self.spec.num_layers)]
