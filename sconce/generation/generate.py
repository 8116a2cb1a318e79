"""One sequence of token ids, for who has no use for text."""

from collections.abc import Iterator, Sequence

from sconce.generation.engine import Decodes, Engine, Request
from sconce.generation.sampling import Sampling


def generate(
    model: Decodes,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Token ids that continue `prompt` (at least one id), ending at `stop_id` or after `max_tokens`."""
    engine = Engine(model, rows=1, max_len=len(prompt) + max_tokens)
    stop_ids = frozenset(() if stop_id is None else (stop_id,))
    engine.add(Request(prompt=prompt, max_tokens=max_tokens, sampling=sampling, seed=seed, stop_ids=stop_ids))
    while not engine.idle:
        for event in engine.step():
            if event.token is not None:
                yield event.token
