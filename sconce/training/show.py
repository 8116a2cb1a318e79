"""Finding what a run trains on, from its folder alone or from its config, for `sconce data show`."""

from pathlib import Path

from sconce.checkpoint.load import LoadedCheckpoint, newest_intact
from sconce.config import RunConfig, config_from_resolved
from sconce.config.read import read_table
from sconce.data.prepare import is_current
from sconce.data.shards import TokenData
from sconce.data.show import StepReader
from sconce.errors import CheckpointError, ConfigError, DataError
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.data import rows_and_order, stored_data
from sconce.training.recipe import make_schedule
from sconce.training.run import RunFolder, check_same_run
from sconce.training.stream import CachedStream, stream_folder
from sconce.training.tokens import (
    Say,
    corpus_of,
    rebuild_tokens,
    run_tokens,
    shards_folder,
    shards_there,
)


def reader_of_run(folder: RunFolder, say: Say | None = None) -> StepReader:
    """What the run in `folder` trains on, from its shards; the text they were made of need not be there.

    `say` hears of a packing plan that is made again.

    Raises CheckpointError when it is no run's folder, DataError when its shards or tokenizer are gone.
    """
    config, tokenizer, loaded = _open_folder(folder)
    advice = "give its config file instead, which makes them of the text"
    data = stored_data(config, folder.root, tokenizer, loaded, verify=False, advice=advice)
    return _reader(config, tokenizer, data, loaded, say)


def shards_of_run(folder: RunFolder) -> tuple[Path, Tokenizer]:
    """Where the token shards of the run in `folder` are, if they are, and its tokenizer.

    Raises CheckpointError, and DataError for a run that has none as a whole.
    """
    config, tokenizer, _ = _open_folder(folder)
    if config.data.streaming:
        place = stream_folder(config, folder.root, tokenizer)
        raise DataError(f"{folder.root}: trains on a stream: name one of its windows, {place}/window-…, or held-out")
    return shards_folder(config, folder.root, tokenizer), tokenizer


def _open_folder(folder: RunFolder) -> tuple[RunConfig, Tokenizer, LoadedCheckpoint | None]:
    loaded = newest_intact(folder.checkpoints)
    if loaded is not None:
        config = config_from_resolved(loaded.run_config, str(loaded.path / "run.json"))
    elif folder.config.is_file():
        config = config_from_resolved(read_table(folder.config), str(folder.config))
    else:
        raise CheckpointError(f"{folder.root}: no run here: neither a checkpoint nor {folder.config.name}")
    return config, load_tokenizer(_tokenizer_path(config, folder, loaded)), loaded


def prepare_run(config: RunConfig, folder: RunFolder, say: Say, workers: int | None) -> TokenData:
    """Make the token shards that training `config` in `folder` asks for, by what `train` itself would call."""
    assert config.tokenizer.tokenizer_json is not None, "load_config asks for it"
    if config.data.streaming:
        raise ConfigError(
            "data.streaming: there is nothing to prepare, `sconce train` makes windows as it goes; with "
            "data.streaming=false all of the data set becomes token shards"
        )
    tokenizer = load_tokenizer(config.tokenizer.tokenizer_json)
    loaded = newest_intact(folder.checkpoints)
    if loaded is not None:
        check_same_run(config, tokenizer, loaded)
    return run_tokens(config, folder.root, tokenizer, loaded, say, workers)


def reader_of_config(config: RunConfig, folder: RunFolder, say: Say | None = None) -> StepReader:
    """What training `config` in `folder` trains on, or would; its text becomes shards there if it is not yet.

    `say` hears of a packing plan that is made again.
    Raises as `open_run` does for a config that is not the folder's run's.
    """
    assert config.tokenizer.tokenizer_json is not None, "load_config asks for it"
    tokenizer = load_tokenizer(config.tokenizer.tokenizer_json)
    loaded = newest_intact(folder.checkpoints)
    if loaded is not None:
        check_same_run(config, tokenizer, loaded)
    if config.data.streaming:
        return _reader(config, tokenizer, CachedStream(config, folder.root, tokenizer, loaded), loaded, say)
    corpus, place = corpus_of(config, loaded), shards_folder(config, folder.root, tokenizer)
    tokens = shards_there(place, tokenizer, loaded, verify=False)
    if tokens is None or (loaded is None and not is_current(corpus, tokenizer, place)):
        tokens = rebuild_tokens(corpus, tokenizer, place, loaded, say=lambda _: None)
    return _reader(config, tokenizer, tokens, loaded, say)


def _tokenizer_path(config: RunConfig, folder: RunFolder, loaded: LoadedCheckpoint | None) -> Path:
    if loaded is not None:
        return loaded.path / "tokenizer.json"
    path = config.tokenizer.tokenizer_json
    assert path is not None, "a config without it is refused"
    return path if path.is_file() else folder.root / "tokenizer" / "tokenizer.json"  # the folder may have moved


def _reader(
    config: RunConfig,
    tokenizer: Tokenizer,
    tokens: TokenData | CachedStream,
    loaded: LoadedCheckpoint | None,
    say: Say | None,
) -> StepReader:
    rows, order = rows_and_order(config, tokens, say)
    return StepReader(
        data=tokens,
        tokenizer=tokenizer,
        rows=rows,
        order=order,
        sources=tokens.manifest.paths if isinstance(tokens, TokenData) and config.data.weights else (),
        total_steps=make_schedule(config, order).total_steps,
        imported_steps=0 if loaded is None else loaded.record.imported_steps,
    )
