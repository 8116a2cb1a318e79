"""Files to documents: streamed, checked, and hashed on the way.

Documents are UTF-8 bytes here: sizes are then exact, and nothing is encoded twice to be hashed.
"""

import codecs
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, TypeVar

from sconce.data.discover import find_files
from sconce.data.hub import HubError, HubFile, list_files
from sconce.data.kinds import Compression, Kind, kind_of
from sconce.data.records import (
    RECORD_MAX_BYTES,
    Fault,
    MissingLibraryError,
    Table,
    arrow_records,
    csv_records,
    json_records,
    need,
    parquet_records,
)
from sconce.errors import DataError
from sconce.files import sha256_file
from sconce.hub_address import is_hub, parse_address, spelled

T = TypeVar("T")
OnError = Literal["stop", "skip"]
DocumentRule = Literal["passage", "line", "blank-line", "file"]
"""How a text file falls into documents; in JSON, CSV, Parquet and Arrow files a record is one.

A line ends at LF, CRLF or CR; it is blank when it is ASCII white space.

passage: running text without record structure. Whole lines up to a blank line after at least 4 KiB, and never
  more than 16 KiB unless one line is longer. Passages joined together are the file's text.
line: each line that is not blank, without its end.
blank-line: each run of lines that are not blank, without its last end, of at most 64 MiB.
file: the whole file, which must fit in memory.
"""

PASSAGE_MIN_BYTES = 4096
PASSAGE_MAX_BYTES = 16384
LINE_MAX_BYTES = 2**20  # a longer line is cut, so that a file without newlines does not fill the memory
_BLOCK_BYTES = 2**20
_ZSTD_BYTES = 2**12


class _Damaged(Exception):  # noqa: N818 - never leaves this module
    """Compressed data that cannot be decompressed."""


