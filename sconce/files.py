"""Files that appear whole or not at all, and the hashes that identify them."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sconce.errors import SconceError

if sys.platform == "darwin":
    import fcntl


def fsync_file(fd: int) -> None:
    """Force a file's bytes onto the medium; on macOS plain fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):  # as a volume on a network may say
                raise
        else:
            return
    os.fsync(fd)


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old file or the new one.

    Raises OSError, which names a file.
    """
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            fsync_file(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a disk that is full says of no file that it is
        raise
    fsync_folder(path.parent)


def check_free(path: Path) -> None:
    """Raise SconceError if something is at `path`, other than an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise SconceError(f"{path}: already exists: choose another --out")


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """A folder to fill, which becomes `path` when the block ends well, and is gone when it does not.

    Raises SconceError if something is at `path` already, other than an empty folder.
    """
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    absolute = path.parent.resolve() / path.name
    temporary = absolute.with_name(f".{absolute.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        fsync_folder(temporary)
        temporary.rename(absolute)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(absolute.parent)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def readable_size(count: int) -> str:
    """Bytes for people, in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
