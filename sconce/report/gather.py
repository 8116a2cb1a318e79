"""Everything a report shows of one run, out of its folder; a run under way, damaged or half empty is no obstacle."""

import json
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import cast

from sconce.checkpoint.evaluations import Evaluated, read_results, results_of_run
from sconce.checkpoint.listing import Listed, list_checkpoints
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.checkpoint.record import Checkpoint
from sconce.config.read import flat, read_table
from sconce.data.shards import MANIFEST, Manifest, read_manifest
from sconce.errors import CheckpointError, ConfigError, DataError, SconceError
from sconce.files import readable_size
from sconce.hub_address import is_hub
from sconce.interop.hf import spec_from_config
from sconce.planning.utilization import tera
from sconce.report.series import Metrics, read_curves
from sconce.training.run import RunFolder

MOST_SAMPLES = 60
MOST_SAMPLE_CHARACTERS = 4000

Facts = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model wrote after `step` updates; `cut` when the file holds more."""

    step: int
    text: str
    cut: bool


@dataclass(slots=True, kw_only=True)
class RunView:
    """One run. `notes` say what could not be read; `config` is flat, each value as JSON."""

    name: str
    path: Path
    metrics: Metrics
    step: int
    total_steps: int | None
    parameters: int | None
    config: dict[str, str]
    samples: list[Sample]
    samples_written: int
    checkpoints: list[Listed]
    hardware: Facts = field(default_factory=Facts)
    data: Facts = field(default_factory=Facts)
    evaluations: list[Evaluated] = field(default_factory=list[Evaluated])
    notes: list[str] = field(default_factory=list[str])


def view_runs(places: list[Path]) -> list[RunView]:
    """All runs, with names that tell them apart.

    Raises CheckpointError for a folder that holds no run, SconceError for one that is named twice.
    """
    roots = [place.resolve() for place in places]
    twice = next((place for place, root in zip(places, roots, strict=True) if roots.count(root) > 1), None)
    if twice is not None:
        raise SconceError(f"{twice}: named twice: name each run once")
    return [view_run(place, name) for place, name in zip(places, _names(roots), strict=True)]


def _names(roots: list[Path]) -> list[str]:
    """The folders' names, with as many of the folders above as it takes to tell them apart."""
    depth = 1
    while len(names := ["/".join(root.parts[-depth:]) for root in roots]) > len(set(names)):
        depth += 1
    return names


def view_run(place: Path, name: str) -> RunView:
    """What there is of the run in `place`. Raises CheckpointError when it holds none."""
    folder = RunFolder(place)
    checkpoints = _checkpoints(folder)
    if not (folder.metrics.is_file() or folder.config.is_file() or checkpoints):
        what = (
            "no run here: neither metrics.jsonl nor run.json nor a checkpoint" if place.is_dir() else "no such folder"
        )
        raise CheckpointError(f"{place}: {what}")
    notes: list[str] = []
    metrics = read_curves(folder.metrics)
    intact = ((listed.path, listed.record) for listed in checkpoints if listed.record and not listed.fault)
    newest = next((LoadedCheckpoint(*found) for found in intact), None)
    record = None if newest is None else newest.record
    config = _config(folder, newest, notes)
    samples, written = _samples(folder)
    total = config.get("scheduler.total_steps")
    last = [curve.step[-1] for curve in metrics.curves.values()]
    view = RunView(
        name=name,
        path=place.resolve(),
        metrics=metrics,
        step=int(max([*last, 0 if record is None else record.step])),
        total_steps=total if isinstance(total, int) else None,
        parameters=_parameters(newest),
        config={key: json.dumps(_within(place, value), ensure_ascii=False) for key, value in config.items()},
        samples=samples,
        samples_written=written,
        checkpoints=checkpoints,
        hardware=[] if record is None else _hardware(record),
        notes=notes,
    )
    view.data = _data(folder, config, notes)
    view.evaluations = _evaluations(folder, notes)
    if metrics.broken:
        notes.append(f"metrics.jsonl: {metrics.broken:,} of {metrics.lines:,} lines could not be read and are left out")
    if samples and written > len(samples):
        notes.append(f"samples: {len(samples)} of {written:,} are shown, evenly spread")
    return view


def _checkpoints(folder: RunFolder) -> list[Listed]:
    try:
        return list_checkpoints(folder.checkpoints) if folder.checkpoints.is_dir() else []
    except CheckpointError:  # there is none yet
        return []


