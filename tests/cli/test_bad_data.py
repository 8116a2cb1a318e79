"""Text and token shards that cannot be used, through the command: one line, exit code 2, and nothing lost."""

import json
import shutil
import subprocess

import pytest
from commands import edit, overrides, sconce_here, write_corpus

from sconce.data import reader, text_shards

GOOD = "a line of good text, naïve\n" * 3000  # 84 kB: what is wrong lies far behind the first passage


def refused(done, *says):
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("sconce: ")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for text in says:
        assert text in done.stderr, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run with its text beside it."""
    folder = tmp_path_factory.mktemp("home")
    text = write_corpus(folder / "corpus.txt")
    steps = overrides("scheduler.total_steps=3", "runtime.evaluation.max_batches=1", "data.packing=bestfit")
    made = sconce_here(
        "orchestrate", "--input", text, "--run-dir", folder / "run", "--backend", "cpu", "--vocab-size", 300, *steps
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture
def run(home, tmp_path):
    """A copy of the run, without the text."""
    shutil.copytree(home / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_share_that_nothing_is_held_out_by_is_said(home, tmp_path):
    text, held_out = home / "corpus.txt", tmp_path / "held-out.txt"
    held_out.write_text("never trained on\n" * 30)
    words = ("orchestrate", "--input", text, "--validation", held_out, "--backend", "cpu", "--vocab-size", 300)
    steps = overrides("scheduler.total_steps=1", "runtime.evaluation.max_batches=1")
    for fraction, says in ((0.05, False), (0.25, True)):
        more = overrides(f"data.validation_fraction={fraction}")
        done = sconce_here(*words, "--run-dir", tmp_path / str(fraction), *steps, *more)
        assert done.returncode == 0, done.stderr
        assert ("data.validation_fraction = 0.25 does nothing beside data.validation_shards" in done.stdout) == says


def prepare(home, text, out, *more):
    tokenizer = home / "run" / "tokenizer"
    return sconce_here("data", "prepare", "--input", text, "--tokenizer", tokenizer, "--out", out, *more)


@pytest.mark.parametrize(
    ("name", "content", "says", "skips"),
    [
        ("a.txt", GOOD.encode() + "größe\n".encode("latin1") + GOOD.encode(), "not UTF-8 at byte 84002", True),
        ("a.txt", GOOD.encode("utf-16"), "binary (or UTF-16), not UTF-8 text: NUL at byte 3", False),
        ("a.txt", GOOD.encode() + b"nul\0nul\n" + GOOD.encode(), "NUL at byte 84003", True),
        (
            "a.jsonl",
            b'{"text": "good"}\n' * 900 + b'{"text": "half\n' + b'{"text": "good"}\n',
            "line 901: not JSON",
            True,
        ),
        ("a.jsonl", b'{"body": "good"}\n', "line 1: no field 'text'; it has body", False),
        ("a.txt", b"", "no text in it", False),
    ],
)
def test_what_is_not_text_is_placed_or_counted(home, tmp_path, name, content, says, skips):
    (tmp_path / name).write_bytes(content)
    refused(prepare(home, tmp_path / name, tmp_path / "out"), f"{name}: ", says)
    assert not (tmp_path / "out").exists()
    if skips:
        done = prepare(home, tmp_path / name, tmp_path / "out", "--on-error", "skip")
        assert done.returncode == 0, done.stderr
        assert "skipped 1 in 1 files" in done.stdout + done.stderr


def test_parquet_without_the_column(home, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"body": ["some text"] * 9}), tmp_path / "a.parquet")
    refused(prepare(home, tmp_path / "a.parquet", tmp_path / "out"), "no column 'text'; its columns are body")
    done = prepare(home, tmp_path / "a.parquet", tmp_path / "out", "--text-field", "body")
    assert done.returncode == 0, done.stderr


def commands(run):
    yield "data", "inspect", run / "data"
    yield "data", "stats", run / "data"
    yield "data", "verify", run / "data"
    yield "data", "show", run, "--step", 1
    yield "checkpoint", "verify", run, "--deep", "--backend", "cpu"


def empty_shard(data):
    (data / "train-00000.bin").write_bytes(b"")


def empty_index(data):
    (data / "validation-00000.idx").write_bytes(b"")


def known_to_be_empty(data):
    """The manifest agrees with its empty files, sizes and all."""
    for suffix in (".bin", ".idx"):
        (data / f"train-00000{suffix}").write_bytes(b"")
    edit(data / "manifest.json", lambda manifest: manifest["shards"][0].update(tokens=0, documents=0))


def other_count(data):
    edit(data / "manifest.json", lambda manifest: manifest["shards"][0].update(tokens=17))


def no_manifest(data):
    (data / "manifest.json").write_text(json.dumps({"format": "sconce-tokens-2"}))


@pytest.mark.parametrize("harm", [empty_shard, empty_index, known_to_be_empty, other_count, no_manifest])
def test_damaged_shards_without_their_text(run, harm):
    harm(run / "data")
    for command in commands(run):
        done = sconce_here(*command)
        assert done.returncode == 2, (command, done.stdout, done.stderr)
        assert done.stderr.startswith("sconce: ")
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_shards_of_another_tokenizer_are_not_trained_on(home, run, tmp_path):
    other = sconce_here(
        "tokenizer", "train", "--input", home / "corpus.txt", "--vocab-size", 290, "--out", tmp_path / "t"
    )
    assert other.returncode == 0, other.stderr
    shutil.rmtree(run / "data")
    made = sconce_here(
        "data", "prepare", "--input", home / "corpus.txt", "--tokenizer", tmp_path / "t", "--out", run / "data"
    )
    assert made.returncode == 0, made.stderr
    refused(sconce_here("data", "show", run, "--step", 1), "not the token shards this run trains on")
    config = run / "training.toml"
    missing = config.read_text().replace(str(home / "corpus.txt"), str(tmp_path / "gone.txt"))
    config.write_text(missing)
    options = overrides("scheduler.total_steps=6", "data.packing=bestfit")
    refused(sconce_here("train", "--config", config, "--run-dir", run, "--backend", "cpu", "--resume", *options))
    assert (run / "data" / "manifest.json").is_file()


def test_a_full_disk_under_prepare(home, tmp_path):
    """On a real file system of 2 MiB: the build is gone on with where there is room, and what was there stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        small, large = write_corpus(tmp_path / "small.txt", 300), write_corpus(tmp_path / "large.txt", 40_000)
        assert prepare(home, small, disk / "shards").returncode == 0
        before = (disk / "shards" / "manifest.json").read_bytes()
        refused_line = prepare(home, large, disk / "shards")
        assert refused_line.returncode == 2
        assert refused_line.stderr.strip().endswith("cannot be written: No space left on device")
        assert (disk / "shards" / "manifest.json").read_bytes() == before
        assert sconce_here("data", "verify", disk / "shards").returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("command", ["shard", "clean"])
