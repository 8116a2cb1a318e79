"""`sconce data shard` and `sconce data clean`: text to text, before any tokenizer."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sconce_cli.options import JsonOption, QuietOption, given
from sconce_cli.shards import Document, OnError

if TYPE_CHECKING:
    from sconce.data.text_shards import Existing
    from sconce_cli.console import Terminal


class Format(StrEnum):
    """How a shard holds documents."""

    txt = "txt"
    jsonl = "jsonl"


class Duplicates(StrEnum):
    """Which documents count as seen before."""

    keep = "keep"
    exact = "exact"
    near = "near"


InputOption = Annotated[
    list[Path],
    typer.Option(
        "--input",
        metavar="PATH",
        help="Text, .jsonl, .json, .csv, .parquet, also .gz or .zst; a folder, a pattern, hf://org/name, or a data set "
        "that `datasets` saved. Repeatable.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where train/ and validation/ go.")]
TextFieldOption = Annotated[str, typer.Option("--text-field", help="Field or column of a record with its text.")]
OnErrorOption = Annotated[
    OnError, typer.Option("--on-error", help="What to do with what cannot be used; skip counts it.")
]
TakeOption = Annotated[
    int | None, typer.Option("--take", min=1, metavar="N", help="End after the first N documents of the input.")
]
LinesOption = Annotated[int | None, typer.Option("--lines", min=1, metavar="N", help="Documents a shard, at most.")]
BytesOption = Annotated[
    int | None, typer.Option("--bytes", min=1, metavar="N", help="Bytes of text a shard, at most, uncompressed.")
]
GzipOption = Annotated[bool, typer.Option("--gzip", help="Compress each shard.")]
ValidationOption = Annotated[
    float, typer.Option("--validation-fraction", min=0.0, max=0.99, help="Documents held out, by a hash of their text.")
]
ReuseOption = Annotated[bool, typer.Option("--reuse", help="Take what is there if it is what would be written.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace text shards that are there.")]
_OF_NEAR = {"similarity": "--similarity", "seed": "--seed"}


def shard(
    inputs: InputOption,
    out: OutOption,
    document: Annotated[
        Document, typer.Option("--document", help="What one document of a text file is.")
    ] = Document.line,
    format: Annotated[
        Format, typer.Option("--format", help="txt: a line is a document; jsonl: any text, as JSON.")
    ] = Format.txt,
    lines: LinesOption = None,
    size: BytesOption = None,
    gzip: GzipOption = False,
    validation_fraction: ValidationOption = 0.0,
    take: TakeOption = None,
    text_field: TextFieldOption = "text",
    on_error: OnErrorOption = OnError.stop,
    reuse: ReuseOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cut a corpus into shards of text. A document is never cut; the same documents give the same bytes.

    A line of a text file longer than 1 MiB is several documents, cut at each MiB. Killed, the same command goes on.
    Train on them with data.train_shards = ["FOLDER/train"] and data.document = "line".
    """
    import time

    from sconce.data.corpus import Corpus
    from sconce.data.progress import Announcer
    from sconce.data.text_shards import shard_text
    from sconce.data.text_writer import TextOptions
    from sconce_cli.console import make_reporter

    options = TextOptions(
        format=format.value, lines=lines, size=size, gzip=gzip, validation_fraction=validation_fraction, take=take
    )
    corpus = Corpus(paths=tuple(inputs), rule=document.value, text_field=text_field, on_error=on_error.value)
    terminal = make_reporter(quiet, as_json)
    announce = Announcer(terminal.say, time.monotonic, documents=take)
    manifest, reused = shard_text(corpus, out, options, _existing(reuse, force), progress=announce, say=terminal.say)
    _report(out, manifest, reused, terminal)


def clean(
    context: typer.Context,
    inputs: InputOption,
    out: OutOption,
    document: Annotated[
        Document, typer.Option("--document", help="What one document of a text file is.")
    ] = Document.blank_line,
    min_chars: Annotated[int, typer.Option("--min-chars", min=1, metavar="N", help="Drop shorter documents.")] = 1,
    collapse_spaces: Annotated[
        bool, typer.Option("--collapse-spaces", help="One space for each run of white space in a line.")
    ] = False,
    duplicates: Annotated[
        Duplicates, typer.Option("--duplicates", help="Which to drop; near needs datasketch.")
    ] = Duplicates.exact,
    similarity: Annotated[
        float, typer.Option("--similarity", min=0.1, max=1.0, help="Of near duplicates: share of word 5-grams.")
    ] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sketches of near duplicates.")] = 1,
    lines: LinesOption = None,
    size: BytesOption = None,
    gzip: GzipOption = False,
    validation_fraction: ValidationOption = 0.0,
    take: TakeOption = None,
    text_field: TextFieldOption = "text",
    on_error: OnErrorOption = OnError.stop,
    reuse: ReuseOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Clean a corpus into shards of JSON lines, and count what was dropped and why.

    Line ends become LF; control characters and white space at line ends go. Of duplicates the first is kept.
    Killed, the same command goes on.
    """
    import time

    from sconce.data.clean import CleanOptions, clean_corpus
    from sconce.data.corpus import Corpus
    from sconce.data.progress import Announcer
    from sconce.data.text_writer import TextOptions
    from sconce.errors import ConfigError
    from sconce_cli.console import make_reporter

    if duplicates is not Duplicates.near and (idle := given(context, _OF_NEAR)):
        raise ConfigError(f"{', '.join(idle)}: only with --duplicates near")
    options = TextOptions(lines=lines, size=size, gzip=gzip, validation_fraction=validation_fraction, take=take)
    cleaning = CleanOptions(
        min_chars=min_chars,
        collapse_spaces=collapse_spaces,
        duplicates=duplicates.value,
        similarity=similarity,
        seed=seed,
    )
    corpus = Corpus(paths=tuple(inputs), rule=document.value, text_field=text_field, on_error=on_error.value)
    terminal = make_reporter(quiet, as_json)
    announce = Announcer(terminal.say, time.monotonic, documents=take)
    manifest, reused = clean_corpus(
        corpus, out, cleaning, options, _existing(reuse, force), progress=announce, say=terminal.say
    )
    _report(out, manifest, reused, terminal)


def _existing(reuse: bool, force: bool) -> "Existing":
    from sconce.errors import ConfigError

    if reuse and force:
        raise ConfigError("--reuse and --force: give one of the two")
    return "reuse" if reuse else "force" if force else "refuse"


def _report(out: Path, manifest: dict[str, Any], reused: bool, terminal: "Terminal") -> None:
    shards = manifest["shards"]
    documents, size = (sum(shard[key] for shard in shards) for key in ("documents", "bytes"))
    counts: dict[str, int] = manifest.get("counts", {})
    skipped = sum(source["skipped"] for source in manifest["sources"])
    text = f"{out}: {documents:,} documents, {size:,} bytes of text in {len(shards)} shards"
    text += " (reused)" if reused else ""
    if counts:
        text += "".join(f"\n  {key.replace('_', ' '):15} {count:,}" for key, count in counts.items())
    if skipped:
        text += f"\n  skipped         {skipped:,} that could not be read"
    facts = {"folder": str(out), "documents": documents, "bytes": size, "shards": len(shards), "skipped": skipped}
    terminal.outcome("written", {**facts, "reused": reused, **counts}, text)
