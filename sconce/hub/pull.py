"""A repository of the Hugging Face hub as a run folder, or a tokenizer's: whole, its hashes compared, or not at all."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from sconce.checkpoint.evaluations import FOLDER as EVALUATIONS_FOLDER
from sconce.checkpoint.load import LoadedCheckpoint, load_folder
from sconce.checkpoint.record import MANIFEST, Checkpoint, read_manifest
from sconce.checkpoint.stream import MODEL, MODEL_INDEX, RUN
from sconce.config import RunConfig, config_from_resolved, dump_toml, to_json
from sconce.config.read import read_table
from sconce.data.corpus import is_reachable
from sconce.errors import CheckpointError, DataError, SconceError
from sconce.files import check_free, fsync_folder, new_folder, write_atomic, write_json
from sconce.hub.connection import Hub, RemoteState
from sconce.hub.layout import EVALUATIONS, METRICS, MODEL_CONFIG, TOKENIZER, TOKENIZER_FILES
from sconce.tokenizer.bpe import load_tokenizer
from sconce.training.import_hf import HFImportJob, import_hf
from sconce.training.imported import tokenizer_place
from sconce.training.run import RunFolder

ORIGIN = "hub.json"  # of a pulled folder: where it came from
HEADER = """\
# Written by `sconce pull`. Where the text lies elsewhere now, name it in data.train_shards; then
#   sconce train --config training.toml --run-dir . --resume
# Every key is explained in docs/configuration.md (`sconce config docs`). Paths are relative to this file.
"""
_OF_A_MODEL = (MODEL_CONFIG, "generation_config.json", *TOKENIZER_FILES, MODEL, MODEL_INDEX)

Kind = Literal["checkpoint", "model", "tokenizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullJob:
    """What the user asked for: a repository ORG/NAME, a branch, tag or commit of it, and the folder to make."""

    repo: str
    out: Path
    revision: str | None = None
    tokenizer_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What came: of a checkpoint `step` and `place`, its folder; `notes` is what a person should know, a line each."""

    kind: Kind
    commit: str
    place: Path
    step: int
    files: int
    bytes: int
    total_steps: int | None
    text_is_here: bool
    notes: tuple[str, ...] = ()


def pull(job: PullJob, hub: Hub) -> Pulled:
    """Make the folder `out` of what the repository holds: a checkpoint of ours, another's model, or a tokenizer.

    Raises SconceError, with nothing left at `out`, when something is there already, the hub does not give it, a hash
    is not what it should be, or the model is none that Sconce has.
    """
    check_free(job.out)
    state = hub.look(job.revision)
    if job.tokenizer_only or not (MODEL_CONFIG in state.files or MANIFEST in state.files):
        return _pull_tokenizer(job, hub, state)
    pulled = _pull_checkpoint if MANIFEST in state.files else _pull_model
    return pulled(job, hub, state)


def _pull_checkpoint(job: PullJob, hub: Hub, state: RemoteState) -> Pulled:
    with new_folder(job.out) as folder, _downloads(folder, job) as incoming:
        record = read_manifest(hub.download(state, MANIFEST, incoming).parent)
        if missing := [name for name in record.files if name not in state.files]:
            raise CheckpointError(f"{job.repo}: {missing[0]} is in its {MANIFEST} and not in the repository")
        for name, file in record.files.items():
            hub.download(state, name, incoming, file.sha256)
        checkpoint = load_folder(incoming, verify=False)  # every hash was compared as it came
        config = _write_config(job, folder, checkpoint)
        run = RunFolder(folder)
        place = run.checkpoints / f"step-{record.step:08d}"
        place.mkdir(parents=True)
        for name in (*record.files, MANIFEST):
            (incoming / name).rename(place / name)
        fsync_folder(place)
        _point(run, place, record)
        for name, target in (
            (METRICS, run.metrics),
            (EVALUATIONS, folder / EVALUATIONS_FOLDER / f"{place.name}.json"),
        ):
            if name in state.files:
                target.parent.mkdir(exist_ok=True)
                hub.download(state, name, incoming).rename(target)
        _write_origin(folder, job, state)
    paths = (*config.data.train_shards, *config.data.validation_shards)
    return Pulled(
        kind="checkpoint",
        commit=state.commit,
        place=RunFolder(job.out).checkpoints / place.name,
        step=record.step,
        files=len(record.files),
        bytes=sum(file.bytes for file in record.files.values()),
        total_steps=config.scheduler.total_steps,
        text_is_here=bool(config.data.train_shards) and all(map(is_reachable, paths)),
    )


