"""What is known of a stream's windows: where each starts, what it holds, and where the stream ends.

<folder>/journal.jsonl   first the stream that it is of, then a line for each window as it is first made
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from sconce.data.windows import BEGIN, Position
from sconce.errors import DataError
from sconce.files import fsync_file, write_atomic

FORMAT = "sconce-stream-1"
JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """A window: its rows, the hash of its tokens ("" when it has none), and where the next one starts."""

    window: int
    rows: int
    sha256: str
    after: Position | None


class Journal:
    """Remembers windows, those that it made and those that a checkpoint speaks of."""

    def __init__(self, fingerprint: str, rows: int, folder: Path, *, read_only: bool = False) -> None:
        """Of the stream that `fingerprint` identifies, `rows` a window. A journal of another stream is replaced."""
        self.rows = rows
        self.total_rows: int | None = None
        self._starts: dict[int, Position] = {0: BEGIN}
        self._hashes: dict[int, str] = {}
        self._path = folder / JOURNAL
        head = {"format": FORMAT, "fingerprint": fingerprint}
        lines = _read(self._path)
        if lines[:1] == [head]:
            for line in lines[1:]:
                after = line["after"]
                self._learn(Entry(line["window"], line["rows"], line["sha256"], after and Position(**after)))
        if read_only:
            return
        # Written anew: a line that a kill cut short must not have another one put behind it.
        content = [head, *(lines[1:] if lines[:1] == [head] else [])]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in content))

    @staticmethod
    def fingerprint_in(folder: Path) -> str | None:
        """What identifies the stream of the folder's journal, if it has one."""
        head = (_read(folder / JOURNAL) or [{}])[0]
        return head.get("fingerprint") if head.get("format") == FORMAT else None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._path.stat().st_size

    def start(self, window: int) -> Position | None:
        """Where a window starts, if that is known."""
        return self._starts.get(window)

    def nearest(self, window: int) -> int:
        """The last window up to `window` whose start is known."""
        return max(known for known in self._starts if known <= window)

    def is_made(self, window: int) -> bool:
        """Whether the window has been made, here or before the checkpoint."""
        return window in self._hashes or window + 1 in self._starts

    def add(self, entry: Entry) -> None:
        """Remember a window that was made. Raises DataError when it was made before and was another then, or when
        the journal cannot be written.
        """
        if self._hashes.get(entry.window, entry.sha256) != entry.sha256:
            raise DataError(
                f"window {entry.window} of the stream has other tokens than when the run was trained on it: the data "
                "set, or the program that tokenises, has changed; install what was here before"
            )
        ends = entry.after is None
        if entry.window in self._hashes and (self.total_rows is not None if ends else entry.window + 1 in self._starts):
            return
        self._learn(entry)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(entry)) + "\n")
                file.flush()
                fsync_file(file.fileno())
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written: {error.strerror}") from error

    def facts(self, windows: list[int]) -> dict[str, Any]:
        """What a checkpoint needs to go on in these windows without this journal, as JSON; see `restore`."""
        known = [window for window in windows if window in self._starts]
        return {
            "windows": [[window, *astuple(self._starts[window]), self._hashes.get(window, "")] for window in known],
            "total_rows": self.total_rows,
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Learn what `facts` said. Raises DataError when this journal knows otherwise."""
        for window, *place, sha256 in facts["windows"]:
            start = Position(*place)
            other_tokens = bool(sha256) and self._hashes.get(window, sha256) != sha256
            if other_tokens or self._starts.get(window, start) != start:
                raise DataError(f"{self._path}: window {window} is another one here than in the checkpoint: delete it")
            self._starts[window] = start
            if sha256:
                self._hashes[window] = sha256
        if facts["total_rows"] is not None:
            self.total_rows = facts["total_rows"]

    def _learn(self, entry: Entry) -> None:
        self._hashes[entry.window] = entry.sha256
        if entry.after is None:
            self.total_rows = entry.window * self.rows + entry.rows
        else:
            self._starts[entry.window + 1] = entry.after


def _read(path: Path) -> list[dict[str, Any]]:
    """The journal's lines, up to the first that is not whole; none where there is no journal."""
    lines: list[dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return lines
