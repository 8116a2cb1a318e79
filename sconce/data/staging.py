"""A folder that is built beside its place, then renamed into it; what a kill leaves of it can be gone on with."""

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sconce.files import fsync_folder


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Wait until no other process builds `folder`."""
    with ExitStack() as stack:
        # Where nothing can be written, or nothing locked (some network disks), go on: a build may be there.
        with suppress(OSError):
            _lock(folder.with_name(f".{folder.name}.lock"), stack)
        yield


def _lock(path: Path, stack: ExitStack) -> None:
    """Hold a lock until the stack unwinds, or the process ends in whatever way; the file goes with it."""
    while True:
        lock = stack.enter_context(path.open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            ours = os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except FileNotFoundError:
            ours = False
        if ours:  # else the process we waited for has removed it
            break
    stack.callback(path.unlink, missing_ok=True)  # still locked: files are closed after it


@contextmanager
def staged(folder: Path, journal: str, *scratch: str) -> Generator[Path]:
    """The folder to build in, which may hold what an earlier build left; it becomes `folder` when the block ends well.

    When it does not, it stays if it holds a `journal`, from which building can go on. This and the other files that
    only building needs, `scratch`, do not come along. To be used under `locked`.
    """
    new, old = (folder.with_name(f".{folder.name}.tmp-{name}") for name in ("new", "old"))
    shutil.rmtree(old, ignore_errors=True)  # of a killed build: nobody else has the lock
    try:
        yield new
        for name in (journal, *scratch):
            (new / name).unlink(missing_ok=True)
        for half_written in new.glob(".*.tmp-*"):  # where a kill met the writing of the journal
            half_written.unlink()
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)
        if not (new / journal).exists():
            shutil.rmtree(new, ignore_errors=True)
