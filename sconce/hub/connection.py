"""A model repository on the Hugging Face hub: its client library, another try where that helps, faults in one line."""

import hashlib
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from sconce.errors import CheckpointError, ConfigError, SconceError
from sconce.files import fsync_file, sha256_file
from sconce.hub_faults import OFFLINE, connection_errors, may_pass, one_line, origin

T = TypeVar("T")
Content = Path | bytes  # what a file is to hold, or where that lies

WAITS = (1.0, 2.0, 4.0)  # seconds before each other try; the library has more of its own for uploads and downloads
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class _Response(Protocol):
    status_code: int


class _Answer(Protocol):
    """What is used of the library's errors that the hub's answers become."""

    response: _Response
    server_message: str | None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as the hub lists it: SHA-256 of a large one, git's SHA-1 of a small one, in hex."""

    bytes: int | None
    git_sha1: str | None
    sha256: str | None

    def holds(self, content: Content, known_sha256: str | None = None) -> bool:
        """Whether it is this content, or that of the file at this path; never where the hub says no hash.

        `known_sha256` is the content's, where it need not be read again for it.
        """
        if self.sha256 is not None:
            found = known_sha256 or (
                sha256_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
            )
            return found == self.sha256
        if self.git_sha1 is None:
            return False
        return git_sha1(content.read_bytes() if isinstance(content, Path) else content) == self.git_sha1


@dataclass(frozen=True, slots=True)
class RemoteState:
    """A revision of the repository: its commit, and its files by path."""

    commit: str
    private: bool
    files: Mapping[str, RemoteFile]


def git_sha1(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class Hub:
    """One repository. Its methods raise SconceError in one line, which never holds the token."""

    def __init__(self, repo: str) -> None:
        """Raises ConfigError when `repo` is no ORG/NAME, SconceError when the library is not installed."""
        if _REPO.fullmatch(repo) is None:
            raise ConfigError(f"{repo!r}: expected a repository of the hub as ORG/NAME, such as my-name/my-model")
        if find_spec("huggingface_hub") is None:
            raise SconceError("the hub needs huggingface_hub: pip install 'sconce-lm[hub]'")
        self.repo = repo
        self.library: Any = import_module("huggingface_hub")
        self._errors: Any = import_module("huggingface_hub.errors")
        utils: Any = import_module("huggingface_hub.utils")
        utils.logging.set_verbosity(logging.CRITICAL)  # its warnings hold addresses that are signed
        if not sys.stderr.isatty():
            utils.disable_progress_bars()
        self.api: Any = self.library.HfApi(library_name="sconce")

    @property
    def url(self) -> str:
        """Where a person finds it."""
        return f"{self.api.endpoint}/{self.repo}"

    def need_token(self) -> None:
        """Raise SconceError when there is none to write with."""
        if not self.attempt(self.library.get_token):
            raise SconceError("no token to write to the hub with: log in with `hf auth login`, or set HF_TOKEN")

    def look(self, revision: str | None = None) -> RemoteState:
        """The repository at a branch, tag or commit, by default its main branch."""
        return self.attempt(lambda: self.look_once(revision))

    def look_if_there(self, revision: str | None = None) -> RemoteState | None:
        """As `look`, but None where there is no such repository or revision, as far as the token may see."""
        missing = (self._errors.RepositoryNotFoundError, self._errors.RevisionNotFoundError)

        def call() -> RemoteState | None:
            try:
                return self.look_once(revision)
            except missing as error:
                if error.response.status_code != 404:  # a token that is refused is not a repository that is missing
                    raise
                return None

        return self.attempt(call)

    def look_once(self, revision: str | None) -> RemoteState:
        """As `look`, without another try and with the library's own errors: for use inside `attempt`."""
        info = self.api.model_info(self.repo, revision=revision, files_metadata=True)
        files = {
            file.rfilename: RemoteFile(file.size, file.blob_id, None if file.lfs is None else file.lfs.sha256)
            for file in info.siblings or ()
        }
        return RemoteState(info.sha, bool(info.private), files)

    def download(self, state: RemoteState, name: str, folder: Path, sha256: str | None = None) -> Path:
        """Fetch one file of a state into `folder`, onto the medium.

        Raises CheckpointError when its hash is not `sha256`, or, without one, not what the hub lists.
        """
        path = Path(
            self.attempt(lambda: self.api.hf_hub_download(self.repo, name, revision=state.commit, local_dir=folder))
        )
        expected = state.files[name] if sha256 is None else RemoteFile(None, None, sha256)
        if not expected.holds(path):
            raise CheckpointError(f"{self.repo}: {name}: what came has another hash than what was pushed: pull again")
        with path.open("rb") as file:
            fsync_file(file.fileno())
        return path

    def attempt(self, call: Callable[[], T]) -> T:
        """What `call` returns, tried again when the hub or the way to it fails for the moment."""
        for wait in (*WAITS, None):
            try:
                with warnings.catch_warnings(action="ignore"):
                    return call()
            except SconceError:
                raise
            except (OSError, ValueError, RuntimeError, *connection_errors()) as error:
                if (
                    isinstance(error, OSError)
                    and error.errno is not None
                    and not isinstance(error, connection_errors())
                ):
                    raise  # the disk's, not the hub's
                if wait is None or not may_pass(error):
                    raise self._explain(error) from None
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _explain(self, error: BaseException) -> SconceError:
        found = origin(error)
        if isinstance(found, self._errors.HfHubHTTPError):
            return SconceError(one_line(f"{self.repo}: {self._of_answer(cast(_Answer, found))}"))
        if isinstance(found, self._errors.OfflineModeIsEnabled):
            return SconceError(OFFLINE)
        if isinstance(found, connection_errors()):
            return SconceError(
                one_line(f"{self.repo}: {self.api.endpoint} cannot be reached ({found}): check the network")
            )
        return SconceError(one_line(f"{self.repo}: the hub's library gives up: {found}"))

    def _of_answer(self, error: _Answer) -> str:
        """What an error of the hub means, and what to do."""
        status = error.response.status_code
        said = f" ({error.server_message})" if error.server_message else ""
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of `hf auth login`"
        if isinstance(error, self._errors.GatedRepoError):
            return f"its owner has to let you in: ask at {self.url}"
        if isinstance(error, self._errors.RevisionNotFoundError):
            return "no such branch, tag or commit; give another --revision"
        if status == 401:
            return f"401: not logged in, or {source} is not accepted: `hf auth login`, or a valid HF_TOKEN, helps{said}"
        if isinstance(error, self._errors.RepositoryNotFoundError):
            return "404: no such repository, or none that you may see: check the name, and `hf auth login` or HF_TOKEN"
        if status == 403:
            return f"403: {source} may not do this: it needs write access to {self.repo.split('/')[0]}{said}"
        if status in (409, 412):
            return f"{status}: the repository changed in the meantime; nothing was changed by this: try again{said}"
        if status == 429 or status >= 500:
            return f"{status}: the hub does not answer as it should, also when asked again: try later{said}"
        return f"{status}: the hub refuses this{said or f': {error}'}"
