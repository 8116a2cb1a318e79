"""Checks between keys: pure functions of a config whose single values are already right."""

import math
from collections.abc import Iterator, Mapping
from typing import get_args

from sconce.config.schema import RunConfig, Section, Strategy
from sconce.config.stages import ramp
from sconce.errors import DataError
from sconce.hub_address import is_hub, parse_address
from sconce.ramp import Ramp
from sconce.rope import scaling_faults

LEAST_SHARE = 1 / 2000  # of a source: the order of rows knows shares of a 4096th

Relation = tuple[tuple[str, ...], str]
"""The keys involved, the first being the one to report at, and what is wrong."""

# Keys that not every algorithm or strategy uses, and those that do.
_CHOICES = {"optimizer": "algorithm", "scheduler": "strategy"}
_USERS: Mapping[str, tuple[str, ...]] = {
    "optimizer.beta1": ("adam_w", "adam", "lion", "muon"),
    "optimizer.beta2": ("adam_w", "adam", "lion", "muon"),
    "optimizer.epsilon": ("adam_w", "adam", "muon"),
    "optimizer.momentum": ("sgd", "muon"),
    "scheduler.min_lr": ("cosine", "cosine_with_warmup", "polynomial", "wsd"),
    "scheduler.power": ("polynomial",),
    "scheduler.decay_steps": ("wsd",),
}

WITHOUT_MIN_LR = frozenset(get_args(Strategy)) - {*_USERS["scheduler.min_lr"]}
"""Strategies that stay at their peak."""


def relation_faults(config: RunConfig) -> Iterator[Relation]:
    """Every contradiction between keys."""
    yield from _model(config)
    yield from _rope(config)
    yield from _data(config)
    yield from _dropout(config)
    yield from _without_effect(config)
    yield from _schedule(config)


def _model(config: RunConfig) -> Iterator[Relation]:
    model = config.model
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if model.head_dim is None and model.hidden_size % heads:
        yield (
            ("model.hidden_size", "model.num_attention_heads"),
            f"found {model.hidden_size}, expected a multiple of model.num_attention_heads {heads} "
            "(or set model.head_dim)",
        )
    elif model.head_dim is None and model.hidden_size // heads % 2:
        yield (
            ("model.hidden_size", "model.num_attention_heads"),
            f"found {model.hidden_size}, which makes heads of {model.hidden_size // heads}; rotary embedding needs "
            "an even width",
        )
    if kv_heads is not None and heads % kv_heads:
        yield (
            ("model.num_key_value_heads", "model.num_attention_heads"),
            f"found {kv_heads}, expected a divisor of model.num_attention_heads {heads}",
        )


def _rope(config: RunConfig) -> Iterator[Relation]:
    model = config.model
    scaling = model.rope_scaling
    for key, message in scaling_faults(scaling.rope_type, scaling.model_dump(exclude={"rope_type"})):
        yield (f"model.rope_scaling.{key}", "model.rope_scaling.rope_type"), message
    if scaling.rope_type == "yarn" and model.rope_theta <= 1:
        yield ("model.rope_theta", "model.rope_scaling.rope_type"), f"found {model.rope_theta}; yarn needs more than 1"
    if not (model.attention_output_bias or model.attention_bias):
        yield (
            ("model.attention_output_bias", "model.attention_bias"),
            "found false, which would do nothing without model.attention_bias",
        )


def _dropout(config: RunConfig) -> Iterator[Relation]:
    length = ramp(config).longest
    probabilities = config.model.num_attention_heads * length**2
    if config.model.attn_dropout > 0 and probabilities >= 2**31:
        yield (
            ("model.attn_dropout", "data.sequence_length"),
            f"would draw {probabilities:,} numbers a row and layer, expected at most {2**31:,}: use a shorter "
            "sequence, or model.residual_dropout alone",
        )


