"""Runs on a stream as a user sees them, against a stand-in for the hub."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from commands import SMALL, checkpoints, overrides, records, sconce_here, start, weights
from hub import Faults, environment, point_here, serving, write_toy
from workspace import roots

from sconce.config.load import load_config
from sconce.data.hub import list_files, resolve
from sconce.tokenizer.bpe import train_tokenizer

ROOT = Path(__file__).parents[2]
STREAM = ["data.streaming=true", "data.window_tokens=1024", "data.train_shards=hf://org/toy"]
QUICK = overrides(*STREAM, "runtime.logging.tensorboard=false", "scheduler.total_steps=60")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A hub, a tokenizer, a config, and the run that nothing interrupted."""
    home = tmp_path_factory.mktemp("streaming")
    texts = write_toy(home / "repos")
    train_tokenizer([f"{text} {n * n}" for n, text in enumerate(texts)], 300, home / "tokenizer", [])
    (home / "config.toml").write_text('[tokenizer]\ntokenizer_json = "tokenizer/tokenizer.json"\n')
    with pytest.MonkeyPatch.context() as patch, serving(home / "repos", patch) as hub:
        done = train(home, home / "whole")
        assert done.returncode == 0, done.stderr
        hub.whole_out = done.stdout
        hub.home = home
        yield hub


@pytest.fixture
def hub(home):
    """The hub in good health, asked anew."""
    home.faults = Faults()
    list_files.cache_clear()
    resolve.cache_clear()
    return home


def train(home, run, *more):
    return sconce_here("train", "--config", home / "config.toml", "--run-dir", run, "--backend", "cpu", *QUICK, *more)


def last_rows(run):
    return [line["rows_sha256"] for line in records(run) if "loss" in line][-1]


def test_it_trains_on_what_is_here_of_it(hub, tmp_path):
    run = hub.home / "whole"
    commit = hub.commit(hub.root / "org/toy")
    assert f"stream: hf://org/toy at commit {commit}\n" in hub.whole_out
    assert "32 rows a window" in hub.whole_out
    losses = [line["loss"] for line in records(run) if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    cursor = json.loads((run / "checkpoints/step-00000060/manifest.json").read_text())["cursor"]
    assert cursor["stream"]["commits"] == {"hf://org/toy": commit}
    assert sconce_here("export", run, "--out", tmp_path / "model").returncode == 0
    card = (tmp_path / "model/README.md").read_text()
    assert "\ndatasets:\n- org/toy\n" in card
    assert f"| data set | hf://org/toy at commit {commit} |\n" in card
    assert sconce_here("report", run, "--out", tmp_path / "report.html").returncode == 0
    assert "hf://org/toy" in (tmp_path / "report.html").read_text()
    assert len(json.dumps(cursor)) < 1000


def test_it_goes_on_elsewhere_at_its_commit_with_nothing_but_the_checkpoint(hub, tmp_path):
    """The branch has moved meanwhile, the network fails, and the micro-batch is another: the same rows, and weights."""
    assert train(hub.home, tmp_path / "here", "--stop-at", 35).returncode == 0
    shutil.copytree(tmp_path / "here/checkpoints", tmp_path / "there/checkpoints")
    old = hub.root / "org/toy@old"
    shutil.copytree(hub.root / "org/toy", old)
    moved = hub.root / "org/toy/data/train-00001-of-00003.parquet"
    kept = moved.read_bytes()
    moved.unlink()
    resolve.cache_clear()
    list_files.cache_clear()
    hub.faults = Faults(rate=0.3, seed=4)
    try:
        done = train(hub.home, tmp_path / "there", "--resume", "--override", "data.prefetch=5")
    finally:
        moved.write_bytes(kept)
        shutil.rmtree(old)
    assert done.returncode == 0, done.stderr
    assert "certificate: the last micro-batch has the loss it had" in done.stdout
    assert last_rows(tmp_path / "there") == last_rows(hub.home / "whole")
    assert weights(tmp_path / "there", 60) == weights(hub.home / "whole", 60)


def test_a_hub_that_goes_away_stops_it_and_loses_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("SCONCE_HUB_PATIENCE", "0.05")
    monkeypatch.setattr("sconce.data.stream.AHEAD", 1)
    from sconce.training import loop

    launch = loop._Trainer.launch

    def launch_and_cut(self, data):
        hub.faults.down = self.run.step >= 12
        return launch(self, data)

    monkeypatch.setattr(loop._Trainer, "launch", launch_and_cut)
    monkeypatch.setattr("sconce.data.hub.BLOCK_BYTES", 512)  # so that a file is not here as soon as it is opened
    few = ["--override", "data.stream_batch_size=8"]
    done = train(hub.home, tmp_path / "run", *few)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    step = int(re.search(r"the Hugging Face hub cannot be read.*; step (\d+) is saved, and --resume", done.stderr)[1])
    assert checkpoints(tmp_path / "run")[-1] == f"step-{step:08d}"
    assert step >= 12
    monkeypatch.setattr(loop._Trainer, "launch", launch)
    hub.faults.down = False
    done = train(hub.home, tmp_path / "run", "--resume", *few)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "run", 60) == weights(hub.home / "whole", 60)


