"""Records to documents: JSON lines, Parquet and Arrow files, a few at a time whatever the size of the file.

Each reader is given `fault`, which it calls with what is wrong with one record: it raises, or it counts and returns.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from sconce.errors import DataError

RECORD_MAX_BYTES = 2**26  # a longer line of JSON is refused: a record, unlike running text, cannot be cut
_ROWS = 256  # of a table at a time


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
    """The text of each line's object, in UTF-8; blank lines and blank texts are passed over."""
    for number, line in enumerate(_lines(blocks), 1):
        if line is None:
            fault(f"line {number}: longer than {RECORD_MAX_BYTES >> 20} MiB, the most that a record may have")
        elif line and not line.isspace():
            yield from _text_of_json(line, number, field, fault)


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


def _text_of_json(line: bytes, number: int, field: str, fault: Fault) -> Iterator[bytes]:
    where = f"line {number}"
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return fault(f"{where}: not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return fault(f"{where}: not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return fault(f"{where}: not usable JSON: nested too deeply")
    if not isinstance(record, dict):
        return fault(f"{where}: expected an object, found {type(record).__name__}")
    fields = cast(dict[str, object], record)
    if field not in fields:
        return fault(f"{where}: no field {field!r}; it has {_names(fields)}: set data.text_field (--text-field)")
    yield from _checked(fields[field], where, field, fault)


def _checked(value: object, where: str, field: str, fault: Fault) -> Iterator[bytes]:
    """The text in UTF-8, unless it is blank or `fault` has heard why it cannot be used."""
    if not isinstance(value, str):
        return fault(f"{where}: {field!r} is {_kind(value)}, expected a string")
    if (nul := value.find("\0")) >= 0:
        return fault(f"{where}: NUL at character {nul} of {field!r}")
    try:
        text = value.encode()
    except UnicodeEncodeError as error:
        return fault(f"{where}: half a surrogate pair at character {error.start} of {field!r}")
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
    """A Parquet file: its name for people, its bytes in all, and its path or itself, open."""

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
    except pa.ArrowException as error:
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


def arrow_records(path: Path, field: str, fault: Fault, on_read: OnRead) -> Iterator[bytes]:
    """The texts of an Arrow stream's column, as `datasets` saves them to disk."""
    pa = need("pyarrow", str(path))
    try:
        with pa.OSFile(str(path)) as opened, pa.ipc.open_stream(opened) as stream:
            _check_column(str(path), pa, stream.schema, field)
            at = 0

            def read(_: int) -> None:
                nonlocal at
                on_read(opened.tell() - at)
                at = opened.tell()

            batches = (part for whole in stream for part in _slices(whole.select([field])))
            yield from (text for _, text in _rows(batches, field, fault, read))
    except pa.ArrowException as error:
        raise DataError(f"{path}: damaged Arrow file: {_first_line(error)}") from error


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
