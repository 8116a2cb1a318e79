"""Checkpoints of the system before Sconce (transformer_candle): its weights, AdamW's moments and its progress.

A checkpoint is a folder `step_…_global_…` with model.safetensors, optimizer.json (decimal text) and manifest.json. Its
model is one of ours under other names, with two differences in layout:

    qkv            one matrix, its rows the queries, then the keys, then the values; here three matrices
    rotary pairs   dimensions (2i, 2i + 1) of a head turn together; here (i, i + head_dim / 2) do

Both only reorder rows of weights and biases, and AdamW works on each value alone, so the same reordering carries its
moments over. How many heads the rows make is in no tensor: whoever imports has to say it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sconce.backend import state_names
from sconce.errors import CheckpointError, ConfigError, in_short
from sconce.files import sha256_file
from sconce.interop.raw_tensors import RawTensors
from sconce.optim import SLOTS, OptimSpec
from sconce.spec import ModelSpec

Array = NDArray[np.float32]
Shape = tuple[int, ...]

VERSION = 1
MODEL = "model.safetensors"
MANIFEST = "manifest.json"
STEP_BITS = 40  # more updates than anyone does, and tokens are still counted in 64 bits
_BLOCK = re.compile(r"blocks\.(\d+)\.")
# Our module: theirs, and which third of its rows is ours.
_MODULES: Mapping[str, tuple[str, int | None]] = {
    "input_layernorm": ("norm_attn", None),
    "self_attn.q_proj": ("qkv", 0),
    "self_attn.k_proj": ("qkv", 1),
    "self_attn.v_proj": ("qkv", 2),
    "self_attn.o_proj": ("out_proj", None),
    "post_attention_layernorm": ("norm_mlp", None),
    "mlp.up_proj": ("mlp.up_proj", None),
    "mlp.down_proj": ("mlp.down_proj", None),
}
_TURNED = ("q_proj", "k_proj")  # what the rotary embedding turns
_FIELDS = ("master", "first_moment", "second_moment")  # of optimizer.json, in the order of ours


@dataclass(frozen=True, slots=True)
class EarlierOptimizer:
    """optimizer.json: updates done, and by parameter name the float32 master weights, where kept, and the moments."""

    step: int
    masters: Mapping[str, Array]
    first_moments: Mapping[str, Array]
    second_moments: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierCheckpoint:
    """One checkpoint, its names and shapes checked. Weights are read as they are asked for; the rest is in memory."""

    path: Path
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    weights: RawTensors
    optimizer: EarlierOptimizer | None
    seed: int | None

    @property
    def step(self) -> int:
        """Updates done that can be gone on from: without the moments, whose correction counts them, none."""
        return self.optimizer.step if self.optimizer is not None else 0

    def spec(self, num_heads: int, max_position_embeddings: int) -> ModelSpec:
        """The model. Raises ConfigError for a number of heads that its width cannot have."""
        hidden = self.hidden_size
        if num_heads < 1 or hidden % num_heads:
            raise ConfigError(f"{num_heads} heads do not divide the hidden size {hidden} of {self.path}")
        if hidden // num_heads % 2:
            raise ConfigError(
                f"{num_heads} heads of a hidden size of {hidden} are {hidden // num_heads} wide; rotary embedding "
                "needs an even width"
            )
        return ModelSpec(
            vocab_size=self.vocab_size,
            hidden_size=hidden,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=hidden // num_heads,
            max_position_embeddings=max_position_embeddings,
            norm_eps=1e-5,
            mlp="plain",
            activation="silu",
            attention_bias=True,
            mlp_bias=True,
            rope_theta=10000.0,
            tie_word_embeddings=True,
        )

    def state(self, spec: ModelSpec) -> Iterator[tuple[str, Array]]:
        """Every tensor of AdamW's `state_names`, in that order and our layout; absent moments are zero.

        Raises CheckpointError for a weight that is not a number.
        """
        for full, shape in state_names(spec, OptimSpec()):
            part, name = full.split("/", 1)
            theirs, third = _their_name(name)
            array = self._read(part, theirs)
            if array is None:
                yield full, np.zeros(shape, np.float32)
            else:
                yield full, _our_layout(array, name, third, spec.num_heads)

    def _read(self, part: str, name: str) -> Array | None:
        optimizer = self.optimizer
        if part not in SLOTS["adam_w"]:
            master = None if optimizer is None else optimizer.masters.get(name)
            return self.weights[name] if master is None else master
        if optimizer is None:
            return None
        return (optimizer.first_moments if part == SLOTS["adam_w"][0] else optimizer.second_moments)[name]


def _their_name(name: str) -> tuple[str, int | None]:
    """What they call one of our parameters, and which third of its rows that is."""
    if name == "model.embed_tokens.weight":
        return "embedding.weight", None
    if name == "model.norm.weight":
        return "final_norm.weight", None
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    theirs, third = _MODULES[module]
    return f"blocks.{layer}.{theirs}.{kind}", third


def _our_layout(array: Array, name: str, third: int | None, num_heads: int) -> Array:
    """The rows that are ours of their (rows, …) array; of queries and keys, each head's even rows before its odd."""
    if third is None:
        return array
    rows = len(array) // 3
    part = array[third * rows : (third + 1) * rows]
    if not any(module in name for module in _TURNED):
        return part
    pairs = part.reshape(num_heads, rows // num_heads // 2, 2, *part.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(part.shape)


def read_earlier(path: Path) -> EarlierCheckpoint:
    """The checkpoint at `path`: a step_… folder, a folder of them (the newest), or a bare model.safetensors.

    A bare file has no progress and no moments. Raises CheckpointError when there is none, when it is not what its
    manifest says, and, naming every tensor, when they are not such a model's.
    """
    if path.is_file():
        weights, optimizer, seed = RawTensors(path), None, None
        sizes = _check_tensors(path, {name: tensor.shape for name, tensor in weights.entries.items()})
    else:
        path = _find_folder(path)
        manifest = _read_manifest(path)
        weights = RawTensors(_verified(path, manifest, "model"))
        shapes = {name: tensor.shape for name, tensor in weights.entries.items()}
        sizes = _check_tensors(weights.path, shapes)
        optimizer = _find_optimizer(path, manifest, shapes)
        seed = _integer(_table(manifest.get("rng"), path, "rng"), "master_seed", path / MANIFEST)
    vocab_size, hidden_size, intermediate_size, num_layers = sizes
    return EarlierCheckpoint(
        path=path,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        weights=weights,
        optimizer=optimizer,
        seed=seed,
    )


def _find_folder(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    if (path / MANIFEST).is_file() or (path / MODEL).is_file():
        return path
    folders = sorted(folder for folder in path.iterdir() if folder.name.startswith("step_") and folder.is_dir())
    if not folders:
        raise CheckpointError(
            f"{path}: no checkpoint of the earlier system here; expected a step_… folder, a folder of them, or a "
            f"{MODEL}"
        )
    return folders[-1]  # the numbers in the names have leading zeros


def _read_manifest(folder: Path) -> Mapping[str, object]:
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so it was never finished: name an older step_… folder, or {folder / MODEL} to "
            "import the weights alone"
        )
    manifest = _table(_load_json(path), folder, "its content")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: version {manifest.get('version')!r}; the earlier system's checkpoints have version {VERSION}"
        )
    return manifest