def test_stages_of_batch_and_length(hub, tmp_path):
    stages = (
        'data.stages=[{"from_step": 20, "sequence_length": 16, "batch_size": 8}, {"from_step": 40, "batch_size": 2}]'
    )
    done = train(hub.home, tmp_path / "run", "--override", stages)
    assert done.returncode == 0, done.stderr
    assert "stages: 4 rows of 32; 8 rows of 16 from step 21; 2 rows of 16 from step 41" in done.stdout
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000060")
    shutil.rmtree(tmp_path / "run/data")
    rows, state = last_rows(tmp_path / "run"), weights(tmp_path / "run", 50)
    done = train(hub.home, tmp_path / "run", "--resume", "--override", stages)
    assert done.returncode == 0, done.stderr
    assert "certificate: the last micro-batch has the loss it had" in done.stdout
    assert (last_rows(tmp_path / "run"), weights(tmp_path / "run", 50)) == (rows, state)
    assert "2 rows of 16 predictions" in sconce_here("data", "show", tmp_path / "run", "--step", 58).stdout


def test_in_the_cloud_the_windows_are_on_the_volume_and_may_be_lost(hub, tmp_path):
    flags = ("--stream", "--dataset", "org/toy", "--vocab-size", 300, "--backend", "cpu")
    small = overrides("data.window_tokens=1024", "data.cache_limit_gb=0.001")
    workspace = tmp_path / "workspace"
    run = workspace / "runs/a"

    def cloud(*more):
        with mock.patch.dict(os.environ, roots(workspace)):
            return sconce_here("orchestrate", "--mode", "cloud", "--experiment", "a", *flags, *small, *more)

    refused = cloud("--train-shard-lines", 3)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--train-shard-lines: a stream is not cut into files" in refused.stderr
    assert not workspace.exists()
    done = cloud()
    assert done.returncode == 0, done.stderr
    assert len(list(workspace.glob("cache/a/*/window-00000000/manifest.json"))) == 1
    assert not (run / "data").exists()
    assert not (workspace / "datasets").exists()
    state = weights(run, 30)
    shutil.rmtree(workspace / "cache")
    shutil.rmtree(run / "checkpoints/step-00000030")
    done = cloud()
    assert done.returncode == 0, done.stderr
    assert "certificate: the last micro-batch has the loss it had" in done.stdout
    assert weights(run, 30) == state
    assert "nothing left to do" in cloud().stdout
    other = cloud("--dataset", "org/other")
    assert (other.returncode, "made for another job" in other.stderr) == (2, True)


def test_in_the_cloud_a_data_set_that_is_not_streamed_becomes_text_on_the_volume(hub, tmp_path):
    small = overrides("scheduler.total_steps=2", "scheduler.warmup_steps=0")
    words = ("--experiment", "b", "--input", "hf://org/toy", "--vocab-size", 300, "--backend", "cpu", *small)
    for _ in range(2):
        with mock.patch.dict(os.environ, roots(tmp_path)):
            done = sconce_here("orchestrate", "--mode", "cloud", *words)
        assert done.returncode == 0, done.stderr
    (shard,) = tmp_path.glob("datasets/train/b/input-000/train/*")
    assert len(shard.read_text().splitlines()) == 600


