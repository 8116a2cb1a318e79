"""A checkpoint's model for other tools, in a folder of its own."""

import contextlib
import importlib
import io
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sconce.checkpoint.load import LoadedCheckpoint, open_model
from sconce.checkpoint.store import MAX_SHARD_BYTES
from sconce.checkpoint.stream import (
    MODEL_INDEX,
    MODEL_PREFIX,
    OPTIMIZER,
    RUN,
    model_index,
    plan_model,
    write_hashed,
    write_tensors,
)
from sconce.errors import CheckpointError, ConfigError, SconceError
from sconce.files import fsync_file, new_folder, sha256_file
from sconce.interop.gguf_file import GGUFModel, write_gguf
from sconce.interop.hf import class_for, json_bytes, mlx_lm_refusals, spec_from_config
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import load_tokenizer
from sconce.training.model_card import CardOptions, model_card, usage_with_transformers

Target = Literal["hf", "mlx-lm", "gguf"]
Precision = Literal["fp32", "bf16", "fp16"]

OURS = (OPTIMIZER, RUN)  # of a checkpoint's files, what other tools know nothing of
MIN_SHARD_BYTES = 2**16
GROUP_SIZES = (64, 32)  # values that mlx-lm quantises together: the first that all rows are whole groups of
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# A precision by what config.json and what safetensors call it.
_HF_DTYPES: Mapping[Precision, tuple[str, str]] = {
    "fp32": ("float32", "F32"),
    "bf16": ("bfloat16", "BF16"),
    "fp16": ("float16", "F16"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """What the user asked for.

    `place` is a checkpoint or a run, whose latest it means; `out` the folder to make. `dtype` None leaves weights as
    they are, float32. `quantize` is bits a weight, 4 or 8, for mlx-lm and gguf. `model_type` insists on a class.
    """

    place: Path
    out: Path
    to: Target = "hf"
    model_type: str | None = None
    dtype: Precision | None = None
    max_shard_bytes: int | None = None
    quantize: int | None = None
    license: str | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, for which class, and what is not as it was, a line each."""

    checkpoint: Path
    model_type: str
    files: tuple[str, ...]
    notes: tuple[str, ...]


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 2GiB. Raises ConfigError for another text, or less than 64 KiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?b)?", text.strip().lower())
    size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if size < MIN_SHARD_BYTES:
        raise ConfigError(f"--max-shard-size {text}: expected a size such as 5GB or 500MB, at least 64KiB")
    return size


def export_checkpoint(job: ExportJob) -> Exported:
    """Write what the tool loads, and a model card, to the new folder: all of it, or nothing.

    Raises CheckpointError when the checkpoint is damaged, or the tool or the class wanted does not compute its model;
    ConfigError for options that do not go together; SconceError when `out` holds something already, or a package is
    missing.
    """
    _check_options(job)
    checkpoint = open_model(job.place)
    spec = spec_from_config(checkpoint.table("config.json"))
    found = class_for(spec, job.model_type)
    notes: tuple[str, ...] = ()
    with new_folder(job.out) as folder:
        if job.to == "gguf":
            notes = _write_gguf(checkpoint, spec, folder, job)
        elif job.quantize is None:
            _check_mlx_lm(spec, job)
            _write_hf(checkpoint, spec, folder, job)
        else:
            _check_mlx_lm(spec, job)
            _write_quantised(checkpoint, spec, folder, job)
        for name, content in model_card(checkpoint, _card_options(job, folder)).items():
            write_hashed(folder / name, [content])
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return Exported(checkpoint.path, found, files, notes)


def _check_options(job: ExportJob) -> None:
    if job.quantize is not None and job.to == "hf":
        raise ConfigError("--quantize is for --to mlx-lm and --to gguf: Hugging Face's classes quantise as they load")
    if job.quantize is not None and job.to == "gguf" and job.dtype is not None:
        raise ConfigError("--quantize and --dtype exclude each other with --to gguf: the former says the type")
    if job.max_shard_bytes is not None and (job.to == "gguf" or job.quantize is not None):
        what = "a GGUF is one file" if job.to == "gguf" else "mlx-lm cuts its quantised files itself"
        raise ConfigError(f"--max-shard-size: {what}: leave it out")


def _write_hf(checkpoint: LoadedCheckpoint, spec: ModelSpec, folder: Path, job: ExportJob) -> None:
    names = [name for name in checkpoint.record.files if name not in OURS]
    if job.dtype in (None, "fp32") and job.max_shard_bytes is None:
        for name in names:
            _copy(checkpoint, name, folder / name)
        return
    for name in names:
        if name not in ("config.json", MODEL_INDEX) and not name.endswith(".safetensors"):
            _copy(checkpoint, name, folder / name)
    config_name, dtype = _HF_DTYPES[job.dtype or "fp32"]
    config = {**checkpoint.table("config.json"), "dtype": config_name, "torch_dtype": config_name}
    write_hashed(folder / "config.json", [json_bytes(config)])
    plan = plan_model(
        [(param.name, param.shape) for param in spec.params()], job.max_shard_bytes or MAX_SHARD_BYTES, dtype
    )
    state = _state(checkpoint, spec)
    for file in plan:
        write_tensors(folder, file, state)
    if (index := model_index(plan)) is not None:
        write_hashed(folder / MODEL_INDEX, [index])


def _state(checkpoint: LoadedCheckpoint, spec: ModelSpec) -> Iterator[tuple[str, NDArray[np.float32]]]:
    weights = checkpoint.weights
    for param in spec.params():
        yield MODEL_PREFIX + param.name, weights[param.name]


def _copy(checkpoint: LoadedCheckpoint, name: str, target: Path) -> None:
    shutil.copyfile(checkpoint.path / name, target)
    _fsync(target)
    if sha256_file(target) != checkpoint.record.files[name].sha256:
        raise CheckpointError(f"{target}: not what {checkpoint.path / name} holds: the copy went wrong")


def _write_gguf(checkpoint: LoadedCheckpoint, spec: ModelSpec, folder: Path, job: ExportJob) -> tuple[str, ...]:
    kind = job.dtype or "fp32" if job.quantize is None else f"q{job.quantize}_0"
    path = folder / f"{job.out.resolve().name}-{kind}.gguf"
    model = GGUFModel(
        spec=spec,
        weights=checkpoint.weights,
        tokenizer=load_tokenizer(checkpoint.path / "tokenizer.json"),
        name=job.out.resolve().name,
        format=kind,
    )
    notes = write_gguf(path, model)
    _fsync(path)
    return notes


def _check_mlx_lm(spec: ModelSpec, job: ExportJob) -> None:
    if job.to == "mlx-lm" and (reasons := mlx_lm_refusals(spec)):
        raise CheckpointError(f"mlx-lm does not compute this model: {'; '.join(reasons)}")


def _write_quantised(checkpoint: LoadedCheckpoint, spec: ModelSpec, folder: Path, job: ExportJob) -> None:
    """mlx-lm's own conversion, from a Hugging Face folder that is gone again afterwards."""
    widths = sorted({param.shape[-1] for param in spec.params() if len(param.shape) == 2})
    group_size = next((size for size in GROUP_SIZES if not any(width % size for width in widths)), None)
    if group_size is None:
        narrow = ", ".join(str(width) for width in widths if width % GROUP_SIZES[-1])
        raise CheckpointError(
            f"--quantize: mlx-lm quantises groups of {GROUP_SIZES[-1]} values or more, and rows of {narrow} are no "
            "whole groups: leave it out"
        )
    if find_spec("mlx_lm") is None or find_spec("mlx") is None:
        raise SconceError(
            "--to mlx-lm --quantize needs mlx and mlx-lm: pip install 'sconce-lm[export]' (on Linux also 'mlx[cpu]')"
        )
    library: Any = importlib.import_module("mlx_lm")
    whole, made = folder / ".whole", folder / ".quantised"
    whole.mkdir()
    _write_hf(checkpoint, spec, whole, job)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress there
        library.convert(str(whole), str(made), quantize=True, q_bits=job.quantize, q_group_size=group_size)
    for path in made.iterdir():
        if path.name != "README.md":
            path.rename(folder / path.name)
            _fsync(folder / path.name)
    shutil.rmtree(whole)
    shutil.rmtree(made)


def _card_options(job: ExportJob, folder: Path) -> CardOptions:
    name = job.out.resolve().name
    if job.to == "gguf":
        file = next(path.name for path in folder.iterdir() if path.suffix == ".gguf")
        return CardOptions(
            name=name, usage=f'```\nllama-cli -m {file} -p "Once"\n```', library="gguf", license=job.license
        )
    if job.to == "mlx-lm":
        usage = f'```\nmlx_lm.generate --model {name} --prompt "Once"\n```'
        return CardOptions(name=name, usage=usage, library="mlx", license=job.license)
    return CardOptions(name=name, usage=usage_with_transformers(name), license=job.license)


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        fsync_file(file.fileno())