def _verified(folder: Path, manifest: Mapping[str, object], kind: str) -> Path:
    """The manifest's file of that kind, found to be what was written."""
    entry = _table(manifest.get(kind), folder, kind)
    name = entry.get("filename")
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(f"{folder / MANIFEST}: {kind}.filename is {name!r}; expected the name of a file")
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, and {MANIFEST} names it")
    if (size := path.stat().st_size) != entry.get("bytes"):
        raise CheckpointError(f"{path}: {size:,} bytes, and {MANIFEST} says {entry.get('bytes')}")
    if sha256_file(path) != entry.get("sha256"):
        raise CheckpointError(f"{path}: its sha256 is not the one in {MANIFEST}: it changed since it was written")
    return path


def _find_optimizer(
    folder: Path, manifest: Mapping[str, object], shapes: Mapping[str, Shape]
) -> EarlierOptimizer | None:
    """The optimizer's state; None where its file was not kept, as with published weights."""
    name = _table(manifest.get("optimizer"), folder, "optimizer").get("filename")
    if isinstance(name, str) and not (folder / name).exists():
        return None
    path = _verified(folder, manifest, "optimizer")
    optimizer = _read_optimizer(path, shapes)
    step = _integer(
        _table(manifest.get("progress"), folder, "progress"), "optimizer_step", folder / MANIFEST, STEP_BITS
    )
    if optimizer.step != step:
        raise CheckpointError(f"{path}: step {optimizer.step}, and {MANIFEST} says {step}")
    return optimizer


def _read_optimizer(path: Path, shapes: Mapping[str, Shape]) -> EarlierOptimizer:
    content = _table(_load_json(path), path.parent, f"{path.name}: its content")
    listed = content.get("parameters")
    if not isinstance(listed, list):
        raise CheckpointError(f"{path}: parameters is missing; expected a list")
    entries: dict[str, Mapping[str, object]] = {}
    for item in cast(list[object], listed):
        entry = _table(item, path.parent, f"{path.name}: an item of parameters")
        entries[str(entry.get("name"))] = entry
    faults = _name_faults(list(shapes), list(entries))
    for name in [name for name in shapes if name in entries]:
        faults += _entry_faults(name, entries[name], shapes[name])
    if faults:
        raise CheckpointError(f"{path}: {'; '.join(faults)}")
    masters, firsts, seconds = (
        {
            name: cast(Array, entry[field]).reshape(shapes[name])
            for name, entry in entries.items()
            if entry.get(field) is not None
        }
        for field in _FIELDS
    )
    return EarlierOptimizer(_integer(content, "step", path, STEP_BITS), masters, firsts, seconds)


