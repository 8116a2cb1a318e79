"""`sconce eval`: how well a checkpoint predicts text, and how it does in benchmarks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sconce_cli.options import BackendOption, Document, Dtype, DtypeOption, Hardware, JsonOption, ModelArgument

if TYPE_CHECKING:
    from sconce.checkpoint.evaluations import Result
    from sconce.evaluation.harness import TaskOptions
    from sconce.generation.model import TextModel
    from sconce.training.score import ScoreOptions


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
    max_batches: Annotated[
        int | None, typer.Option("--max-batches", min=1, help="Of each source. Default: all.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="A,B", help="Tasks of lm-evaluation-harness instead, by name or YAML file."),
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option("--task-path", metavar="FOLDER", help="A folder of YAML tasks of your own.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Examples before a question. Default: the task's.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Questions of each task. Default: all.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Windows or questions at once.")] = 8,
    dtype: DtypeOption = Dtype.fp32,
    backend: BackendOption = Hardware.auto,
    as_json: JsonOption = False,
) -> None:
    """Score text under a trained checkpoint: loss, perplexity, bits per byte and token accuracy, by source.

    With --tasks, ask it a benchmark's questions. What is found is kept in the run's evaluations/ folder too.
    """
    from sconce.errors import ConfigError
    from sconce.evaluation.harness import TaskOptions
    from sconce.generation.model import load_model
    from sconce.training.score import ScoreOptions

    of_text = {"--text": text, "--window": window, "--stride": stride, "--max-batches": max_batches}
    of_tasks = {"--task-path": task_path, "--num-fewshot": num_fewshot, "--limit": limit}
    lost = [name for name, value in (of_tasks if tasks is None else of_text).items() if value is not None]
    if tasks is not None and document is not Document.passage:
        lost.append("--document")
    if lost:
        raise ConfigError(f"{', '.join(lost)}: has no meaning with{'out' if tasks is None else ''} --tasks")
    model, device = load_model(checkpoint, hardware=backend.value, precision=dtype.value)
    if tasks is None:
        scoring = ScoreOptions(
            texts=text or (),
            rule=document.value,
            window=window,
            stride=stride,
            batch_size=batch_size,
            max_batches=max_batches,
        )
        results = _score_texts(model, scoring, as_json)
    else:
        asking = TaskOptions(
            tasks=[name.strip() for name in tasks.split(",") if name.strip()],
            include=task_path,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
        )
        results = _ask_tasks(model, asking, as_json)
    for result in results:
        result["settings"] |= {"backend": device.backend, "precision": dtype.value}
    _keep(model.path, results)


def _score_texts(model: "TextModel", options: "ScoreOptions", as_json: bool) -> "list[Result]":
    """Print each source as it is done, and all together; of the latter what is held out is worth keeping."""
    from sconce.generation.score import Score
    from sconce.training.score import HELD_OUT, score_model, settings_of

    scores: list[tuple[str, Score]] = []
    total = Score()
    for name, score in score_model(model, options):
        _print_text(name, score.figures(), as_json)
        total.add(score)
        scores.append((name, score))
    if len(scores) > 1:
        _print_text("all", total.figures(), as_json)
        scores += [] if options.texts else [(HELD_OUT, total)]
    settings = settings_of(model, options)
    return [
        {"kind": "text", "name": name, "figures": {**score.figures()}, "settings": {**settings}}
        for name, score in scores
    ]


def _ask_tasks(model: "TextModel", options: "TaskOptions", as_json: bool) -> "list[Result]":
    from sconce.evaluation.harness import run_tasks

    results = run_tasks(model, options)
    for result in results:
        if as_json:
            typer.echo(json.dumps(result, ensure_ascii=False))
            continue
        figures = (f"{name} {_short(value)}" for name, value in result["figures"].items())
        typer.echo(f"{result['name']}: {'  '.join(figures)}")
    return results


def _short(value: float | str | None) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _keep(checkpoint: Path, results: "list[Result]") -> None:
    """Store the results; what was measured has been printed, so a place that cannot be written to ends nothing."""
    from sconce.checkpoint.evaluations import keep_results
    from sconce.errors import SconceError

    try:
        path = keep_results(checkpoint, results)
        typer.echo(f"kept in {path}" if path else f"not kept: {checkpoint} lies in no run", err=True)
    except (SconceError, OSError) as error:
        typer.echo(f"note: not kept: {error}", err=True)


def _print_text(source: str, figures: dict[str, float], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"source": source, **figures}, ensure_ascii=False))
        return
    typer.echo(
        f"{source}: loss {figures['loss']:.4f}  perplexity {figures['perplexity']:.2f}  "
        f"{figures['bits_per_byte']:.4f} bits per byte  accuracy {figures['accuracy']:.1%}  "
        f"({figures['tokens']:,} tokens)"
    )
