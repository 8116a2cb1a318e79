"""What a run trains on and what it holds out: from token shards, or from a stream."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sconce.checkpoint.load import LoadedCheckpoint
from sconce.config import RunConfig, ramp
from sconce.data.order import Order
from sconce.data.rows import NumberedRows, Rows, open_rows, open_train_rows
from sconce.data.shards import TokenData
from sconce.data.stream import Stream, StreamRows
from sconce.errors import ConfigError, DataError
from sconce.flops import count_flops
from sconce.log import log, phase
from sconce.ramp import Stage
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import Tokenizer
from sconce.training.recipe import train_order
from sconce.training.stream import CachedStream, open_stream, stream_facts, stream_order
from sconce.training.tokens import run_tokens, shards_folder, shards_there

Say = Callable[[str], None]
SAMPLED_ROWS = 256  # whose documents stand for all: the FLOPs of the mean vary little beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamData:
    """The stream behind a run's rows, and the commits of the data sets that it is of."""

    stream: Stream
    commits: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Rows in their order, and held-out ones.

    `fingerprint` is shared by what gives the same rows. `streamed` is None where they are all here; `tokens` are the
    shards, of a stream those of what is held out.
    """

    fingerprint: str
    rows: NumberedRows
    held_out: Rows
    order: Order
    streamed: StreamData | None
    tokens: TokenData

    def cursor(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` updates says of the data, as JSON."""
        if self.streamed is None:
            commits = self.tokens.manifest.commits
            return {"fingerprint": self.fingerprint, **({"commits": commits} if commits else {})}
        one = self.streamed
        return {"fingerprint": self.fingerprint, "stream": stream_facts(one.stream, one.commits, self.order, step)}

    def flops_per_token(self, spec: ModelSpec, stage: Stage, packed: bool) -> int:
        """What training on a stage's rows takes; `packed` counts attention inside documents, of the first rows."""
        if not packed:
            return count_flops(spec, stage.seq_len).training
        steps = -(-SAMPLED_ROWS // stage.batch_size)
        rows = np.concatenate([self.order.rows(stage.first_step + step) for step in range(steps)]).tolist()
        spans = [span for row in rows for span in self.rows.spans(row, self.order.ramp.parts(stage))]
        return count_flops(spec, stage.seq_len, pieces=[end - start for start, end in spans]).training

    def close(self) -> None:
        """End what makes a stream's windows."""
        if self.streamed is not None:
            self.streamed.stream.close()

    def describe(self, config: RunConfig, steps: int) -> list[str]:
        """Lines on what is held out in name only, stages, how rows are packed and mixed, and a stream's windows."""
        lines: list[str] = []
        if both := set(config.data.validation_shards) & set(config.data.train_shards):
            lines.append(
                f"WARNING: data.validation_shards: {', '.join(map(str, sorted(both)))}: trained on as well, so "
                "held-out loss is of text that the model has seen; leave the key out to hold documents back"
            )
        fraction = config.data.validation_fraction
        if config.data.validation_shards and fraction != type(config.data).model_fields["validation_fraction"].default:
            lines.append(f"note: data.validation_fraction = {fraction:g} does nothing beside data.validation_shards")
        num_rows = self.order.num_rows
        if len(self.order.ramp.stages) > 1:
            lines.append(f"stages: {self.order.ramp.describe()}")
        if config.data.packing == "bestfit":
            empty = 1 - self.tokens.train.num_tokens / (num_rows * self.rows.seq_len)
            lines.append(f"packing: {num_rows:,} rows, {empty:.2%} of their places empty")
        if config.data.weights:
            lines.append(_describe_mixture(self.tokens, self.order, steps))
        if self.streamed is not None:
            lines.append(
                f"stream: {self.streamed.stream.window_rows:,} rows a window in {self.streamed.stream.folder}, at most "
                f"{config.data.cache_limit_gb:g} GB; {self.held_out_tokens:,} held-out tokens"
            )
        return lines

    @property
    def held_out_tokens(self) -> int:
        """Tokens that evaluation reads."""
        return self.tokens.validation.num_tokens


def rows_and_order(
    config: RunConfig, tokens: TokenData | CachedStream, say: Say | None = None
) -> tuple[NumberedRows, Order]:
    """The rows to train on, of all shards or of those windows that are here, and which of them each step has.

    `say` hears of a packing plan that is made again. Raises DataError where there is not one row.
    """
    if isinstance(tokens, CachedStream):
        return tokens.train, tokens.order
    rows = open_train_rows(tokens, ramp(config).longest, config.data.packing, bool(config.data.weights), say)
    return rows, train_order(config, rows.sizes)


def open_data(
    config: RunConfig, root: Path, tokenizer: Tokenizer, loaded: LoadedCheckpoint | None, say: Say
) -> RunData:
    """The data of the run in `root`. Raises DataError for what cannot be used, CheckpointError for another run's."""
    if config.data.streaming:
        return _open_stream(config, root, tokenizer, loaded, say)
    with phase("token shards"):
        tokens = run_tokens(config, root, tokenizer, loaded, say)
    log.debug("token shards: %s, fingerprint %s", tokens.folder, tokens.fingerprint[:12])
    if config.data.weights:
        _check_sources(config, tokens)
    rows, order = rows_and_order(config, tokens)
    if tokens.validation.num_tokens < 2:
        raise DataError(
            "the text is a single document, so nothing can be held out: give more text, or name held-out files in "
            "data.validation_shards"
        )
    return RunData(
        fingerprint=tokens.fingerprint,
        rows=rows,
        held_out=open_rows(tokens, "validation", ramp(config).longest, config.data.packing),
        order=order,
        streamed=None,
        tokens=tokens,
    )


def stored_data(
    config: RunConfig,
    root: Path,
    tokenizer: Tokenizer,
    loaded: LoadedCheckpoint | None,
    *,
    verify: bool,
    advice: str,
) -> TokenData | CachedStream:
    """What the run in `root` trains on as far as it is here, for reading alone: nothing is made or fetched.

    The shards' hashes are checked with `verify`. Raises DataError, with `advice`, when it is not of this run.
    """
    if config.data.streaming:
        return CachedStream(config, root, tokenizer, loaded)
    place = shards_folder(config, root, tokenizer)
    tokens = shards_there(place, tokenizer, loaded, verify=verify)
    if tokens is None:
        raise DataError(f"{place}: not the token shards this run trains on: {advice}")
    return tokens


def _open_stream(
    config: RunConfig, root: Path, tokenizer: Tokenizer, loaded: LoadedCheckpoint | None, say: Say
) -> RunData:
    with phase("listing the stream's files"):
        stream, commits = open_stream(config, root, tokenizer, loaded, say)
    log.debug("windows: %s, fingerprint %s", stream.folder, stream.fingerprint[:12])
    with ExitStack() as stack:
        stack.callback(stream.close)
        seq_len = ramp(config).longest
        with phase("the stream's first window"):
            tokens = stream.held_out()
        data = RunData(
            fingerprint=stream.fingerprint,
            rows=StreamRows(stream.window, stream.window_rows, seq_len),
            held_out=open_rows(tokens, "validation", seq_len, "concat"),
            order=stream_order(config, stream.total_rows),
            streamed=StreamData(stream=stream, commits=commits),
            tokens=tokens,
        )
        stack.pop_all()
    return data


def _check_sources(config: RunConfig, tokens: TokenData) -> None:
    """Raise ConfigError when `data.weights` would speak of other sources than those that the shards are of."""
    now, then = ([Path(path).name for path in paths] for paths in (config.data.train_shards, tokens.manifest.paths))
    if now != then:
        raise ConfigError(
            f"data.train_shards: {', '.join(now)} now, {', '.join(then)} in {tokens.folder}; data.weights are theirs "
            "in that order: put them back, or train in another --run-dir"
        )


def _describe_mixture(tokens: TokenData, order: Order, steps: int) -> str:
    paths = zip(tokens.manifest.paths, order.sequence.sizes, order.source_epochs(steps), strict=True)
    return "mixture: " + "; ".join(
        f"{Path(path).name} {size:,} rows, {epochs:.2f} epochs by step {steps}" for path, size, epochs in paths
    )
