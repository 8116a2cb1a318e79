"""Data sets on the Hugging Face hub: which files a split has at a commit, and reading them piece by piece.

`datasets` says which files are of which split; they are read through HTTP ranges, so that nothing but what is being
read is here. A commit never changes: what was read once can be read again, anywhere.
"""

import io
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from sconce.data.kinds import READ, kind_of
from sconce.errors import DataError
from sconce.hub_address import SCHEME, HubAddress
from sconce.hub_faults import OFFLINE, may_pass, one_line, origin, status_may_pass, status_of

BLOCK_BYTES = 2**22  # of a file asked for at once: enough to make a round trip cheap
PATIENCE_SECONDS = 300.0
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
TIMEOUT_SECONDS = 30.0  # without a byte; a slow line that moves is none
_PATHS_AT_ONCE = 500

T = TypeVar("T")


class HubError(DataError):
    """The hub did not answer, or not with what was asked for, for as long as we tried."""


class _Passing(Exception):  # noqa: N818 - never leaves this module
    """A fault that may be gone at the next try; `wait` is how long the server asks to wait, in seconds."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a data set at a commit. `digest` identifies its content: SHA-256, or Git's name for a small file."""

    repo: str
    commit: str
    name: str
    size: int
    digest: str

    @property
    def path(self) -> Path:
        """What stands for it in messages and manifests, less a slash."""
        return Path(f"{SCHEME}{self.repo}@{self.commit}/{self.name}")

    def open(self) -> BinaryIO:
        """The file for reading, a block at a time. A read raises HubError when the hub gives up on us."""
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(self), BLOCK_BYTES))


class _RemoteFile(io.RawIOBase):
    """A file on the hub as a raw stream: each read is one request."""

    def __init__(self, file: HubFile) -> None:
        super().__init__()
        self._file, self._at = file, 0
        self._name = f"{SCHEME}{file.repo}/{file.name}"
        hub = _need("huggingface_hub")
        self._url = hub.hf_hub_url(file.repo, file.name, repo_type="dataset", revision=file.commit)
        self._headers: dict[str, str] = _need("huggingface_hub.utils").build_hf_headers()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - anything that a memoryview can be of
        count = min(len(buffer), max(0, self._file.size - self._at))
        if count:
            start = self._at
            buffer[:count] = retried(self._name, lambda: self._get(start, count))
            self._at += count
        return count

    def _get(self, start: int, count: int) -> bytes:
        headers = {**self._headers, "Range": f"bytes={start}-{start + count - 1}"}
        response: Any = _session().get(self._url, headers=headers, timeout=TIMEOUT_SECONDS)
        _check_status(response, self._name)
        content: bytes = response.content
        if len(content) != count:
            raise _Passing(f"{len(content)} bytes instead of {count}")
        return content


def retried(what: str, action: Callable[[], T]) -> T:
    """The result of `action`, tried again while what goes wrong may pass; waits double from half a second on.

    Raises HubError when that takes longer than SCONCE_HUB_PATIENCE seconds, or at once for what will not pass.
    """
    started, wait, tries, patience = time.monotonic(), FIRST_WAIT_SECONDS, 0, _patience()
    while True:
        tries += 1
        try:
            return action()
        except Exception as error:  # what the libraries raise has no common base; the rest is raised on
            fault = _passing(error)
            if fault is None:
                raise
            if time.monotonic() - started + wait > patience:
                raise HubError(
                    f"{what}: the Hugging Face hub cannot be read, after {tries} tries in "
                    f"{time.monotonic() - started:.0f} s: {fault}; check the network, then type the same command again"
                ) from error
            time.sleep(min(max(wait, fault.wait), LONGEST_WAIT_SECONDS))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def _passing(error: Exception) -> _Passing | None:
    """What may pass in an error, or None."""
    if isinstance(error, _Passing):
        return error
    if not may_pass(error):
        return None
    found = origin(error)
    status = status_of(found)
    said = one_line(f"{type(found).__name__}: {found}")[:150].rstrip(": ") if status is None else f"HTTP {status}"
    return _Passing(said)


def _check_status(response: Any, name: str) -> None:  # noqa: ANN401 - of whichever HTTP library huggingface_hub has
    status: int = response.status_code
    if status_may_pass(status):
        after = str(response.headers.get("Retry-After", ""))
        raise _Passing(f"HTTP {status}", float(after) if after.isdecimal() else 0.0)
    if status >= 400:
        raise HubError(f"{name}: HTTP {status}: {_ACCESS}")  # not the address, which may be signed


