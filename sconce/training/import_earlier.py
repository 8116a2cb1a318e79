"""A checkpoint of the earlier system as a run of ours, which `sconce train --resume` goes on with."""

from dataclasses import dataclass, replace
from pathlib import Path

from sconce.config import RunConfig, config_from, model_spec
from sconce.interop.earlier import EarlierCheckpoint, read_earlier
from sconce.interop.earlier_config import DEFAULT_POSITIONS, MORE_STEPS, EarlierConfig, Table
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import load_tokenizer
from sconce.training.imported import Imported, check_vocabulary, model_table, tokenizer_place, write_run


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportJob:
    """What the user asked for. `num_heads` or `config`, the earlier run's config file, has to say the heads."""

    source: Path
    tokenizer: Path
    out: Path
    num_heads: int | None = None
    config: Path | None = None
    max_position_embeddings: int | None = None


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
    check_vocabulary(tokenizer, spec, found.path)
    config = _config(job, earlier, found, spec)
    trained = model_spec(config, tokenizer.vocab_size)  # dropout is not in the tensors
    assert replace(trained, attn_dropout=0.0, residual_dropout=0.0) == spec, "the config describes the model"
    checkpoint = write_run(job.out, config, spec, tokenizer, step=found.step, state=found.state(spec))
    return Imported(
        source=found.path,
        checkpoint=checkpoint,
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
        "model": {**model_table(spec), **earlier.dropout()},
        "tokenizer": {"tokenizer_json": tokenizer_place(job.out)},
        "runtime": seed,
    }
    return config_from(table, str(job.config or found.path), may_lack=["data.train_shards"])


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
