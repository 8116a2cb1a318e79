"""`sconce export`: a model for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from sconce.interop.hf import CLASSES


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder (its latest checkpoint) or a checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    model_type: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="CLASS",
            help=f"The class wanted, of {', '.join(CLASSES)}. Default: the one that computes this model.",
        ),
    ] = None,
) -> None:
    """Copy a checkpoint's model and tokenizer, as Hugging Face tools load them, to a folder of their own."""
    from sconce.training.export import export_checkpoint

    done = export_checkpoint(checkpoint, out, model_type)
    typer.echo(f"{done.checkpoint} as {done.model_type}: {out}/ has {', '.join(done.files)}")
