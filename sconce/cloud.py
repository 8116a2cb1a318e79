"""`sconce orchestrate --mode cloud`: a run on a rented GPU, all of whose files are on the volume that outlives it.

<ORCHESTRATE_RUNS_ROOT>/NAME        the run folder
<ORCHESTRATE_TRAIN_ROOT>/NAME       text to learn from
<ORCHESTRATE_VAL_ROOT>/NAME         held-out text, if there is any
<ORCHESTRATE_TOKENIZER_ROOT>/NAME   the tokenizer, shared with later runs of this name
<ORCHESTRATE_CACHE_ROOT>/NAME       token shards, or the windows of a stream
<ORCHESTRATE_HF_CACHE_ROOT>         what comes from the Hugging Face hub
"""

import os
import re
import shutil
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sconce.backend import Backend, Hardware, load_backend, state_names
from sconce.config import RunConfig
from sconce.data.corpus import Corpus, is_reachable
from sconce.data.discover import find_files
from sconce.data.kinds import kind_of
from sconce.data.progress import Announcer
from sconce.data.shards import dtype_for
from sconce.data.sources import list_sources
from sconce.data.text_shards import are_shards_of, has_text_shards, shard_text
from sconce.data.text_writer import TextOptions
from sconce.errors import BackendError, ConfigError, DataError
from sconce.files import readable_size
from sconce.hub_address import is_hub
from sconce.log import phase
from sconce.orchestrate import LocalJob, is_streamed, planned_vocab_size, resolve_job, run_job
from sconce.planning.devices import of_backend, price_basis
from sconce.pod import pod_facts
from sconce.training.loop import Outcome
from sconce.training.metrics import Reporter
from sconce.training.plan import Plan, plan_run
from sconce.training.recipe import make_optim
from sconce.training.run import RunFolder
from sconce.training.stream import stream_root
from sconce.training.tokens import Say

SHARD_LINES = 1_000_000  # documents in a file of text
ROOTS = {
    "ORCHESTRATE_RUNS_ROOT": "/workspace/runs",
    "ORCHESTRATE_CACHE_ROOT": "/workspace/cache",
    "ORCHESTRATE_TOKENIZER_ROOT": "/workspace/artifacts/tokenizer",
    "ORCHESTRATE_TRAIN_ROOT": "/workspace/datasets/train",
    "ORCHESTRATE_VAL_ROOT": "/workspace/datasets/val",
    "ORCHESTRATE_HF_CACHE_ROOT": "/workspace/hf_cache",
}
TEXT_GROWTH = 4  # of .gz, .zst and .parquet, as text
BYTES_PER_TOKEN = 3  # of text at least: a tokenizer of some thousand tokens does better


@dataclass(frozen=True, slots=True)
class Places:
    """Where an experiment keeps what."""

    run: RunFolder
    cache: Path
    tokenizer: Path
    train: Path
    validation: Path
    hub: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudJob:
    """A job of its own name. `local` is what the user asked for, its inputs as typed: they may be gone by the time
    that a pod is restarted. `train_lines` and `validation_lines` are documents a file of text, at most."""

    name: str
    local: LocalJob
    train_lines: int = SHARD_LINES
    validation_lines: int = SHARD_LINES


def find_places(name: str, environment: Mapping[str, str] = os.environ) -> Places:
    """The experiment's places, by the ORCHESTRATE_* variables. Raises ConfigError for a name that is no folder's."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise ConfigError(f"--experiment: found {name!r}, expected letters, digits, '.', '_' and '-' for a folder")
    roots = {variable: Path(environment.get(variable) or default).absolute() for variable, default in ROOTS.items()}
    for variable, root in roots.items():
        _check_root(variable, root)
    return Places(
        run=RunFolder(roots["ORCHESTRATE_RUNS_ROOT"] / name),
        cache=roots["ORCHESTRATE_CACHE_ROOT"] / name,
        tokenizer=roots["ORCHESTRATE_TOKENIZER_ROOT"] / name / "tokenizer.json",
        train=roots["ORCHESTRATE_TRAIN_ROOT"] / name,
        validation=roots["ORCHESTRATE_VAL_ROOT"] / name,
        hub=roots["ORCHESTRATE_HF_CACHE_ROOT"],
    )


def set_up_hub(hub: Path, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the libraries of the Hugging Face hub keep what they fetch in `hub`; to be called before they are imported.

    Writes nothing, and leaves it to them to make the folders.

    A token that the user logged in with stays where it is, off the volume. One in HF_TOKEN also serves those that
    know it as HUGGINGFACEHUB_API_TOKEN.
    """
    before = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    environment.setdefault("HF_TOKEN_PATH", str(before / "token"))
    for variable, folder in (("HF_HOME", hub), ("HF_DATASETS_CACHE", hub / "datasets"), ("HF_HUB_CACHE", hub / "hub")):
        environment[variable] = str(folder)
    if environment.get("HF_TOKEN"):
        environment.setdefault("HUGGINGFACEHUB_API_TOKEN", environment["HF_TOKEN"])


