"""The token shards of a run: those it began with, or made of its text."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from sconce.checkpoint.load import LoadedCheckpoint
from sconce.config import RunConfig
from sconce.data.corpus import Corpus
from sconce.data.encode import Engine, usable_cores
from sconce.data.prepare import is_current, prepare
from sconce.data.progress import Announcer
from sconce.data.shards import TokenData, open_tokens
from sconce.data.sources import Source
from sconce.errors import CheckpointError, DataError
from sconce.log import log
from sconce.tokenizer.bpe import Tokenizer
from sconce.tokenizer.fast import FastUnavailableError, fast_encoder

_SLOW_BYTES = 10 * 2**20  # of text: with less, it matters to nobody that a faster encoder could be had

Say = Callable[[str], None]


def run_tokens(
    config: RunConfig,
    folder: Path,
    tokenizer: Tokenizer,
    loaded: LoadedCheckpoint | None,
    say: Say,
    workers: int | None = None,
) -> TokenData:
    """The token shards of the run in `folder`: those its checkpoint began with if intact, else made of its text.

    Raises CheckpointError when the text is no longer that of the checkpoint's run, DataError when it cannot be used.
    """
    corpus, place = corpus_of(config, loaded), shards_folder(config, folder, tokenizer)
    tokens = None if loaded is None else shards_there(place, tokenizer, loaded, verify=True)
    if tokens is None:
        tokens = rebuild_tokens(corpus, tokenizer, place, loaded, say=say, workers=workers)
    elif not is_current(corpus, tokenizer, place):
        say("note: the text has changed since this run began; the run goes on with the tokens it began with")
    for address, commit in tokens.manifest.commits.items():
        say(f"data: {address} at commit {commit}")
    say(
        f"data: {tokens.train.num_tokens:,} training and {tokens.validation.num_tokens:,} held-out tokens, "
        f"from {tokens.train.utf8_bytes + tokens.validation.utf8_bytes:,} bytes of text"
    )
    return tokens


def rebuild_tokens(
    corpus: Corpus,
    tokenizer: Tokenizer,
    place: Path,
    loaded: LoadedCheckpoint | None,
    *,
    say: Say,
    workers: int | None = None,
) -> TokenData:
    """`build_tokens`, which replaces what is in `place` only once it is what the checkpoint's run was trained on.

    Raises CheckpointError when it is not, with `place` as it was.
    """
    if loaded is None or is_current(corpus, tokenizer, place):  # the same text gives the same tokens
        tokens = build_tokens(corpus, tokenizer, place, say=say, workers=workers)
        check_same_tokens(tokens, loaded, place)
        return tokens
    beside = place.with_name(f"{place.name}.remade")
    try:
        check_same_tokens(build_tokens(corpus, tokenizer, beside, say=say, workers=workers), loaded, place)
    except CheckpointError:
        shutil.rmtree(beside)
        raise
    if place.exists():
        shutil.rmtree(place)
    beside.rename(place)
    return open_tokens(place)


def build_tokens(
    corpus: Corpus,
    tokenizer: Tokenizer,
    place: Path,
    *,
    say: Say,
    workers: int | None = None,
    shard_tokens: int | None = None,
) -> TokenData:
    """`prepare`, on all cores unless `workers` says otherwise, by the fastest encoder there is, with progress said."""
    sizes = {} if shard_tokens is None else {"shard_tokens": shard_tokens}
    engine = partial(_engine, corpus, tokenizer, workers or usable_cores(), say)
    announce = Announcer(say, time.monotonic)
    return prepare(corpus, tokenizer, place, engine=engine, progress=announce, say=say, **sizes)


def _engine(corpus: Corpus, tokenizer: Tokenizer, workers: int, say: Say) -> Engine:
    sources = [*corpus.sources(), *corpus.validation_sources()]
    for source in sources:
        log.debug("text: %s, %d bytes", source.path, source.size)
    return fastest_engine(sources, tokenizer, workers, say)


def fastest_engine(sources: Iterable[Source], tokenizer: Tokenizer, workers: int, say: Say) -> Engine:
    """An engine with the fastest encoder there is; where that is a slow one and it matters, `say` hears why."""
    try:
        return Engine(workers, fast_encoder(tokenizer))
    except FastUnavailableError as reason:
        if sum(source.size for source in sources) >= _SLOW_BYTES:
            say(f"note: tokenising with tokenizers, tens of times slower than with fastokens: {reason}")
        return Engine(workers)


def corpus_of(config: RunConfig, loaded: LoadedCheckpoint | None = None) -> Corpus:
    """The text that a config names, and how it falls into documents; data sets as the checkpoint's run read them."""
    data = config.data
    return Corpus(
        paths=data.train_shards,
        validation_paths=data.validation_shards,
        rule=data.document,
        validation_fraction=data.validation_fraction,
        text_field=data.text_field,
        on_error=data.on_error,
        commits={} if loaded is None else loaded.record.commits,
    )


def shards_folder(config: RunConfig, folder: Path, tokenizer: Tokenizer) -> Path:
    """Where the token shards of the run in `folder` are, or will be."""
    if config.data.cache_dir is None:
        return folder / "data"
    key = hashlib.sha256(repr((tokenizer.sha256, corpus_of(config))).encode()).hexdigest()
    return config.data.cache_dir / key[:16]  # several runs may share a cache, each corpus has its own place


def shards_there(
    place: Path, tokenizer: Tokenizer, loaded: LoadedCheckpoint | None, *, verify: bool
) -> TokenData | None:
    """The shards in `place`, if they are of this tokenizer and of the checkpoint's run, and, with `verify`, intact."""
    try:
        tokens = open_tokens(place, verify)
    except DataError:
        return None
    same_run = loaded is None or loaded.record.cursor.get("fingerprint") == tokens.fingerprint
    return tokens if same_run and tokens.tokenizer_sha256 == tokenizer.sha256 else None


def check_same_tokens(tokens: TokenData, loaded: LoadedCheckpoint | None, place: Path) -> None:
    """Raise CheckpointError, about `place`, if the checkpoint's run, should there be one, knew other tokens."""
    expected = None if loaded is None else loaded.record.cursor.get("fingerprint")
    if loaded is None or expected is None:  # imported: it goes on with any text
        return
    if expected != tokens.fingerprint:
        raise CheckpointError(
            f"{place}: not the tokens this run was trained on (fingerprint {tokens.fingerprint[:12]}, "
            f"{loaded.path} has {str(expected)[:12]}): the text, its split or the "
            "document rule changed; put the text back, or train in another --run-dir"
        )