def _config(folder: RunFolder, newest: LoadedCheckpoint | None, notes: list[str]) -> dict[str, object]:
    """The resolved config, of the folder or else of the newest checkpoint, as whatever version wrote it."""
    for path in (folder.config, *(() if newest is None else (newest.path / "run.json",))):
        if path.is_file():
            try:
                return dict(flat(read_table(path)))
            except ConfigError as error:
                notes.append(str(error))
    return {}


def _within(root: Path, value: object) -> object:
    """A config's value with paths in the run's own folder relative to it: where the run lies makes no difference."""
    if isinstance(value, list):
        return [_within(root, item) for item in cast(list[object], value)]
    if isinstance(value, str) and value.startswith("/") and Path(value).is_relative_to(root.resolve()):
        return str(Path(value).relative_to(root.resolve()))
    return value


def _parameters(newest: LoadedCheckpoint | None) -> int | None:
    try:
        return None if newest is None else spec_from_config(newest.table("config.json")).num_params
    except (CheckpointError, ConfigError):
        return None


def _hardware(record: Checkpoint) -> Facts:
    device = record.hardware
    facts = [("device", str(device.get("name", ""))), ("kind", str(device.get("kind", "")))]
    if isinstance(memory := device.get("memory_bytes"), int):
        facts.append(("device memory", readable_size(memory)))
    for key, label in (("matmul_flops_per_second", "matrix products"), ("vendor_flops_per_second", "vendor's peak")):
        if isinstance(speed := device.get(key), int | float):
            facts.append((label, tera(speed)))
    facts += [("backend", record.backend), ("precision", record.precision)]
    return [*((label, text) for label, text in facts if text), *record.versions.items()]


def _data(folder: RunFolder, config: dict[str, object], notes: list[str]) -> Facts:
    paths = config.get("data.train_shards")
    texts = cast(list[object], paths) if isinstance(paths, list) else []
    facts = (
        [("text", ", ".join(str(text) if is_hub(str(text)) else Path(str(text)).name for text in texts))]
        if texts
        else []
    )
    if not (folder.root / "data" / MANIFEST).is_file():
        return facts  # made elsewhere, or not yet
    try:
        return facts + _shards(read_manifest(folder.root / "data"))
    except DataError as error:
        notes.append(str(error))
        return facts


def _shards(manifest: Manifest) -> Facts:
    facts: Facts = []
    by_split = sorted(manifest.shards, key=lambda shard: shard.split)
    for split, shards in groupby(by_split, key=lambda shard: shard.split):
        own = list(shards)
        tokens, texts, size = (
            sum(shard.tokens for shard in own),
            sum(shard.documents for shard in own),
            sum(shard.utf8_bytes for shard in own),
        )
        label = "training" if split == "train" else "held out"
        facts.append((label, f"{tokens:,} tokens, {texts:,} documents, {size:,} bytes of text"))
    return [
        *facts,
        ("vocabulary", f"{manifest.vocab_size:,} tokens"),
        ("documents by", manifest.rule),
        ("tokenizer sha256", manifest.tokenizer_sha256),
        *((f"{Path(source.path).name} sha256", source.sha256) for source in manifest.sources[:8]),
    ]


def _samples(folder: RunFolder) -> tuple[list[Sample], int]:
    """Some of the samples, evenly spread with the first and the last, and how many there are."""
    named = [(path.stem.removeprefix("step-"), path) for path in folder.samples.glob("step-*.txt")]
    found = sorted((int(step), path) for step, path in named if step.isdecimal())
    count = min(len(found), MOST_SAMPLES)
    chosen = [found[index * (len(found) - 1) // max(count - 1, 1)] for index in range(count)]
    return [_sample(step, path) for step, path in chosen], len(found)


def _sample(step: int, path: Path) -> Sample:
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(MOST_SAMPLE_CHARACTERS + 1)
    return Sample(step, text[:MOST_SAMPLE_CHARACTERS], len(text) > MOST_SAMPLE_CHARACTERS)


def _evaluations(folder: RunFolder, notes: list[str]) -> list[Evaluated]:
    found: list[Evaluated] = []
    for path in results_of_run(folder.root):
        try:
            found.append(read_results(path))
        except CheckpointError as error:
            notes.append(str(error))
    return found
