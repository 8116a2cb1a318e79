"""Whatever kills a save, at whatever moment: the old state or the new one loads, and it is whole."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import make_spec

from sconce.backend import state_names
from sconce.checkpoint.record import Checkpoint
from sconce.checkpoint.store import CheckpointStore
from sconce.errors import CheckpointError
from sconce.optim import OptimSpec

SPEC = make_spec(num_layers=1)
SYSTEM_CALLS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")


def value(name, shape, tag):
    return np.full(shape, 1000 * tag + zlib.crc32(name.encode()) % 1000, np.float32)


def save(store, step, tag):
    """Write `step` with values that follow from `tag`, which the checkpoint carries as its tokens."""
    facts = Checkpoint(
        step=step,
        tokens=tag,
        cursor={},
        best=(step, 1.0),
        backend="torch",
        precision="fp32",
        versions={},
        hardware={},
    )
    state = ((name, value(name, shape, tag)) for name, shape in state_names(SPEC, OptimSpec()))
    store.save(state, state_names(SPEC, OptimSpec()), facts, files={"config.json": b"{}"}, is_best=step % 3 == 0)


def assert_whole(store, tags):
    """The latest checkpoint is there, undamaged, carries one of `tags`, and holds exactly its tensors."""
    said = []
    loaded = store.latest(said.append)
    assert said == []
    assert loaded is not None
    assert loaded.record.tokens in tags
    for name, shape in state_names(SPEC, OptimSpec()):
        assert np.array_equal(loaded.tensors[name], value(name, shape, loaded.record.tokens))
    return loaded


def write_forever(folder):
    """Save without end, every other step twice, as after a resume."""
    store = CheckpointStore(folder, keep=2)
    loaded = store.latest(print)
    tag = loaded.record.tokens if loaded else 0
    for step in count(loaded.record.step + 1 if loaded else 1):
        for _ in range(1 + step % 2):
            tag += 1
            save(store, step, tag)
            print(tag, flush=True)


def test_a_writer_killed_at_random_moments_always_leaves_a_whole_checkpoint(tmp_path):
    rng = random.Random(0)
    tests = Path(__file__).parents[1]
    seen = 0
    for _ in range(15):
        command = [sys.executable, __file__, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tests)}) as writer:
            assert writer.stdout.readline(), "the writer could not start"
            time.sleep(rng.uniform(0, 0.15))
            writer.send_signal(signal.SIGKILL)
        loaded = assert_whole(CheckpointStore(tmp_path, keep=2), range(seen + 1, 10**9))
        seen = loaded.record.tokens
    CheckpointStore(tmp_path, keep=2).latest(print)
    save(CheckpointStore(tmp_path, keep=2), 10**6, seen + 1)
    assert [path.name for path in tmp_path.glob(".*")] == [], "a later save sweeps up"


class Interruption:
    """Counts calls that change the disk, and does `act` instead of the nth."""

    def __init__(self, monkeypatch, nth, act):
        self.calls, self.nth, self.act = 0, nth, act
        for name in SYSTEM_CALLS:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, call):
        def counted(*args, **kwargs):
            self.calls += 1
            return self.act() if self.calls == self.nth else call(*args, **kwargs)

        return counted


def io_error():
    raise OSError(errno.EIO, "injected")


# What the interrupted save does: adds a step and deletes the oldest; or replaces the newest.
SCENARIOS = {"new step": 3, "same step": 2}


def prepare(folder):
    store = CheckpointStore(folder, keep=2)
    save(store, 1, 1)
    save(store, 2, 2)
    return store


def calls_of_a_save(folder, step):
    store = prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        counter = Interruption(patch, 0, io_error)
        save(store, step, 3)
    return counter.calls


@pytest.mark.parametrize("step", SCENARIOS.values(), ids=SCENARIOS)
def test_an_error_at_any_system_call_leaves_the_old_or_the_new(tmp_path, step):
    total = calls_of_a_save(tmp_path / "count", step)
    assert total > 10
    for nth in range(1, total + 1):
        store = prepare(tmp_path / str(nth))
        with pytest.MonkeyPatch.context() as patch:
            Interruption(patch, nth, io_error)
            with contextlib.suppress(CheckpointError):
                save(store, step, 3)
        loaded = assert_whole(store, {2, 3})
        save(store, 4, 4)  # and the run can go on
        assert_whole(store, {4})
        assert loaded.path.parent == store.folder


@pytest.mark.parametrize("step", SCENARIOS.values(), ids=SCENARIOS)
def test_death_at_any_system_call_leaves_the_old_or_the_new(tmp_path, step):
    total = calls_of_a_save(tmp_path / "count", step)
    for nth in range(1, total + 1):
        store = prepare(tmp_path / str(nth))
        child = os.fork()
        if child == 0:
            Interruption(pytest.MonkeyPatch(), nth, lambda: os._exit(9))
            save(store, step, 3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert_whole(store, {2, 3})
        save(store, 4, 4)
        assert_whole(store, {4})
        leftovers = [path.name for path in store.folder.glob(".*")]
        assert leftovers == []


def test_a_state_that_fails_half_way_leaves_nothing(tmp_path):
    store = prepare(tmp_path)

    def failing():
        yield from [(name, value(name, shape, 3)) for name, shape in state_names(SPEC, OptimSpec())][:5]
        raise KeyboardInterrupt

    facts = Checkpoint(step=3, tokens=3, cursor={}, best=None, backend="", precision="fp32", versions={}, hardware={})
    with pytest.raises(KeyboardInterrupt):
        store.save(failing(), state_names(SPEC, OptimSpec()), facts, files={}, is_best=False)
    assert_whole(store, {2})
    assert [path.name for path in tmp_path.glob(".*")] == []


def save_many(store, steps):
    for step in range(1, steps):
        save(store, step, step)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_really_fills_up_costs_nothing_older(small_disk, monkeypatch):
    # The check beforehand would refuse; something else may fill the disk after it.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
    store = CheckpointStore(small_disk, keep=100)
    with pytest.raises(CheckpointError, match="disk full while writing"):
        save_many(store, 100)
    written = len(list(small_disk.glob("step-*")))
    assert written >= 2
    assert assert_whole(store, {written}).record.step == written
    assert [path.name for path in small_disk.glob(".*")] == []


if __name__ == "__main__":
    write_forever(Path(sys.argv[1]))
