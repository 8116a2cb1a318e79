"""`sconce data prepare`, `inspect`, `stats`, `verify`: make token shards, and look at them."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sconce_cli.options import Document, JsonOption, OverrideOption, QuietOption, RunDirOption, chosen_run_dir, given

if TYPE_CHECKING:
    from sconce.data.examine import SplitStats
    from sconce.data.shards import Manifest, TokenData
    from sconce.tokenizer.bpe import Tokenizer
    from sconce_cli.console import Terminal


class OnError(StrEnum):
    """What to do with what cannot be used."""

    stop = "stop"
    skip = "skip"


PlaceArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER_OR_RUN", help="A folder of token shards, or the folder of a run.")
]
# Options of `prepare` by parameter: those that a config file has keys for, and those that change a config.
_WITHOUT_CONFIG = {
    "inputs": "--input",
    "tokenizer": "--tokenizer",
    "out": "--out",
    "validation": "--validation",
    "validation_fraction": "--validation-fraction",
    "document": "--document",
    "text_field": "--text-field",
    "on_error": "--on-error",
    "shard_tokens": "--shard-tokens",
}
_WITH_CONFIG = {"run_dir": "--run-dir", "override": "--override"}

TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json, or a folder that holds one.")
]


def prepare(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="Prepare what this config trains on, for its run.")] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="PATH",
            help="Instead of a config: text, .jsonl, .json, .csv, .parquet, also .gz or .zst; a folder, a pattern, "
            "hf://org/name, or a data set that `datasets` saved. Repeatable.",
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where the shards go.")] = None,
    validation: Annotated[
        list[Path] | None, typer.Option("--validation", metavar="PATH", help="Held-out text of its own. Repeatable.")
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option("--validation-fraction", min=0.0, max=1.0, help="Documents held out, by a hash of their text."),
    ] = 0.05,
    document: Annotated[
        Document, typer.Option("--document", help="What one document of a text file is.")
    ] = Document.passage,
    text_field: Annotated[
        str, typer.Option("--text-field", help="Field or column of a record with its text.")
    ] = "text",
    on_error: Annotated[
        OnError, typer.Option("--on-error", help="What to do with what cannot be used; skip counts it.")
    ] = OnError.stop,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Threads. Default: the cores.")] = None,
    shard_tokens: Annotated[
        int | None, typer.Option("--shard-tokens", min=1, help="Tokens a shard, at most. Default: 67,108,864.")
    ] = None,
    run_dir: RunDirOption = None,
    override: OverrideOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make token shards of text: the same bytes for any number of workers, and after a kill gone on with.

    Of a CONFIG, exactly as `sconce train` would; else of --input, with --tokenizer, into --out.
    """
    from sconce.data.corpus import Corpus
    from sconce.errors import ConfigError
    from sconce.training.tokens import build_tokens
    from sconce_cli.console import make_reporter

    terminal = make_reporter(quiet, as_json)
    if config is not None:
        if idle := given(context, _WITHOUT_CONFIG):
            raise ConfigError(
                f"{config}: {', '.join(idle)}: not beside a config file, which has keys for it (--override)"
            )
        _prepare_config(config, run_dir, override or [], workers, terminal)
        return
    if not inputs or tokenizer is None or out is None:
        raise ConfigError("give a config file, or --input, --tokenizer and --out")
    if idle := given(context, _WITH_CONFIG):
        raise ConfigError(f"{', '.join(idle)}: only with a config file")
    if validation and given(context, {"validation_fraction": "--validation-fraction"}):
        raise ConfigError(
            "--validation-fraction: nothing but the text of --validation is held out: leave out one of them"
        )
    if not 0 < validation_fraction < 1:
        raise ConfigError(f"--validation-fraction: found {validation_fraction}, expected more than 0 and less than 1")
    corpus = Corpus(
        paths=tuple(inputs),
        validation_paths=tuple(validation or ()),
        rule=document.value,
        validation_fraction=validation_fraction,
        text_field=text_field,
        on_error=on_error.value,
    )
    built = build_tokens(corpus, _load(tokenizer), out, say=terminal.say, workers=workers, shard_tokens=shard_tokens)
    _report(built, terminal)


