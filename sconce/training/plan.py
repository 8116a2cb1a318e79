"""What a config would need and take on a device, before anything is trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from sconce.config import RunConfig, given_micro_batch, precision, ramp
from sconce.config.resolve import model_spec
from sconce.errors import ConfigError
from sconce.flops import Flops, count_flops
from sconce.planning.choice import Choice, best_choice, choose_micro_batch
from sconce.planning.devices import Device
from sconce.planning.memory import cache_memory
from sconce.ramp import Ramp
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import load_tokenizer
from sconce.training.fit import settings_by_size
from sconce.training.recipe import make_compute

# Of the vendor's peak, or of the measured matrix product where there is none: what well-fed training usually reaches.
# Small models, short rows and thin micro-batches reach less.
ASSUMED_MFU = {"cuda": 0.40, "metal": 0.30, "cpu": 0.50}
CHECKPOINTING = {"none": 0, "every-4": 4, "every-2": 2, "block": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Speed, time and cost. `speed` is the FLOP/s that `mfu` is a share of; `hours` and `cost` (dollars) of the whole
    run are None where the number of steps, or the price, is not known."""

    speed: float
    speed_is: str
    mfu: float
    tokens_per_second: float
    hours: float | None
    price: float | None
    cost: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`configured` is what `sconce train` would do, `chosen` what trains fastest within the device's memory.

    Memory is that of the longest rows of `stages`; `total_tokens` is None where the horizon is in epochs. Estimates go
    by name: configured, chosen; None where the device's speed is not known.
    """

    spec: ModelSpec
    flops: Flops
    device: Device
    precision: str
    stages: Ramp
    configured: Choice
    chosen: Choice
    chosen_checkpointing: str
    cache_bytes: int
    total_tokens: int | None
    configured_estimate: Estimate | None
    chosen_estimate: Estimate | None

    @property
    def keys(self) -> dict[str, object]:
        """The chosen settings, as config keys."""
        setting = self.chosen.setting
        return {
            "data.micro_batch_size": setting.micro_batch_size,
            "runtime.activation_checkpointing": self.chosen_checkpointing,
            "runtime.loss_chunk": setting.options.loss_chunk or 0,
        }

    def as_object(self) -> dict[str, object]:
        """Everything as JSON values, bytes and FLOPs as plain numbers."""
        return {
            "parameters": self.spec.num_params,
            "non_embedding_parameters": non_embedding(self.spec),
            "flops_per_token": {
                **asdict(self.flops),
                "forward": self.flops.forward,
                "training": self.flops.training,
            },
            "device": {**asdict(self.device), "usable_bytes": self.device.usable_bytes},
            "precision": self.precision,
            "stages": [asdict(stage) for stage in self.stages.stages],
            "total_tokens": self.total_tokens,
            "cache_bytes": self.cache_bytes,
            "configured": _choice_object(self.configured, self.configured_estimate),
            "chosen": {**_choice_object(self.chosen, self.chosen_estimate), "keys": self.keys},
        }


def _choice_object(choice: Choice, estimate: Estimate | None) -> dict[str, object]:
    setting = choice.setting
    return {
        "micro_batch_size": setting.micro_batch_size,
        "recompute_every": setting.options.recompute_every,
        "loss_chunk": setting.options.loss_chunk,
        "memory": {**asdict(choice.memory), "peak": choice.memory.peak},
        "fits": choice.fits,
        "estimate": None if estimate is None else asdict(estimate),
    }


def non_embedding(spec: ModelSpec) -> int:
    """Parameters without the embedding table and an untied head."""
    return sum(param.size for param in spec.params() if param.group not in ("embedding", "head"))


def plan_run(
    config: RunConfig,
    device: Device,
    *,
    measured: float | None = None,
    mfu: float | None = None,
    price: float | None = None,
) -> Plan:
    """Plan a config for a device. `measured` FLOP/s stand in where the vendor names no peak.

    `mfu` and `price` (dollars an hour) replace the built-in ones. Raises ConfigError when the vocabulary is not known.
    """
    spec = model_spec(config, _vocab_size(config))
    configured = _as_trained(config, spec, device)
    choices = {
        kind: choose_micro_batch(settings_by_size(_freed(config, kind), spec, device), device.usable_bytes)
        for kind in CHECKPOINTING
    }
    chosen = best_choice(list(choices.values()))
    steps, kind, stages = config.scheduler.total_steps, precision(config), ramp(config)
    tokens = None if steps is None else stages.places(steps)
    speed = device.peak(kind) or measured
    is_peak = device.peak(kind) is not None

    def estimate(choice: Choice) -> Estimate | None:
        if speed is None:
            return None
        share = ASSUMED_MFU[device.kind] if mfu is None else mfu
        rate = speed * share / _flops_per_token(spec, stages, steps, choice.setting.options.recompute_every)
        hours = None if tokens is None else tokens / rate / 3600
        dollars = device.price if price is None else price
        return Estimate(
            speed=speed,
            speed_is="the vendor's peak" if is_peak else "the matrix product measured here",
            mfu=share,
            tokens_per_second=rate,
            hours=hours,
            price=dollars,
            cost=None if hours is None or dollars is None else hours * dollars,
        )

    return Plan(
        spec=spec,
        flops=count_flops(spec, stages.longest, configured.setting.options.recompute_every),
        device=device,
        precision=kind,
        stages=stages,
        configured=configured,
        chosen=chosen,
        chosen_checkpointing=next(kind for kind, choice in choices.items() if choice is chosen),
        cache_bytes=cache_memory(spec, make_compute(config, spec, device.kind), 1, spec.max_position_embeddings),
        total_tokens=tokens,
        configured_estimate=estimate(configured),
        chosen_estimate=estimate(chosen),
    )


def _flops_per_token(spec: ModelSpec, stages: Ramp, steps: int | None, recompute_every: int) -> float:
    """FLOPs computed a token: the mean over a run of so many steps, or of its last stage where that is not known."""
    counted = [count_flops(spec, stage.seq_len, recompute_every) for stage in stages.stages]
    costs = [flops.training + flops.recomputed for flops in counted]
    if steps is None or len(costs) == 1:
        return costs[-1]
    firsts = [min(stage.first_step, steps) for stage in stages.stages] + [steps]
    tokens = [stages.places(last) - stages.places(first) for first, last in pairwise(firsts)]
    return sum(cost * count for cost, count in zip(costs, tokens, strict=True)) / sum(tokens)


def _vocab_size(config: RunConfig) -> int:
    """The tokenizer's, or where it is yet to be made the config's own."""
    path: Path | None = config.tokenizer.tokenizer_json
    assert path is not None, "load_config asks for it"
    if path.is_file():
        return load_tokenizer(path).vocab_size
    if config.model.vocab_size is None:
        raise ConfigError(f"{path}: no such file, so the vocabulary is unknown: make it first, or set model.vocab_size")
    return config.model.vocab_size


def _as_trained(config: RunConfig, spec: ModelSpec, device: Device) -> Choice:
    """The micro-batch that the config gives; else the one that training would choose."""
    return choose_micro_batch(settings_by_size(config, spec, device, given_micro_batch(config)), device.usable_bytes)


def _freed(config: RunConfig, checkpointing: str) -> RunConfig:
    """The config with that activation checkpointing, and its loss_chunk left open."""
    changes: Mapping[str, object] = {"activation_checkpointing": checkpointing, "loss_chunk": None}
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=changes)})
