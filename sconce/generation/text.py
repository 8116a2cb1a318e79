"""Text out of a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

from sconce.backend import ComputeOptions, Hardware, load_backend
from sconce.checkpoint.load import open_checkpoint
from sconce.errors import DataError
from sconce.generation.generate import generate
from sconce.generation.sampling import Sampling
from sconce.interop.hf import spec_from_config
from sconce.optim import OptimSpec
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer


def continue_text(
    place: Path, prompt: str, *, max_tokens: int, sampling: Sampling, seed: int, hardware: Hardware
) -> Iterator[str]:
    """Pieces of text that continue `prompt`, from the checkpoint at `place` (or the latest of that run).

    Ends after `max_tokens`, where a document ends, or at the model's last position. Raises CheckpointError when
    there is no intact checkpoint, and DataError for a prompt that fills every position.
    """
    checkpoint = open_checkpoint(place)
    tokenizer = load_tokenizer(checkpoint.path / "tokenizer.json")
    spec = spec_from_config(checkpoint.table("config.json"))
    ids = tokenizer.encode(prompt) or [tokenizer.eos_id]
    room = spec.max_position_embeddings - len(ids)
    if room < 1:
        raise DataError(f"the prompt is {len(ids)} tokens long; the model has {spec.max_position_embeddings} positions")
    learner = load_backend(hardware).learner(spec, OptimSpec(), ComputeOptions(), checkpoint.weights)
    tokens = generate(
        learner, ids, max_tokens=min(max_tokens, room), sampling=sampling, seed=seed, stop_id=tokenizer.eos_id
    )
    return _pieces(tokenizer, tokens)


def _pieces(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    written: list[int] = []
    shown = ""
    for token in tokens:
        written.append(token)
        text = tokenizer.decode(written)
        # A token may end inside a character, which decodes to a replacement mark until its rest has come.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(written)[len(shown) :]
