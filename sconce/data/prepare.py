"""Text to token shards, once: built beside its place, then renamed into it, and reused as long as it fits.

A build that was killed is gone on with from its last commit: see `_Build`.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from sconce.data.corpus import Corpus, Split, split_threshold
from sconce.data.discover import exists
from sconce.data.encode import DocumentEncoder, EncodersDiffer, EncodingPool, Engine, TextEncoder
from sconce.data.kinds import was_text
from sconce.data.progress import Progress
from sconce.data.reader import JOURNAL, Batch, Part, Position, Reader, resume
from sconce.data.shards import (
    FORMAT,
    MANIFEST,
    PACKING,
    Dtype,
    Manifest,
    SourceRecord,
    TokenData,
    dtype_for,
    open_tokens,
    read_manifest,
)
from sconce.data.sources import Source, list_sources
from sconce.data.staging import locked, staged
from sconce.data.writer import SplitWriter
from sconce.errors import DataError
from sconce.files import write_json
from sconce.hub_address import is_hub, parse_address, pinned, spelled

SHARD_TOKENS = 2**26
_COMMIT_BYTES = 2**26  # of text between two commits: the most that a kill makes us tokenise again
_ALL = 2**64  # as a threshold: every document is held out

Say = Callable[[str], None]


def prepare(
    corpus: Corpus,
    tokenizer: TextEncoder,
    folder: Path,
    *,
    shard_tokens: int = SHARD_TOKENS,
    engine: Callable[[], Engine] = Engine,
    progress: Progress | None = None,
    say: Say | None = None,
) -> TokenData:
    """The corpus as token shards in `folder`: built, or reused when those there are intact and of this corpus.

    Of this corpus means the same tokenizer, document rule, split and paths, and source files of the same name,
    size, and time or else content. A build whose sources are gone is reused too, so that a run folder can move
    to another machine without them. Of two processes that prepare one folder, the second waits and reuses.
    The same corpus gives the same bytes by whatever `engine`, and however often it was killed on the way; it is asked
    for when there is something to build.
    `say` hears of a damaged build that is made anew, of what is skipped, and of a killed build that goes on.
    Raises DataError for text or paths that cannot be used; an older build then stays as it is.
    """
    say = say or _say_nothing
    if not folder.exists():
        corpus.check()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        current = is_current(corpus, tokenizer, folder)
        if current:
            try:
                return open_tokens(folder)
            except DataError as error:
                if _sources_are_gone(corpus):
                    raise
                say(f"WARNING: {error}; making them anew of the text")
        corpus.check()
        _check_replaceable(folder)
        if not current and (folder / MANIFEST).exists():
            say(f"note: the token shards in {folder} are of other text or another tokenizer: they will be replaced")
        job = _Job(corpus, tokenizer, shard_tokens, engine(), progress or _count_nothing, say)
        try:
            _make(job, folder)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
        return open_tokens(folder, verify=False)


@dataclass(frozen=True, slots=True)
class _Job:
    """What `prepare` was asked for."""

    corpus: Corpus
    tokenizer: TextEncoder
    shard_tokens: int
    engine: Engine
    progress: Progress
    say: Say


def _make(job: _Job, folder: Path) -> None:
    with staged(folder, JOURNAL) as new:
        if not is_current(job.corpus, job.tokenizer, new):  # it is if we were killed just before the renaming
            _build(job, new)


def _check_replaceable(folder: Path) -> None:
    """Raise DataError rather than delete a folder, or a file, that is not ours."""
    entries = list(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    if not all(entry.name in (MANIFEST, PACKING) or entry.suffix in (".bin", ".idx") for entry in entries):
        raise DataError(f"{folder}: is there and holds something other than token shards: choose another folder")


def _build(job: _Job, folder: Path) -> None:
    try:
        _Build(job, folder).run()
    except EncodersDiffer:
        assert job.engine.fast is not None
        job.say(f"note: {job.engine.fast.name} gives other ids than tokenizers: beginning again without it")
        shutil.rmtree(folder, ignore_errors=True)  # not there yet if they differ on the very first texts
        _Build(replace(job, engine=replace(job.engine, fast=None)), folder).run()


class _Build:
    """One build, in a folder that holds shards and, until it is complete, a journal.

    Documents pass in one order whatever encodes them: reader, encoders, writers. After a batch is written, now and
    then, the files are flushed and the journal says how long they are and which document comes next. Going on means
    cutting the files to that length and reading on from that document.
    """

    def __init__(self, job: _Job, folder: Path) -> None:
        corpus = job.corpus
        self._job, self._folder = job, folder
        train, validation = corpus.sources_of_paths(), corpus.validation_sources_of_paths()
        each = zip((*corpus.paths, *corpus.validation_paths), (*train, *validation), strict=True)
        self._commits = {str(parse_address(path)): some[0].remote.commit for path, some in each if some[0].remote}
        self._threshold = None if validation else split_threshold(corpus, chain.from_iterable(train))
        held_out = -1 if self._threshold is None else self._threshold
        self._sources = [(source, Part(path, held_out)) for path, some in enumerate(train) for source in some]
        self._sources += [(source, Part(path, _ALL)) for path, some in enumerate(validation) for source in some]
        self._path_tokens = [0] * len(train)
        self._held_out_tokens = [0] * len(validation or train)
        self._total = sum(source.size for source, _ in self._sources)
        self._dtype: Dtype = dtype_for(job.tokenizer.vocab_size)
        self._writers: dict[Split, SplitWriter] = {}
        self._documents = self._committed_shards = 0

    def run(self) -> None:
        """Build, or go on with what the folder holds. Raises EncodersDiffer."""
        job = self._job
        encoder = DocumentEncoder(job.tokenizer, job.engine.fast)
        encoder.check()
        reader = resume(self._folder, self._request, self._sources, job.corpus, self._restore)
        if reader is None:
            reader = self._begin()
        else:
            job.say(f"data: going on where a build stopped, after {self._documents:,} documents")
            job.progress(reader.start.read, self._total, self._documents)
        try:
            with EncodingPool[Batch](encoder, job.engine.workers) as pool:
                self._write(reader, pool)
            for writer in self._writers.values():
                writer.close()
        finally:
            for writer in self._writers.values():
                writer.abandon()
        job.progress(self._total, self._total, self._documents)
        for remark in reader.remarks():
            job.say(remark)
        write_json(self._folder / MANIFEST, asdict(self._manifest(reader)))

    def _write(self, reader: Reader, pool: EncodingPool[Batch]) -> None:
        since = 0
        for batch, (train, held_out, _) in pool.map(reader.batches()):
            self._writers["train"].add(train)
            self._writers["validation"].add(held_out)
            if batch.threshold != _ALL:
                self._path_tokens[batch.part.path] += len(train.ids)
            if batch.threshold >= 0:
                self._held_out_tokens[batch.part.path] += len(held_out.ids)
            self._documents += len(batch.documents)
            since += sum(map(len, batch.documents))
            shards = sum(len(writer.shards) for writer in self._writers.values())
            if since >= _COMMIT_BYTES or shards > self._committed_shards:
                self._commit(reader, batch.after)
                since, self._committed_shards = 0, shards
            self._job.progress(batch.after.read, self._total, self._documents)

    def _new_writers(self) -> dict[Split, SplitWriter]:
        make, tokens = SplitWriter, self._job.shard_tokens
        return {
            "train": make(self._folder, "train", self._dtype, tokens),
            "validation": make(self._folder, "validation", self._dtype, tokens),
        }

    def _begin(self) -> Reader:
        for writer in self._writers.values():  # of a journal that did not fit
            writer.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._writers = self._new_writers()
        return Reader(self._sources, self._job.corpus)

    def _restore(self, journal: Mapping[str, Any]) -> None:
        self._writers = self._new_writers()
        for split, writer in self._writers.items():
            writer.restore(journal["splits"][split])
        counts = journal["documents"], journal["path_tokens"], journal["held_out_tokens"]
        self._documents, self._path_tokens, self._held_out_tokens = counts
        self._committed_shards = sum(len(writer.shards) for writer in self._writers.values())

    def _commit(self, reader: Reader, after: Position) -> None:
        state = {
            "documents": self._documents,
            "path_tokens": self._path_tokens,
            "held_out_tokens": self._held_out_tokens,
            "splits": {split: writer.commit() for split, writer in self._writers.items()},
        }
        reader.commit(self._folder, self._request, after, state)

    @cached_property
    def _request(self) -> str:
        """What decides the bytes of a build. Not on_error: up to the first fault both of its values give the same."""
        corpus, tokenizer = self._job.corpus, self._job.tokenizer
        facts: list[object] = [FORMAT, tokenizer.sha256, tokenizer.eos_id, self._dtype, self._job.shard_tokens]
        facts += [corpus.rule, corpus.text_field, self._threshold]
        facts += [(one.name, one.size, one.mtime_ns, part.path, part.threshold) for one, part in self._sources]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _manifest(self, reader: Reader) -> Manifest:
        corpus, tokenizer = self._job.corpus, self._job.tokenizer
        pairs = zip(self._sources, reader.finished, strict=True)
        return Manifest(
            format=FORMAT,
            tokenizer_sha256=tokenizer.sha256,
            dtype=self._dtype,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            rule=corpus.rule,
            text_field=corpus.text_field,
            on_error=corpus.on_error,
            paths=[spelled(path) for path in corpus.paths],
            path_tokens=self._path_tokens,
            held_out_tokens=self._held_out_tokens,
            validation_paths=[spelled(path) for path in corpus.validation_paths],
            validation_fraction=corpus.validation_fraction,
            threshold=self._threshold,
            shards=[shard for writer in self._writers.values() for shard in writer.shards],
            sources=[_record(source, finished) for (source, _), finished in pairs],
            commits=self._commits,
        )


def _record(source: Source, finished: Mapping[str, Any]) -> SourceRecord:
    return SourceRecord(
        path=source.name,
        size=source.size,
        mtime_ns=source.mtime_ns,
        sha256=finished["sha256"],
        skipped=finished["skipped"],
    )


def _say_nothing(_: str) -> None:
    """Nobody listens."""


def _count_nothing(*_: int) -> None:
    """Nobody watches."""


def is_current(corpus: Corpus, tokenizer: TextEncoder, folder: Path) -> bool:
    """Whether the build in `folder`, if there is one, is of this corpus; nothing is said of its shards.

    The hub is not asked: of a data set the address decides, and its commit where the corpus has one.
    """
    try:
        manifest = read_manifest(folder)
    except DataError:
        return False
    paths = (*corpus.paths, *corpus.validation_paths)
    same_request = (
        manifest.tokenizer_sha256 == tokenizer.sha256
        and (manifest.rule, manifest.text_field, manifest.on_error) == (corpus.rule, corpus.text_field, corpus.on_error)
        and manifest.paths == [spelled(path) for path in corpus.paths]
        and manifest.validation_paths == [spelled(path) for path in corpus.validation_paths]
        and (corpus.validation_paths != () or manifest.validation_fraction == corpus.validation_fraction)
        and all(pinned(path, corpus.commits) in (path, pinned(path, manifest.commits)) for path in paths)
    )
    if not same_request or _sources_are_gone(corpus):
        return same_request
    if manifest.format != FORMAT and any(was_text(source.path) for source in manifest.sources):
        return False
    sources = list_sources([path for path in paths if not is_hub(path)])
    records = [record for record in manifest.sources if not is_hub(record.path)]
    return len(sources) == len(records) and all(map(SourceRecord.is_of, records, sources))


def _sources_are_gone(corpus: Corpus) -> bool:
    """Whether none of the paths is there; what is on the hub never is, so that a build of it needs no network."""
    return not any(exists(path) for path in (*corpus.paths, *corpus.validation_paths))
