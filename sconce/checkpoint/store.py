"""A run's checkpoints: written whole or not at all, found again newest first, kept as long as asked.

    <run>/checkpoints/step-00012000/   committed if and only if its manifest.json is there and true
                      LATEST BEST      for people and tools; loading trusts the folders
                      .tmp-* .old-*    what a killed writer leaves; removed or restored by the next one
                      .bad-*           damaged checkpoints, set aside for a person to look at
                      diverged-step-*  the state in which training diverged, whole, which nothing loads unasked

One process writes at a time: the run's lock sees to that.
"""

import errno
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import getpid
from pathlib import Path

from sconce.checkpoint.load import LoadedCheckpoint, load_folder, pointed_at, step_folders
from sconce.checkpoint.record import MANIFEST, Checkpoint, DamagedCheckpointError, manifest_bytes
from sconce.checkpoint.stream import (
    MODEL_INDEX,
    Shape,
    State,
    TensorFile,
    model_index,
    plan_files,
    write_hashed,
    write_tensors,
)
from sconce.errors import CheckpointError
from sconce.files import fsync_folder, readable_size, write_atomic

MAX_SHARD_BYTES = 5 * 10**9  # Hugging Face's custom
DIVERGED = "diverged-"
SPARE_BYTES = 2**20  # for the manifest, the pointers and the file system's own books


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The `checkpoints` folder of one run, of which the newest `keep` and the best are kept."""

    folder: Path
    keep: int
    max_shard_bytes: int = MAX_SHARD_BYTES

    def __post_init__(self) -> None:
        assert self.keep >= 1, "a run keeps at least its newest checkpoint"

    def save(
        self,
        state: State,
        names: Sequence[tuple[str, Shape]],
        facts: Checkpoint,
        *,
        files: Mapping[str, bytes],
        is_best: bool,
        diverged: bool = False,
    ) -> Path:
        """Write one checkpoint, then delete those beyond `keep`; return its folder.

        One in which training has `diverged` is kept apart, so that those before stay what a run goes on from.
        `state` yields every tensor in the order of `names`, and at most one is held at a time. `facts`
        is the manifest without its files; `files` go beside the tensors as they are.
        Raises CheckpointError, with every older checkpoint untouched, when it cannot be written.
        """
        folder = self._step_folder(facts.step)
        if diverged:
            folder = folder.with_name(DIVERGED + folder.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            plan = plan_files(names, self.max_shard_bytes)
            index = model_index(plan)
            contents = dict(files) if index is None else {**files, MODEL_INDEX: index}
            self._check_space(plan, contents)
            with self._temporary(folder) as temporary:
                _write(temporary, facts, plan, state, contents)
                self._move_in(temporary, folder)
            if diverged:
                self._delete_diverged(but=folder)
            else:
                self._point(folder, facts, is_best)
                self._delete_surplus(folder)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        return folder

    def latest(self, say: Callable[[str], None], verify: bool = True) -> LoadedCheckpoint | None:
        """The newest intact checkpoint, or None when the run has never had one.

        A damaged one is renamed `.bad-…`, said, and the next older is tried. Raises CheckpointError when none is
        left: a run that had checkpoints never starts from scratch unasked.
        """
        self._restore_replaced()
        for folder in step_folders(self.folder):
            try:
                return load_folder(folder, verify)
            except DamagedCheckpointError as error:
                aside = self._set_aside(folder)
                say(f"WARNING: damaged checkpoint set aside as {aside.name}: {error}")
        bad = sorted(path.name for path in self.folder.glob(".bad-step-*"))
        if bad:
            raise CheckpointError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(bad)}): restore one from a copy, or train "
                "anew in another --run-dir"
            )
        return None

    def _step_folder(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    @contextmanager
    def _temporary(self, folder: Path) -> Generator[Path]:
        """A new folder beside `folder`, gone again unless it was moved in."""
        temporary = self.folder / f".tmp-{folder.name}-{getpid()}"
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _move_in(self, temporary: Path, folder: Path) -> None:
        """Commit. A checkpoint of the same step steps aside first: at each moment one of the two is findable."""
        aside = folder.with_name(f".old-{folder.name}")
        replaces = folder.exists()
        if replaces:
            folder.rename(aside)
        try:
            temporary.rename(folder)
        except BaseException:
            if replaces:
                aside.rename(folder)
            raise
        fsync_folder(self.folder)
        if replaces:
            shutil.rmtree(aside)

    def _point(self, folder: Path, facts: Checkpoint, is_best: bool) -> None:
        write_atomic(self.folder / "LATEST", folder.name + "\n")
        # Also when the best is an older one: its writer may have been killed before it could point there.
        best = folder if is_best else self._step_folder(facts.best[0]) if facts.best is not None else None
        if best is not None and best.is_dir() and pointed_at(self.folder / "BEST") != best:
            write_atomic(self.folder / "BEST", best.name + "\n")

    def _delete_surplus(self, newest: Path) -> None:
        folders = [folder for folder in step_folders(self.folder) if (folder / MANIFEST).is_file()]
        kept = {newest, pointed_at(self.folder / "BEST"), *folders[: self.keep]}
        surplus = [folder for folder in folders if folder not in kept]
        if not surplus:
            return
        load_folder(newest, verify=True)  # nothing older goes before the newest has been read back
        for folder in reversed(surplus):
            # The rename uncommits it in one move; a kill during the removal leaves a .tmp- folder to sweep up.
            shutil.rmtree(folder.rename(folder.with_name(f".tmp-{folder.name}-surplus")))

    def _delete_diverged(self, but: Path) -> None:
        for folder in set(self.folder.glob(f"{DIVERGED}step-*")) - {but}:
            shutil.rmtree(folder)

    def _check_space(self, plan: Sequence[TensorFile], contents: Mapping[str, bytes]) -> None:
        needed = sum(file.bytes for file in plan) + sum(map(len, contents.values())) + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: disk full: a checkpoint takes {readable_size(needed)} and {readable_size(free)} are "
                "free; free some space and resume (older checkpoints are untouched)"
            )

    def _restore_replaced(self) -> None:
        """Undo a replacement that was killed between its two renames."""
        for aside in self.folder.glob(".old-*step-*"):
            folder = aside.with_name(aside.name.removeprefix(".old-"))
            if not folder.exists():
                aside.rename(folder)

    def _remove_leftovers(self) -> None:
        """Sweep up after writers that were killed."""
        self._restore_replaced()
        for pattern in (".tmp-*step-*", ".old-*step-*"):
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover)
        for pattern in (".LATEST.tmp-*", ".BEST.tmp-*"):
            for leftover in self.folder.glob(pattern):
                leftover.unlink()

    def _set_aside(self, folder: Path) -> Path:
        aside, count = folder.with_name(f".bad-{folder.name}"), 1
        while aside.exists():
            count += 1
            aside = folder.with_name(f".bad-{folder.name}-{count}")
        folder.rename(aside)
        fsync_folder(self.folder)
        return aside


def _write(
    folder: Path, facts: Checkpoint, plan: Sequence[TensorFile], state: State, contents: Mapping[str, bytes]
) -> None:
    """Write every file of a checkpoint into an empty folder, the manifest last."""
    records = {file.name: write_tensors(folder, file, state) for file in plan}
    extra = next(state, None)
    assert extra is None, f"the state goes on after its end: {extra[0] if extra else ''}"
    for name, content in contents.items():
        records[name] = write_hashed(folder / name, [content])
    write_hashed(folder / MANIFEST, [manifest_bytes(replace(facts, files=records))])
    fsync_folder(folder)


def _cannot_write(folder: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"{folder}: disk full while writing the checkpoint; free some space and resume (older checkpoints are "
            "untouched)"
        )
    return CheckpointError(f"{folder}: could not write the checkpoint: {error}")