def test_show_knows_what_is_here_and_says_what_is_not(hub, tmp_path):
    run = hub.home / "whole"
    shown = json.loads(sconce_here("data", "show", run, "--step", 60, "--json").stdout)
    certificate = json.loads((run / "checkpoints/step-00000060/manifest.json").read_text())["certificate"]
    assert shown["row_ids"] == certificate["rows"]
    for row in shown["rows"]:
        for piece in row["pieces"]:
            assert piece["text"] in " ".join(f"document {n} of the toy: " + "word " * 40 for n in range(600))
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/data/window-00000003")
    done = sconce_here("data", "show", tmp_path / "run", "--step", 30)
    assert done.returncode == 2
    assert re.search(r"window 3 of the stream is not here, only 0 to 2, 4 to \d+", done.stderr)
    shutil.rmtree(tmp_path / "run/data")
    assert "holds no windows of this run's stream" in sconce_here("data", "show", tmp_path / "run", "--step", 3).stderr


def test_the_earlier_systems_file_beside_a_config(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMING_TMP_DIR", str(tmp_path / "disk"))
    file = {"dataset": "org/toy", "split": "train", "max_samples": 300, "stream_batch_size": 16, "experiment": "e"}
    (tmp_path / "streaming_config.json").write_text(json.dumps(file))
    (tmp_path / "training.toml").write_text(
        f'[tokenizer]\ntokenizer_json = "{hub.home}/tokenizer/tokenizer.json"\n'
        '[data]\ntrain_shards = ["placeholder.txt"]\nvalidation_shards = ["placeholder.txt"]\nwindow_tokens = 1024\n'
    )
    some = overrides("scheduler.total_steps=8", "scheduler.warmup_steps=0", "runtime.logging.tensorboard=false")
    done = sconce_here("train", "--config", tmp_path / "training.toml", "--run-dir", tmp_path / "run", *some)
    assert done.returncode == 0, done.stderr
    assert "note: streaming_config.json: streams hf://org/toy" in done.stdout
    assert "data.validation_shards is not read" in done.stdout
    data = json.loads((tmp_path / "run/run.json").read_text())["data"]
    assert (data["max_samples"], data["stream_batch_size"], data["train_shards"]) == (300, 16, ["hf://org/toy"])
    assert not (tmp_path / "run/data").exists()
    assert "experiment: not read" in done.stdout
    assert len(list((tmp_path / "disk").glob("*/window-00000000/manifest.json"))) == 1
    converted = tmp_path / "elsewhere/converted.toml"
    done = sconce_here("config", "convert", tmp_path / "training.toml", "--out", converted, *some)
    assert done.returncode == 0, done.stderr
    written = load_config(converted).data
    assert (written.streaming, written.max_samples, written.window_tokens) == (True, 300, 1024)
    assert '"hf://org/toy"' in converted.read_text()
    for name, value, says in (
        ("split", None, "split: missing"),
        ("max_samples", "many", 'found "many", expected int'),
        ("shards", 3, "unknown key; expected dataset"),
        ("dataset", "a b", "not an address"),
    ):
        (tmp_path / "streaming_config.json").write_text(json.dumps({**file, name: value}))
        done = sconce_here("train", "--config", tmp_path / "training.toml", "--run-dir", tmp_path / "no", *some)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert says in done.stderr


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.packing=bestfit", "data.packing: found bestfit, which needs all documents at once"),
        ("data.weights=[[1]]", "data.weights: a stream is read in order"),
        ("data.validation_shards=x.txt", "of the first window's documents is held out: leave it out"),
        ("data.train_shards=corpus.txt", "is a local path, and data.streaming is for data sets on the hub"),
        ("data.train_shards=hf://a/b/c", "not an address on the Hugging Face hub"),
        ("data.streaming=false", "data.window_tokens: would do nothing without data.streaming = true"),
        ("scheduler.total_epochs=1", "write scheduler.total_steps instead"),
        ("data.cache_limit_gb=1e-5", "data.cache_limit_gb: found 1e-05, expected at least 4.1e-05"),
        ("data.text_field=body", "no column 'body'; its columns are id, text"),
        ("data.train_shards=hf://org/none", "no such data set on the Hugging Face hub"),
    ],
)
def test_what_cannot_work_is_one_line(hub, tmp_path, override, says):
    done = train(hub.home, tmp_path / "run", "--override", override)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/checkpoints").exists()


