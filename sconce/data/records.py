"""Records to documents: JSON, CSV, Parquet and Arrow files, a few at a time whatever the size of the file.

Each reader is given `fault`, which it calls with what is wrong with one record: it raises, or it counts and returns.
"""

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from sconce.errors import DataError

RECORD_MAX_BYTES = 2**26  # a longer line of JSON is refused: a record, unlike running text, cannot be cut
_ROWS = 256  # of a table at a time
_read_json = json.JSONDecoder().raw_decode
_BLANK = re.compile(r"[ \t\r\n]*")


class MissingLibraryError(DataError):
    """A library that an extra installs is not here; no fault of the file's."""


Fault = Callable[[str], None]
OnRead = Callable[[int], None]


def need(module: str, name: str) -> Any:  # noqa: ANN401 - neither library has types
    """The module, which an extra installs; DataError says so where it is missing."""
    try:
        return import_module(module)
    except ImportError:
        library = module.split(".", 1)[0]
        raise MissingLibraryError(f"{name}: reading it needs {library}: pip install 'sconce-lm[data]'") from None


def json_records(blocks: Iterable[bytes], field: str, fault: Fault) -> Iterator[bytes]:
    """The text of each object, in UTF-8: one a line, or those of an array. Blank lines and texts are passed over."""
    left, blank_lines = iter(blocks), 0
    for block in left:
        if not block or block.isspace():
            blank_lines += block.count(b"\n")
            continue
        text = chain((block,), left)
        is_array = block.lstrip().startswith(b"[")
        yield from _of_array(text, field, fault) if is_array else _of_lines(text, 1 + blank_lines, field, fault)


def _of_lines(blocks: Iterable[bytes], first: int, field: str, fault: Fault) -> Iterator[bytes]:
    for number, line in enumerate(_lines(blocks), first):
        if line is None:
            fault(f"line {number}: longer than {RECORD_MAX_BYTES >> 20} MiB, the most that a record may have")
        elif line and not line.isspace():
            yield from _text_of_json(line, f"line {number}", field, fault)


def _of_array(blocks: Iterator[bytes], field: str, fault: Fault) -> Iterator[bytes]:
    number = 0
    try:
        for record in _Array(blocks).elements():
            yield from _text_of_record(record, f"record {number} (from 0)", field, fault)
            number += 1
    except _BadArrayError as error:
        fault(f"record {number} (from 0): {error}")
    for _ in blocks:  # its hash is of all of it
        pass


class _BadArrayError(ValueError):
    """Where an array of JSON cannot be read on."""


