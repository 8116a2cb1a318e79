"""The earlier system's streaming_config.json: beside a config, it makes the run train on a stream."""

import json
from pathlib import Path
from typing import cast

from sconce.config.read import Table, inner_table
from sconce.errors import ConfigError, DataError
from sconce.hub_address import SCHEME, HubAddress, is_hub, parse_address

NAME = "streaming_config.json"
_KINDS: dict[str, type] = {
    "dataset": str,
    "split": str,
    "max_samples": int,
    "stream_batch_size": int,
    "experiment": str,
}


def apply_streaming_file(table: Table, folder: Path) -> list[str]:
    """Put what such a file in `folder` says into a config's tables; lines that say what changed.

    A config that speaks of streaming itself is left as it is. Raises ConfigError for a file that cannot be used.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    (fields, address), data = _read(path), table.setdefault("data", {})
    if inner_table(table, ["data"]) is None:
        return []  # a fault of the config's, which is found there
    if "streaming" in data:
        return [f"{NAME}: not read, as the config has data.streaming itself"]
    data |= {"streaming": True, "train_shards": [str(address)]}
    data |= {key: fields[key] for key in ("max_samples", "stream_batch_size") if fields.get(key) is not None}
    notes = [f"{NAME}: streams {address}"]
    if fields.get("experiment") is not None:
        notes.append(f"{NAME}: experiment: not read, as a run is named by its folder")
    if data.pop("validation_shards", None):
        notes.append(f"{NAME}: data.validation_shards is not read: documents of the stream are held out by their hash")
    return notes


def dataset_address(dataset: str, split: str | None = None, config: str | None = None) -> HubAddress:
    """The address of a data set given by its name, org/name, or an address itself. Raises DataError."""
    address = parse_address(dataset if is_hub(dataset) else SCHEME + dataset)
    return HubAddress(
        repo=address.repo,
        revision=address.revision,
        config=config or address.config,
        split=split or address.split,
    )


def _read(path: Path) -> tuple[dict[str, object], HubAddress]:
    """Its fields, and the address of the data set that they name."""
    try:
        parsed: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path}: expected an object with dataset and split, found {type(parsed).__name__}")
    fields = cast(dict[str, object], parsed)
    for key, value in fields.items():
        if key not in _KINDS:
            raise ConfigError(f"{path}: {key}: unknown key; expected {', '.join(_KINDS)}")
        if value is not None and (not isinstance(value, _KINDS[key]) or isinstance(value, bool)):
            raise ConfigError(f"{path}: {key}: found {json.dumps(value)}, expected {_KINDS[key].__name__}")
    if missing := [key for key in ("dataset", "split") if not fields.get(key)]:
        raise ConfigError(f"{path}: {missing[0]}: missing; expected, for example, HuggingFaceFW/fineweb and train")
    try:
        return fields, dataset_address(str(fields["dataset"]), str(fields["split"]))
    except DataError as error:
        raise ConfigError(f"{path}: dataset: {error}") from None