def test_another_stream_than_the_checkpoints_is_refused(hub, tmp_path):
    shutil.copytree(hub.home / "whole/checkpoints", tmp_path / "run/checkpoints")
    done = train(hub.home, tmp_path / "run", "--resume", "--override", "data.train_shards=hf://org/toy?split=test")
    assert done.returncode == 2
    assert "trained on another stream than data.train_shards is" in done.stderr
    done = train(hub.home, tmp_path / "run", "--resume", "--override", "data.window_tokens=2048")
    assert "data.window_tokens: 1024 in the checkpoint, 2048 now" in done.stderr


def test_every_command_of_the_page_works(tmp_path, monkeypatch):
    """docs/streaming.md as it stands, one command after the other, with a small model and a hub of its own."""
    monkeypatch.chdir(tmp_path)
    write_toy(tmp_path / "repos", name="HuggingFaceFW/fineweb-edu", config="sample-10BT")
    kept = [key for key in SMALL if not key.startswith("scheduler.")]
    small = [
        part for key in (*kept, "data.window_tokens=1024", "data.cache_limit_gb=0.1") for part in ("--override", key)
    ] + ["--backend", "cpu"]
    page = (ROOT / "docs/streaming.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) > 10
    with serving(tmp_path / "repos") as hub, monkeypatch.context() as patch:
        point_here(hub, tmp_path, patch)
        for variable, root in roots(tmp_path / "workspace").items():
            patch.setenv(variable, root)
        for command in commands:
            words = shlex.split(command)
            while "=" in words[0]:
                patch.setenv(*words.pop(0).split("=", 1))
            if words[0] != "sconce":
                subprocess.run(words, check=True, env={**os.environ})
                continue
            more = small if words[1] in ("train", "orchestrate") else []
            vocabulary = ["--vocab-size", "300"] if words[1] == "orchestrate" else []
            done = sconce_here(*words[1:], *vocabulary, *more)
            assert done.returncode == 0, f"{command}: {done.stderr}"
    assert checkpoints(tmp_path / "elsewhere")[-1] == "step-00000070"
    assert list((tmp_path / "elsewhere/disk").glob("*/window-*"))
    assert checkpoints(tmp_path / "workspace/runs/edu") == ["step-00000010"]
    assert (tmp_path / "text/manifest.json").is_file()


@pytest.mark.slow
def test_kills_at_any_moment_while_the_network_fails(hub, tmp_path):
    """A process that is killed again and again, on a stream that fails: the weights of the run that nothing met."""
    hub.faults = Faults(rate=0.2, seed=9)
    chance = random.Random(3)
    arguments = [
        "train",
        "--config",
        hub.home / "config.toml",
        "--run-dir",
        tmp_path / "run",
        "--backend",
        "cpu",
        *QUICK,
    ]
    env = {**environment(hub, tmp_path / "hf"), "PYTHONUNBUFFERED": "1"}
    kills = 0
    while not (tmp_path / "run/checkpoints/step-00000060/manifest.json").exists():
        process = start(*arguments, "--resume", env=env)
        if kills < 8:
            last = chance.randrange(0, 60)
            while (line := process.stdout.readline()) and not line.startswith(f"step {last:6}"[:7]):
                if chance.random() < 0.1:
                    break
            process.kill()
            kills += 1
        process.communicate()
    done = train(hub.home, tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "run", 60) == weights(hub.home / "whole", 60)