class _Array:
    """A JSON array, which need not fit in memory."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._left, self._text, self._at = blocks, "", 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def elements(self) -> Iterator[object]:
        """Raises _BadArrayError where they end otherwise than the array does."""
        self._next()
        self._at += 1  # the bracket
        after = self._next()
        while after != "]":
            self._next()
            yield self._element()
            if (after := self._next()) not in ("]", ","):
                raise _BadArrayError("no comma before it" if after else "the array ends too early")
            self._at += after == ","
        self._at += 1
        if self._next():
            raise _BadArrayError("something comes after the array")

    def _next(self) -> str:
        """Go to the next character that is not blank; "" at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = self._at if blank is None else blank.end()
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def _element(self) -> object:
        while True:
            try:
                element, end = _read_json(self._text, self._at)
            except json.JSONDecodeError as error:
                # At its end the text may be cut; as may a string, of which the error names the start.
                may_be_cut = error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated")
                if not (may_be_cut and self._read_on()):
                    raise _BadArrayError(f"not JSON: {error.msg}") from None
            except RecursionError:
                raise _BadArrayError("nested too deeply") from None
            else:
                size = end - self._at
                if end + 3 < len(self._text) or not self._read_on():  # "1" may go on as 1e+5
                    self._at += size
                    return element

    def _read_on(self) -> bool:
        """Drop what was read, and at least double the rest: a long record is not tried again for each block of it."""
        self._text, self._at = self._text[self._at :], 0
        if len(self._text) > RECORD_MAX_BYTES:
            raise _BadArrayError(f"longer than {RECORD_MAX_BYTES >> 20} MiB, the most that a record may have")
        parts, wanted = [self._text], max(1, len(self._text))
        try:
            while wanted > 0 and (block := next(self._left, None)) is not None:
                parts.append(self._utf8.decode(block))
                wanted -= len(parts[-1])
            if wanted > 0:
                self._utf8.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise _BadArrayError(f"not UTF-8: {error.reason}") from None
        self._text = "".join(parts)
        return len(self._text) > len(parts[0])


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Lines, ended by LF alone as JSON lines are; None for one that is too long, whose content is dropped."""
    held: list[bytes] = []
    size, dropped = 0, False
    for block in blocks:
        *lines, rest = block.split(b"\n")
        for line in lines:
            size += len(line)
            yield None if dropped or size > RECORD_MAX_BYTES else b"".join((*held, line))
            held, size, dropped = [], 0, False
        held.append(rest)
        size += len(rest)
        if size > RECORD_MAX_BYTES:
            held, dropped = [], True
    if size:
        yield None if dropped else b"".join(held)


def _text_of_json(line: bytes, where: str, field: str, fault: Fault) -> Iterator[bytes]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return fault(f"{where}: not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return fault(f"{where}: not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return fault(f"{where}: not usable JSON: nested too deeply")
    yield from _text_of_record(record, where, field, fault)


def _text_of_record(record: object, where: str, field: str, fault: Fault) -> Iterator[bytes]:
    if not isinstance(record, dict):
        return fault(f"{where}: expected an object, found {type(record).__name__}")
    fields = cast(dict[str, object], record)
    if field not in fields:
        return fault(f"{where}: no field {field!r}; it has {_names(fields)}: set data.text_field (--text-field)")
    yield from _checked(fields[field], where, field, fault)


def csv_records(blocks: Iterable[bytes], delimiter: str, field: str, fault: Fault) -> Iterator[bytes]:
    """The texts of a column, which the first line names. Text in quotes may have several lines."""
    csv.field_size_limit(RECORD_MAX_BYTES)  # of the whole process, and 128 KiB unless set
    left = iter(blocks)
    reader = csv.reader(_csv_lines(left, fault), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [field])
        if field in header:
            yield from _cells(reader, header, field, fault)
        else:
            fault(f"no column {field!r}; its columns are {_names(header)}: set data.text_field (--text-field)")
    except csv.Error as error:
        fault(f"line 1: not CSV: {error}")
    for _ in left:  # its hash is of all of it
        pass


def _csv_lines(blocks: Iterable[bytes], fault: Fault) -> Iterator[str]:
    for number, line in enumerate(_lines(blocks), 1):
        if line is None:
            fault(f"line {number}: longer than {RECORD_MAX_BYTES >> 20} MiB, the most that a record may have")
        else:
            # Of other columns anything may be kept: what is not UTF-8 is found when the text is encoded again.
            yield line.decode(errors="surrogateescape") + "\n"


def _cells(reader: Any, header: list[str], field: str, fault: Fault) -> Iterator[bytes]:  # noqa: ANN401 - untyped
    column = header.index(field)
    while True:
        where = f"line {reader.line_num + 1}"
        try:
            row: list[str] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault(f"{where}: not CSV: {error}")
            continue
        if row and len(row) != len(header):
            fault(f"{where}: {len(row)} fields, expected {len(header)}")
        elif row:
            yield from _checked(row[column], where, field, fault)


def _checked(value: object, where: str, field: str, fault: Fault) -> Iterator[bytes]:
    """The text in UTF-8, unless it is blank or `fault` has heard why it cannot be used."""
    if not isinstance(value, str):
        return fault(f"{where}: {field!r} is {_kind(value)}, expected a string")
    if (nul := value.find("\0")) >= 0:
        return fault(f"{where}: NUL at character {nul} of {field!r}")
    try:
        text = value.encode()
    except UnicodeEncodeError as error:
        escaped = "\udc80" <= value[error.start] <= "\udcff"  # as a byte of CSV that is no UTF-8 is held
        problem = "not UTF-8" if escaped else "half a surrogate pair"
        return fault(f"{where}: {problem} at character {error.start} of {field!r}")
    if text and not text.isspace():
        yield text


def _kind(value: object) -> str:
    names = {"NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number", "dict": "an object"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _names(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") if shown else "none"


@dataclass(frozen=True, slots=True)
class Table:
    """A Parquet or Arrow file: its name for people, its bytes in all, and its path or itself, open."""

    name: str
    size: int
    file: Path | BinaryIO


def parquet_records(
    table: Table, field: str, fault: Fault, on_read: OnRead, start: int = 0
) -> Iterator[tuple[int, bytes]]:
    """The texts of a Parquet file's column from row `start` on, with their rows.

    Row groups before `start` are not read; `on_read` gets the file's bytes in proportion to the rows that are passed.
    """
    pq, pa = need("pyarrow.parquet", table.name), need("pyarrow", table.name)
    try:
        # Without pre_buffer and with a buffer, a column chunk is streamed and never in memory as a whole.
        with pq.ParquetFile(table.file, pre_buffer=False, buffer_size=2**20) as file:
            _check_column(table.name, pa, file.schema_arrow, field)
            groups, row = _groups(file.metadata, start)
            read = _proportion(on_read, table.size, file.metadata.num_rows)
            read(row)
            batches = file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=[field], use_threads=False)
            for number, text in _rows(batches, field, fault, read, row):
                if number >= start:
                    yield number, text
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of what is on it
        raise DataError(f"{table.name}: damaged Parquet file: {_first_line(error)}") from error
    finally:
        if not isinstance(table.file, Path):
            table.file.close()


def _groups(metadata: Any, start: int) -> tuple[list[int], int]:  # noqa: ANN401 - pyarrow's FileMetaData
    """The row groups from that of row `start` on, and the first row of them."""
    first, group = 0, 0
    while group < metadata.num_row_groups and first + metadata.row_group(group).num_rows <= start:
        first += metadata.row_group(group).num_rows
        group += 1
    return list(range(group, metadata.num_row_groups)), first


def arrow_records(table: Table, field: str, fault: Fault, on_read: OnRead) -> Iterator[bytes]:
    """The texts of an Arrow column: of a stream, as `datasets` saves them to disk, or of a file with a footer."""
    pa = need("pyarrow", table.name)
    try:
        with pa.OSFile(str(table.file)) if isinstance(table.file, Path) else pa.PythonFile(table.file) as opened:
            has_footer = opened.read(6) == b"ARROW1"
            opened.seek(0)
            reader = pa.ipc.open_file(opened) if has_footer else pa.ipc.open_stream(opened)
            _check_column(table.name, pa, reader.schema, field)
            whole = _with_footer(reader, table.size, on_read) if has_footer else _streamed(reader, opened, on_read)
            batches = (part for batch in whole for part in _slices(batch.select([field])))
            yield from (text for _, text in _rows(batches, field, fault, _ignore))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of what is on it
        raise DataError(f"{table.name}: damaged Arrow file: {_first_line(error)}") from error
    finally:
        if not isinstance(table.file, Path):
            table.file.close()


def _streamed(reader: Any, opened: Any, on_read: OnRead) -> Iterator[Any]:  # noqa: ANN401 - pyarrow's
    at = 0
    for batch in reader:
        yield batch
        on_read(opened.tell() - at)
        at = opened.tell()


def _with_footer(reader: Any, size: int, on_read: OnRead) -> Iterator[Any]:  # noqa: ANN401 - pyarrow's
    read = _proportion(on_read, size, reader.num_record_batches)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)
        read(1)


def _ignore(_: int) -> None:
    """Progress is counted elsewhere."""


def _slices(batch: Any) -> Iterator[Any]:  # noqa: ANN401 - a pyarrow.RecordBatch
    for start in range(0, batch.num_rows, _ROWS):
        yield batch.slice(start, _ROWS)


def _rows(batches: Iterable[Any], field: str, fault: Fault, read: OnRead, row: int = 0) -> Iterator[tuple[int, bytes]]:
    """Texts with their rows, the first of which is `row`."""
    for batch in batches:
        try:
            values = batch.column(0).to_pylist()
        except UnicodeDecodeError:
            values = [_decoded(value) for value in batch.column(0)]
        for value in values:
            if isinstance(value, bytes):
                fault(f"row {row}: {field!r} is not UTF-8")
            else:
                yield from ((row, text) for text in _checked(value, f"row {row}", field, fault))
            row += 1
        read(batch.num_rows)


def _decoded(value: Any) -> object:  # noqa: ANN401 - a pyarrow.Scalar
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return b""


def _check_column(name: str, pa: Any, schema: Any, field: str) -> None:  # noqa: ANN401 - pyarrow and its Schema
    if field not in schema.names:
        raise DataError(
            f"{name}: no column {field!r}; its columns are {_names(schema.names)}: set data.text_field (--text-field)"
        )
    kind = schema.field(field).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_string(inner) for is_string in strings):
        raise DataError(f"{name}: column {field!r} is of type {kind}, expected strings")


def _proportion(on_read: OnRead, size: int, rows: int) -> OnRead:
    """Turn rows into the bytes of the file that they are in proportion; all of them together are its size."""
    done = 0

    def read(count: int) -> None:
        nonlocal done
        on_read(size * (done + count) // max(rows, 1) - size * done // max(rows, 1))
        done += count

    return read


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["unreadable"])[0]
