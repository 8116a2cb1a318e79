"""Config files of the earlier system: its names are ours, and what differs is turned into ours here, and said.

What keeps its promise under another name is moved. What cannot be kept stays where it is, so that it is refused with
the advice of `sconce.config.advice`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import cast

from sconce.config.advice import ADVICE
from sconce.config.read import Table, flat, inner_table

ROPE_MODES = ("preapply", "pre-applied", "pre", "on_the_fly", "onthefly", "online", "auto")
KEEP_ALL = 1_000_000  # checkpoints: more than any disk holds
# Optional there, with no value meaning what it means here to leave the key out.
_NULLABLE = (
    "model.rope_theta",
    "runtime.evaluation",
    "runtime.checkpoint",
    "model.attn_dropout",
    "model.residual_dropout",
    "scheduler.warmup_steps",
    "scheduler.min_lr",
    "runtime.checkpoint.every_n_steps",
    "runtime.logging.tensorboard",
    *ADVICE,
)

# To another name, with all that their values say. None of scheduler.max_lr is moved but its absence.
_MOVED = {
    "data.num_workers": "data.prefetch",
    "runtime.checkpoint.directory": "runtime.run_dir",
    "scheduler.max_lr": "scheduler.power",
}


def paths_base(table: Table, folder: Path) -> Path:
    """What the relative paths of a file in `folder` are relative to; to be asked before `translate`.

    That is `folder`, but for a file that the earlier system's `orchestrate` wrote into its run folder: there they are
    relative to where it was called, from where runtime.checkpoint.directory names that very folder.
    """
    section, name = _locate(table, "runtime.checkpoint.directory")
    directory = section.get(name)
    run = PurePath(directory).parent if isinstance(directory, str) else PurePath()
    if run.is_absolute() or not run.parts or folder.parts[-len(run.parts) :] != run.parts:
        return folder
    return folder.parents[len(run.parts) - 1]


def translate(table: Table) -> list[str]:
    """Turn the earlier system's keys in `table` into ours, in place; returns a line for each that changed."""
    for key in _NULLABLE:
        section, name = _locate(table, key)
        if name in section and section[name] is None:
            del section[name]
    notes: list[str] = []
    for key, rule in _RULES.items():
        section, name = _locate(table, key)
        if name in section and (note := rule(table, section[name])) is not None:
            notes.append(f"{key}: {note}")
    return notes


def override_of(key: str, value: object) -> dict[str, object] | None:
    """What an override of the earlier system sets here, by key, a None taking a value away. None where it has no such
    meaning, or would be ignored, which in a file is said and of an override refused."""
    if value is None and key in _MOVED:
        return {_MOVED[key]: None}
    if value is not None and key not in _MOVED:
        return None
    table: Table = {}
    _set_default(table, key, value)
    translate(table)
    turned = dict(flat(table))
    return None if turned == {key: value} else turned


def _locate(table: Table, key: str) -> tuple[Table, str]:
    """The inner table that would hold `key`, empty where there is none, and its name there."""
    *sections, name = key.split(".")
    return inner_table(table, sections) or {}, name


def _drop(table: Table, key: str) -> None:
    section, name = _locate(table, key)
    del section[name]


def _set_default(table: Table, key: str, value: object) -> bool:
    """Give `key` a value unless it has one; False where it has another one, or the file holds no table there."""
    *sections, name = key.split(".")
    for depth in range(len(sections)):
        outer = inner_table(table, sections[:depth])
        if outer is None or not isinstance(outer.setdefault(sections[depth], {}), dict):
            return False
    section = inner_table(table, sections)
    return section is not None and section.setdefault(name, value) == value


def _rope_mode(table: Table, value: object) -> str | None:
    if value not in ROPE_MODES:
        return None
    _drop(table, "model.rope_mode")
    return f"{value} is how positions always enter here"


def _vocab_files(table: Table, key: str) -> str | None:
    section, _ = _locate(table, key)
    if section.get("tokenizer_json") is None:
        return None
    _drop(table, key)
    return "not read, as tokenizer.tokenizer_json is given"


def _special_tokens(table: Table, _: object) -> str:
    _drop(table, "tokenizer.special_tokens")
    return "not read, as a tokenizer.json holds its special tokens"


def _shuffle_buffer(table: Table, _: object) -> str:
    _drop(table, "data.shuffle_buffer_size")
    return "not needed, as every epoch is shuffled as a whole"


def _num_workers(table: Table, value: object) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    if not _set_default(table, "data.prefetch", max(1, value)):
        return None
    _drop(table, "data.num_workers")
    return f"is data.prefetch = {max(1, value)} here, the batches made ahead"


def _max_grad_norm(table: Table, value: object) -> str | None:
    if value is not None:
        return None
    section, name = _locate(table, "optimizer.max_grad_norm")
    section[name] = 0.0
    return "no value is 0 here: gradients are not clipped"


def _max_lr(table: Table, value: object) -> str | None:
    scheduler, _ = _locate(table, "scheduler.max_lr")
    if scheduler.get("strategy") == "polynomial":
        if not _set_default(table, "scheduler.power", value):
            return None
        _drop(table, "scheduler.max_lr")
        return f"was polynomial's exponent, which is scheduler.power = {value} here"
    optimizer, _ = _locate(table, "optimizer.learning_rate")
    if optimizer.get("learning_rate") != value:
        return None
    _drop(table, "scheduler.max_lr")
    return "says again what optimizer.learning_rate says"


def _checkpoint_directory(table: Table, value: object) -> str | None:
    if not isinstance(value, str) or PurePath(value).name != "checkpoints":
        return None
    folder = str(PurePath(value).parent)
    if not _set_default(table, "runtime.run_dir", folder):
        return None
    _drop(table, "runtime.checkpoint.directory")
    return f"is checkpoints/ of runtime.run_dir = {folder} here; --run-dir names another"


