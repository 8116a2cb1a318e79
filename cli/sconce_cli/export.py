"""`sconce export`: a model for other tools."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sconce.interop.hf import CLASSES
from sconce_cli.options import Dtype


class Target(StrEnum):
    """What is to load it."""

    hf = "hf"
    mlx_lm = "mlx-lm"
    gguf = "gguf"


class Bits(StrEnum):
    """Of a quantised weight."""

    four = "4"
    eight = "8"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder (its latest checkpoint) or a checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    to: Annotated[
        Target, typer.Option("--to", help="hf: transformers, vLLM and others; mlx-lm; gguf: llama.cpp and others.")
    ] = Target.hf,
    model_type: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="CLASS",
            help=f"The class wanted, of {', '.join(CLASSES)}. Default: the one that computes this model.",
        ),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Store weights in this. Default: fp32.")] = None,
    max_shard_size: Annotated[
        str | None, typer.Option("--max-shard-size", metavar="SIZE", help="Of a file, such as 500MB. Default: 5GB.")
    ] = None,
    quantize: Annotated[
        Bits | None, typer.Option("--quantize", metavar="BITS", help="4 or 8 bits a weight, for mlx-lm and gguf.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="For the model card, such as apache-2.0.")
    ] = None,
) -> None:
    """Write a checkpoint's model and tokenizer, as other tools load them, with a model card, to a folder."""
    from sconce.training.export import ExportJob, export_checkpoint, parse_size

    job = ExportJob(
        place=checkpoint,
        out=out,
        to=to.value,
        model_type=model_type,
        dtype=None if dtype is None else dtype.value,
        max_shard_bytes=None if max_shard_size is None else parse_size(max_shard_size),
        quantize=None if quantize is None else int(quantize.value),
        license=license_,
    )
    done = export_checkpoint(job)
    typer.echo(f"{done.checkpoint} as {done.model_type}: {out}/ has {', '.join(done.files)}")
    for note in done.notes:
        typer.echo(f"note: {note}")
