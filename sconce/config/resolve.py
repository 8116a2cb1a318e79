"""What a config means: derived values, the model it describes, and how two configs of one run differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic_core import to_jsonable_python

from sconce.config.fields import fields, map_paths, path_keys
from sconce.config.overrides import canonical
from sconce.config.read import flat
from sconce.config.relations import idle_keys
from sconce.config.schema import RunConfig
from sconce.config.stages import ramp, sequence_length
from sconce.errors import ConfigError
from sconce.rope import make_scaling
from sconce.spec import ModelSpec

# What the device decides where it is left open.
PLANNED = ("data.micro_batch_size", "data.gradient_accumulation_steps", "runtime.loss_chunk")
# What defines the run: the model, which rows each step sees, and the rule that the moments belong to.
FIXED = (
    "model.",
    "data.batch_size",
    "data.sequence_length",
    "data.stages",
    "data.document",
    "data.text_field",
    "data.packing",
    "data.weights",
    "data.weight_steps",
    "data.streaming",
    "data.window_tokens",
    "data.max_samples",
    "data.validation_fraction",
    "runtime.seed",
    "optimizer.algorithm",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that two configs disagree on; `allowed` if a run may change it when it is resumed."""

    key: str
    old: object
    new: object
    allowed: bool


def given_micro_batch(config: RunConfig) -> int | None:
    """Sequences the device is to hold at once; None where the config leaves that open."""
    data = config.data
    if data.micro_batch_size is None and data.gradient_accumulation_steps is not None:
        return data.batch_size // data.gradient_accumulation_steps
    return data.micro_batch_size


def micro_batch_size(config: RunConfig) -> int:
    """Sequences of the longest rows that the device holds at once: a whole batch where nothing was given or chosen."""
    return given_micro_batch(config) or ramp(config).largest_batch


def micro_batch_at(config: RunConfig, step: int) -> int:
    """Sequences that the device holds at once after `step` updates.

    The most that divide the batch, and have no more tokens than `micro_batch_size` of the longest rows.
    """
    stages = ramp(config)
    stage = stages.at(step)
    most = micro_batch_size(config) * stages.parts(stage)
    return max(size for size in range(1, min(most, stage.batch_size) + 1) if stage.batch_size % size == 0)


def with_micro_batch(config: RunConfig, size: int, loss_chunk: int | None = None) -> RunConfig:
    """The config with a micro-batch that was chosen, and a loss_chunk unless that is None."""
    changes: dict[str, object] = {"micro_batch_size": size, "gradient_accumulation_steps": None}
    data = config.data.model_copy(update=changes)
    chunk = config.runtime.loss_chunk if loss_chunk is None else loss_chunk
    runtime = config.runtime.model_copy(update={"loss_chunk": chunk})
    return config.model_copy(update={"data": data, "runtime": runtime})


def model_spec(config: RunConfig, vocab_size: int) -> ModelSpec:
    """The model, for a tokenizer of `vocab_size` tokens. Raises ConfigError if model.vocab_size is less."""
    model = config.model
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size: found {model.vocab_size}, expected at least the tokenizer's {vocab_size} tokens"
        )
    return ModelSpec(
        vocab_size=model.vocab_size or vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size or _intermediate_size(config),
        num_layers=model.num_layers,
        num_heads=model.num_attention_heads,
        num_kv_heads=model.num_key_value_heads or model.num_attention_heads,
        head_dim=model.head_dim or model.hidden_size // model.num_attention_heads,
        max_position_embeddings=model.max_position_embeddings,
        norm=model.norm,
        norm_eps=model.norm_eps,
        qk_norm=model.qk_norm,
        mlp=model.mlp,
        activation=model.activation,
        attention_bias=model.attention_bias,
        attention_output_bias=model.attention_output_bias,
        mlp_bias=model.mlp_bias,
        rope_theta=model.rope_theta,
        rope_scaling=make_scaling(model.rope_scaling.rope_type, model.rope_scaling.model_dump(exclude={"rope_type"})),
        tie_word_embeddings=model.tie_word_embeddings,
        sliding_window=model.sliding_window,
        attn_dropout=model.attn_dropout,
        residual_dropout=model.residual_dropout,
    )


