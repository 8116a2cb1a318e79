"""The stream that a run trains on: what identifies it, where its windows are, and what a checkpoint says of it."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sconce.checkpoint.load import LoadedCheckpoint
from sconce.config import RunConfig, ramp
from sconce.data.encode import Engine, usable_cores
from sconce.data.hub import resolve
from sconce.data.journal import Journal
from sconce.data.order import Order, Streamed
from sconce.data.shards import FORMAT, Manifest, TokenData, TokenStore, dtype_for
from sconce.data.sources import Source, list_sources
from sconce.data.stream import Stream, StreamPlan, StreamRows
from sconce.data.window_cache import WindowCache
from sconce.data.windows import Cut
from sconce.errors import CheckpointError, DataError
from sconce.hub_address import parse_address, pinned, spelled
from sconce.tokenizer.bpe import Tokenizer
from sconce.training.tokens import corpus_of, fastest_engine

IN_USE = 5  # steps whose rows may be asked for at once, beside those made ahead: in flight, being saved, next
WORKERS = 4  # threads that tokenise, at most: the network is slower than these

Say = Callable[[str], None]


def open_stream(
    config: RunConfig, folder: Path, tokenizer: Tokenizer, loaded: LoadedCheckpoint | None, say: Say
) -> tuple[Stream, dict[str, str]]:
    """The stream of the run in `folder`, where its checkpoint stands, and the commit of each data set it is of.

    Raises CheckpointError when it is not what the checkpoint's run was trained on, DataError when it cannot be read.
    """
    known = _known(loaded)
    commits: dict[str, str] = dict({} if loaded is None else loaded.record.commits)
    sources: list[Source] = []
    data, stages = config.data, ramp(config)
    for path in data.train_shards:
        address = parse_address(path)
        commits[str(address)] = commits.get(str(address)) or resolve(address)
        say(f"stream: {address} at commit {commits[str(address)]}")
        sources += list_sources([pinned(path, commits)], data.text_field, data.on_error)
    cut = Cut(
        sources=sources,
        rule=data.document,
        threshold=int(data.validation_fraction * 2**64),
        max_samples=data.max_samples,
        seq_len=stages.longest,
        rows=window_rows(config),
        batch_documents=data.stream_batch_size,
    )
    template = _template(config, tokenizer, cut.threshold)
    plan = StreamPlan(
        cut=cut,
        fingerprint=_fingerprint(cut, template),
        template=template,
        needed_rows=-(-stages.places(config.scheduler.total_steps or 1) // stages.longest),
        open_at_once=-(-(data.prefetch + IN_USE) * stages.largest_batch // cut.rows) + 2,
        cache_bytes=int(data.cache_limit_gb * 1e9),
    )
    expected = None if loaded is None else loaded.record.cursor.get("fingerprint")
    if expected is not None and expected != plan.fingerprint:
        assert loaded is not None
        raise CheckpointError(
            f"{loaded.path}: trained on another stream than data.train_shards is: the data set, its split or its "
            "document rule changed; put it back, or train in another --run-dir"
        )
    stream = Stream(plan, tokenizer, _engine(sources, tokenizer, say), stream_folder(config, folder, tokenizer), say)
    if known:
        stream.resume(known)
    return stream, commits


def window_rows(config: RunConfig) -> int:
    """Long rows of a window."""
    return max(1, config.data.window_tokens // ramp(config).longest)


def stream_order(config: RunConfig, total_rows: Callable[[int], int | None]) -> Order:
    """Which rows each step of a config that streams trains on; for `total_rows` see `Streamed`."""
    return Order(Streamed(window_rows(config), config.runtime.seed, total_rows), ramp(config))


def stream_facts(stream: Stream, commits: Mapping[str, str], order: Order, step: int) -> dict[str, Any]:
    """What a checkpoint after `step` updates needs so that the run goes on where nothing else of it is."""
    last = max(0, step - 1)  # whose rows are the certificate's
    windows = order.rows(last) // order.parts(last) // stream.window_rows
    return {"commits": dict(commits), **stream.journal.facts(sorted({*windows.tolist(), int(windows.max()) + 1}))}


def stream_folder(config: RunConfig, folder: Path, tokenizer: Tokenizer) -> Path:
    """Where the windows of the run in `folder` are: STREAMING_TMP_DIR, else data.cache_dir, else in the folder."""
    root = stream_root(config)
    if root is None:
        return folder / "data"
    facts = (tokenizer.sha256, corpus_of(config), config.data.max_samples, ramp(config).longest, window_rows(config))
    return root / hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def stream_root(config: RunConfig) -> Path | None:
    """Where each stream has a folder for its windows; None where they are in the run's."""
    given = os.environ.get("STREAMING_TMP_DIR")
    return Path(given) if given else config.data.cache_dir


