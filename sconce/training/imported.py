"""A model from elsewhere as a run of ours: its folder, whole or not at all."""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import sconce
from sconce.backend import state_names
from sconce.checkpoint.record import IMPORTED, Checkpoint
from sconce.checkpoint.store import CheckpointStore
from sconce.checkpoint.stream import State
from sconce.config import RunConfig, dump_toml, precision, ramp, to_json
from sconce.errors import ConfigError
from sconce.files import new_folder, write_atomic
from sconce.interop.hf import model_files
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import Tokenizer
from sconce.tokenizer.extras import CONFIG
from sconce.training.recipe import make_optim
from sconce.training.run import RunFolder

HEADER = """\
# Written by `sconce import`. Name the text to go on with in data.train_shards, then
#   sconce train --config training.toml --run-dir . --resume
# Every key is explained in docs/configuration.md (`sconce config docs`). Paths are relative to this file.
"""
TEXT_IS_ELSEWHERE = 'data.train_shards=["corpus.txt"]'  # the override of a run that does not find its text


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of an import; `notes` says what is not as it was, one line each."""

    source: Path
    checkpoint: Path
    step: int
    total_steps: int
    num_params: int
    precision: str
    has_moments: bool
    knows_text: bool
    notes: tuple[str, ...]


def tokenizer_place(out: Path) -> str:
    """Where the run at `out` will have its tokenizer."""
    return str(out.resolve() / "tokenizer" / "tokenizer.json")


def model_table(spec: ModelSpec) -> dict[str, object]:
    """The config's `model` section that describes this model, dropout aside."""
    scaling = {} if spec.rope_scaling is None else asdict(spec.rope_scaling)
    table: dict[str, object] = {
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "num_layers": spec.num_layers,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_position_embeddings,
        "vocab_size": spec.vocab_size,
        "norm": spec.norm,
        "norm_eps": spec.norm_eps,
        "qk_norm": spec.qk_norm,
        "mlp": spec.mlp,
        "activation": spec.activation,
        "attention_bias": spec.attention_bias,
        "attention_output_bias": spec.attention_output_bias,
        "mlp_bias": spec.mlp_bias,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "rope_scaling": {key: value for key, value in scaling.items() if value is not None},
    }
    return table if spec.sliding_window is None else {**table, "sliding_window": spec.sliding_window}


def check_vocabulary(tokenizer: Tokenizer, spec: ModelSpec, model: Path) -> None:
    """Raise ConfigError when the tokenizer has ids that the model has no embedding for."""
    if tokenizer.vocab_size > spec.vocab_size:
        raise ConfigError(
            f"{tokenizer.path}: {tokenizer.vocab_size} tokens, and the embedding of {model} has "
            f"{spec.vocab_size}: not the tokenizer this model was trained with"
        )


def write_run(out: Path, config: RunConfig, spec: ModelSpec, tokenizer: Tokenizer, *, step: int, state: State) -> Path:
    """Make the run folder `out` with a training.toml, the tokenizer and one checkpoint; return the checkpoint's path.

    Raises SconceError when the folder holds something already, and what `state` raises: then nothing is left.
    """
    files = model_files(spec, tokenizer)
    with new_folder(out) as folder:
        home = folder / "tokenizer"
        home.mkdir()
        write_atomic(home / "tokenizer.json", tokenizer.content)
        write_atomic(home / CONFIG, files[CONFIG])
        write_atomic(folder / "training.toml", dump_toml(config, HEADER, out))
        files["run.json"] = json.dumps(to_json(config), indent=2).encode()
        store = CheckpointStore(RunFolder(folder).checkpoints, keep=1)
        names = state_names(spec, make_optim(config))
        saved = store.save(state, names, _facts(config, step), files=files, is_best=False)
    return RunFolder(out).checkpoints / saved.name


def _facts(config: RunConfig, step: int) -> Checkpoint:
    stages = ramp(config)
    return Checkpoint(
        step=step,
        tokens=stages.places(step),
        cursor={"fingerprint": None, "seed": config.runtime.seed, "rows_consumed": stages.rows(step)},
        best=None,
        backend=IMPORTED,
        precision=precision(config),
        versions={"sconce": sconce.__version__, "numpy": np.__version__, "python": platform.python_version()},
        hardware={},
    )
