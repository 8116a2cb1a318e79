"""The generate loop: prefill the prompt once, then one token at a time over the decoder's cache."""

from collections.abc import Iterator, Sequence

import numpy as np

from sconce.backend import Learner
from sconce.generation.sampling import Sampling, sample_token


def generate(
    learner: Learner,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Token ids that continue `prompt` (at least one id), ending at `stop_id` or after `max_tokens`."""
    rng = np.random.default_rng(seed)
    decoder = learner.decoder(rows=1, max_len=len(prompt) + max_tokens)
    fed = np.array([prompt], np.int32)
    for _ in range(max_tokens):
        token = sample_token(decoder.feed(fed)[0], sampling, rng)
        if token == stop_id:
            return
        yield token
        fed = np.array([[token]], np.int32)