def _prepare_config(
    path: Path, run_dir: Path | None, override: list[str], workers: int | None, terminal: "Terminal"
) -> None:
    from sconce.config import load_config
    from sconce.training.run import RunFolder
    from sconce.training.show import prepare_run

    config = load_config(path, override)
    folder = RunFolder(chosen_run_dir(run_dir, config.runtime.run_dir, path))
    _report(prepare_run(config, folder, terminal.say, workers), terminal)


def _report(tokens: "TokenData", terminal: "Terminal") -> None:
    counts = {
        "documents": tokens.train.num_documents + tokens.validation.num_documents,
        "train_tokens": tokens.train.num_tokens,
        "validation_tokens": tokens.validation.num_tokens,
        "utf8_bytes": tokens.train.utf8_bytes + tokens.validation.utf8_bytes,
        "skipped": sum(source.skipped for source in tokens.manifest.sources),
    }
    terminal.outcome(
        "prepared",
        {"folder": str(tokens.folder), "fingerprint": tokens.fingerprint, **counts},
        f"{tokens.folder}: {counts['train_tokens']:,} training and {counts['validation_tokens']:,} held-out tokens of "
        f"{counts['documents']:,} documents, fingerprint {tokens.fingerprint[:12]}",
    )


def inspect(place: PlaceArgument, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what a build of token shards says about itself; its content is not read."""
    import dataclasses
    import json

    from sconce.data.shards import open_tokens

    folder, _ = _find(place, None)
    tokens = open_tokens(folder, verify=False)
    if as_json:
        facts = {"folder": str(folder), "fingerprint": tokens.fingerprint, **dataclasses.asdict(tokens.manifest)}
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    typer.echo(str(folder))
    _echo_pairs(_facts(tokens.manifest, tokens.fingerprint))
    typer.echo("\nshards")
    _echo_table(
        [
            ("", "documents", "tokens", "bytes of text", "sha256 of tokens"),
            *(
                (one.name, f"{one.documents:,}", f"{one.tokens:,}", f"{one.utf8_bytes:,}", one.bin_sha256[:12])
                for one in tokens.manifest.shards
            ),
        ]
    )
    typer.echo("\nsources")
    _echo_table(
        [
            ("", "bytes", "skipped", "sha256"),
            *((one.path, f"{one.size:,}", f"{one.skipped:,}", one.sha256[:12]) for one in tokens.manifest.sources),
        ]
    )


def verify(place: PlaceArgument) -> None:
    """Read every shard: sizes, hashes, ids within the vocabulary, documents one after the other, each with its end.

    Changes nothing. Exit code 2 when anything is wrong.
    """
    from sconce.data.examine import faults
    from sconce.data.shards import read_manifest
    from sconce.errors import DataError

    folder, _ = _find(place, None)
    found = list(faults(folder))
    for fault in found[:20] if len(found) > 1 else ():
        typer.echo(fault)
    if found:
        raise DataError(
            found[0] if len(found) == 1 else f"{folder}: {len(found)} faults: delete it and prepare it again"
        )
    shards = read_manifest(folder).shards
    typer.echo(f"{folder}: intact: {len(shards)} shards, {sum(shard.tokens for shard in shards):,} tokens")


def stats(
    place: PlaceArgument,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw histograms.")] = None,
    top: Annotated[int, typer.Option("--top", min=0, metavar="N", help="Most frequent tokens to show.")] = 10,
    tokenizer: TokenizerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count tokens, documents and their lengths. A document's length leaves out its end-of-text token.

    Of a run, or with --tokenizer, tokens are shown as text too.
    """
    import json

    from sconce.data.examine import split_stats
    from sconce.data.shards import open_tokens

    folder, known = _find(place, tokenizer)
    manifest = open_tokens(folder, verify=False).manifest
    splits = [split_stats(folder, manifest, split) for split in ("train", "validation")]
    splits = [split for split in splits if split.documents]
    if plot is not None:
        from sconce.data.plot import plot_stats

        plot_stats(splits, plot)
    if as_json:
        typer.echo(json.dumps({split.split: _stats_json(split, top, known) for split in splits}, ensure_ascii=False))
        return
    typer.echo(str(folder))
    for split in splits:
        _echo_stats(split, top, known)
    if plot is not None:
        typer.echo(f"\n{plot}")


def _find(place: Path, tokenizer: Path | None) -> tuple[Path, "Tokenizer | None"]:
    """The folder of shards, and the tokenizer that made them if it is known. Raises DataError, CheckpointError."""
    from sconce.data.shards import MANIFEST, read_manifest
    from sconce.errors import DataError
    from sconce.training.run import RunFolder
    from sconce.training.show import shards_of_run

    known = None if tokenizer is None else _load(tokenizer)
    folder = place
    if not (place / MANIFEST).is_file():
        run = RunFolder(place)
        if not run.checkpoints.is_dir() and not run.config.is_file():
            raise DataError(f"{place}: neither token shards (no {MANIFEST}) nor the folder of a run")
        folder, own = shards_of_run(run)
        known = known or own
    made_by = read_manifest(folder).tokenizer_sha256
    if known is not None and known.sha256 != made_by:
        raise DataError(f"{folder}: made with another tokenizer than {known.path} (sha256 {made_by[:12]})")
    return folder, known


def _load(path: Path) -> "Tokenizer":
    from sconce.tokenizer.bpe import load_tokenizer

    return load_tokenizer(path / "tokenizer.json" if path.is_dir() else path)


def _facts(manifest: "Manifest", fingerprint: str) -> Iterable[tuple[str, object]]:
    yield "fingerprint", fingerprint
    yield "tokenizer sha256", manifest.tokenizer_sha256
    yield (
        "tokens are",
        f"{manifest.dtype}, of a vocabulary of {manifest.vocab_size:,}; {manifest.eos_id} ends a document",
    )
    yield "a document is", f"a {manifest.rule} of text, or a record's {manifest.text_field!r}"
    if manifest.threshold is None:
        yield "held out", f"files of their own: {', '.join(manifest.validation_paths)}"
    else:
        yield "held out", f"{manifest.validation_fraction:.4g} of the documents, by a hash of their text"
    for split in ("train", "validation"):
        shards = [shard for shard in manifest.shards if shard.split == split]
        documents, tokens, size = (
            sum(getattr(shard, name) for shard in shards) for name in ("documents", "tokens", "utf8_bytes")
        )
        yield split, f"{len(shards)} shards, {documents:,} documents, {tokens:,} tokens, {size:,} bytes of text"
    if manifest.on_error == "skip":
        yield "skipped", f"{sum(source.skipped for source in manifest.sources):,}"


def _stats_json(split: "SplitStats", top: int, tokenizer: "Tokenizer | None") -> dict[str, Any]:
    from sconce.data.examine import QUANTILES

    return {
        "shards": split.shards,
        "documents": split.documents,
        "tokens": split.tokens,
        "utf8_bytes": split.utf8_bytes,
        "tokens_per_byte": split.tokens_per_byte,
        "mean_length": split.mean_length,
        "length_quantiles": dict(zip(map(str, QUANTILES), split.quantiles, strict=True)),
        "ids_that_occur": int((split.token_counts > 0).sum()),
        "top_tokens": [
            {"id": token, "count": count, **({} if tokenizer is None else {"text": _text(token, tokenizer)})}
            for token, count in split.top_tokens(top)
        ],
    }


def _echo_stats(split: "SplitStats", top: int, tokenizer: "Tokenizer | None") -> None:
    facts = _stats_json(split, 0, tokenizer)
    typer.echo(f"\n{split.split}")
    for key in ("documents", "tokens", "utf8_bytes", "ids_that_occur"):
        typer.echo(f"  {key.replace('_', ' '):16}  {facts[key]:,}")
    bytes_per_token = 1 / split.tokens_per_byte if split.tokens_per_byte else 0.0
    typer.echo(f"  tokens per byte   {split.tokens_per_byte:.4f} ({bytes_per_token:.2f} bytes per token)")
    shown = ", ".join(f"{float(key):.0%} {value:,}" for key, value in facts["length_quantiles"].items())
    typer.echo(f"  document length   mean {split.mean_length:,.1f}; {shown}")
    for rank, (token, count) in enumerate(split.top_tokens(top), 1):
        text = "" if tokenizer is None else f"  {_text(token, tokenizer)!r}"
        typer.echo(
            f"  {'most frequent' if rank == 1 else '':16}  {token:>7} {count:>14,} {count / split.tokens:7.2%}{text}"
        )


def _text(token: int, tokenizer: "Tokenizer") -> str:
    return tokenizer.decode([token], skip_special=False)


def _echo_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    for key, value in pairs:
        typer.echo(f"  {key:16}  {value}")


def _echo_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        typer.echo(f"  {first:{widths[0]}}  {'  '.join(cells)}".rstrip())
