"""The earlier system's config file, as far as it says how an imported run goes on.

Its keys have our names, and where they mean something else it is here: its `batch_size` is the optimizer step's too,
`scheduler.max_lr` was polynomial decay's exponent, no `total_steps` meant no schedule at all, and `min_lr` was ignored
by strategies without a decay.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from sconce.config.earlier import paths_base
from sconce.config.overrides import absolutize
from sconce.config.read import read_table
from sconce.errors import ConfigError
from sconce.interop.earlier import EarlierCheckpoint

Table = dict[str, object]

DEFAULT_POSITIONS = 2048  # where its config was silent
MORE_STEPS = 1000  # that a run without a known horizon goes on for
_ROPE_OFF = ("off", "disabled")
_ROPE_MODES = ("preapply", "pre-applied", "pre", "on_the_fly", "onthefly", "online", "auto")
_DECAYING = ("cosine", "cosine_with_warmup", "polynomial")
_OPTIMIZER = ("learning_rate", "weight_decay", "beta1", "beta2", "epsilon", "max_grad_norm")


class EarlierConfig:
    """One such file, or with no path what is assumed without one."""

    def __init__(self, path: Path | None) -> None:
        """Raises ConfigError when it cannot be read, or describes a model without positions."""
        self.path = path
        self._values: Table = {} if path is None else read_table(path)
        if path is not None:
            absolutize(self._values, paths_base(self._values, path.resolve().parent))
        mode = self._get("model", "rope_mode") or "on_the_fly"
        if mode in _ROPE_OFF:
            raise ConfigError(
                f"{path}: model.rope_mode is {mode!r}: a model without rotary embedding has no positions, and Sconce "
                "has no such model"
            )
        if mode not in _ROPE_MODES:
            raise ConfigError(f"{path}: model.rope_mode is {mode!r}; the earlier system knows {', '.join(_ROPE_MODES)}")

    def num_heads(self, option: int | None) -> int:
        """Attention heads, by the --heads option and the file. Raises ConfigError unless exactly one number remains."""
        known = self._integer("model", "num_attention_heads")
        if option is not None and known is not None and option != known:
            raise ConfigError(f"--heads {option}, and {self.path} has model.num_attention_heads {known}")
        found = known if option is None else option
        if found is None:
            where = f"{self.path} has no model.num_attention_heads" if self.path else "no tensor says it"
            raise ConfigError(f"how many attention heads? {where}: give --heads, or --config with the old config file")
        return found

    def positions(self, option: int | None) -> int | None:
        """Longest sequence: the option, else the file, else None."""
        return option or self._integer("model", "max_position_embeddings")

    def check_sizes(self, checkpoint: EarlierCheckpoint) -> None:
        """Raise ConfigError if the file describes another model than the tensors."""
        found = {
            "hidden_size": checkpoint.hidden_size,
            "intermediate_size": checkpoint.intermediate_size,
            "num_layers": checkpoint.num_layers,
            "vocab_size": checkpoint.vocab_size,
        }
        wrong = [
            f"model.{key} is {said}, the tensors have {size}"
            for key, size in found.items()
            if (said := self._integer("model", key)) not in (None, size)
        ]
        if wrong:
            raise ConfigError(f"{self.path}: not the config of {checkpoint.path}: {'; '.join(wrong)}")

    def training(self, step: int) -> dict[str, Table]:
        """Tables `data`, `optimizer` and `scheduler` of a Sconce config that goes on from `step`, unchecked.

        Raises ConfigError for an optimizer that the earlier system never had.
        """
        if self.path is None:
            return {"data": {"document": "line"}, "optimizer": {}, "scheduler": _constant(step)}
        data: Table = {"document": "line", **self._some("data", ("batch_size", "gradient_accumulation_steps"))}
        shards, held_out = self._paths("train_shards"), self._paths("validation_shards")
        if shards:
            data["train_shards"] = shards
            if held_out and held_out != shards:  # text trained on would hold nothing out
                data["validation_shards"] = held_out
        algorithm = self._get("optimizer", "algorithm")
        if algorithm not in (None, "adam_w"):
            raise ConfigError(
                f"{self.path}: optimizer.algorithm: found {algorithm!r}; the earlier system trained with adam_w alone"
            )
        optimizer = {"weight_decay": 0.0, "max_grad_norm": 0.0, **self._some("optimizer", _OPTIMIZER)}
        return {"data": data, "optimizer": optimizer, "scheduler": self._scheduler(step)}

    def seed(self) -> Table:
        """`runtime.seed` if the file has it."""
        return self._some("runtime", ("seed",))

    def dropout(self) -> Table:
        """`model.attn_dropout` and `model.residual_dropout` where the file has them, unchecked."""
        return self._some("model", ("attn_dropout", "residual_dropout"))

    def notes(self) -> list[str]:
        """What of the file has no counterpart here."""
        found: list[str] = []
        if self._get("scheduler", "total_epochs") is not None:
            found.append("scheduler.total_epochs is dropped: the steps count (scheduler.total_steps)")
        return found

    def _scheduler(self, step: int) -> Table:
        if self._get("scheduler", "total_steps") is None:
            return _constant(step)
        table = {"strategy": "constant", **self._some("scheduler", ("strategy", "warmup_steps", "total_steps"))}
        if table["strategy"] in _DECAYING:
            table |= self._some("scheduler", ("min_lr",))
        if table["strategy"] == "polynomial" and (power := self._get("scheduler", "max_lr")) is not None:
            table["power"] = power
        return table

    def _paths(self, key: str) -> list[str]:
        """The files of a list that are still there; none if one is gone, for the rest would be another corpus."""
        value = self._get("data", key)
        paths = [str(item) for item in cast(list[object], value)] if isinstance(value, list) else []
        return paths if all(Path(path).exists() for path in paths) else []

    def _some(self, section: str, keys: tuple[str, ...]) -> Table:
        return {key: value for key in keys if (value := self._get(section, key)) is not None}

    def _integer(self, section: str, key: str) -> int | None:
        value = self._get(section, key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            return value
        raise ConfigError(f"{self.path}: {section}.{key}: found {value!r}, expected a whole number above 0")

    def _get(self, section: str, key: str) -> object:
        table = self._values.get(section)
        return cast(Mapping[str, object], table).get(key) if isinstance(table, dict) else None


def _constant(step: int) -> Table:
    return {"strategy": "constant", "total_steps": step + MORE_STEPS}
