"""Where tokens stand in a key/value cache: arithmetic on positions, the same for every backend.

Each row is a sequence of its own, at its own length. The token at position p lies in slot p modulo the number of
slots: every position has a slot, unless a sliding window lets a ring of them do.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 256  # tokens fed at once at most, which bounds the memory that a long prompt's scores take
PAGE = 256  # slots; memory grows by so many at a time


class Placement(NamedTuple):
    """Where the tokens of one feed go, and what they see.

    `positions` and `slots` are (B, T). `start` is the slot where every row's tokens begin, side by side, or None when
    rows differ or the ring wraps. Tokens attend to the first `seen` slots: where `mask` (B, 1, T, seen) is True, or
    without one to themselves and all before them.
    """

    positions: NDArray[np.int32]
    slots: NDArray[np.int64]
    start: int | None
    seen: int
    mask: NDArray[np.bool_] | None


class Rows:
    """How many tokens each row holds."""

    def __init__(self, max_len: int, window: int | None) -> None:
        self.max_len = max_len
        self.window = window
        # A chunk's first token sees window - 1 tokens before it while the chunk's last has its slot already.
        self.num_slots = max_len if window is None else min(max_len, window + CHUNK - 1)
        self.filled = np.zeros(0, np.int64)

    def reserve(self, rows: int) -> None:
        """Have at least so many, new ones empty."""
        missing = max(0, rows - self.filled.size)
        self.filled = np.concatenate((self.filled, np.zeros(missing, np.int64)))

    def place(self, first_row: int, rows: int, length: int) -> Placement:
        """Places for `length` tokens, at most CHUNK, appended to each of `rows` rows."""
        before = self.filled[first_row : first_row + rows]
        assert length <= CHUNK
        assert before.max() + length <= self.max_len, "the decoder was made for fewer tokens"
        positions = before[:, None] + np.arange(length)
        slots = positions % self.num_slots
        seen = int(min(before.max() + length, self.num_slots))
        aligned = bool((before == before[0]).all())
        start = int(slots[0, 0]) if aligned and slots[0, 0] + length <= self.num_slots else None
        whole = self.window is None or before.max() + length <= self.window
        mask = None if aligned and whole else self._mask(positions, seen)
        return Placement(positions.astype(np.int32), slots, start, seen, mask)

    def _mask(self, positions: NDArray[np.int64], seen: int) -> NDArray[np.bool_]:
        ends = positions[:, -1:] + 1
        # The last position before a row's end that falls into each slot; negative where none has yet.
        held = ends - 1 - (ends - 1 - np.arange(seen)) % self.num_slots  # (B, seen)
        distance = positions[:, :, None] - held[:, None, :]  # (B, T, seen)
        mask = (held[:, None, :] >= 0) & (distance >= 0)
        if self.window is not None:
            mask &= distance < self.window
        return mask[:, None]