def _intermediate_size(config: RunConfig) -> int:
    hidden = config.model.hidden_size
    if config.model.mlp == "plain":
        return 4 * hidden
    return -(-8 * hidden // 3 // 32) * 32  # three matrices of 8/3 hold as many weights as two of 4 (Shazeer 2020)


def precision(config: RunConfig) -> Literal["fp32", "bf16", "fp16"]:
    """What the device computes in: mixed is bf16, as master weights are float32 in every precision."""
    return "bf16" if config.runtime.precision == "mixed" else config.runtime.precision


def recompute_every(config: RunConfig) -> int:
    """Every how many blocks one is computed again for its gradient; 0 for none."""
    kind = config.runtime.activation_checkpointing
    return {"none": 0, "block": 1}[kind] if "-" not in kind else int(kind.removeprefix("every-"))


def beta2(config: RunConfig) -> float:
    """Decay of the second moment, or of Lion's memory (Chen et al. 2023 use 0.99)."""
    given = config.optimizer.beta2
    if given is None:
        return 0.99 if config.optimizer.algorithm == "lion" else 0.95
    return given


def momentum(config: RunConfig) -> float:
    """Of SGD and of Muon's matrices (Jordan et al. 2024 use 0.95)."""
    given = config.optimizer.momentum
    if given is None:
        return 0.9 if config.optimizer.algorithm == "sgd" else 0.95
    return given


def to_json(config: RunConfig) -> dict[str, Any]:
    """The config as JSON values, without what does nothing in it, and with what is derived from other keys."""
    table = _without_idle(config, config.model_dump(mode="json"))
    model, data = table["model"], table["data"]
    model["intermediate_size"] = config.model.intermediate_size or _intermediate_size(config)
    model["num_key_value_heads"] = config.model.num_key_value_heads or config.model.num_attention_heads
    model["head_dim"] = config.model.head_dim or config.model.hidden_size // config.model.num_attention_heads
    data["sequence_length"] = sequence_length(config)
    micro = given_micro_batch(config)
    data["micro_batch_size"] = micro
    data["gradient_accumulation_steps"] = None if micro is None else config.data.batch_size // micro
    if config.data.stages:
        data["gradient_accumulation_steps"] = None  # it changes
    for key, value in (("momentum", momentum(config)), ("beta2", beta2(config))):
        if key in table["optimizer"]:
            table["optimizer"][key] = value
    return table


def _without_idle(config: RunConfig, table: dict[str, Any]) -> dict[str, Any]:
    """The dumped config less the keys that do nothing, which would be refused when it is read again."""
    for key in idle_keys(config):
        section, name = key.split(".")
        table[section].pop(name, None)
    return table


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Keys on which two results of `to_json` disagree; a key that one lacks counts as its default.

    What either leaves to the device agrees with anything, and so do paths: what they hold is identified by hashes, and
    a run may move to another folder or machine.
    """
    before, after = dict(flat(old)), dict(flat(new))
    found: list[Difference] = []
    for key, field in fields().items():
        default = to_jsonable_python(field.get_default(call_default_factory=True))
        a, b = before.get(key, default), after.get(key, default)
        if key not in path_keys() and a != b and not (key in PLANNED and None in (a, b)):
            found.append(Difference(key, a, b, allowed=not key.startswith(FIXED)))
    return found


def dump_toml(config: RunConfig, header: str, relative_to: Path) -> str:
    """The whole config as TOML; paths inside `relative_to` become relative, so that the folder can move."""
    table = _without_idle(config, config.model_dump(mode="json", exclude_none=True))
    base = relative_to.resolve()
    map_paths(table, lambda path: _relative(path, base))
    return header + "\n" + tomli_w.dumps(table)


def _relative(path: str, base: Path) -> str:
    absolute = canonical(Path(path))
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)