def orchestrate_cloud(job: CloudJob, *, hardware: Hardware, reporter: Reporter) -> Outcome:
    """Do whatever of the job is not done yet, after checking that this machine can do it.

    Raises what `check_job` and `orchestrate_local` raise, and DataError when the text is not what it was.
    """
    places = find_places(job.name)
    set_up_hub(places.hub)
    config = resolve_job(as_local(job, places), places.run)
    for line in _check(job, config, places, hardware):
        reporter.say(line)
    with places.run.locked():
        local = _place_text(job, config, places, reporter.say)
        return run_job(local, places.run, hardware=hardware, reporter=reporter)


def check_job(job: CloudJob, places: Places, hardware: Hardware) -> list[str]:
    """What the run needs of this machine and what that has, in lines for a person; writes nothing.

    Raises BackendError without a GPU, unless `hardware` names something else; ConfigError for a model that the GPU
    does not hold and DataError for a disk too small, each estimated.
    """
    return _check(job, resolve_job(as_local(job, places), places.run), places, hardware)


def _check(job: CloudJob, config: RunConfig, places: Places, hardware: Hardware) -> list[str]:
    local = as_local(job, places)
    _check_recut(job, places)
    with phase(f"loading the backend for {hardware}"):
        backend = load_backend(hardware)
        device = backend.device()
    if hardware == "auto" and device.kind == "cpu":
        raise BackendError(
            "no GPU here that PyTorch can use: see `sconce doctor`, and whether the driver that `nvidia-smi` names is "
            "as new as PyTorch's CUDA; --backend cpu trains without one"
        )
    plan = _plan(config, local, places, backend)
    where = ", ".join(f"{name.removeprefix('runpod_')} {value}" for name, value in pod_facts().items())
    return [
        *([f"pod: {where}"] if where else []),
        f"run: {places.run.root}",
        _check_memory(plan),
        *_check_disk(local, plan, config, places),
    ]


def _check_recut(job: CloudJob, places: Places) -> None:
    """Raise DataError where text is to be cut anew that is not here."""
    if job.local.shards != "remake" or places.run.has_begun or is_streamed(job.local):
        return
    for paths, folder in ((job.local.inputs, places.train), (job.local.validation, places.validation)):
        gone = [path for path in paths if not is_reachable(path)]
        if gone and is_to_be_cut(paths, folder):
            raise DataError(f"--force-reshard: {gone[0]} is not here: leave the flag out to go on with {folder}")


def _check_root(variable: str, root: Path) -> None:
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise DataError(
            f"{root}: cannot be made, as {there} is not a folder to write in: attach a volume at {ROOTS[variable]}, or "
            f"set {variable}"
        )


def as_local(job: CloudJob, places: Places) -> LocalJob:
    """The job with its text where an earlier call has put it, else as typed, as a stream always is."""
    local, begun = job.local, places.run.has_begun
    if is_streamed(local):
        return replace(_settled(local, places, local.inputs, local.validation), shards=local.shards)
    inputs = _text_of(local.inputs, places.train, begun)
    if not (inputs or begun):
        raise DataError(f"{places.train}: no text there: give --input FILE_OR_FOLDER, or put text there")
    return _settled(local, places, inputs, _text_of(local.validation, places.validation, begun))


