"""A stand-in for the volume of a rented machine: every ORCHESTRATE_* root in one temporary folder."""

from pathlib import Path

FOLDERS = {
    "ORCHESTRATE_RUNS_ROOT": "runs",
    "ORCHESTRATE_CACHE_ROOT": "cache",
    "ORCHESTRATE_TOKENIZER_ROOT": "artifacts/tokenizer",
    "ORCHESTRATE_TRAIN_ROOT": "datasets/train",
    "ORCHESTRATE_VAL_ROOT": "datasets/val",
    "ORCHESTRATE_HF_CACHE_ROOT": "hf_cache",
}


def roots(folder: Path) -> dict[str, str]:
    """The environment that puts everything below `folder`, as the defaults put it below /workspace."""
    return {variable: str(folder / inside) for variable, inside in FOLDERS.items()}


def snapshot(folder: Path) -> dict[str, int]:
    """Every file below `folder` with the time it was last written."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}
