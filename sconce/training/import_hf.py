"""A Hugging Face model as a run of ours, which evaluates, generates, and trains on from step 0."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sconce.backend import WEIGHTS, state_names
from sconce.config import RunConfig, config_from, model_spec
from sconce.config.read import Table, read_table
from sconce.errors import ConfigError, in_short
from sconce.interop.earlier_config import MORE_STEPS
from sconce.interop.hf import DROPOUT
from sconce.interop.hf_folder import HFFolder, read_hf_folder
from sconce.optim import OptimSpec
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.imported import Imported, check_vocabulary, model_table, tokenizer_place, write_run

SEQUENCE_LENGTH = 1024  # to train on, at most: what a model has positions for may not fit as an activation
LEARNING_RATE = 1e-4  # below a pretraining's peak, which would undo what the model knows
WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class HFImportJob:
    """What the user asked for; the tokenizer and the number of positions are the folder's unless given."""

    source: Path
    out: Path
    tokenizer: Path | None = None
    max_position_embeddings: int | None = None


def import_hf(job: HFImportJob) -> Imported:
    """Write a run folder with the model at step 0, its tokenizer and a training.toml: all of it, or nothing.

    Raises CheckpointError, ConfigError or DataError for what cannot be imported, and SconceError when the folder
    holds something already.
    """
    found = read_hf_folder(job.source, job.max_position_embeddings)
    tokenizer = load_tokenizer(job.tokenizer or job.source / "tokenizer.json")
    check_vocabulary(tokenizer, found.spec, job.source)
    config = _config(job, found)
    trained = model_spec(config, tokenizer.vocab_size)
    assert replace(trained, attn_dropout=0.0, residual_dropout=0.0) == found.spec, "the config describes the model"
    checkpoint = write_run(job.out, config, found.spec, tokenizer, step=0, state=_state(found))
    return Imported(
        source=job.source,
        checkpoint=checkpoint,
        step=0,
        total_steps=MORE_STEPS,
        num_params=found.spec.num_params,
        precision=found.precision,
        has_moments=False,
        knows_text=False,
        notes=(*found.notes, *_notes(job, found, tokenizer, config)),
    )


def _state(found: HFFolder) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The weights, and moments that have seen nothing."""
    for name, array in found.weights():
        yield f"{WEIGHTS}/{name}", array
    for name, shape in state_names(found.spec, OptimSpec()):
        if not name.startswith(f"{WEIGHTS}/"):
            yield name, np.zeros(shape, np.float32)


def _config(job: HFImportJob, found: HFFolder) -> RunConfig:
    table: dict[str, Table] = {
        "model": {**model_table(found.spec), **_dropout(found.config)},
        "tokenizer": {"tokenizer_json": tokenizer_place(job.out)},
        "data": {"sequence_length": min(SEQUENCE_LENGTH, found.spec.max_position_embeddings)},
        "optimizer": {"learning_rate": LEARNING_RATE},
        "scheduler": {"total_steps": MORE_STEPS, "warmup_steps": WARMUP_STEPS},
    }
    return config_from(table, str(job.source / "config.json"), may_lack=["data.train_shards"])


def _dropout(config: Table) -> Table:
    """The rates that a config.json has, unchecked: of a class, or of ours in older checkpoints."""
    names = {"attention_dropout": "attn_dropout", **{name: name for name in DROPOUT}}
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs)}


def _notes(job: HFImportJob, found: HFFolder, tokenizer: Tokenizer, config: RunConfig) -> Iterator[str]:
    positions = found.config.get("max_position_embeddings")
    if positions != found.spec.max_position_embeddings:
        yield f"{found.spec.max_position_embeddings} positions, where config.json says {in_short(positions)}"
    stops = _stops(job.source) | _integers(found.config.get("eos_token_id"))
    if others := sorted(stops - {tokenizer.eos_id}):
        yield f"generation stops at token {tokenizer.eos_id}, the tokenizer's end of text, and not at {others}"
    if tokenizer.prefix:
        yield "a prompt begins with BOS, as this tokenizer has it; documents to train on end with EOS and have no BOS"
    if tokenizer.chat_template is not None:
        yield "its chat template comes along: `sconce chat` and `sconce serve` use it"
    yield (
        f"to train on: {MORE_STEPS} steps of {config.data.batch_size} rows of {config.data.sequence_length} tokens, "
        f"rate {LEARNING_RATE:g}, moments from zero; all but the model may be changed in training.toml"
    )


def _stops(folder: Path) -> set[int]:
    """What generation_config.json stops at."""
    try:
        return _integers(read_table(folder / "generation_config.json").get("eos_token_id"))
    except ConfigError:
        return set()  # not there, or of no use


def _integers(value: object) -> set[int]:
    listed = cast(list[object], value) if isinstance(value, list) else [value]
    return {item for item in listed if isinstance(item, int)}
