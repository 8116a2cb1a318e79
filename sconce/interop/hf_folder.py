"""A Hugging Face model folder, ours or another's: the model it describes, and its weights in float32."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sconce.config.read import Table, read_table
from sconce.errors import CheckpointError, ConfigError, in_short
from sconce.interop.hf import CLASSES, architecture, not_taken_over, spec_from_config
from sconce.interop.raw_tensors import RawTensors
from sconce.spec import ModelSpec

Array = NDArray[np.float32]

CONFIG = "config.json"
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DERIVED = "rotary_emb.inv_freq"  # older files keep what follows from the config
_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class HFFolder:
    """A model whose config is understood and whose tensors have the right names and shapes, their values unread."""

    path: Path
    config: Table
    spec: ModelSpec
    files: Mapping[str, RawTensors]  # by parameter
    notes: tuple[str, ...]

    @property
    def precision(self) -> str:
        """What the weights are stored in: fp32, fp16, bf16 or several."""
        return " and ".join(sorted({tensors.precision_of(name) for name, tensors in self.files.items()}))

    def weights(self) -> Iterator[tuple[str, Array]]:
        """Every parameter in the spec's order. Raises CheckpointError for a value that is not a number."""
        for param in self.spec.params():
            yield param.name, self.files[param.name][param.name]


def is_hf_folder(path: Path) -> bool:
    """Whether a folder has a config.json."""
    return (path / CONFIG).is_file()


def read_hf_folder(path: Path, max_position_embeddings: int | None = None) -> HFFolder:
    """The model in a folder with config.json and safetensors files; the positions may be other than it says.

    Raises CheckpointError, in one line, for a class or a feature that Sconce's models do not have, and for weights
    that are not there, not safetensors, or not this model's.
    """
    try:
        config = read_table(path / CONFIG)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    spec = _spec(path, config)
    if max_position_embeddings is not None:
        spec = replace(spec, max_position_embeddings=max_position_embeddings)
    files = _files_by_tensor(path)
    notes = [f"config.json: not taken over: {', '.join(unused)}" for unused in [not_taken_over(config)] if unused]
    return HFFolder(path=path, config=config, spec=spec, files=_checked(path, spec, files, notes), notes=tuple(notes))


def _spec(path: Path, config: Table) -> ModelSpec:
    try:
        spec = spec_from_config(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}/{error}") from None
    named: object = config.get("architectures")
    wanted = architecture(str(config["model_type"]))
    if wanted is not None and named not in (None, [], [wanted]):
        raise CheckpointError(f"{path}/{CONFIG}: architectures is {in_short(named)}; expected {wanted} alone")
    if spec.num_heads % spec.num_kv_heads or spec.head_dim % 2:
        raise CheckpointError(
            f"{path}/{CONFIG}: {spec.num_heads} heads of width {spec.head_dim} over {spec.num_kv_heads} for keys and "
            "values: expected an even width, and a number that divides the other"
        )
    return spec


def _files_by_tensor(path: Path) -> dict[str, RawTensors]:
    """The file of each tensor. Raises CheckpointError when there are none, or one that the index names is missing."""
    if (path / INDEX).is_file():
        names = _weight_map(path)
        opened = {name: _open(path, name) for name in sorted(set(names.values()))}
        places = {tensor: opened[name] for tensor, name in names.items()}
        lost = [tensor for tensor, tensors in places.items() if tensor not in tensors]
        if lost:
            raise CheckpointError(f"{path / INDEX}: {_list(lost)} not in the file it names")
        return places
    if (path / MODEL).is_file():
        tensors = RawTensors(path / MODEL)
        return dict.fromkeys(tensors, tensors)
    pickled = next((name for name in _PICKLES if (path / name).exists()), None)
    if pickled is not None:
        raise CheckpointError(
            f"{path / pickled}: a pickle, which can run any code when it is read: load it where you trust it, and "
            "save it as safetensors (transformers: model.save_pretrained)"
        )
    raise CheckpointError(f"{path}: no weights here; expected {MODEL}, or {INDEX} and the files it names")


def _weight_map(path: Path) -> dict[str, str]:
    try:
        index: object = json.loads((path / INDEX).read_bytes())
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path / INDEX}: not JSON") from None
    found = cast(dict[str, object], index).get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path / INDEX}: no weight_map in it")
    places = cast(dict[str, object], found)
    return {tensor: str(name) for tensor, name in places.items()}


def _open(path: Path, name: str) -> RawTensors:
    if Path(name).name != name or not (path / name).is_file():
        raise CheckpointError(f"{path / INDEX}: names {in_short(name)}, and there is no such file beside it")
    return RawTensors(path / name)


def _checked(path: Path, spec: ModelSpec, files: Mapping[str, RawTensors], notes: list[str]) -> dict[str, RawTensors]:
    """The files of this model's parameters. Raises CheckpointError naming all that is missing, unknown, misshapen."""
    expected = {param.name: param.shape for param in spec.params()}
    missing = [name for name in expected if name not in files]
    unknown = sorted(name for name in files if name not in expected and not name.endswith(_DERIVED))
    if unknown == [HEAD] and not missing:
        if not np.array_equal(files[HEAD][HEAD], files[EMBEDDING][EMBEDDING]):
            raise CheckpointError(
                f"{path}: {HEAD} differs from the embedding, though config.json says tie_word_embeddings: which of "
                "both is right? correct config.json, or drop the tensor"
            )
        notes.append(f"{HEAD} is the embedding once more, as the config says: left out")
        unknown = []
    faults = [f"missing {_list(missing)}"] if missing else []
    faults += [f"unknown {_list(unknown)}"] if unknown else []
    shapes = {name: files[name].entries[name].shape for name in expected if name in files}
    wrong = [f"{name} has shape {list(shapes[name])}, expected {list(expected[name])}" for name in shapes]
    faults += [text for name, text in zip(shapes, wrong, strict=True) if shapes[name] != expected[name]][:_SHOWN]
    if faults:
        classes = ", ".join(CLASSES)
        raise CheckpointError(
            f"{path}: these tensors are not the model of its config.json (Sconce reads {classes}): {'; '.join(faults)}"
        )
    return {name: files[name] for name in expected}


def _list(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