def _max_keep(table: Table, value: object) -> str | None:
    if value is not None:
        return None
    section, name = _locate(table, "runtime.checkpoint.max_keep")
    section[name] = KEEP_ALL
    return f"no value kept every checkpoint, which is {KEEP_ALL} here"


def _evaluation_steps(table: Table, value: object) -> str | None:
    if value is not None:
        return None
    _drop(table, "runtime.evaluation.every_n_steps")
    return "no value meant never; what is held out is measured at the default's steps and at the end here"


def _best(table: Table, value: object) -> str | None:
    known = isinstance(value, dict) and cast(Table, value).keys() <= {"directory", "max_keep"}
    if not known or not _set_default(table, "runtime.checkpoint.save_best", True):
        return None
    _drop(table, "runtime.evaluation.best")
    return "is runtime.checkpoint.save_best = true here: the best one stays in checkpoints/, and BEST points at it"


def _enable_stdout(table: Table, value: object) -> str | None:
    if value is not True:
        return None
    _drop(table, "runtime.logging.enable_stdout")
    return "true is how it always is here; --quiet is the other"


def _tensorboard(table: Table, value: object) -> str | None:
    if not isinstance(value, str):
        return None
    section, name = _locate(table, "runtime.logging.tensorboard")
    section[name] = True
    return f"{value} is true here: the files go to tensorboard/ in the run folder"


def _flush(table: Table, _: object) -> str:
    _drop(table, "runtime.logging.tensorboard_flush_every_n")
    return "not needed, as figures are flushed by time"


_RULES: dict[str, Callable[[Table, object], str | None]] = {
    "model.rope_mode": _rope_mode,
    "tokenizer.vocab": lambda table, _: _vocab_files(table, "tokenizer.vocab"),
    "tokenizer.merges": lambda table, _: _vocab_files(table, "tokenizer.merges"),
    "tokenizer.special_tokens": _special_tokens,
    "data.shuffle_buffer_size": _shuffle_buffer,
    "data.num_workers": _num_workers,
    "optimizer.max_grad_norm": _max_grad_norm,
    "scheduler.max_lr": _max_lr,
    "runtime.checkpoint.directory": _checkpoint_directory,
    "runtime.checkpoint.max_keep": _max_keep,
    "runtime.evaluation.every_n_steps": _evaluation_steps,
    "runtime.evaluation.best": _best,
    "runtime.logging.enable_stdout": _enable_stdout,
    "runtime.logging.tensorboard": _tensorboard,
    "runtime.logging.tensorboard_flush_every_n": _flush,
}


# What a key left out meant there, where it means something else here. A size of the model is not among them: the
# earlier defaults were those of a model of seven billion parameters, which nobody meant.
_SILENT: dict[str, object] = {
    "optimizer.weight_decay": 0.0,
    "optimizer.max_grad_norm": 0.0,
    "scheduler.strategy": "constant",
    "runtime.precision": "bf16",
    "runtime.log_every_n_steps": 100,
    "data.document": "line",
}
_ARCHITECTURE: dict[str, object] = {"mlp": "plain", "activation": "silu", "attention_bias": True, "mlp_bias": True}
_WAS_IGNORED = {
    "model.num_key_value_heads": "fewer than query heads is grouped-query attention",
    "model.rope_theta": "the base of the rotary embedding",
    "data.cache_dir": "where token shards are built",
    "data.sequence_length": "predictions a row",
}


def migrate(table: Table) -> list[str]:
    """`translate`, and then write down what the file left to the earlier system; returns a line for each change.

    The result describes the model that the earlier system would have trained, on the batches that it meant.
    """
    notes = [f"{key}: was ignored, and works now: {what}" for key, what in _WAS_IGNORED.items() if _has(table, key)]
    notes += translate(table)
    notes += _batches(table)
    notes += _min_lr(table)
    for key, value in _SILENT.items():
        if not _has(table, key) and _set_default(table, key, value):
            notes.append(f"{key}: left out, which meant {_toml(value)}: written down")
    written = [name for name, value in _ARCHITECTURE.items() if _set_default(table, f"model.{name}", value)]
    if written:
        notes.append(
            f"model: {', '.join(written)} written down, so that it is the same model; without them a gated MLP without "
            "biases, which usually learns better"
        )
    notes += _held_out(table)
    return notes


def _has(table: Table, key: str) -> bool:
    section, name = _locate(table, key)
    return section.get(name) is not None


def _batches(table: Table) -> Iterator[str]:
    data, _ = _locate(table, "data.batch_size")
    batch, steps = data.get("batch_size", 8), data.get("gradient_accumulation_steps")
    if isinstance(batch, int) and isinstance(steps, int) and 0 < batch < steps:
        data["batch_size"] = batch * steps
        yield (
            f"data.batch_size: {batch} sequences cannot be accumulated over {steps} steps; {batch} at once was meant, "
            f"so {batch * steps} a step"
        )


def _min_lr(table: Table) -> Iterator[str]:
    scheduler, _ = _locate(table, "scheduler.min_lr")
    strategy = scheduler.get("strategy", "constant")
    if "min_lr" in scheduler and strategy in ("constant", "linear_warmup"):
        del scheduler["min_lr"]
        yield f"scheduler.min_lr: dropped, as {strategy} never read it"


def _held_out(table: Table) -> Iterator[str]:
    data, _ = _locate(table, "data.validation_shards")
    held_out = data.get("validation_shards")
    if held_out and held_out == data.get("train_shards"):
        del data["validation_shards"]
        yield (
            "data.validation_shards: dropped, as it was the training text; data.validation_fraction of the documents "
            "is held out"
        )


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
