"""How a data set on the Hugging Face hub is written where a path may stand: hf://org/name@revision?config=C&split=S."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote

from sconce.errors import DataError

SCHEME = "hf://"
_FORM = "hf://org/name, with @REVISION and ?config=NAME&split=NAME where they are not the default"
_REPO = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """One split of a data set. `revision` is a branch, a tag or a commit; `config` None is the data set's default."""

    repo: str
    revision: str = "main"
    config: str | None = None
    split: str = "train"

    def at(self, revision: str) -> "HubAddress":
        """The same split of another revision."""
        return replace(self, revision=revision)

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        pairs = [("config", self.config), ("split", None if self.split == "train" else self.split)]
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs if value is not None)
        return f"{SCHEME}{self.repo}{revision}{'?' + query if query else ''}"


def is_hub(path: Path | str) -> bool:
    """Whether a path is such an address; as a Path it has lost one of its slashes."""
    return str(path).startswith("hf:/")


def spelled(path: Path | str) -> str:
    """A path for people and files: an address with the two slashes that a Path does not keep."""
    text = str(path)
    return SCHEME + text.removeprefix("hf:").lstrip("/") if is_hub(text) else text


def absolute(path: Path) -> Path:
    """A local path made absolute; an address as it is."""
    return path if is_hub(path) else path.absolute()


def pinned(path: Path, commits: Mapping[str, str]) -> Path:
    """The data set at the commit that `commits` has for its address; any other path as it is."""
    if not is_hub(path):
        return path
    address = parse_address(path)
    commit = commits.get(str(address))
    return path if commit is None else Path(str(address.at(commit)))


def parse_address(path: Path | str) -> HubAddress:
    """The address in a path. Raises DataError, with the form expected, for what is none."""
    text = spelled(path)
    place, _, query = text.removeprefix(SCHEME).partition("?")
    repo, at, revision = place.removeprefix("datasets/").partition("@")
    try:
        pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if query else []
    except ValueError:
        pairs = [("", "")]
    given = dict(pairs)
    wrong = not _REPO.fullmatch(repo) or bool(at and not revision) or len(given) != len(pairs) or "" in given.values()
    if wrong or not given.keys() <= {"config", "split"}:
        raise DataError(f"{text}: not an address on the Hugging Face hub: expected {_FORM}")
    return HubAddress(
        repo=repo, revision=revision or "main", config=given.get("config"), split=given.get("split", "train")
    )
