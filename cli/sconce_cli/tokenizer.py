"""`sconce tokenizer`: train one, or look at one."""

from pathlib import Path
from typing import Annotated

import typer

from sconce_cli.options import JsonOption

app = typer.Typer(help="Train or inspect a tokenizer.", no_args_is_help=True)


@app.command()
def train(
    inputs: Annotated[
        list[Path], typer.Option("--input", metavar="FILE_OR_FOLDER", help="Text to learn from. Repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for tokenizer.json and its manifest.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=259, help="Tokens, special ones included.")] = 32000,
    held_out: Annotated[
        float,
        typer.Option("--validation-fraction", min=0.0, max=0.99, help="Documents kept from it."),
    ] = 0.05,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Read no more text than this.")] = 2**29,
    force: Annotated[bool, typer.Option("--force", help="Replace a tokenizer that is already there.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer: lossless for any text, the same bytes for the same input."""
    from sconce.data.corpus import Corpus
    from sconce.errors import DataError
    from sconce.orchestrate import train_on_corpus

    if (out / "tokenizer.json").exists() and not force:
        raise DataError(f"{out / 'tokenizer.json'} exists: give --force to replace it, or another --out")
    tokenizer = train_on_corpus(Corpus(paths=tuple(inputs), validation_fraction=held_out), vocab_size, out, max_bytes)
    typer.echo(f"{tokenizer.path}: {tokenizer.vocab_size} tokens, sha256 {tokenizer.sha256[:12]}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A tokenizer.json, or a folder that holds one.")],
    text: Annotated[str | None, typer.Option("--text", help="Show how this text is cut.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a tokenizer's size, special tokens and hash, and how it cuts a text."""
    import json

    from sconce.tokenizer.bpe import describe, load_tokenizer

    tokenizer = load_tokenizer(path / "tokenizer.json" if path.is_dir() else path)
    facts = describe(tokenizer, text)
    if text is not None:
        facts["pieces"] = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    for key, value in facts.items():
        typer.echo(f"{key:>16}  {value}")