def _patience() -> float:
    given = os.environ.get("SCONCE_HUB_PATIENCE", "")
    try:
        return float(given) if given else PATIENCE_SECONDS
    except ValueError:
        raise DataError(f"SCONCE_HUB_PATIENCE: found {given!r}, expected seconds") from None


_ACCESS = "a data set that is private or gated needs `hf auth login`, or HF_TOKEN, and its terms accepted"


def _need(module: str) -> Any:  # noqa: ANN401 - what these libraries give is mostly untyped
    try:
        return import_module(module)
    except ImportError:
        raise DataError(f"reading from the Hugging Face hub needs {module}: pip install 'sconce-lm[hub]'") from None


def _session() -> Any:  # noqa: ANN401 - of whichever HTTP library huggingface_hub has
    return _need("huggingface_hub.utils").get_session()


@contextmanager
def _explained(address: HubAddress) -> Generator[None]:
    """Turn the libraries' errors about a data set into DataError, a line each."""
    if _need("huggingface_hub.constants").HF_HUB_OFFLINE:
        raise DataError(f"{address}: {OFFLINE}")
    errors = _need("huggingface_hub.errors")
    try:
        yield
    except errors.RevisionNotFoundError:
        raise DataError(f"{address}: the data set has no revision {address.revision!r}") from None
    except errors.GatedRepoError:
        raise DataError(f"{address}: {_ACCESS}") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise DataError(f"{address}: no such data set on the Hugging Face hub; {_ACCESS}") from None
    except errors.HfHubHTTPError as error:
        raise DataError(f"{address}: {one_line(_first_line(error))}") from None


@cache
def resolve(address: HubAddress) -> str:
    """The commit that the address's revision is now; asked once a process. Raises DataError where there is none."""
    hub = _need("huggingface_hub")
    with _explained(address):
        info = retried(
            str(address),
            lambda: hub.HfApi().dataset_info(address.repo, revision=address.revision, timeout=TIMEOUT_SECONDS),
        )
    return str(info.sha)


@cache
def list_files(address: HubAddress) -> tuple[HubFile, ...]:
    """The files of a split, in the order in which they are read. Raises DataError where it has none we can read."""
    commit = resolve(address)
    names = _names(address, commit)
    for name in names:
        if not kind_of(name).known:
            raise DataError(
                f"{address}: {name}: found a file that is none of {READ}; the hub's own conversion to Parquet may be "
                f"at {address.at('refs/convert/parquet')}"
            )
    hub = _need("huggingface_hub")
    found: dict[str, HubFile] = {}
    for first in range(0, len(names), _PATHS_AT_ONCE):
        some = names[first : first + _PATHS_AT_ONCE]
        with _explained(address):
            infos: list[Any] = retried(
                str(address),
                lambda some=some: hub.HfApi().get_paths_info(address.repo, some, revision=commit, repo_type="dataset"),
            )
        for info in infos:
            digest = info.lfs.sha256 if info.lfs is not None else f"git:{info.blob_id}"
            found[info.path] = HubFile(repo=address.repo, commit=commit, name=info.path, size=info.size, digest=digest)
    if missing := [name for name in names if name not in found]:
        raise HubError(f"{address}: {missing[0]}: listed, and not there: type the same command again")
    return tuple(found[name] for name in names)


def _names(address: HubAddress, commit: str) -> list[str]:
    """What `datasets` takes for the files of the split, as paths inside the repository."""
    datasets: Any = _need("datasets")
    datasets.disable_progress_bars()
    errors: Any = import_module("datasets.exceptions")
    try:
        builder = retried(
            str(address),
            lambda: datasets.load_dataset_builder(address.repo, address.config, revision=commit),
        )
    except (ValueError, RuntimeError, FileNotFoundError, errors.DatasetsError) as error:
        raise DataError(f"{address}: {one_line(_first_line(error))}") from None
    data_files = cast(dict[str, list[str]], builder.config.data_files or {})
    splits = {str(name): list(files) for name, files in data_files.items()}
    if address.split not in splits:
        raise DataError(f"{address}: no split {address.split!r}; it has {', '.join(sorted(splits)) or 'none'}")
    names = [name.partition(f"@{commit}/")[2] for name in splits[address.split]]
    if not names or not all(names):
        raise DataError(f"{address}: its files are not in the repository itself, and cannot be read")
    return names


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