def is_to_be_cut(typed: Sequence[Path], folder: Path) -> bool:
    """Whether text that was typed is for cutting into files in `folder`: there is some, and it is not on the volume."""
    return bool(typed) and not _is_inside(typed, folder.parent)


def _text_of(typed: tuple[Path, ...], folder: Path, begun: bool) -> tuple[Path, ...]:
    """Where that text is: on the volume as typed, in `folder` as an earlier call has put it, or still to be cut."""
    if typed and _is_inside(typed, folder.parent):
        return typed
    cut = _cut_text(folder)
    if begun or not typed:
        return cut or ((folder,) if _holds_text(folder) else ())
    return cut if len(cut) == len(typed) else typed


def _cut_text(folder: Path) -> tuple[Path, ...]:
    """What was cut here of each input: a folder of its own, so that data.weights can tell them apart."""
    return tuple(filter(has_text_shards, sorted(folder.glob("input-*"))))


def _settled(local: LocalJob, places: Places, inputs: tuple[Path, ...], validation: tuple[Path, ...]) -> LocalJob:
    return replace(
        local,
        inputs=inputs,
        validation=validation,
        cache_dir=places.cache,
        shared_tokenizer=places.tokenizer,
        folder_flag="--experiment",
        shards="remake" if local.shards == "remake" else "build",  # reuse is about the text: see _cut
    )


def _is_inside(paths: Sequence[Path], folder: Path) -> bool:
    return all(not is_hub(path) and path.resolve().is_relative_to(folder.resolve()) for path in paths)


def _holds_text(folder: Path) -> bool:
    """Whether there are files that are read, other than hidden ones and those about data; a damaged data set is."""
    try:
        return folder.is_dir() and bool(find_files([folder]))
    except DataError:
        return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _plan(config: RunConfig, local: LocalJob, places: Places, backend: Backend) -> Plan:
    rows = config.model.vocab_size or planned_vocab_size(local, places.run)
    model = config.model.model_copy(update={"vocab_size": rows})
    # No file: the tokenizer that is there may be about to be replaced by one of another size.
    tokenizer = config.tokenizer.model_copy(update={"tokenizer_json": places.run.root / "tokenizer-to-be"})
    planned = config.model_copy(update={"model": model, "tokenizer": tokenizer})
    return plan_run(planned, of_backend(backend.device()))


def _check_memory(plan: Plan) -> str:
    """A line about memory, time and cost."""
    memory, device = plan.configured.memory.peak, plan.device
    line = f"memory: about {readable_size(memory)} of {readable_size(device.memory_bytes)} needed"
    if memory > device.memory_bytes:
        changes = ", ".join(f"--override {key}={value}" for key, value in plan.keys.items())
        hint = changes if plan.chosen.fits else "a smaller model or shorter sequences"
        raise ConfigError(f"this run does not fit {device.name}: {line}; try {hint} (`sconce plan` says more)")
    if not plan.configured.fits:
        line += ", which may not fit: see `sconce plan`"
    estimate = plan.configured_estimate
    if estimate is not None and estimate.hours is not None:
        line += f"; about {estimate.hours:.1f} hours for all steps at an assumed {estimate.mfu:.0%} MFU"
        if estimate.cost is not None:
            line += f", {estimate.cost:.2f} dollars at {estimate.price} an hour ({price_basis()})"
    return line


def _check_disk(local: LocalJob, plan: Plan, config: RunConfig, places: Places) -> list[str]:
    """A line for each disk. Raises DataError when one is too small for what is yet to be written."""
    checkpoint = 4 * sum(_size(shape) for _, shape in state_names(plan.spec, make_optim(config)))
    kept = config.runtime.checkpoint.max_keep + 2  # the best one, and one being written
    streamed = config.data.streaming
    text = 0 if places.run.has_begun or streamed else _text_bytes((*local.inputs, *local.validation))
    copied = 0 if _is_inside(local.inputs, places.train.parent) else text
    cache, tokens = places.cache, text // BYTES_PER_TOKEN * np.dtype(dtype_for(plan.spec.vocab_size)).itemsize
    if streamed:
        cache, tokens = stream_root(config) or places.run.root / "data", int(config.data.cache_limit_gb * 1e9)
    needs = [
        (places.run.root, max(checkpoint, kept * checkpoint - _used(places.run.checkpoints))),
        (cache, max(0, tokens - _used(cache))),
        (places.train, copied),
    ]
    disks: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        before = disks.get(there.stat().st_dev, (there, 0))
        disks[there.stat().st_dev] = (before[0], before[1] + needed)
    lines = [_check_free(there, needed) for there, needed in disks.values()]
    if Path("/").stat().st_dev in disks:
        lines.append(
            f"WARNING: {places.run.root} is on this machine's own disk, which a pod loses with its container; mount a "
            "volume there, or set the ORCHESTRATE_* roots to one"
        )
    return lines