def _entry_faults(name: str, entry: Mapping[str, object], shape: Shape) -> Iterator[str]:
    """What is wrong with one parameter of optimizer.json."""
    if entry.get("shape") != list(shape):
        yield f"{name} has shape {entry.get('shape')}, its weights {list(shape)}"
        return
    for field in _FIELDS:
        values = entry.get(field)
        if values is None and field == "master":
            continue
        if not isinstance(values, np.ndarray):
            yield f"{field} of {name} is not a list of numbers"
        elif values.size != np.prod(shape):
            yield f"{field} of {name} has {values.size} values, not the {np.prod(shape)} of its shape {list(shape)}"
        elif not np.isfinite(cast(Array, values)).all():
            yield f"{field} of {name} holds null, NaN or infinity"


def _check_tensors(path: Path, shapes: Mapping[str, Shape]) -> tuple[int, int, int, int]:
    """Vocabulary, width, MLP width and layers. Raises CheckpointError naming all that is missing, extra, misshapen."""
    layers = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    if "embedding.weight" not in shapes and not layers:
        found = f"it begins with {min(shapes)}" if shapes else "it is empty"
        raise CheckpointError(f"{path}: no tensor of the earlier system's models in it; {found}")
    num_layers = min(max(layers, default=0) + 1, len(shapes))  # a stray number must not ask for a million layers
    vocab, hidden = _matrix(shapes, "embedding.weight")
    widths = [_matrix(shapes, f"blocks.{layer}.mlp.up_proj.weight")[0] for layer in range(num_layers)]
    width = next(filter(None, widths), 0)
    expected = dict(_expected(vocab, hidden, width, num_layers))
    faults = _name_faults(list(expected), list(shapes))
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape and (0 not in shape or len(shapes[name]) != len(shape)):
            wanted = list(shape) if 0 not in shape else f"{len(shape)} dimension(s)"
            faults.append(f"{name} has shape {list(shapes[name])}, expected {wanted}")
    if faults:
        raise CheckpointError(f"{path}: {'; '.join(faults)}")
    return vocab, hidden, width, num_layers


def _matrix(shapes: Mapping[str, Shape], name: str) -> tuple[int, int]:
    """Both sizes of a matrix, 0 where it is missing or none."""
    shape = shapes.get(name, ())
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)


def _expected(vocab: int, hidden: int, width: int, num_layers: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of such a model; a size that could not be told is 0."""
    yield "embedding.weight", (vocab, hidden)
    for layer in range(num_layers):
        block = f"blocks.{layer}."
        yield block + "norm_attn.weight", (hidden,)
        yield block + "norm_mlp.weight", (hidden,)
        for linear, rows, columns in (
            ("qkv", 3 * hidden, hidden),
            ("out_proj", hidden, hidden),
            ("mlp.up_proj", width, hidden),
            ("mlp.down_proj", hidden, width),
        ):
            yield f"{block}{linear}.weight", (rows, columns)
            yield f"{block}{linear}.bias", (rows,)
    yield "final_norm.weight", (hidden,)


def _name_faults(expected: Sequence[str], found: Sequence[str]) -> list[str]:
    known, here = set(expected), set(found)
    missing = [name for name in expected if name not in here]
    unknown = [name for name in found if name not in known]
    faults = [f"missing {', '.join(missing)}"] if missing else []
    return [*faults, f"unknown {', '.join(sorted(unknown))}"] if unknown else faults


def _load_json(path: Path) -> object:
    """Parsed JSON. Each parameter's numbers become an array at once: as Python floats all would not fit in memory."""
    try:
        return json.loads(path.read_bytes(), object_hook=_pack)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: not the JSON it should be ({error})") from None


def _pack(table: dict[str, object]) -> dict[str, object]:
    for field in _FIELDS:
        values = table.get(field)
        if isinstance(values, list):
            with np.errstate(over="ignore"):  # to infinity, which is named later
                table[field] = np.array(values, np.float32)  # null becomes NaN
    return table


def _table(value: object, folder: Path, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder}: {what} is not the table it should be")
    return cast(Mapping[str, object], value)


def _integer(table: Mapping[str, object], key: str, path: Path, bits: int = 64) -> int:
    value = table.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**bits:
        raise CheckpointError(f"{path}: {key} is {in_short(value)}; expected a whole number below 2**{bits}")
    return value
