"""A checkpoint of the earlier system as a run of ours, which `sconce train --resume` goes on with."""

import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import sconce
from sconce.backend import state_names
from sconce.checkpoint.record import IMPORTED, Checkpoint
from sconce.checkpoint.store import CheckpointStore
from sconce.config import RunConfig, config_from, dump_toml, model_spec, precision, ramp, to_json
from sconce.errors import ConfigError
from sconce.files import new_folder, write_atomic
from sconce.interop.earlier import EarlierCheckpoint, read_earlier
from sconce.interop.earlier_config import DEFAULT_POSITIONS, MORE_STEPS, EarlierConfig, Table
from sconce.interop.hf import model_files
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.recipe import make_optim
from sconce.training.run import RunFolder

HEADER = """\
# Written by `sconce import`. Name the text to go on with in data.train_shards, then
#   sconce train --config training.toml --run-dir . --resume
# Every key is explained in docs/configuration.md (`sconce config docs`). Paths are relative to this file.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportJob:
    """What the user asked for. `num_heads` or `config`, the earlier run's config file, has to say the heads."""

    source: Path
    tokenizer: Path
    out: Path
    num_heads: int | None = None
    config: Path | None = None
    max_position_embeddings: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of it; `notes` says what is not as it was, one line each."""

    source: Path
    checkpoint: Path
    step: int
    total_steps: int
    num_params: int
    precision: str
    has_moments: bool
    knows_text: bool
    notes: tuple[str, ...]


def import_earlier(job: ImportJob) -> Imported:
    """Write a run folder with the one checkpoint and a training.toml: all of it, or nothing.

    Raises CheckpointError, ConfigError or DataError for what cannot be imported, and SconceError when the folder
    holds something already.
    """
    earlier = EarlierConfig(job.config)
    num_heads = earlier.num_heads(job.num_heads)
    found = read_earlier(job.source)
    earlier.check_sizes(found)
    spec = found.spec(num_heads, earlier.positions(job.max_position_embeddings) or DEFAULT_POSITIONS)
    tokenizer = load_tokenizer(job.tokenizer)
    if tokenizer.vocab_size > spec.vocab_size:
        raise ConfigError(
            f"{job.tokenizer}: {tokenizer.vocab_size} tokens, and the embedding of {found.path} has "
            f"{spec.vocab_size}: not the tokenizer this model was trained with"
        )
    with new_folder(job.out) as folder:
        home = folder / "tokenizer"
        home.mkdir()
        write_atomic(home / "tokenizer.json", tokenizer.content)
        config = _config(job, earlier, found, spec)
        trained = model_spec(config, tokenizer.vocab_size)  # dropout is not in the tensors
        assert replace(trained, attn_dropout=0.0, residual_dropout=0.0) == spec, "the config describes the model"
        write_atomic(folder / "training.toml", dump_toml(config, HEADER, job.out))
        checkpoint = _write(RunFolder(folder), config, found, spec, tokenizer)
    return Imported(
        source=found.path,
        checkpoint=RunFolder(job.out).checkpoints / checkpoint.name,
        step=found.step,
        total_steps=config.scheduler.total_steps or 0,
        num_params=spec.num_params,
        precision=found.weights.precision,
        has_moments=found.optimizer is not None,
        knows_text=bool(config.data.train_shards),
        notes=_notes(job, earlier, found, config),
    )


def _config(job: ImportJob, earlier: EarlierConfig, found: EarlierCheckpoint, spec: ModelSpec) -> RunConfig:
    """The whole config; its data.train_shards is empty where nobody knows them."""
    tables = earlier.training(found.step)
    seed: Table = earlier.seed() if found.seed is None else {"seed": found.seed}
    table: dict[str, Table] = {
        **tables,
        "model": {
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_attention_heads": spec.num_heads,
            "num_layers": spec.num_layers,
            "max_position_embeddings": spec.max_position_embeddings,
            "vocab_size": spec.vocab_size,
            "norm_eps": spec.norm_eps,
            "mlp": spec.mlp,
            "activation": spec.activation,
            "attention_bias": spec.attention_bias,
            "mlp_bias": spec.mlp_bias,
            "rope_theta": spec.rope_theta,
            "tie_word_embeddings": spec.tie_word_embeddings,
            **earlier.dropout(),
        },
        "tokenizer": {"tokenizer_json": str(job.out.resolve() / "tokenizer" / "tokenizer.json")},
        "runtime": seed,
    }
    return config_from(table, str(job.config or found.path), may_lack=["data.train_shards"])


def _write(run: RunFolder, config: RunConfig, found: EarlierCheckpoint, spec: ModelSpec, tokenizer: Tokenizer) -> Path:
    stages = ramp(config)
    facts = Checkpoint(
        step=found.step,
        tokens=stages.places(found.step),
        cursor={"fingerprint": None, "seed": config.runtime.seed, "rows_consumed": stages.rows(found.step)},
        best=None,
        backend=IMPORTED,
        precision=precision(config),
        versions={"sconce": sconce.__version__, "numpy": np.__version__, "python": platform.python_version()},
        hardware={},
    )
    files = model_files(
        spec,
        tokenizer_json=tokenizer.content,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    files["run.json"] = json.dumps(to_json(config), indent=2).encode()
    store = CheckpointStore(run.checkpoints, keep=1)
    return store.save(found.state(spec), state_names(spec, make_optim(config)), facts, files=files, is_best=False)


def _notes(job: ImportJob, earlier: EarlierConfig, found: EarlierCheckpoint, config: RunConfig) -> tuple[str, ...]:
    notes: list[str] = []
    if found.optimizer is None:
        notes.append(
            "no optimizer state there: the moments begin at zero, so the run begins at step 0, as AdamW's correction "
            "for their youth counts from there"
        )
    elif found.optimizer.masters:
        notes.append("weights are optimizer.json's float32 masters, not their 16-bit copies")
    notes.append("the earlier system decayed every tensor; Sconce decays matrices alone (optimizer.weight_decay)")
    notes.append("the data order starts anew; as before, each line is a document (data.document)")
    if job.config is None:
        notes.append(
            "how it was trained is not known without --config: from here on, batches of "
            f"{config.data.batch_size}, {MORE_STEPS} more steps, a rate of {config.optimizer.learning_rate:g}; "
            "the last two may be changed in training.toml"
        )
    if earlier.positions(job.max_position_embeddings) is None:
        notes.append(
            f"how long its sequences were is not known: {DEFAULT_POSITIONS}, the earlier system's default "
            "(--max-position-embeddings)"
        )
    return (*notes, *earlier.notes())
