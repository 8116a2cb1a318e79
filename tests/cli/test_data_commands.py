"""`sconce data prepare`, `inspect`, `stats`, `verify`: what a user types and reads."""

import gzip
import json
import os
import signal
import time

import pytest
from commands import overrides, sconce, sconce_here, start, weights, write_corpus
from tiny import INSTALLED


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of the text below."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("".join(f"line {number} of a text\n" for number in range(500)))
    done = sconce_here(
        "tokenizer", "train", "--input", folder / "text.txt", "--vocab-size", 300, "--out", folder / "tok"
    )
    assert done.returncode == 0, done.stderr
    return folder / "tok"


@pytest.fixture
def mixed(tmp_path):
    """Text, compressed text and records."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"line {number} of a text\n" for number in range(500)))
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"a line of a compressed text\n" * 100))
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": f"record {n}"}) + "\n" for n in range(50)))
    return folder


def prepare(tokenizer, inputs, out, *more):
    return sconce_here("data", "prepare", "--input", inputs, "--tokenizer", tokenizer, "--out", out, *more)


def refused(done, *says):
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("sconce: ")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for text in says:
        assert text in done.stderr, done.stderr


def test_prepare_and_look(tokenizer, mixed, tmp_path):
    done = prepare(tokenizer, mixed, tmp_path / "shards", "--document", "line", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["documents"], told["skipped"]) == (650, 0)
    inspected = json.loads(sconce_here("data", "inspect", tmp_path / "shards", "--json").stdout)
    assert inspected["fingerprint"] == told["fingerprint"]
    assert [source["path"].rsplit("/")[-1] for source in inspected["sources"]] == ["a.txt", "b.txt.gz", "c.jsonl"]
    shown = sconce_here("data", "inspect", tmp_path / "shards").stdout
    assert "train-00000" in shown
    assert "b.txt.gz" in shown
    plot = tmp_path / "plot.png"
    stats = sconce_here("data", "stats", tmp_path / "shards", "--json", "--plot", plot, "--tokenizer", tokenizer)
    splits = json.loads(stats.stdout)
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 650
    assert splits["train"]["top_tokens"][0]["text"]
    assert plot.stat().st_size > 1000
    assert "most frequent" in sconce_here("data", "stats", tmp_path / "shards").stdout
    assert "intact: 2 shards" in sconce_here("data", "verify", tmp_path / "shards").stdout


def test_verify_and_reuse_meet_damage(tokenizer, mixed, tmp_path):
    shards = tmp_path / "shards"
    assert prepare(tokenizer, mixed, shards).returncode == 0
    raw = bytearray((shards / "train-00000.bin").read_bytes())
    raw[10] ^= 1
    (shards / "train-00000.bin").write_bytes(raw)
    refused(sconce_here("data", "verify", shards), "train-00000.bin", "sha256")
    again = prepare(tokenizer, mixed, shards)
    assert again.returncode == 0
    assert "making them anew" in again.stdout
    assert sconce_here("data", "verify", shards).returncode == 0
    refused(sconce_here("data", "verify", tmp_path), "neither token shards")
    refused(sconce_here("data", "stats", shards, "--tokenizer", mixed), "no such tokenizer file")


def test_another_tokenizer_is_told_apart(tokenizer, mixed, tmp_path):
    assert prepare(tokenizer, mixed, tmp_path / "shards").returncode == 0
    done = sconce_here("tokenizer", "train", "--input", mixed, "--vocab-size", 280, "--out", tmp_path / "tok")
    assert done.returncode == 0, done.stderr
    refused(sconce_here("data", "stats", tmp_path / "shards", "--tokenizer", tmp_path / "tok"), "another tokenizer")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("latin.txt", "größe\n".encode("latin1"), "latin.txt: not UTF-8 at byte 2"),
        ("nul.txt", b"text\0", "nul.txt: binary"),
        ("zero.txt", b"", "zero.txt: no text in it"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "broken.jsonl: line 2: not JSON"),
        ("not.parquet", b"PAR1 but no more", "not.parquet: damaged Parquet file"),
    ],
)
def test_bad_input_is_one_line_or_counted(tokenizer, mixed, tmp_path, name, content, says):
    (mixed / name).write_bytes(content)
    refused(prepare(tokenizer, mixed, tmp_path / "shards"), says)
    assert not (tmp_path / "shards").exists()
    done = prepare(tokenizer, mixed, tmp_path / "shards", "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert "skipped 1 in 1 files" in done.stdout + done.stderr


def test_options_that_do_not_go_together(tokenizer, mixed, tmp_path):
    refused(sconce_here("data", "prepare", "--input", mixed), "--tokenizer and --out")
    for option in (("--out", tmp_path), ("--on-error", "stop"), ("--document", "line"), ("--validation-fraction", 0.1)):
        refused(sconce_here("data", "prepare", mixed / "a.txt", *option), f"{option[0]}: not beside a config file")
    text = ("--input", mixed, "--tokenizer", tokenizer, "--out", tmp_path / "out")
    refused(sconce_here("data", "prepare", *text, "--override", "runtime.seed=1"), "only with a config file")
    refused(sconce_here("data", "prepare", *text, "--validation-fraction", 0), "expected more than 0")
    both = ("--validation", mixed / "a.txt", "--validation-fraction", 0.05)
    refused(sconce_here("data", "prepare", *text, *both), "--validation-fraction: nothing but the text of --validation")
    clean = ("data", "clean", "--input", mixed, "--out", tmp_path / "out")
    refused(sconce_here(*clean, "--similarity", 0.8, "--seed", 1), "--similarity, --seed: only with --duplicates near")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_preparation_goes_on_to_the_same_bytes(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"line {n} of a text, {n * n}\n" for n in range(1_500_000)))
    options = ("data", "prepare", "--input", tmp_path / "text.txt", "--tokenizer", tokenizer, "--document", "line")
    killed = [*options, "--out", tmp_path / "killed", "--workers", 2, "--shard-tokens", 300_000]
    process = start(*killed, start_new_session=True)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob(".killed.tmp-new/train-*.idx"))) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed").exists(), "it was finished before it could be killed"
    again = sconce(*killed)
    assert "going on where a build stopped" in again.stdout
    whole = sconce(*options, "--out", tmp_path / "whole", "--workers", 1, "--shard-tokens", 300_000)
    assert whole.returncode == 0, whole.stderr
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["shard", "clean"])
def test_text_to_text_killed_goes_on_to_the_same_bytes(tmp_path, command):
    """With a real kill. Lines of one length, so that some hundred megabytes are made fast."""
    (tmp_path / "text.txt").write_text("".join(f"line {n:09d} " + "of a text " * 40 + "\n" for n in range(400_000)))
    options = ("data", command, "--input", tmp_path / "text.txt", "--document", "line", "--bytes", 10_000_000)
    process = start(*options, "--out", tmp_path / "killed", start_new_session=True)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob(".killed.tmp-new/train/*"))) < 8 and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed").exists(), "it was finished before it could be killed"
    again = sconce(*options, "--out", tmp_path / "killed")
    assert "going on where a call stopped" in again.stdout
    assert sconce(*options, "--out", tmp_path / "whole").returncode == 0
    names = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*"))
    assert len(names) > 12
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_shard_and_clean(mixed, tmp_path):
    done = sconce_here(
        "data", "shard", "--input", mixed, "--out", tmp_path / "shards", "--lines", 300, "--gzip", "--json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["documents"], told["shards"], told["reused"]) == (650, 3, False)
    assert gzip.decompress((tmp_path / "shards/train/train-00001.txt.gz").read_bytes()).count(b"\n") == 300
    few = sconce_here("data", "shard", "--input", mixed, "--out", tmp_path / "few", "--take", 7, "--json")
    assert json.loads(few.stdout)["documents"] == 7
    refused(sconce_here("data", "shard", "--input", mixed, "--out", tmp_path / "shards"), "--force replaces it")
    refused(
        sconce_here("data", "shard", "--input", mixed, "--out", tmp_path / "a", "--reuse", "--force"), "one of the two"
    )
    cleaned = sconce_here(
        "data", "clean", "--input", tmp_path / "shards/train", "--document", "line", "--out", tmp_path / "clean"
    )
    assert cleaned.returncode == 0, cleaned.stderr
    assert "551 documents" in cleaned.stdout
    assert cleaned.stdout.split("duplicate")[1].split()[0] == "99"


@pytest.mark.slow
@pytest.mark.parametrize("hardware", INSTALLED)
def test_a_packed_mixture_resumes_to_the_same_weights(tmp_path, hardware):
    texts = [write_corpus(tmp_path / f"{name}.txt", lines) for name, lines in (("a", 600), ("b", 300))]
    options = overrides(
        "data.packing=bestfit", "data.document=line", "data.weights=[[3, 1], [1, 3]]", "data.weight_steps=[15]"
    )
    inputs = [part for text in texts for part in ("--input", text)]
    place = ("--backend", hardware)
    whole = sconce_here("orchestrate", *inputs, "--run-dir", tmp_path / "whole", "--vocab-size", 300, *place, *options)
    assert whole.returncode == 0, whole.stderr
    assert "mixture: a.txt" in whole.stdout
    assert "of their places empty" in whole.stdout
    train = ("train", "--config", tmp_path / "whole/training.toml", "--run-dir", tmp_path / "parts", *place)
    assert sconce_here(*train, "--stop-at", 13).returncode == 0
    assert sconce_here(*train, "--resume", "--stop-at", 22).returncode == 0
    assert sconce_here(*train, "--resume").returncode == 0
    assert weights(tmp_path / "parts", 30) == weights(tmp_path / "whole", 30)
    deep = sconce_here("checkpoint", "verify", tmp_path / "parts", "--deep", *place)
    assert deep.returncode == 0, deep.stderr
