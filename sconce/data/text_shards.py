"""Text to text: documents written anew as shards of lines or JSON lines, which every reader of text takes.

<folder>/train/train-00000.jsonl            one document a line; .txt, .gz too
<folder>/validation/validation-00000.jsonl  those held out by a hash of their text
<folder>/manifest.json                      written last
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from sconce.data.corpus import Corpus, Split, document_hash
from sconce.data.kinds import was_text
from sconce.data.progress import Progress, Say
from sconce.data.reader import JOURNAL, Part, Position, Reader, resume
from sconce.data.shards import SourceRecord
from sconce.data.sources import Source
from sconce.data.staging import locked, staged
from sconce.data.text_writer import TextOptions, TextWriter
from sconce.errors import DataError
from sconce.files import fsync_file, sha256_file, write_json

FORMAT = "sconce-text-2"
_READABLE = (FORMAT, "sconce-text-1")  # which differs in what some source files were read as
_MANIFEST = "manifest.json"
LEARNED = "learned.bin"
COMMIT_BYTES = 2**25  # of text that is read between two commits: the most that a kill makes us write again

Existing = Literal["refuse", "reuse", "force"]


def shard_text(
    corpus: Corpus,
    folder: Path,
    options: TextOptions,
    existing: Existing,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> tuple[dict[str, Any], bool]:
    """Write the documents of a corpus as text shards; their manifest, and whether they were there already.

    A call that was killed is gone on with, of which `say` hears, and the bytes are the same however often it was.
    Raises DataError when something is there and is not to be replaced, or cannot be used.
    """
    job = TextJob(corpus, options, text_request("shard", corpus, options, {}), Unchanged, progress, say)
    return make_text(job, folder, existing)


def has_text_shards(folder: Path) -> bool:
    """Whether `folder` holds text shards that are complete."""
    return _kept(folder) is not None


def are_shards_of(folder: Path, corpus: Corpus, options: TextOptions) -> bool:
    """Whether `folder` holds what `shard_text` would write, judged by its files' sizes. Raises DataError."""
    kept, request, sources = _kept(folder), text_request("shard", corpus, options, {}), corpus.sources()
    return kept is not None and _is_current(kept, folder, request, sources, verify=False)


class Transform(Protocol):
    """What becomes of documents on their way into shards, in order. `counts`, if it has any, go into the manifest."""

    counts: Counter[str]

    def __call__(self, documents: Iterable[bytes]) -> Iterator[bytes]: ...
    def learned(self) -> bytes:
        """What it has learned of the documents since the last call."""
        ...

    def restore(self, counts: Mapping[str, int], learned: BinaryIO) -> None:
        """Go on where another one stopped, which had these counts, and had learned this."""
        ...


