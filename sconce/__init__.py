"""Sconce: pretrain decoder-only language models from scratch, on MLX and PyTorch alike.

    import sconce

    outcome = sconce.train("configs/local_smoke.toml", run_dir="runs/local")
    model = sconce.load("runs/local")
    print(model.generate("Once", max_tokens=100, temperature=0.7, seed=1))
    logits = model.logits("Once upon a time")  # float32 (tokens, vocab)

Importing this module loads no framework and next to nothing else; the first call does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sconce.backend import Hardware, Precision
    from sconce.config import RunConfig
    from sconce.generation.model import TextModel
    from sconce.training.loop import Outcome
    from sconce.training.metrics import Reporter

__version__ = "0.1.0"
__all__ = ["load", "train"]


def load(place: str | Path, *, backend: "Hardware" = "auto", dtype: "Precision" = "fp32") -> "TextModel":
    """The model of a run folder (its latest checkpoint) or a checkpoint folder, ready to write; no optimizer with it.

    Raises CheckpointError when there is no intact checkpoint, BackendError for a backend that is not here or not known,
    ConfigError for an unknown dtype.
    """
    from sconce.generation.model import load_model

    model, _ = load_model(Path(place), hardware=backend, precision=dtype)
    return model


def train(
    config: "str | Path | Mapping[str, object] | RunConfig",
    *,
    run_dir: str | Path | None = None,
    backend: "Hardware" = "auto",
    resume: bool = False,
    overrides: Sequence[str] = (),
    reporter: "Reporter | None" = None,
) -> "Outcome":
    """Train a config into the folder `run_dir` (or the config's runtime.run_dir), and say how that went.

    `config` is a file, as `sconce train` takes it; nested tables, whose paths are relative to the working directory;
    or what `load_config` gave. `overrides` are "key=value". `resume` goes on from the newest intact checkpoint.
    `reporter` watches; without one nothing is printed. Raises ConfigError with every fault of the config,
    CheckpointError for a folder that holds a run already, DataError and BackendError for what cannot be used.
    """
    from sconce.training.job import train_config
    from sconce.training.metrics import Silent
    from sconce.training.run import RunFolder

    loaded = _config(config, overrides)
    root = run_dir or loaded.runtime.run_dir
    if root is None:
        from sconce.errors import ConfigError

        raise ConfigError("runtime.run_dir: missing; give it, or run_dir")
    return train_config(loaded, RunFolder(Path(root)), hardware=backend, resume=resume, reporter=reporter or Silent())


def _config(config: "str | Path | Mapping[str, object] | RunConfig", overrides: Sequence[str]) -> "RunConfig":
    from sconce.config import RunConfig, config_from, config_from_tables, load_config, to_json

    if isinstance(config, str | Path):
        return load_config(Path(config), overrides)
    if isinstance(config, RunConfig):
        return config_from(to_json(config), "config", overrides) if overrides else config
    return config_from_tables(config, overrides)