def test_a_full_disk_under_text_shards(tmp_path, monkeypatch, command):
    """On a real file system of 2 MiB: one line, what was there stays, and where there is room it goes on."""
    monkeypatch.setattr(reader, "BATCH_BYTES", 2**15)
    monkeypatch.setattr(text_shards, "COMMIT_BYTES", 2**17)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        small, large = write_corpus(tmp_path / "small.txt", 300), write_corpus(tmp_path / "large.txt", 40_000)

        def cut(text, out, *more):
            return sconce_here(
                "data", command, "--input", text, "--out", out, "--bytes", 200_000, "--document", "line", *more
            )

        assert cut(small, disk / "text").returncode == 0
        before = (disk / "text" / "manifest.json").read_bytes()
        for _ in range(2):
            full = cut(large, disk / "text", "--force")
            refused(full, "text: cannot be written: No space left on device")
            assert (disk / "text" / "manifest.json").read_bytes() == before
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        done = cut(large, disk / "text", "--force")
        assert done.returncode == 0, done.stderr
        assert "going on where a call stopped" in done.stdout
        cut(large, tmp_path / "whole")
        files = [path.relative_to(disk) for path in (disk / "text").rglob("*") if path.is_file()]
        assert len(files) > 10
        for file in files:
            assert (disk / file).read_bytes() == (tmp_path / "whole" / file.relative_to("text")).read_bytes()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_plan_that_is_made_again_is_said(run):
    shown = ("data", "show", run, "--step", 1)
    assert sconce_here(*shown).stderr == ""
    for command in (shown, ("checkpoint", "verify", run, "--deep", "--backend", "cpu")):
        shutil.rmtree(run / "data" / "packing")
        done = sconce_here(*command)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("note: making the packing plan ")
        assert len(done.stderr.splitlines()) == 1