class Unchanged:
    """Passes every document on."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, documents: Iterable[bytes]) -> Iterator[bytes]:
        return iter(documents)

    def learned(self) -> bytes:
        return b""

    def restore(self, counts: Mapping[str, int], learned: BinaryIO) -> None: ...


@dataclass(frozen=True, slots=True)
class TextJob:
    """What is to be written. `request` is everything that decides it; `transform` makes one for a new start."""

    corpus: Corpus
    options: TextOptions
    request: Mapping[str, Any]
    transform: Callable[[], Transform]
    progress: Progress | None
    say: Say | None


def make_text(job: TextJob, folder: Path, existing: Existing) -> tuple[dict[str, Any], bool]:
    """Do `job`, unless `folder` holds its outcome already and `existing` is "reuse"; the manifest, and whether it did.

    Raises DataError as `shard_text` does.
    """
    sources = job.corpus.sources()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            kept = _kept(folder)
            if existing == "reuse" and kept is not None and _is_current(kept, folder, job.request, sources):
                return kept, True
            _check_replaceable(folder, existing, kept)
            with staged(folder, JOURNAL, LEARNED) as new:
                kept = _kept(new)  # complete if we were killed just before the renaming
                if kept is None or not _is_current(kept, new, job.request, sources):
                    kept = _Build(job, sources, new).run()
            return kept, False
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error


def _check_replaceable(folder: Path, existing: Existing, kept: dict[str, Any] | None) -> None:
    if existing != "force" and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        why = "is not what is asked for now" if existing == "reuse" else "is there: --reuse takes it as it is"
        raise DataError(f"{folder}: {why}, --force replaces it")
    if existing == "force" and folder.exists() and kept is None and any(folder.iterdir()):
        raise DataError(f"{folder}: holds something other than text shards: choose another folder")


class _Build:
    """One build, in a folder that holds shards and, until it is complete, a journal.

    Now and then the files are flushed, and the journal says how long they are and which document comes next. When that
    is depends on the documents alone, so that compressed shards, which are cut there, have the same bytes.
    """

    def __init__(self, job: TextJob, sources: list[Source], folder: Path) -> None:
        self._job, self._folder, self._transform = job, folder, job.transform()
        self._sources = [(source, Part(0, _threshold(job.options))) for source in sources]
        self._total = sum(source.size for source in sources)
        self._writers: dict[Split, TextWriter] = {}
        self._documents = 0
        self._request = _fingerprint(job.request, sources)

    def run(self) -> dict[str, Any]:
        """Build, or go on with what the folder holds; the manifest."""
        reader = resume(self._folder, self._request, self._sources, self._job.corpus, self._restore)
        if reader is None:
            reader = self._begin()
        else:
            self._say(f"data: going on where a call stopped, after {self._documents:,} documents")
            self._progress(reader.start.read)
        try:
            self._write(reader)
            shards = [shard for writer in self._writers.values() for shard in writer.finish()]
        finally:
            for writer in self._writers.values():
                writer.abandon()
        if not any(shard.split == "train" for shard in shards):
            raise DataError("no document is left to write")
        for remark in reader.remarks():
            self._say(remark)
        counts = dict(self._transform.counts)
        unread: list[None] = [None] * (len(self._sources) - len(reader.finished))
        manifest = {
            "format": FORMAT,
            "request": dict(self._job.request),
            **({"counts": counts} if counts else {}),
            "shards": [asdict(shard) for shard in shards],
            "sources": [
                _source_facts(source, finished)
                for (source, _), finished in zip(self._sources, [*reader.finished, *unread], strict=True)
            ],
        }
        write_json(self._folder / _MANIFEST, manifest)
        return manifest

    def _write(self, reader: Reader) -> None:
        since, take = 0, self._job.options.take
        for batch in reader.batches():
            documents = batch.documents if take is None else batch.documents[: take - self._documents]
            for number, document in enumerate(self._transform(documents), self._documents):
                held_out = batch.threshold >= 0 and document_hash(document) <= batch.threshold
                self._writers["validation" if held_out else "train"].add(document, number)
            self._documents += len(documents)
            if self._documents == take:
                return
            since += sum(map(len, documents))
            if since >= COMMIT_BYTES:
                self._commit(reader, batch.after)
                since = 0
            self._progress(batch.after.read)

    def _say(self, line: str) -> None:
        if self._job.say is not None:
            self._job.say(line)

    def _progress(self, read: int) -> None:
        if self._job.progress is not None:
            self._job.progress(read, self._total, self._documents)

    def _new_writers(self) -> dict[Split, TextWriter]:
        options = self._job.options
        return {split: TextWriter(self._folder, split, options) for split in ("train", "validation")}

    def _begin(self) -> Reader:
        for writer in self._writers.values():  # of a journal that did not fit
            writer.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._writers, self._transform = self._new_writers(), self._job.transform()
        return Reader(self._sources, self._job.corpus)

    def _restore(self, journal: Mapping[str, Any]) -> None:
        self._writers = self._new_writers()
        for split, writer in self._writers.items():
            writer.restore(journal["splits"][split])
        with (self._folder / LEARNED).open("r+b") as learned:
            learned.truncate(journal["learned"])
            self._transform.restore(journal["counts"], learned)
        self._documents = journal["documents"]

    def _commit(self, reader: Reader, after: Position) -> None:
        splits = {split: writer.commit() for split, writer in self._writers.items()}
        with (self._folder / LEARNED).open("ab") as learned:
            learned.write(self._transform.learned())
            learned.flush()
            fsync_file(learned.fileno())
            size = learned.tell()
        state = {
            "documents": self._documents,
            "counts": dict(self._transform.counts),
            "learned": size,
            "splits": splits,
        }
        reader.commit(self._folder, self._request, after, state)


def _threshold(options: TextOptions) -> int:
    """The largest `document_hash` that is held out."""
    return int(options.validation_fraction * 2**64) if options.validation_fraction else -1


def _fingerprint(request: Mapping[str, Any], sources: list[Source]) -> str:
    """Of what decides the bytes of a build. Not on_error: up to the first fault both of its values give the same."""
    facts = {key: value for key, value in request.items() if key != "on_error"}
    files = [(source.name, source.size, source.mtime_ns) for source in sources]
    return hashlib.sha256(repr((FORMAT, facts, files)).encode()).hexdigest()


def text_request(kind: str, corpus: Corpus, options: TextOptions, more: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides what is written, for the manifest."""
    rule = {"rule": corpus.rule, "text_field": corpus.text_field, "on_error": corpus.on_error}
    cut = {key: value for key, value in asdict(options).items() if (key, value) != ("take", None)}
    return {"kind": kind, **rule, **cut, **more}


def _source_facts(source: Source, finished: Mapping[str, Any] | None) -> dict[str, Any]:
    """The hash is empty of a file that was not read to its end: enough documents were taken."""
    return {
        "path": source.name,
        "size": source.size,
        "mtime_ns": source.mtime_ns,
        "sha256": "" if finished is None else finished["sha256"],
        "skipped": source.skipped if finished is None else finished["skipped"],
    }


def _kept(folder: Path) -> dict[str, Any] | None:
    """The manifest of text shards in `folder`; None where there are none."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        return manifest if manifest["format"] in _READABLE else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_current(
    kept: dict[str, Any], folder: Path, request: Mapping[str, Any], sources: list[Source], *, verify: bool = True
) -> bool:
    try:
        same = kept["request"] == dict(request) and len(kept["sources"]) == len(sources)
        read_alike = kept["format"] == FORMAT or not any(was_text(facts["path"]) for facts in kept["sources"])
        return (
            same
            and read_alike
            and all(_is_intact(folder / shard["path"], shard, verify) for shard in kept["shards"])
            and all(SourceRecord(**facts).is_of(source) for source, facts in zip(sources, kept["sources"], strict=True))
        )
    except (OSError, KeyError, TypeError):
        return False


def _is_intact(path: Path, shard: Mapping[str, Any], verify: bool) -> bool:
    if verify:
        return sha256_file(path) == shard["sha256"]
    return path.stat().st_size == shard["bytes"] or path.suffix == ".gz"
