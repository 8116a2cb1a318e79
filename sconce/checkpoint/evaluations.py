"""What evaluations of a run's checkpoints have found: `<run>/evaluations/<checkpoint>.json`, one file a checkpoint.

They lie beside the checkpoints and not in them: a checkpoint is sealed by its manifest, and retention may delete it.

{"checkpoint": "step-00000300", "step": 300, "model_sha256": {"model.safetensors": "…"},
 "results": [{"kind": "text", "name": "held-out", "figures": {"loss": 3.1, …}, "settings": {"window": 256, …}},
             {"kind": "task", "name": "arc_easy", "figures": {"acc,none": 0.31, …}, "settings": {"num_fewshot": 0, …}}]}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sconce.checkpoint.load import LoadedCheckpoint, load_folder
from sconce.checkpoint.record import Checkpoint
from sconce.errors import CheckpointError
from sconce.files import write_json
from sconce.typed import checked

FOLDER = "evaluations"

Setting = str | int | float | bool | None


class Result(TypedDict):
    """One text or one task of the harness, what was measured, and all that must be said to measure it again."""

    kind: Literal["text", "task"]
    name: str
    figures: dict[str, float | int | str | None]
    settings: dict[str, Setting]


class _File(TypedDict):
    checkpoint: str
    step: int
    model_sha256: dict[str, str]
    results: list[Result]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The results of one checkpoint. `model_sha256` are its weight files' hashes, by name."""

    checkpoint: str
    step: int
    model_sha256: Mapping[str, str]
    results: Sequence[Result]


def results_file(checkpoint: Path) -> Path | None:
    """Where results of the checkpoint folder are kept; None when it lies in no run's `checkpoints`."""
    home = checkpoint.resolve()
    return home.parent.parent / FOLDER / f"{home.name}.json" if home.parent.name == "checkpoints" else None


def keep_results(checkpoint: Path, results: Sequence[Result]) -> Path | None:
    """Add results to those of a checkpoint, in place of what the same settings gave before; the file they are in.

    None, and nothing written, when the checkpoint is in no run. Raises CheckpointError when the file that is there is
    not one of these.
    """
    path = results_file(checkpoint)
    if path is None:
        return None
    record = load_folder(checkpoint, verify=False).record
    hashes = _model_hashes(record)
    before = read_results(path) if path.exists() else None
    same = before is not None and before.model_sha256 == hashes  # else they are another model's, of the same step
    new = [_identity(result) for result in results]
    kept = [result for result in before.results if _identity(result) not in new] if before and same else []
    path.parent.mkdir(exist_ok=True)
    file: _File = {
        "checkpoint": checkpoint.resolve().name,
        "step": record.step,
        "model_sha256": hashes,
        "results": [*kept, *results],
    }
    write_json(path, file)
    return path


def read_results(path: Path) -> Evaluated:
    """One file of results. Raises CheckpointError when it is not one."""
    try:
        file = checked(TypeAdapter(_File), json.loads(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a file of evaluation results ({error}): move it away") from None
    return Evaluated(file["checkpoint"], file["step"], file["model_sha256"], file["results"])


def results_of(checkpoint: LoadedCheckpoint) -> Sequence[Result]:
    """The results of this very checkpoint, none of another model of the same step.

    Raises CheckpointError when what lies where they are kept is not a file of results.
    """
    path = results_file(checkpoint.path)
    if path is None or not path.exists():
        return ()
    found = read_results(path)
    return found.results if found.model_sha256 == _model_hashes(checkpoint.record) else ()


def _model_hashes(record: Checkpoint) -> dict[str, str]:
    return {name: file.sha256 for name, file in record.files.items() if name.startswith("model")}


def results_of_run(run: Path) -> list[Path]:
    """The files of results of the run at `run`, by step."""
    return sorted((run / FOLDER).glob("step-*.json"))


def _identity(result: Result) -> str:
    return json.dumps([result["kind"], result["name"], result["settings"]], sort_keys=True)