@dataclass(slots=True)
class Source:
    """A file of text or of records. `size` and `sha256` are of its raw bytes; the hash is there after a full pass.

    `remote` is where they are when they are on the hub; `path` is then a name alone, and the hash of Parquet is what
    the hub says. With on_error "skip", what cannot be used is left out: a record, a line of text, or what remains of a
    file that is damaged as a whole. `skipped` counts these, `first_fault` says what the first was. `cut_lines` counts
    the lines of text of which more than one document was made, as they are too long for one.
    """

    path: Path
    size: int
    mtime_ns: int
    text_field: str = "text"
    on_error: OnError = "stop"
    sha256: str = ""
    remote: HubFile | None = None
    skipped: int = field(default=0, init=False)
    first_fault: str = field(default="", init=False)
    cut_lines: int = field(default=0, init=False)

    def documents(self, rule: DocumentRule, on_read: Callable[[int], None] | None = None) -> Iterator[bytes]:
        """Yield the documents; `on_read` gets the size of each raw block.

        Raises DataError, unless on_error is "skip", for what is not text: empty, binary, not UTF-8, damaged, a record
        without its text. DataError also where a library that reading needs is missing.
        """
        for _, document in self.numbered(rule, 0, on_read):
            yield document

    def numbered(
        self, rule: DocumentRule, start: int = 0, on_read: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """The documents from number `start` on, with their numbers: a row of Parquet, else counted from 0.

        Of a Parquet file what lies before `start` is not read. Raises as `documents` does.
        """
        self.skipped, self.first_fault, self.cut_lines, any_text = 0, "", 0, start > 0
        read = on_read or _ignore
        try:
            numbered = self._numbered(rule, start, read)
            for number, document in numbered:
                yield number, document
                if any_text := any_text or not document.isspace():
                    break
            yield from numbered
            if not any_text and not self.skipped:
                self._fault("no text in it")
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror or error}") from error

    @property
    def name(self) -> str:
        """The file for people."""
        return spelled(self.path)

    def open(self) -> BinaryIO:
        """Its bytes."""
        return self.path.open("rb") if self.remote is None else self.remote.open()

    def _numbered(self, rule: DocumentRule, start: int, on_read: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
        kind = kind_of(self.path)
        if kind.form not in ("parquet", "arrow"):
            return islice(enumerate(self._documents(kind, rule, on_read)), start, None)
        self.sha256 = sha256_file(self.path) if self.remote is None else self.remote.digest
        table = Table(self.name, self.size, self.path if self.remote is None else self.remote.open())
        if kind.form == "parquet":
            return self._whole(parquet_records(table, self.text_field, self._fault, on_read, start))
        records = arrow_records(table, self.text_field, self._fault, on_read)
        return islice(enumerate(self._whole(records)), start, None)

    def _documents(self, kind: Kind, rule: DocumentRule, on_read: Callable[[int], None]) -> Iterator[bytes]:
        blocks = self._raw_blocks(on_read)
        if kind.compression:
            blocks = self._inflated(blocks, kind.compression)
        blocks = _without_mark(blocks)
        if kind.form == "text":
            return self._of_text(blocks, rule)
        if kind.form == "json":
            return json_records(blocks, self.text_field, self._fault)
        return csv_records(blocks, "," if kind.form == "csv" else "\t", self.text_field, self._fault)

    def _fault(self, what: str) -> None:
        """Something that cannot be used: count it, or raise DataError."""
        if self.on_error == "stop":
            raise DataError(f"{self.name}: {what}")
        self.skipped += 1
        self.first_fault = self.first_fault or f"{self.name}: {what}"

    def _whole(self, documents: Iterable[T]) -> Iterator[T]:
        """Pass on what can be read; what ends a file early is one fault."""
        try:
            yield from documents
        except (MissingLibraryError, HubError):
            raise
        except DataError as error:
            if self.on_error == "stop":
                raise
            self._fault(str(error).removeprefix(f"{self.name}: "))

    def _raw_blocks(self, on_read: Callable[[int], None]) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with self.open() as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                on_read(len(block))
                yield block
        self.sha256 = digest.hexdigest()

    def _inflated(self, blocks: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
        try:
            yield from _inflate(blocks) if compression == "gzip" else _expand(blocks, self.name)
        except (EOFError, _Damaged) as error:
            self._fault(f"damaged {compression} file: {error}")
            for _ in blocks:  # its hash is of all of it
                pass

    def _of_text(self, blocks: Iterable[bytes], rule: DocumentRule) -> Iterator[bytes]:
        if self.on_error == "skip":
            runs = self._good(_lines(blocks))
        elif rule == "file":
            return _whole(self._checked(blocks))
        else:
            runs = _lines(self._checked(blocks))
        return _cut(self._count_cut(runs) if rule in ("passage", "line") else runs, rule, self._fault)

    def _count_cut(self, runs: Iterable["_Run"]) -> Iterator["_Run"]:
        for run in runs:
            # The second piece of a line, and more than its end.
            self.cut_lines += 0 < run.at <= LINE_MAX_BYTES and not run.lines[0].isspace()
            yield run

    def _good(self, runs: Iterable["_Run"]) -> Iterator["_Run"]:
        """Those lines that are UTF-8 without NUL."""
        for run in runs:
            if _problem(b"".join(run.lines)) is None:
                yield run
                continue
            for number, line in enumerate(run.lines, run.number):
                if (problem := _problem(line)) is None:
                    yield _Run(number, run.at, [line])
                else:
                    what, place = problem
                    self._fault(f"line {number}: {what} at byte {run.at + place} of the line")

    def _checked(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks of a text. Raises DataError where it is not UTF-8 without NUL."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset = 0
        for block in blocks:
            if (nul := block.find(0)) >= 0:
                raise DataError(f"{self.name}: binary (or UTF-16), not UTF-8 text: NUL at byte {offset + nul}")
            self._check_utf8(decoder, block, offset)
            offset += len(block)
            yield block
        self._check_utf8(decoder, b"", offset)

    def _check_utf8(self, decoder: codecs.IncrementalDecoder, block: bytes, offset: int) -> None:
        """Decode `block`, which starts at byte `offset`; an empty one ends the text."""
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # The decoder had kept the start of an unfinished character: error.object is that and the block.
            bad = offset + len(block) - len(error.object) + error.start
            raise DataError(
                f"{self.name}: not UTF-8 at byte {bad}: convert it, for example "
                "`iconv -f latin1 -t utf-8`, or remove that byte"
            ) from None


def list_sources(paths: Sequence[Path], text_field: str = "text", on_error: OnError = "stop") -> list[Source]:
    """The files at `paths`, in order: see `find_files`; on the hub those of a split. Raises DataError."""
    return [source for path in paths for source in _sources(path, text_field, on_error)]


def _sources(path: Path, text_field: str, on_error: OnError) -> Iterator[Source]:
    if not is_hub(path):
        yield from (_source(file, text_field, on_error) for file in find_files([path]))
        return
    for file in list_files(parse_address(path)):
        yield Source(file.path, file.size, 0, text_field, on_error, remote=file)


def _source(path: Path, text_field: str, on_error: OnError) -> Source:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return Source(path, stat.st_size, stat.st_mtime_ns, text_field, on_error)


def _ignore(_: int) -> None:
    """Nobody listens."""


def _without_mark(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass on the blocks of a text without its byte order mark, which may lie across two of them."""
    held: bytes | None = b""
    for block in blocks:
        if held is None:
            yield block
        elif len(held := held + block) >= len(codecs.BOM_UTF8):
            yield held.removeprefix(codecs.BOM_UTF8)
            held = None
    if held:
        yield held


def cut_lines_note(count: int) -> str:
    """What became of lines that are too long for a document."""
    return f"lines of text longer than {LINE_MAX_BYTES >> 20} MiB, each cut into several documents: {count:,}"


class _Run(NamedTuple):
    """Lines with their ends. The first is of line `number`, from 1, and begins at byte `at` of it.

    They go from hand to hand together: one by one, that would take longer than all else that is done with a line.
    """

    number: int
    at: int
    lines: list[bytes]


def _problem(text: bytes) -> tuple[str, int] | None:
    """What keeps it from being UTF-8 without NUL, and at which byte."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return "not UTF-8", error.start
    nul = text.find(0)
    return ("NUL", nul) if nul >= 0 else None


def _cut(runs: Iterable[_Run], rule: DocumentRule, fault: Fault) -> Iterator[bytes]:
    """Documents of lines, none of them blank as a whole but for passages between others."""
    if rule == "blank-line":
        return _blocks(runs, fault)
    if rule == "line":
        return chain.from_iterable([line.rstrip(b"\r\n") for line in run.lines if not line.isspace()] for run in runs)
    lines = chain.from_iterable(run.lines for run in runs)
    return _whole(lines) if rule == "file" else _passages(lines)


def _whole(parts: Iterable[bytes]) -> Iterator[bytes]:
    held = BytesIO()  # unlike a list of lines it takes no more memory than the text
    held.writelines(parts)
    text = held.getvalue()
    if text and not text.isspace():
        yield text


def _expand(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Decompress zstd; several frames in a row are one text.

    Its library gives all that a piece of input expands to at once: small pieces bound that, however well it compresses.
    """
    zstandard = need("zstandard", name)
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
    frame = decompressor.decompressobj()
    held, size, inside = [b""], 0, True
    for block in blocks:
        for start in range(0, len(block), _ZSTD_BYTES):
            left = block[start : start + _ZSTD_BYTES]
            while left:
                frame = decompressor.decompressobj() if frame.eof else frame
                try:
                    held.append(frame.decompress(left))
                except zstandard.ZstdError as error:
                    raise _Damaged(str(error)) from error
                size += len(held[-1])
                left = frame.unused_data if frame.eof else b""
            inside = not frame.eof
            if size >= _BLOCK_BYTES:
                yield b"".join(held)
                held, size = [], 0
    yield b"".join(held)
    if inside:
        raise EOFError("it ends too early")


def _inflate(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress gzip, at most a block at a time however well it compresses."""
    stream = zlib.decompressobj(wbits=31)
    for block in blocks:
        left = block
        while left:
            if stream.eof:  # several gzip files in a row are one
                stream = zlib.decompressobj(wbits=31)
            try:
                text = stream.decompress(left, _BLOCK_BYTES)
            except zlib.error as error:
                raise _Damaged(str(error)) from error
            if text:
                yield text
            left = stream.unconsumed_tail or stream.unused_data
    if not stream.eof:
        raise EOFError("it ends too early")


def _lines(blocks: Iterable[bytes]) -> Iterator[_Run]:
    """The lines of each block; one longer than LINE_MAX_BYTES in pieces of whole characters, each by itself."""
    number, at, rest = 1, 0, b""
    for block in blocks:
        lines = (rest + block).splitlines(keepends=True)
        rest = lines.pop() if lines else b""  # it may go on, or be a CR before an LF, in the next block
        if lines and at == 0 and max(map(len, lines)) <= LINE_MAX_BYTES:
            yield _Run(number, 0, lines)
            number, lines = number + len(lines), []
        for line in lines:
            for piece in _pieces(line):
                yield _Run(number, at, [piece])
                at += len(piece)
            number, at = number + 1, 0
        *pieces, rest = _pieces(rest)
        for piece in pieces:
            yield _Run(number, at, [piece])
            at += len(piece)
    if rest:
        yield _Run(number, at, [rest])


def _pieces(line: bytes) -> Iterator[bytes]:
    while len(line) > LINE_MAX_BYTES:
        cut = LINE_MAX_BYTES
        while cut > LINE_MAX_BYTES - 4 and line[cut] & 0xC0 == 0x80:  # inside a character, of four bytes at most
            cut -= 1
        if line[cut - 1 : cut + 1] == b"\r\n":
            cut -= 1
        yield line[:cut]
        line = line[cut:]
    yield line


def _passages(lines: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for line in lines:
        complete = size >= PASSAGE_MIN_BYTES and held[-1].isspace() and not line.isspace()
        if held and (complete or size + len(line) > PASSAGE_MAX_BYTES):
            yield b"".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield b"".join(held)


def _blocks(runs: Iterable[_Run], fault: Fault) -> Iterator[bytes]:
    """Lines in a row that are not blank. Of those that are too long together `fault` hears, and they are dropped."""
    held: list[bytes] = []
    size = begins = 0
    numbered = (item for run in runs for item in enumerate(run.lines, run.number))
    for number, line in chain(numbered, ((0, b"\n"),)):
        if line.isspace():
            if held:
                yield b"".join(held).rstrip(b"\r\n")
            held, size = [], 0
            continue
        begins, before, size = begins if size else number, size, size + len(line)
        if size <= RECORD_MAX_BYTES:
            held.append(line)
        elif before <= RECORD_MAX_BYTES:
            held = []
            fault(
                f"line {begins}: begins more than {RECORD_MAX_BYTES >> 20} MiB without a blank line, the most that a "
                "block may have: choose another --document (data.document)"
            )
