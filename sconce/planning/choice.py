"""Which micro-batch and how much activation checkpointing a device's memory allows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sconce.planning.memory import Memory, Setting, step_memory

FULL_TOKENS = 4096  # from so many tokens at once the matrix products keep a device busy
LEAST_CHUNK = 512  # tokens: below, the matrix products are too thin


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting that was chosen, and the memory it needs. `fits` is False when not even the smallest does."""

    setting: Setting
    memory: Memory
    fits: bool


def divisors(batch_size: int) -> list[int]:
    """Micro-batches that divide a batch, the largest first."""
    return [size for size in range(batch_size, 0, -1) if batch_size % size == 0]


def smaller(batch_size: int, micro_batch_size: int) -> int | None:
    """The next micro-batch to try when one was too large: at most half of it; None after one sequence."""
    return next((size for size in divisors(batch_size) if 2 * size <= micro_batch_size), None)


def with_micro_batch(setting: Setting, size: int, loss_chunk: int | None) -> Setting:
    """The same setting with another micro-batch and the chunk that goes with it."""
    return replace(setting, micro_batch_size=size, options=replace(setting.options, loss_chunk=loss_chunk))


def choose_micro_batch(settings: Iterator[Setting], usable_bytes: int) -> Choice:
    """The first of the settings, the one that trains fastest first, that fits; else the last of them."""
    choice: Choice | None = None
    for setting in settings:
        memory = step_memory(setting)
        choice = Choice(setting, memory, memory.peak <= usable_bytes)
        if choice.fits:
            break
    assert choice is not None, "there is always a micro-batch of one"
    return choice


def best_choice(choices: list[Choice]) -> Choice:
    """Of one choice for each amount of recomputation, the least first: what trains fastest.

    The first that keeps the device busy; where none does, the one with the largest micro-batch; where none fits, the
    one that needs the least.
    """
    fitting = [choice for choice in choices if choice.fits]
    if not fitting:
        return min(choices, key=lambda choice: choice.memory.peak)
    for choice in fitting:
        if choice.setting.tokens >= FULL_TOKENS or not choice.setting.accumulates:
            return choice
    return max(fitting, key=lambda choice: choice.setting.micro_batch_size)


def with_fewer_logits(setting: Setting) -> Iterator[Setting]:
    """The setting, and with half as many tokens' logits at once again and again, down to the least."""
    yield setting
    chunk = setting.options.loss_chunk or setting.tokens
    while chunk > LEAST_CHUNK:
        chunk = max(LEAST_CHUNK, -(-chunk // 2))
        yield replace(setting, options=replace(setting.options, loss_chunk=chunk))
