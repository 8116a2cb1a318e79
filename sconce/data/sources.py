"""Text files to documents: streamed, checked, and hashed on the way.

Documents are UTF-8 bytes here: sizes are then exact, and nothing is encoded twice to be hashed.
"""

import codecs
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sconce.errors import DataError

DocumentRule = Literal["passage", "line", "blank-line", "file"]
"""How a file falls into documents. A line ends at LF, CRLF or CR; it is blank when it is ASCII white space.

passage: running text without record structure. Whole lines up to a blank line after at least 4 KiB, and never
  more than 16 KiB unless one line is longer. Passages joined together are the file's text.
line: each line that is not blank, without its end.
blank-line: each run of lines that are not blank, without its last end. The run must fit in memory.
file: the whole file, which must fit in memory.
"""

SUFFIXES = (".txt", ".text", ".md", ".gz")
PASSAGE_MIN_BYTES = 4096
PASSAGE_MAX_BYTES = 16384
LINE_MAX_BYTES = 2**20  # a longer line is cut, so that a file without newlines does not fill the memory
_BLOCK_BYTES = 2**20


@dataclass(slots=True)
class Source:
    """A text file, plain or gzip. `size` and `sha256` are of its raw bytes; the hash is there after a full pass."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str = ""

    def documents(self, rule: DocumentRule, on_read: Callable[[int], None] | None = None) -> Iterator[bytes]:
        """Yield the documents; `on_read` gets the size of each raw block.

        Raises DataError for what is not text: empty, binary, not UTF-8, damaged gzip.
        """
        blocks = self._raw_blocks(on_read)
        if self.path.suffix == ".gz":
            blocks = self._inflated(blocks)
        blocks = self._checked(blocks)
        if rule == "file":
            yield b"".join(blocks)
        elif rule == "passage":
            yield from _passages(_lines(blocks))
        elif rule == "line":
            yield from (line.rstrip(b"\r\n") for line in _lines(blocks) if not line.isspace())
        else:
            yield from _runs(_lines(blocks))

    def _raw_blocks(self, on_read: Callable[[int], None] | None) -> Iterator[bytes]:
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    if on_read is not None:
                        on_read(len(block))
                    yield block
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        self.sha256 = digest.hexdigest()

    def _inflated(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            yield from _inflate(blocks)
        except (zlib.error, EOFError) as error:
            raise DataError(f"{self.path}: damaged gzip file: {error}") from error

    def _checked(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass on the blocks of a text without its byte order mark."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset, blank = 0, True
        for block in blocks:
            if (nul := block.find(0)) >= 0:
                raise DataError(f"{self.path}: binary (or UTF-16), not UTF-8 text: NUL at byte {offset + nul}")
            self._check_utf8(decoder, block, offset)
            text = block.removeprefix(codecs.BOM_UTF8) if offset == 0 else block
            blank = blank and (not text or text.isspace())
            offset += len(block)
            yield text
        self._check_utf8(decoder, b"", offset)
        if blank:
            raise DataError(f"{self.path}: no text in it")

    def _check_utf8(self, decoder: codecs.IncrementalDecoder, block: bytes, offset: int) -> None:
        """Decode `block`, which starts at byte `offset`; an empty one ends the text."""
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # The decoder had kept the start of an unfinished character: error.object is that and the block.
            bad = offset + len(block) - len(error.object) + error.start
            raise DataError(
                f"{self.path}: not UTF-8 at byte {bad}: convert it, for example "
                "`iconv -f latin1 -t utf-8`, or remove that byte"
            ) from None


def list_sources(paths: Sequence[Path]) -> list[Source]:
    """The files at `paths`, in order; a folder stands for the text files anywhere in it, by relative path.

    Hidden files are passed over. Raises DataError for a path that is not there and a folder without text files.
    """
    files: list[Path] = []
    for path in paths:
        found = _text_files(path) if path.is_dir() else [path]
        if not found:
            raise DataError(f"{path}: no text files in this folder; looked for {', '.join(SUFFIXES)}")
        files += found
    return [_source(file) for file in files]


def _source(path: Path) -> Source:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return Source(path, stat.st_size, stat.st_mtime_ns)


def _text_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    inside = [path.relative_to(folder) for path in files]
    visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    return [folder / path for path in sorted(visible, key=lambda path: path.as_posix())]


def _inflate(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress gzip, at most a block at a time however well it compresses."""
    stream = zlib.decompressobj(wbits=31)
    for block in blocks:
        left = block
        while left:
            if stream.eof:  # several gzip files in a row are one
                stream = zlib.decompressobj(wbits=31)
            if text := stream.decompress(left, _BLOCK_BYTES):
                yield text
            left = stream.unconsumed_tail or stream.unused_data
    if not stream.eof:
        raise EOFError("it ends too early")


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their ends; a line longer than LINE_MAX_BYTES comes in pieces of whole characters."""
    rest = b""
    for block in blocks:
        lines = (rest + block).splitlines(keepends=True)
        rest = lines.pop() if lines else b""  # it may go on, or be a CR before an LF, in the next block
        for line in lines:
            yield from _pieces(line)
        *pieces, rest = _pieces(rest)
        yield from pieces
    if rest:
        yield rest


def _pieces(line: bytes) -> Iterator[bytes]:
    while len(line) > LINE_MAX_BYTES:
        cut = LINE_MAX_BYTES
        while line[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        yield line[:cut]
        line = line[cut:]
    yield line


def _passages(lines: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size, after_blank = 0, False
    for line in lines:
        blank = line.isspace()
        complete = after_blank and not blank and size >= PASSAGE_MIN_BYTES
        if held and (complete or size + len(line) > PASSAGE_MAX_BYTES):
            yield b"".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
        after_blank = blank
    if held:
        yield b"".join(held)


def _runs(lines: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    for line in lines:
        if not line.isspace():
            held.append(line)
        elif held:
            yield b"".join(held).rstrip(b"\r\n")
            held = []
    if held:
        yield b"".join(held).rstrip(b"\r\n")