def _data(config: RunConfig) -> Iterator[Relation]:
    data = config.data
    if config.tokenizer.tokenizer_json is None:
        yield ("tokenizer.tokenizer_json",), "missing; expected the path of a tokenizer.json"
    if not data.train_shards:
        here = _lines('train_shards = ["corpus/"]', "validation_fraction = 0.05")
        no_other = ["validation_shards = []"] if data.validation_shards else []
        streamed = _lines('train_shards = ["hf://org/name"]', "streaming = true", *no_other)
        yield (
            ("data.train_shards",),
            f"missing; expected a list of text files or folders; write instead:{here}\nor, to stream a data set of the "
            f"Hugging Face hub:{streamed}",
        )
    longest = config.model.max_position_embeddings
    if data.sequence_length is not None and data.sequence_length > longest:
        yield (
            ("data.sequence_length", "model.max_position_embeddings"),
            f"found {data.sequence_length}, expected at most model.max_position_embeddings {longest}",
        )
    yield from _mixture(config)
    yield from _stages(config)
    yield from _addresses(config)
    yield from _stream(config) if config.data.streaming else _without_stream(config)
    keys = ("data.batch_size", "data.micro_batch_size", "data.gradient_accumulation_steps")
    batch, micro, accumulation = ramp(config).largest_batch, data.micro_batch_size, data.gradient_accumulation_steps
    if data.stages and accumulation is not None:
        yield keys[::-1], "means nothing with data.stages, where it changes: set data.micro_batch_size"
        return
    if micro is not None and (batch % micro or accumulation not in (None, 1, batch // micro)):
        fitting = max(size for size in range(1, min(micro, batch) + 1) if batch % size == 0)
        advice = _lines(f"micro_batch_size = {fitting}", f"gradient_accumulation_steps = {batch // fitting}")
        yield keys, _instead(batch, f"micro-batches of {micro}", accumulation or 1, advice)
    elif micro is None and accumulation is not None and batch < accumulation:  # what is held at once was meant
        advice = _lines(f"batch_size = {batch * accumulation}", f"gradient_accumulation_steps = {accumulation}")
        yield keys, _instead(batch, "equal micro-batches", accumulation, advice)
    elif micro is None and accumulation is not None and batch % accumulation:
        fitting = max(steps for steps in range(1, min(accumulation, batch) + 1) if batch % steps == 0)
        advice = _lines(f"batch_size = {batch}", f"gradient_accumulation_steps = {fitting}")
        yield keys, _instead(batch, "equal micro-batches", accumulation, advice)


def _addresses(config: RunConfig) -> Iterator[Relation]:
    data = config.data
    for key, paths in (("data.train_shards", data.train_shards), ("data.validation_shards", data.validation_shards)):
        for path in filter(is_hub, paths):
            try:
                parse_address(path)
            except DataError as error:
                yield (key,), str(error)


def _without_stream(config: RunConfig) -> Iterator[Relation]:
    for name in ("window_tokens", "cache_limit_gb", "max_samples", "stream_batch_size"):
        if getattr(config.data, name) != type(config.data).model_fields[name].default:
            yield (f"data.{name}", "data.streaming"), "would do nothing without data.streaming = true"


def _stream(config: RunConfig) -> Iterator[Relation]:
    data, key = config.data, "data.streaming"
    if local := [path for path in data.train_shards if not is_hub(path)]:
        yield (
            ("data.train_shards", key),
            f"{local[0]} is a local path, and data.streaming is for data sets on the hub, hf://org/name: leave "
            "data.streaming out",
        )
    if data.packing != "concat":
        yield ("data.packing", key), f"found {data.packing}, which needs all documents at once: with streaming, concat"
    if data.weights:
        yield ("data.weights", key), "a stream is read in order and mixes nothing: leave data.weights or streaming out"
    if data.validation_shards:
        yield (
            ("data.validation_shards", key),
            "with streaming, data.validation_fraction of the first window's documents is held out: leave it out",
        )
    if config.scheduler.total_epochs is not None:
        yield (
            ("scheduler.total_epochs", key),
            "how long a stream is shows only at its end: write scheduler.total_steps instead",
        )


def _mixture(config: RunConfig) -> Iterator[Relation]:
    data, key = config.data, "data.weights"
    if len(data.weight_steps) != max(0, len(data.weights) - 1):
        yield (
            ("data.weight_steps", key),
            f"found {len(data.weight_steps)} steps, expected one less than the {len(data.weights)} lists of weights",
        )
    if list(data.weight_steps) != sorted(set(data.weight_steps)):
        yield ("data.weight_steps",), f"found {list(data.weight_steps)}, expected steps that rise"
    for weights in data.weights:
        if len(weights) != len(data.train_shards):
            yield (
                (key, "data.train_shards"),
                f"found {len(weights)} weights, expected one for each of the {len(data.train_shards)} paths of "
                "data.train_shards",
            )
        elif any(0 < weight < sum(weights) * LEAST_SHARE for weight in weights) or not sum(weights):
            yield (key,), f"found {list(weights)}, expected each to be 0 or at least {LEAST_SHARE:.2%} of them together"


def _stages(config: RunConfig) -> Iterator[Relation]:
    data, key = config.data, "data.stages"
    steps = [stage.from_step for stage in data.stages]
    if steps != sorted(set(steps)):
        yield (key,), f"found from_step {', '.join(map(str, steps))}, expected steps that rise"
        return
    for number, stage in enumerate(data.stages):
        if stage.batch_size is None and stage.sequence_length is None:
            yield (key,), f"found only from_step in [{number}], expected batch_size, sequence_length or both beside it"
    found, longest = ramp(config), config.model.max_position_embeddings
    lengths = sorted({stage.seq_len for stage in found.stages})
    if any((stage.sequence_length or 0) > longest for stage in data.stages):
        yield (
            (key, "model.max_position_embeddings"),
            f"found sequence_length {lengths[-1]}, expected at most model.max_position_embeddings {longest}",
        )
    unfit = [length for length in lengths if lengths[-1] % length]
    if unfit:
        yield (
            (key, "data.sequence_length"),
            f"found sequence_length {unfit[0]}, expected a divisor of the longest, {lengths[-1]}: shorter rows are "
            "equal parts of long ones",
        )
        return
    changes = [(step, key) for step in steps] + [(step, "data.weight_steps") for step in data.weight_steps]
    for step, changed in sorted(changes):
        if found.places(step) % found.longest:
            yield (changed, "data.batch_size"), _uneven(found, step)
            return


def _uneven(found: Ramp, step: int) -> str:
    """Rows of a stage are parts of long rows, of which none may be left over: the step where it comes out even."""
    stage = found.at(step - 1)
    every = found.longest // math.gcd(found.longest, stage.batch_size * stage.seq_len)
    even = stage.first_step + -(-(step - stage.first_step) // every) * every
    return (
        f"found a change at step {step}, where the rows of {stage.seq_len} used so far are not whole rows of "
        f"{found.longest}, and parts of one would be lost; write instead: {even}"
    )


def _instead(batch: int, wanted: str, accumulation: int, advice: str) -> str:
    return (
        f"found {batch} sequences per optimizer step, which are not {wanted} in {accumulation} accumulation "
        f"step(s); write instead:{advice}"
    )


def _lines(*lines: str) -> str:
    """Lines of a file, each on its own and moved in, to be copied as they are."""
    return "".join(f"\n  {line}" for line in lines)


def _without_effect(config: RunConfig) -> Iterator[Relation]:
    """Idle keys that were given: the optimizer's even with their default, as it is no default of that algorithm.

    A schedule's are allowed at their default, which files that spell every key out hold.
    """
    for key in idle_keys(config):
        section, name = key.split(".")
        part: Section = getattr(config, section)
        default = type(part).model_fields[name].default
        harmless = section == "scheduler" and getattr(part, name) == default
        if name in part.model_fields_set and getattr(part, name) is not None and not harmless:
            choice, users = _CHOICES[section], _USERS[key]
            yield (
                (key, f"{section}.{choice}"),
                f"would do nothing with {choice} {getattr(part, choice)}; it is for {', '.join(users)}; leave {name} "
                "out, or write instead:" + _lines(f'{choice} = "{users[0]}"'),
            )


def idle_keys(config: RunConfig) -> list[str]:
    """The keys that do nothing with this config's algorithm and strategy."""

    def choice(section: str) -> str:
        return getattr(getattr(config, section), _CHOICES[section])

    return [key for key, users in _USERS.items() if choice(key.split(".")[0]) not in users]


def _schedule(config: RunConfig) -> Iterator[Relation]:
    scheduler, peak = config.scheduler, config.optimizer.learning_rate
    steps, epochs = scheduler.total_steps, scheduler.total_epochs
    if (steps is None) == (epochs is None):
        found, advice = "neither", "write instead"
        if steps is not None:
            found, advice = "both", "leave one out, as --override KEY=null does, and keep"
        counted, passed = _lines(f"total_steps = {steps or 10000}"), _lines(f"total_epochs = {epochs or 1:g}")
        yield (
            ("scheduler.total_steps", "scheduler.total_epochs"),
            f"found {found}, expected either scheduler.total_steps or scheduler.total_epochs; {advice}:"
            f"{counted}\nor, to count passes over the text:{passed}",
        )
    if scheduler.total_steps is not None and scheduler.warmup_steps > scheduler.total_steps:
        yield (
            ("scheduler.warmup_steps", "scheduler.total_steps"),
            f"found {scheduler.warmup_steps}, expected at most scheduler.total_steps {scheduler.total_steps}",
        )
    if scheduler.min_lr > peak:
        yield (
            ("scheduler.min_lr", "optimizer.learning_rate"),
            f"found {scheduler.min_lr}, expected at most optimizer.learning_rate {peak}",
        )
    if scheduler.decay_steps is not None and scheduler.total_steps is not None:
        room = scheduler.total_steps - scheduler.warmup_steps
        if scheduler.decay_steps > room:
            yield (
                ("scheduler.decay_steps", "scheduler.total_steps", "scheduler.warmup_steps"),
                f"found {scheduler.decay_steps}, expected at most the {room} steps after the warm-up",
            )
