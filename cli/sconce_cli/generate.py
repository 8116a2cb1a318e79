"""`sconce generate`: let a checkpoint write."""

from pathlib import Path
from typing import Annotated

import typer

from sconce_cli.options import BackendOption, Hardware


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder (its latest checkpoint) or a checkpoint folder.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue; empty starts a document.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Candidates at each token; 0 for all.")] = 50,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Probability the candidates hold.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    backend: BackendOption = Hardware.auto,
) -> None:
    """Let a trained checkpoint continue a prompt."""
    from sconce.generation.sampling import Sampling
    from sconce.generation.text import continue_text

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    pieces = continue_text(
        checkpoint, prompt, max_tokens=max_tokens, sampling=sampling, seed=seed, hardware=backend.value
    )
    typer.echo(prompt, nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()
