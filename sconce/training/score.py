"""`sconce eval` as one call: a checkpoint against its run's held-out text, or any other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sconce.checkpoint.load import load_folder
from sconce.config import config_from_resolved
from sconce.data.sources import DocumentRule, list_sources
from sconce.errors import ConfigError, DataError
from sconce.generation.model import TextModel
from sconce.generation.score import HeldTokens, Score, Tokens, Windows, score_tokens
from sconce.tokenizer.bpe import Tokenizer
from sconce.training.data import stored_data
from sconce.training.stream import CachedStream

HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """Text files or folders to score, or none for what the run holds out; and the windows, None for the longest.

    Files fall into documents by `rule`, as in training: each is followed by the end-of-text token.
    """

    texts: Sequence[Path] = ()
    rule: DocumentRule = "passage"
    window: int | None = None
    stride: int | None = None
    batch_size: int = 8
    max_batches: int | None = None


class _Part:
    """Some tokens of a longer sequence."""

    def __init__(self, whole: Tokens, start: int, count: int) -> None:
        self.num_tokens = count
        self._whole, self._start = whole, start

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        return self._whole.read(self._start + start, count)


def score_model(model: TextModel, options: ScoreOptions) -> Iterator[tuple[str, Score]]:
    """Each source's name with its score, one after another.

    Raises ConfigError for windows that cannot be, DataError for text that cannot be used.
    """
    positions, (size, stride) = model.spec.max_position_embeddings, _window(model, options)
    if size > positions:
        raise ConfigError(f"--window {size}: the model has {positions} positions")
    if stride > size:
        raise ConfigError(f"--stride {stride}: more than the window of {size} would leave tokens out")
    windows = Windows(size=size, stride=stride, batch_size=options.batch_size)
    token_bytes = np.zeros(max(model.spec.vocab_size, model.tokenizer.vocab_size), np.int32)
    token_bytes[: model.tokenizer.vocab_size] = model.tokenizer.token_bytes
    for name, tokens in _sources(model, options):
        if tokens.num_tokens < 2:
            raise DataError(f"{name}: {tokens.num_tokens} tokens, and only a second one can be predicted")
        yield name, score_tokens(model.model, tokens, windows, token_bytes, options.max_batches)


def settings_of(model: TextModel, options: ScoreOptions) -> dict[str, str | int | float | bool | None]:
    """What must be said, beside the text and the model, to measure the same again."""
    size, stride = _window(model, options)
    rule = options.rule if options.texts else None
    return {"window": size, "stride": stride, "max_batches": options.max_batches, "document": rule}


def _window(model: TextModel, options: ScoreOptions) -> tuple[int, int]:
    size = options.window or model.spec.max_position_embeddings
    return size, options.stride or size


def _sources(model: TextModel, options: ScoreOptions) -> Iterator[tuple[str, Tokens]]:
    if not options.texts:
        yield from _held_out(model)
        return
    for source in list_sources(options.texts):
        documents = (document.decode() for document in source.documents(options.rule))
        yield source.name, HeldTokens(_encode(model.tokenizer, documents))


def _encode(tokenizer: Tokenizer, documents: Iterator[str]) -> NDArray[np.int32]:
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document)
        ids.append(tokenizer.eos_id)
    return np.array(ids, np.int32)


def _held_out(model: TextModel) -> Iterator[tuple[str, Tokens]]:
    """What the run holds out: of each of its paths by themselves, if it has several and knows whose is whose."""
    loaded = load_folder(model.path, verify=False)
    if "run.json" not in loaded.record.files:
        raise DataError(f"{model.path}: no run's config in it, so no held-out text is known: name text with --text")
    config = config_from_resolved(loaded.run_config, str(model.path / "run.json"))
    root = model.path.resolve().parent.parent
    stored = stored_data(config, root, model.tokenizer, loaded, verify=True, advice="name text with --text")
    tokens = stored.held_out() if isinstance(stored, CachedStream) else stored
    paths = tokens.manifest.validation_paths or tokens.manifest.paths
    counts = tokens.manifest.held_out_tokens
    if sum(count > 1 for count in counts) < 2:
        yield HELD_OUT, tokens.validation
        return
    for path, start, count in zip(paths, accumulate(counts, initial=0), counts, strict=False):
        if count > 1:
            yield f"{HELD_OUT}: {path}", _Part(tokens.validation, start, count)
