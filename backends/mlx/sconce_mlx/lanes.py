"""Halves of a batch side by side, for MLX's CPU, whose streams do all but matrix products on one thread.

A GPU is filled by one stream.
"""

import os
import threading

import mlx.core as mx

if mx.default_device() == mx.Device(mx.cpu):
    # MLX orders what it computes breadth first until a level is so wide, then depth first: one lane after the other.
    # What reads this is MLX's first computation.
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "100000")

_of_thread = threading.local()  # MLX's streams serve the thread alone that made them


def lanes() -> list[mx.Stream]:
    """One stream, or two on a processor: more would each hold gradients of all weights."""
    device = mx.default_device()
    first = mx.default_stream(device)
    if device != mx.Device(mx.cpu):
        return [first]
    if not hasattr(_of_thread, "second"):
        _of_thread.second = mx.new_stream(device)
    return [first, _of_thread.second]


def shares(rows: int, streams: int) -> list[slice]:
    """At most so many parts of a batch's rows, in order and as even as whole rows allow."""
    size = -(-rows // streams)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
