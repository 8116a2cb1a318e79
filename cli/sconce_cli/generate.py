"""`sconce generate`: let a checkpoint write."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sconce_cli.options import BackendOption, Dtype, DtypeOption, Hardware, ModelArgument, QuietOption

if TYPE_CHECKING:
    from sconce.generation.engine import Figures
    from sconce.generation.model import Completion, Prompt, TextModel


def generate(
    checkpoint: ModelArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="Text to continue; empty starts a document. Repeat for several at once."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="Read the prompt from a file; - is stdin.")
    ] = None,
    each_line: Annotated[bool, typer.Option("--each-line", help="Every line of --prompt-file is a prompt.")] = False,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Continuations of each prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Candidates at each token; 0 for all.")] = 50,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Probability the candidates hold.")] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", min=0.0, max=1.0, help="Least probability, as a share of the likeliest's.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1: avoid tokens that were there already.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text. Repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same tokens.")] = 0,
    logprobs: Annotated[
        int, typer.Option("--logprobs", min=0, max=20, help="With --json: so many alternatives of each token.")
    ] = 0,
    dtype: DtypeOption = Dtype.fp32,
    backend: BackendOption = Hardware.auto,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a continuation, with every token's log-probability.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Let a trained checkpoint continue a prompt, or several at once."""
    from sconce.attention import check_decoding
    from sconce.generation.engine import Figures
    from sconce.generation.model import Prompt, load_model
    from sconce.generation.sampling import Sampling

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    if logprobs and not as_json:
        raise typer.BadParameter("--logprobs needs --json: plain text has no place for them")
    prompts = [
        Prompt(
            text=text,
            max_tokens=max_tokens,
            sampling=sampling,
            seed=seed,
            choice=choice,
            stop=tuple(stop or ()),
            alternatives=logprobs if as_json else None,
        )
        for text in _texts(prompt or [], prompt_file, each_line)
        for choice in range(samples)
    ]
    started = time.perf_counter()
    check_decoding()
    model, device = load_model(checkpoint, hardware=backend.value, precision=dtype.value)
    if not quiet:
        seconds = time.perf_counter() - started
        place = f"{device.kind} through {device.backend}, {dtype.value}"
        typer.echo(f"{model.path.name}: {model.spec.num_params:,} parameters, {place}, in {seconds:.1f} s", err=True)
    figures = Figures()
    cut = (_print_json if as_json else _print_text)(model, prompts, figures)
    if not quiet:
        if cut:
            typer.echo(_cut(cut, len(prompts), max_tokens, model.spec.max_position_embeddings), err=True)
        typer.echo(_speed(figures), err=True)


def _texts(prompts: Sequence[str], file: Path | None, each_line: bool) -> list[str]:
    if file is None:
        if each_line:
            raise typer.BadParameter("--each-line needs --prompt-file")
        return list(prompts) or [""]
    if prompts:
        raise typer.BadParameter("give either --prompt or --prompt-file")
    from sconce.errors import DataError

    try:
        text = sys.stdin.buffer.read().decode() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}") from None
    texts = text.splitlines() if each_line else [text]
    if not texts:
        raise DataError(f"{file}: no line in it, so no prompt")
    return texts


def _print_text(model: "TextModel", prompts: "Sequence[Prompt]", figures: "Figures") -> int:
    """One continuation as it comes; several when all are there. How many ended for want of positions."""
    if len(prompts) == 1:
        pieces = model.stream(prompts, figures)  # which refuses a prompt before it is printed
        typer.echo(str(prompts[0].text), nl=False)
        finish = None
        for piece in pieces:
            typer.echo(piece.text, nl=False)
            finish = piece.finish
        typer.echo()
        return int(finish == "length" and figures.new_tokens < prompts[0].max_tokens)
    completions = model.complete(prompts, figures)
    for number, (prompt, done) in enumerate(zip(prompts, completions, strict=True), 1):
        typer.echo(f"=== {number} of {len(prompts)}")
        typer.echo(f"{prompt.text}{done.text}")
    return _count_cut(prompts, completions)


def _print_json(model: "TextModel", prompts: "Sequence[Prompt]", figures: "Figures") -> int:
    """One record a line. How many ended for want of positions."""
    completions = model.complete(prompts, figures)
    for prompt, done in zip(prompts, completions, strict=True):
        typer.echo(json.dumps(_record(prompt, done), ensure_ascii=False))
    return _count_cut(prompts, completions)


def _count_cut(prompts: "Sequence[Prompt]", completions: "Sequence[Completion]") -> int:
    pairs = zip(prompts, completions, strict=True)
    return sum(done.finish == "length" and len(done.tokens) < prompt.max_tokens for prompt, done in pairs)


def _cut(count: int, of: int, max_tokens: int, positions: int) -> str:
    which = "the text ends" if of == 1 else f"{count} of {of} texts end"
    return f"{which} before --max-tokens {max_tokens}: the model's {positions:,} positions, prompt included, are full"


def _record(prompt: "Prompt", done: "Completion") -> dict[str, object]:
    tokens: list[dict[str, object]] = []
    for token in done.tokens:
        tokens.append({"id": token.id, "text": token.text, "logprob": token.logprob})
        if prompt.alternatives:
            tokens[-1]["alternatives"] = [{"text": one.text, "logprob": one.logprob} for one in token.alternatives]
    return {
        "prompt": prompt.text,
        "text": done.text,
        "finish_reason": done.finish,
        "prompt_tokens": done.prompt_tokens,
        "seed": prompt.seed,
        "sample": prompt.choice,
        "tokens": tokens,
    }


def _speed(figures: "Figures") -> str:
    read = f"prompt {_tokens(figures.prompt_tokens)}, {figures.prompt_tokens / figures.prompt_seconds:,.0f} tok/s"
    speed = figures.speed()
    return f"{read}; new {_tokens(figures.new_tokens)}" + (f", {speed} after the first" if speed else "")


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"
