"""Data sets of the hub as token shards, alone and beside local text: at their commit, and without the hub once here."""

import json
import shutil
import subprocess

import pytest
from commands import checkpoints, overrides, sconce_here, weights, write_corpus
from hub import Faults, serving, write_toy

from sconce.data.hub import list_files, resolve
from sconce.tokenizer.bpe import train_tokenizer

ALONE = ["data.train_shards=hf://org/toy"]
QUICK = ["runtime.logging.tensorboard=false", "runtime.sample.every_n_steps=1000"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A hub, local text, a tokenizer and a config."""
    home = tmp_path_factory.mktemp("hub-data")
    texts = write_toy(home / "repos")
    write_corpus(home / "local.txt", 600)
    train_tokenizer([f"{text} {n * n}" for n, text in enumerate(texts)], 300, home / "tokenizer", [])
    (home / "config.toml").write_text('[tokenizer]\ntokenizer_json = "tokenizer/tokenizer.json"\n')
    with pytest.MonkeyPatch.context() as patch, serving(home / "repos", patch) as hub:
        hub.home = home
        yield hub


@pytest.fixture
def hub(home, monkeypatch):
    """The hub in good health, asked anew; when it is away, nobody waits for it."""
    monkeypatch.setenv("SCONCE_HUB_PATIENCE", "0.05")
    home.faults = Faults()
    forget()
    return home


def forget():
    """As in a new process: nothing is known of what the hub said before."""
    list_files.cache_clear()
    resolve.cache_clear()


def train(hub, run, *more, data=ALONE):
    options = ("--config", hub.home / "config.toml", "--run-dir", run, "--backend", "cpu")
    return sconce_here("train", *options, *overrides(*data, *QUICK), *more)


def mixed(hub):
    return [f"data.train_shards={hub.home}/local.txt,hf://org/toy", "data.weights=[[1, 1]]"]


def cursor_of(run):
    return json.loads((checkpoints_folder(run) / "manifest.json").read_text())["cursor"]


def checkpoints_folder(run):
    return run / "checkpoints" / checkpoints(run)[-1]


def test_a_prepared_data_set_is_prepared_elsewhere_at_its_commit(hub, tmp_path):
    """The branch has moved meanwhile, and nothing but the checkpoint has come along: the same rows, and weights."""
    commit = hub.commit(hub.root / "org/toy")
    done = train(hub, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert f"data: hf://org/toy at commit {commit}\n" in done.stdout
    assert train(hub, tmp_path / "here", "--stop-at", 15).returncode == 0
    assert cursor_of(tmp_path / "here")["commits"] == {"hf://org/toy": commit}
    shutil.copytree(tmp_path / "here/checkpoints", tmp_path / "there/checkpoints")
    old, moved = hub.root / "org/toy@old", hub.root / "org/toy/data/train-00001-of-00003.parquet"
    shutil.copytree(hub.root / "org/toy", old)
    kept = moved.read_bytes()
    moved.unlink()
    forget()
    try:
        done = train(hub, tmp_path / "there", "--resume")
        again = train(hub, tmp_path / "there", "--resume")
        fresh = train(hub, tmp_path / "fresh", "--stop-at", 1)
    finally:
        moved.write_bytes(kept)
        shutil.rmtree(old)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "there", 30) == weights(tmp_path / "whole", 30)
    assert cursor_of(tmp_path / "there")["commits"] == {"hf://org/toy": commit}
    assert "the text has changed" not in again.stdout
    assert fresh.returncode == 0, fresh.stderr  # another run takes the branch as it is now
    assert cursor_of(tmp_path / "fresh")["commits"]["hf://org/toy"] != commit
    assert sconce_here("export", tmp_path / "there", "--out", tmp_path / "model").returncode == 0
    assert f"| data set | hf://org/toy at commit {commit} |\n" in (tmp_path / "model/README.md").read_text()


def test_shards_of_another_commit_in_a_cache_are_not_the_runs(hub, tmp_path):
    """Two runs of one data set, whose branch moved between them, share data.cache_dir."""
    shared = ["--override", f"data.cache_dir={tmp_path}/cache"]
    assert train(hub, tmp_path / "first", *shared, "--stop-at", 15).returncode == 0
    moved = hub.root / "org/toy/data/train-00001-of-00003.parquet"
    old = hub.root / "org/toy@old"
    shutil.copytree(hub.root / "org/toy", old)
    kept = moved.read_bytes()
    moved.unlink()
    forget()
    shutil.rmtree(tmp_path / "cache")
    try:
        assert train(hub, tmp_path / "second", *shared, "--stop-at", 1).returncode == 0
        done = train(hub, tmp_path / "first", *shared, "--resume")
    finally:
        moved.write_bytes(kept)
        shutil.rmtree(old)
    assert done.returncode == 0, done.stderr


def test_a_mixture_goes_on_without_the_hub_with_what_is_here(hub, tmp_path):
    data = mixed(hub)
    whole = train(hub, tmp_path / "whole", data=data)
    assert whole.returncode == 0, whole.stderr
    assert train(hub, tmp_path / "run", "--stop-at", 15, data=data).returncode == 0
    shutil.copytree(tmp_path / "run/data", tmp_path / "new/data")
    hub.faults.down = True
    forget()
    before = len(hub.requests)
    done = train(hub, tmp_path / "run", "--resume", data=data)
    assert done.returncode == 0, done.stderr
    assert "the text has changed" not in done.stdout
    assert weights(tmp_path / "run", 30) == weights(tmp_path / "whole", 30)
    assert train(hub, tmp_path / "new", data=data).returncode == 0  # from the start, on shards that are there
    assert weights(tmp_path / "new", 30) == weights(tmp_path / "whole", 30)
    assert len(hub.requests) == before
    shutil.rmtree(tmp_path / "new")
    done = train(hub, tmp_path / "new", data=data)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "hf://org/toy" in done.stderr
    assert "check the network, then type the same command again" in done.stderr


def test_local_text_of_a_mixture_that_changed_is_noticed_without_the_hub(hub, tmp_path):
    local = tmp_path / "local.txt"
    shutil.copy(hub.home / "local.txt", local)
    data = [f"data.train_shards={local},hf://org/toy", "data.weights=[[1, 1]]"]
    assert train(hub, tmp_path / "run", "--stop-at", 15, data=data).returncode == 0
    local.write_text("Something else entirely.\n" * 600)
    hub.faults.down = True
    forget()
    done = train(hub, tmp_path / "run", "--resume", data=data)
    assert done.returncode == 0, done.stderr
    assert "note: the text has changed since this run began" in done.stdout


@pytest.fixture
def disk(tmp_path):
    """A file system of a size that `resize` sets."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def resize(disk, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


STREAM = ["data.streaming=true", "data.window_tokens=1024", "data.train_shards=hf://org/toy"]


@pytest.fixture(scope="module")
def whole_stream(home, tmp_path_factory):
    """The run on a stream that always had room."""
    home.faults = Faults()
    run = tmp_path_factory.mktemp("stream") / "whole"
    assert train(home, run, data=STREAM).returncode == 0
    return run


def test_a_disk_that_windows_fill_is_one_line_and_the_run_goes_on_when_there_is_room(hub, whole_stream, tmp_path, disk):
    """First there is no room for a single window, then for some of them, then for all."""
    data = [*STREAM, f"data.cache_dir={disk}"]
    steps = []
    for size in ("12k", "48k"):
        resize(disk, size)
        done = train(hub, tmp_path / "run", "--resume", data=data)
        assert done.returncode == 2, done.stdout
        assert done.stderr.count("\n") == 1
        assert "cannot be written: No space left on device" in done.stderr
        assert not list(disk.glob("*/.*.tmp*"))  # what takes room and is of no use
        steps += [int(name.removeprefix("step-")) for name in checkpoints(tmp_path / "run")[-1:]]
    assert 0 < steps[-1] < 30
    resize(disk, "10m")
    done = train(hub, tmp_path / "run", "--resume", data=data)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step-{steps[-1]:08d}" in done.stdout
    assert weights(tmp_path / "run", 30) == weights(whole_stream, 30)


def test_a_disk_that_windows_and_checkpoints_fill_keeps_the_last_checkpoint(hub, whole_stream, tmp_path, disk):
    resize(disk, "10m")
    assert train(hub, disk / "run", "--stop-at", 10, data=STREAM).returncode == 0
    shutil.rmtree(disk / "run/data")
    resize(disk, f"{used_kib(disk) + 40}k")
    done = train(hub, disk / "run", "--resume", data=STREAM)
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    resize(disk, "10m")
    done = train(hub, disk / "run", "--resume", data=STREAM)
    assert done.returncode == 0, done.stderr
    assert weights(disk / "run", 30) == weights(whole_stream, 30)


def used_kib(disk):
    return shutil.disk_usage(disk).used // 1024