class CachedStream:
    """What of a run's stream is on this machine, for reading alone: nothing is fetched, nothing changed."""

    def __init__(self, config: RunConfig, folder: Path, tokenizer: Tokenizer, loaded: LoadedCheckpoint | None) -> None:
        """Raises DataError when there is nothing, or it is of another run."""
        self.folder = stream_folder(config, folder, tokenizer)
        self.eos_id = tokenizer.eos_id
        self._cache, self._config = WindowCache(self.folder), config
        self._open: dict[int, TokenStore] = {}
        fingerprint = Journal.fingerprint_in(self.folder)
        expected = fingerprint if loaded is None else loaded.record.cursor.get("fingerprint")
        if fingerprint is None or fingerprint != expected:
            raise DataError(f"{self.folder}: holds no windows of this run's stream: train, and they are made again")
        self.fingerprint = fingerprint
        self._journal = Journal(fingerprint, window_rows(config), self.folder, read_only=True)
        if known := _known(loaded):
            self._journal.restore(known)

    @property
    def train(self) -> StreamRows:
        """The rows of the windows that are here."""
        return StreamRows(self.window, self._journal.rows, ramp(self._config).longest)

    @property
    def order(self) -> Order:
        """The order of the run's rows."""
        return stream_order(self._config, self.total_rows)

    def window(self, window: int) -> TokenStore:
        """The tokens of a window. Raises DataError, with those there are, when it is not here."""
        if window not in self._open:
            there = sorted(self._cache.windows())
            if window not in there:
                raise DataError(
                    f"{self.folder}: window {window} of the stream is not here, only {_ranges(there)}: it is made "
                    "again when training needs it"
                )
            self._open[window] = self._cache.open(window).train
        return self._open[window]

    def held_out(self) -> TokenData:
        """What the run holds out. Raises DataError when it is not here."""
        return self._cache.held_out()

    def total_rows(self, row: int) -> int | None:
        """Rows of the stream if that is known; as `Stream.total_rows`, but DataError instead of waiting."""
        if self._journal.total_rows is None and not self._journal.is_made(row // self._journal.rows):
            self.window(row // self._journal.rows)
        return self._journal.total_rows


def _known(loaded: LoadedCheckpoint | None) -> Mapping[str, Any]:
    """What the checkpoint says of its stream: `stream_facts`, or nothing."""
    return {} if loaded is None else loaded.record.stream


def _ranges(windows: list[int]) -> str:
    parts: list[list[int]] = []
    for window in windows:
        if parts and window == parts[-1][-1] + 1:
            parts[-1].append(window)
        else:
            parts.append([window])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts) or "none"


def _template(config: RunConfig, tokenizer: Tokenizer, threshold: int) -> Manifest:
    data = config.data
    return Manifest(
        format=FORMAT,
        tokenizer_sha256=tokenizer.sha256,
        dtype=dtype_for(tokenizer.vocab_size),
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        rule=data.document,
        text_field=data.text_field,
        on_error=data.on_error,
        paths=[spelled(path) for path in data.train_shards],
        validation_paths=[],
        validation_fraction=data.validation_fraction,
        threshold=threshold,
        shards=[],
        sources=[],
        cut=True,
    )


def _fingerprint(cut: Cut, template: Manifest) -> str:
    """SHA-256 of all that decides the stream's rows."""
    facts: list[object] = [template.tokenizer_sha256, template.eos_id, template.dtype, template.text_field]
    facts += [cut.rule, cut.threshold, cut.max_samples, cut.seq_len, cut.rows]
    facts += [(one.remote.repo, one.remote.name, one.size, one.remote.digest) for one in cut.sources if one.remote]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _engine(sources: list[Source], tokenizer: Tokenizer, say: Say) -> Engine:
    cores = usable_cores()
    return fastest_engine(sources, tokenizer, 1 if cores < 4 else min(WORKERS, cores // 2), say)
