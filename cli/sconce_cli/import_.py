"""`sconce import`: a checkpoint of the earlier system becomes a run."""

from pathlib import Path
from typing import Annotated

import typer


def import_(
    path: Annotated[
        Path, typer.Argument(help="A step_… folder, a folder of them (the newest), or a bare model.safetensors.")
    ],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="The tokenizer.json it was trained with.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to make.")],
    heads: Annotated[
        int | None, typer.Option("--heads", min=1, help="Attention heads, where no --config says it.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The old run's config (YAML, TOML or JSON): go on as it was.")
    ] = None,
    max_position_embeddings: Annotated[
        int | None, typer.Option("--max-position-embeddings", min=2, help="Longest sequence. Default: the config's.")
    ] = None,
) -> None:
    """Turn a checkpoint of the earlier system (transformer_candle) into a run that generates and trains on."""
    import shlex

    from sconce.training.import_earlier import MORE_STEPS, ImportJob, import_earlier
    from sconce_cli.summary import program, train_command

    job = ImportJob(
        source=path,
        tokenizer=tokenizer,
        out=out,
        num_heads=heads,
        config=config,
        max_position_embeddings=max_position_embeddings,
    )
    done = import_earlier(job)
    overrides = [] if done.knows_text else ['data.train_shards=["corpus.txt"]']
    if done.step >= done.total_steps:
        overrides.append(f"scheduler.total_steps={done.step + MORE_STEPS}")
    moments = "with" if done.has_moments else "without"
    lines = [
        f"imported {done.source}",
        f"  {done.num_params:,} parameters from {done.precision}, {moments} moments, at step {done.step}",
        f"  to {done.checkpoint}",
        *[f"note: {note}" for note in done.notes],
        "",
        "next:",
        f'  {shlex.quote(program())} generate {shlex.quote(str(out))} --prompt "Once"',
        f"  {train_command(out / 'training.toml', out, 'auto', overrides)}",
    ]
    typer.echo("\n".join(lines))
