"""`sconce eval`: how well a checkpoint predicts text."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sconce_cli.options import BackendOption, Dtype, DtypeOption, Hardware, JsonOption, ModelArgument


class Document(StrEnum):
    """What one document of a file is."""

    passage = "passage"
    line = "line"
    blank_line = "blank-line"
    file = "file"


def eval_(
    checkpoint: ModelArgument,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="PATH", help="A text file or folder; repeatable. Default: the run's held-out."),
    ] = None,
    document: Annotated[
        Document, typer.Option("--document", help="How --text falls into documents, as data.document has it.")
    ] = Document.passage,
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="Predictions a window. Default: the model's positions.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="Tokens from window to window. Default: the window; less gives context."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Windows at once.")] = 8,
    max_batches: Annotated[
        int | None, typer.Option("--max-batches", min=1, help="Of each source. Default: all.")
    ] = None,
    dtype: DtypeOption = Dtype.fp32,
    backend: BackendOption = Hardware.auto,
    as_json: JsonOption = False,
) -> None:
    """Score text under a trained checkpoint: loss, perplexity, bits per byte and token accuracy, by source."""
    from sconce.generation.model import load_model
    from sconce.generation.score import Score
    from sconce.training.score import ScoreOptions, score_model

    options = ScoreOptions(
        texts=text or (),
        rule=document.value,
        window=window,
        stride=stride,
        batch_size=batch_size,
        max_batches=max_batches,
    )
    model, _ = load_model(checkpoint, hardware=backend.value, precision=dtype.value)
    total, sources = Score(), 0
    for name, score in score_model(model, options):
        _print(name, score.figures(), as_json)
        total.add(score)
        sources += 1
    if sources > 1:
        _print("all", total.figures(), as_json)


def _print(source: str, figures: dict[str, float], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"source": source, **figures}, ensure_ascii=False))
        return
    typer.echo(
        f"{source}: loss {figures['loss']:.4f}  perplexity {figures['perplexity']:.2f}  "
        f"{figures['bits_per_byte']:.4f} bits per byte  accuracy {figures['accuracy']:.1%}  "
        f"({figures['tokens']:,} tokens)"
    )
