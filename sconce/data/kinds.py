"""What a file is, by its name: running text or records, and compressed or not. The one table of it."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from sconce.errors import DataError

Form = Literal["text", "json", "csv", "tsv", "parquet", "arrow"]
Compression = Literal["", "gzip", "zstd"]

_FORMS: dict[str, Form] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_UNPACKED_BY = {"gzip": "gunzip", "zstd": "unzstd"}
READ = ", ".join((*_FORMS, *_COMPRESSIONS))
"""The suffixes that are read, for messages."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`known` says that the name tells; any other file is taken for text when it is asked for by its name."""

    form: Form
    compression: Compression = ""
    known: bool = True

    @property
    def is_records(self) -> bool:
        """Whether it holds records with fields, each a document, not running text."""
        return self.form != "text"

    @property
    def is_packed(self) -> bool:
        """Whether its text takes more room than the file."""
        return self.compression != "" or self.form in ("parquet", "arrow")


def kind_of(path: PurePath | str) -> Kind:
    """What the file at `path`, which need not be there, is. A compressed one is what its name without .gz says.

    Raises DataError for a compressed file of a form that is compressed inside, and is read from its end.
    """
    *before, last = [suffix.lower() for suffix in PurePath(path).suffixes] or [""]
    compression = _COMPRESSIONS.get(last, "")
    inner = (before[-1] if before else "") if compression else last
    form = _FORMS.get(inner, "text")
    if compression and form in ("parquet", "arrow"):
        raise DataError(f"{path}: {inner} inside {last} is not read: unpack it with {_UNPACKED_BY[compression]}")
    return Kind(form, compression, inner in _FORMS or compression != "")


def was_text(path: PurePath | str) -> bool:
    """Whether a local file of this name was read as running text before sconce-tokens-2 and sconce-text-2."""
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    return [suffix for suffix in suffixes if suffix not in _COMPRESSIONS][-1:] in ([".json"], [".csv"], [".tsv"])