def _point(run: RunFolder, place: Path, record: Checkpoint) -> None:
    write_atomic(run.checkpoints / "LATEST", place.name + "\n")
    if record.best is not None and record.best[0] == record.step:
        write_atomic(run.checkpoints / "BEST", place.name + "\n")


def _write_config(job: PullJob, folder: Path, checkpoint: LoadedCheckpoint) -> RunConfig:
    """The tokenizer, the run's training.toml with places of this machine where they are known, and run.json."""
    home = folder / "tokenizer"
    home.mkdir()
    for name in TOKENIZER_FILES:
        if name in checkpoint.record.files:
            write_atomic(home / name, checkpoint.read(name))
    table = checkpoint.run_config
    for section, name, value in (
        ("tokenizer", "tokenizer_json", tokenizer_place(job.out)),
        ("data", "cache_dir", None),
        ("runtime", "run_dir", None),
    ):
        if isinstance(table.get(section), dict):
            table[section][name] = value
    data = table.get("data")
    if isinstance(data, dict) and not data.get("train_shards"):
        data.pop("train_shards", None)  # an imported model that was never trained on: it lacks them still
    config = config_from_resolved(table, f"{job.repo}: {RUN}", may_lack=["data.train_shards"])
    write_atomic(folder / "training.toml", dump_toml(config, HEADER, job.out))
    write_json(RunFolder(folder).config, to_json(config))
    return config


def _pull_model(job: PullJob, hub: Hub, state: RemoteState) -> Pulled:
    """Another's model, or weights of ours without the state to go on from: by the way of `sconce import`."""
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with _downloads(job.out.parent, job) as incoming:
        names = [name for name in _OF_A_MODEL if name in state.files]
        for name in names:
            hub.download(state, name, incoming)
        shards = _shards(incoming) if MODEL_INDEX in names else []
        for name in shards:
            if name not in state.files:
                raise CheckpointError(f"{job.repo}: {name} is in its {MODEL_INDEX} and not in the repository")
            hub.download(state, name, incoming)
        imported = import_hf(HFImportJob(source=incoming, out=job.out))
    _write_origin(job.out, job, state)
    got = {*names, *shards}
    return Pulled(
        kind="model",
        commit=state.commit,
        place=imported.checkpoint,
        step=imported.step,
        files=len(got),
        bytes=sum(state.files[name].bytes or 0 for name in got),
        total_steps=imported.total_steps,
        text_is_here=False,
        notes=imported.notes,
    )


def _shards(folder: Path) -> list[str]:
    """The weight files that an index names."""
    mapped = read_table(folder / MODEL_INDEX).get("weight_map")
    if not isinstance(mapped, dict):
        return []  # `import` says what is wrong with it
    return sorted({name for name in cast(dict[str, object], mapped).values() if isinstance(name, str)} - {MODEL})


def _pull_tokenizer(job: PullJob, hub: Hub, state: RemoteState) -> Pulled:
    if TOKENIZER not in state.files:
        wanted = TOKENIZER if job.tokenizer_only else f"{MANIFEST}, {MODEL_CONFIG} or {TOKENIZER}"
        raise DataError(f"{job.repo}: nothing that Sconce reads: no {wanted} at {state.commit[:12]}")
    names = [name for name in TOKENIZER_FILES if name in state.files]
    with new_folder(job.out) as folder, _downloads(folder, job) as incoming:
        for name in names:
            hub.download(state, name, incoming)
        load_tokenizer(incoming / TOKENIZER)  # what it is not, is said here
        for name in names:
            (incoming / name).rename(folder / name)
        _write_origin(folder, job, state)
    return Pulled(
        kind="tokenizer",
        commit=state.commit,
        place=job.out / TOKENIZER,
        step=0,
        files=len(names),
        bytes=sum(state.files[name].bytes or 0 for name in names),
        total_steps=None,
        text_is_here=False,
    )


@contextmanager
def _downloads(beside: Path, job: PullJob) -> Generator[Path]:
    """A folder for what comes, gone again afterwards; in an error it goes by the repository's name."""
    with tempfile.TemporaryDirectory(prefix=f".{job.out.name}.pull-", dir=beside) as place:
        folder = Path(place).resolve()
        try:
            yield folder
        except SconceError as error:
            raise SconceError(str(error).replace(str(folder), job.repo)) from None


def _write_origin(folder: Path, job: PullJob, state: RemoteState) -> None:
    write_json(folder / ORIGIN, {"repo": job.repo, "revision": job.revision or "main", "commit": state.commit})
