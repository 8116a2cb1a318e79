"""`sconce import`: a Hugging Face model, or a checkpoint of the earlier system, becomes a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sconce.training.imported import Imported


def import_(
    path: Annotated[
        Path,
        typer.Argument(
            help="A Hugging Face folder (Llama, Qwen2, Qwen3, Mistral, ...); or, of the earlier system, a step_… "
            "folder, a folder of them (the newest), or a bare model.safetensors."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder to make.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="The tokenizer.json it was trained with. Default: the one in the folder."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", min=1, help="Earlier system: attention heads, where no --config says it.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Earlier system: the old run's config (YAML, TOML or JSON), to go on as it was."),
    ] = None,
    max_position_embeddings: Annotated[
        int | None, typer.Option("--max-position-embeddings", min=2, help="Longest sequence. Default: the config's.")
    ] = None,
) -> None:
    """Turn a model of another tool, or of the earlier system (transformer_candle), into a run of ours."""
    from sconce.errors import ConfigError
    from sconce.interop.hf_folder import is_hf_folder

    if is_hf_folder(path):
        from sconce.training.import_hf import HFImportJob, import_hf

        if heads is not None or config is not None:
            raise ConfigError(f"{path}: its config.json says everything: leave --heads and --config out")
        _report(
            import_hf(
                HFImportJob(source=path, out=out, tokenizer=tokenizer, max_position_embeddings=max_position_embeddings)
            ),
            out,
        )
        return
    from sconce.training.import_earlier import ImportJob, import_earlier

    if tokenizer is None:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
        raise ConfigError(
            f"{path}: no config.json in it, so it is no Hugging Face folder; for a checkpoint of the earlier system, "
            "name its --tokenizer too"
        )
    job = ImportJob(
        source=path,
        tokenizer=tokenizer,
        out=out,
        num_heads=heads,
        config=config,
        max_position_embeddings=max_position_embeddings,
    )
    _report(import_earlier(job), out)


def _report(done: "Imported", out: Path) -> None:
    from sconce_cli.summary import next_commands

    moments = "with" if done.has_moments else "without"
    lines = [
        f"imported {done.source}",
        f"  {done.num_params:,} parameters from {done.precision}, {moments} moments, at step {done.step}",
        f"  to {done.checkpoint}",
        *[f"note: {note}" for note in done.notes],
        *next_commands(out, done.step, done.total_steps, done.knows_text),
    ]
    typer.echo("\n".join(lines))
