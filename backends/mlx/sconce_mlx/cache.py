"""Keys and values of every layer in MLX, in memory that grows page by page."""

import mlx.core as mx

from sconce.cache import PAGE, Placement, Rows
from sconce.spec import ModelSpec


class Cache:
    """Keys and values, (rows, K, slots, D) each, a layer; `sconce.cache` says what lies where."""

    def __init__(self, spec: ModelSpec, dtype: mx.Dtype, max_len: int) -> None:
        self.rows = Rows(max_len, spec.sliding_window)
        self.spec = spec
        self.dtype = dtype
        self.layers: list[list[mx.array]] = []
        self._empty()

    def reserve(self, rows: int, slots: int) -> None:
        """Have memory for so many rows and slots; what is there stays."""
        self.rows.reserve(rows)
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

    def store(
        self, layer: int, place: Placement, first_row: int, k_BKTD: mx.array, v_BKTD: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Put new keys and values in; all that the tokens may see, (B, K, seen, D) each, the new ones among it."""
        rows, length = k_BKTD.shape[0], k_BKTD.shape[2]
        stop = first_row + rows
        pair = self.layers[layer]
        if place.start is not None:
            end = place.start + length
            pair[0][first_row:stop, :, place.start : end] = k_BKTD
            pair[1][first_row:stop, :, place.start : end] = v_BKTD
        else:
            rows_B1, slots_BT = mx.arange(first_row, stop)[:, None], mx.array(place.slots)
            pair[0][rows_B1, :, slots_BT] = k_BKTD.swapaxes(1, 2)
            pair[1][rows_B1, :, slots_BT] = v_BKTD.swapaxes(1, 2)
        return pair[0][first_row:stop, :, : place.seen], pair[1][first_row:stop, :, : place.seen]

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