def _check_free(folder: Path, needed: int) -> str:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: disk too small: this run needs about {readable_size(needed)} more, and {readable_size(free)} "
            "are free: enlarge the volume, or keep fewer checkpoints with --max-checkpoints"
        )
    return f"disk: about {readable_size(needed)} more needed at {folder}, {readable_size(free)} free"


def _size(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _text_bytes(paths: Sequence[Path]) -> int:
    return sum(source.size * (TEXT_GROWTH if kind_of(source.path).is_packed else 1) for source in list_sources(paths))


def _used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _place_text(job: CloudJob, config: RunConfig, places: Places, say: Say) -> LocalJob:
    """Cut the text that was typed into files on the volume, unless they are there; the job that reads those.

    A stream is not cut.
    """
    local = as_local(job, places)
    if is_streamed(local):
        return local
    cuts = [
        (job.local.inputs, places.train, job.train_lines),
        (job.local.validation, places.validation, job.validation_lines),
    ]
    for paths, folder, lines in cuts:
        if is_to_be_cut(paths, folder) and not places.run.has_begun:
            _clear(folder, len(paths), job)
            for number, path in enumerate(paths):
                _cut(path, folder / f"input-{number:03d}", lines, job, config, say)
    settled = as_local(job, places)
    if any(map(has_text_shards, settled.inputs)) and config.data.text_field != "text":  # as which our files have it
        settled = replace(settled, overrides=(*settled.overrides, "data.text_field=text"))
    return settled


def _clear(folder: Path, inputs: int, job: CloudJob) -> None:
    """Take away what was cut of more inputs than there are now, if asked to. Raises DataError for all else there."""
    cut = _cut_text(folder)
    if any(path not in cut for path in folder.glob("[!.]*")):
        raise DataError(
            f"{folder}: holds files that were not cut here: leave out --input to train on them, or choose another "
            "--experiment"
        )
    for stale in cut[inputs:]:
        if job.local.shards != "remake":
            raise _other_text(stale)
        shutil.rmtree(stale)


def _other_text(folder: Path) -> DataError:
    return DataError(
        f"{folder}: holds other text than --input and --validation name: --force-reshard replaces it, or choose "
        "another --experiment"
    )


def _cut(path: Path, folder: Path, lines: int, job: CloudJob, config: RunConfig, say: Say) -> None:
    """Make `folder` the text of `path`, one document a line. Raises DataError when it holds other text."""
    ours = has_text_shards(folder)
    if ours and not is_reachable(path):
        say(f"text: {path} is not here; going on with what was cut from it, in {folder}")
        return
    data = config.data
    corpus = Corpus(paths=(path,), rule=data.document, text_field=data.text_field, on_error=data.on_error)
    options = TextOptions(lines=lines)
    if ours and job.local.shards != "remake":
        if not are_shards_of(folder, corpus, options):
            raise _other_text(folder)
        return
    if not ours and job.local.shards == "reuse":
        raise DataError(f"--reuse-shards: {folder}: no text there: leave the flag out to cut it")
    announce = Announcer(say, time.monotonic)
    existing = "force" if ours else "refuse"
    manifest, _ = shard_text(corpus, folder, options, existing, progress=announce, say=say)
    shards = manifest["shards"]
    documents, size = (sum(shard[key] for shard in shards) for key in ("documents", "bytes"))
    files = "1 file" if len(shards) == 1 else f"{len(shards)} files"
    say(f"text: {path}: {documents:,} documents, {readable_size(size)}, cut into {files} in {folder}")
