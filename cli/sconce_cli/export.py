"""`sconce export`: a model for other tools."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Class(StrEnum):
    """Hugging Face's name (model_type) of a class."""

    llama = "llama"
    qwen3 = "qwen3"
    arcee = "arcee"
    jais2 = "jais2"
    stablelm = "stablelm"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder (its latest checkpoint) or a checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    model_type: Annotated[
        Class | None, typer.Option("--as", help="The class wanted. Default: the one that computes this model.")
    ] = None,
) -> None:
    """Copy a checkpoint's model and tokenizer, as Hugging Face tools load them, to a folder of their own."""
    from sconce.training.export import export_checkpoint

    done = export_checkpoint(checkpoint, out, None if model_type is None else model_type.value)
    typer.echo(f"{done.checkpoint} as {done.model_type}: {out}/ has {', '.join(done.files)}")
