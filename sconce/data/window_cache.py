"""The windows of a stream on disk: each an ordinary build of token shards, and one of what is held out.

<folder>/window-00000012/   training tokens of window 12
<folder>/held-out/          validation tokens: the held-out documents of window 0
"""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from sconce.data.corpus import Split
from sconce.data.encode import Encoded
from sconce.data.shards import MANIFEST, Manifest, TokenData, open_tokens
from sconce.data.writer import SplitWriter
from sconce.errors import DataError
from sconce.files import fsync_folder, write_json

_HELD_OUT = "held-out"
_WINDOW = "window-"


class WindowCache:
    """Builds in `folder`, which may be read while another process writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def windows(self) -> dict[int, int]:
        """The windows that are complete, and the bytes of each."""
        found = {int(path.name.removeprefix(_WINDOW)): path for path in self.folder.glob(f"{_WINDOW}*[0-9]")}
        return {window: _size(path) for window, path in found.items() if (path / MANIFEST).is_file()}

    def size(self, window: int) -> int:
        """The bytes of a window that is complete."""
        return _size(self._place(window))

    def open(self, window: int) -> TokenData:
        """A window, with its hash checked. Raises DataError when it is not there or damaged."""
        return open_tokens(self._place(window))

    def write(self, window: int, tokens: Encoded, template: Manifest) -> str:
        """Write a window; the SHA-256 of its tokens. `template` says everything but the shards."""
        return self._write(self._place(window), "train", tokens, template)

    def remove(self, window: int) -> None:
        """Delete a window, if it is there."""
        _remove(self._place(window))

    def held_out(self) -> TokenData:
        """What is held out. Raises as `open` does."""
        return open_tokens(self.folder / _HELD_OUT)

    def held_out_bytes(self) -> int:
        """Its size; 0 where it is not there or not complete."""
        place = self.folder / _HELD_OUT
        return _size(place) if (place / MANIFEST).is_file() else 0

    def write_held_out(self, tokens: Encoded, template: Manifest) -> None:
        """Write it."""
        self._write(self.folder / _HELD_OUT, "validation", tokens, template)

    def clear(self) -> None:
        """Delete everything, and what a kill has left."""
        for pattern in (f"{_WINDOW}*", _HELD_OUT):
            for place in self.folder.glob(pattern):
                _remove(place)
        self.sweep()

    def sweep(self) -> None:
        """Delete what a kill has left half written."""
        for place in self.folder.glob(".*.tmp"):
            shutil.rmtree(place, ignore_errors=True)

    def _place(self, window: int) -> Path:
        return self.folder / f"{_WINDOW}{window:08d}"

    def _write(self, place: Path, split: Split, tokens: Encoded, template: Manifest) -> str:
        new = place.with_name(f".{place.name}.tmp")
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            writer = SplitWriter(new, split, template.dtype, max(1, len(tokens.ids)))
            writer.add(tokens)
            writer.close()
            write_json(new / MANIFEST, asdict(replace(template, shards=writer.shards)))
            _remove(place)
            new.rename(place)
            fsync_folder(place.parent)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)  # of no use, and a full disk has other uses for its room
            raise DataError(f"{place}: cannot be written: {error.strerror}") from error
        return writer.shards[0].bin_sha256 if writer.shards else ""


def _remove(place: Path) -> None:
    """Delete a build, so that at no moment half of it looks like all."""
    (place / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.iterdir())
