"""Everything that can be known to be wrong with a run before it begins."""

from collections.abc import Iterator

from sconce.config import RunConfig
from sconce.data.sources import list_sources
from sconce.errors import ConfigError, DataError
from sconce.planning.devices import Device
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.plan import plan_run


def check_run(config: RunConfig, device: Device) -> Iterator[str]:
    """A line for each fault of the paths, the tokenizer, the sizes and the memory that a run needs on `device`."""
    for key, paths in (
        ("data.train_shards", config.data.train_shards),
        ("data.validation_shards", config.data.validation_shards),
    ):
        for path in paths:
            try:
                list_sources([path])
            except DataError as error:
                yield f"{key}: {error}"
    path = config.tokenizer.tokenizer_json
    assert path is not None, "load_config asks for it"
    try:
        yield from _prompt(config, load_tokenizer(path))
    except DataError as error:
        yield f"tokenizer.tokenizer_json: {error}"
        if path.exists() or config.model.vocab_size is None:
            return  # without a vocabulary there is no model to plan
    yield from _memory(config, device)


def _prompt(config: RunConfig, tokenizer: Tokenizer) -> Iterator[str]:
    length, most = len(tokenizer.encode(config.runtime.sample.prompt)), config.model.max_position_embeddings
    if length >= most:
        yield f"runtime.sample.prompt: {length} tokens long, and the model has {most} positions"


def _memory(config: RunConfig, device: Device) -> Iterator[str]:
    try:
        plan = plan_run(config, device)
    except ConfigError as error:
        yield str(error)
        return
    if plan.configured.fits:
        return
    needed, usable = plan.configured.memory.peak / 2**30, device.usable_bytes / 2**30
    instead = ", ".join(f"{key} = {value!r}".replace("'", '"') for key, value in plan.keys.items())
    advice = f"write instead {instead}" if plan.chosen.fits else "nothing makes this model fit: choose a smaller one"
    yield f"a step needs {needed:.2f} GiB, and {device.name} has {usable:.2f} GiB to use; {advice}"
