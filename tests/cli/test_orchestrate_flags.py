"""Flags of `sconce orchestrate`: one that would do nothing is refused in a line, and nothing is written."""

import json
import os
import tomllib
from unittest import mock

import pytest
from commands import checkpoints, overrides, sconce_here, write_corpus
from workspace import roots

from sconce.config import preset_table
from sconce.tokenizer.bpe import train_tokenizer


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "text.txt", lines=200)


@pytest.fixture
def tokenizer(tmp_path, corpus):
    """A tokenizer of 300 tokens, in a folder that may become a run's."""
    train_tokenizer(iter([corpus.read_text()]), 300, tmp_path / "run/tokenizer", [])
    return tmp_path / "run/tokenizer/tokenizer.json"


def refusal(*arguments, env=None):
    """The one line that such a command ends with."""
    with mock.patch.dict(os.environ, env or {}):
        done = sconce_here("orchestrate", *arguments, "--backend", "cpu")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def plan(*arguments):
    """What --dry-run says the config is."""
    done = sconce_here("orchestrate", *arguments, "--backend", "cpu", "--dry-run")
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_kept_tokenizer_of_another_size_is_refused(tmp_path, corpus, tokenizer, dry):
    options = ("--input", corpus, "--run-dir", tmp_path / "run", "--skip-tokenizer", *overrides())
    said = refusal(*options, "--vocab-size", 400, *dry)
    assert f"--vocab-size: found 400, and {tokenizer} has 300 tokens" in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tokenizer"]
    plan(*options, "--vocab-size", 300)


@pytest.mark.parametrize("where", ["local", "cloud"])
def test_a_folder_of_another_maker_is_refused_with_the_flag_that_names_it(tmp_path, corpus, tokenizer, where):
    """As the runs and volumes of the system before Sconce are: with a tokenizer, or with a config and checkpoints."""
    workspace = tmp_path / "workspace"
    (workspace / "runs").mkdir(parents=True)
    (tmp_path / "run").rename(workspace / "runs/run")
    place = ["--mode", "cloud", "--experiment", "run"] if where == "cloud" else ["--run-dir", workspace / "runs/run"]
    flag = str(place[-2])
    said = refusal("--input", corpus, *place, env=roots(workspace))
    assert said.endswith(
        f"holds tokenizer, not made by `sconce orchestrate`: give --skip-tokenizer to keep it, or "
        f"choose another {flag}\n"
    )
    with mock.patch.dict(os.environ, roots(workspace)):
        plan("--input", corpus, *place, "--skip-tokenizer", *overrides())
    (workspace / "runs/run/checkpoints").mkdir()
    said = refusal("--input", corpus, *place, env=roots(workspace))
    assert said.endswith(f"holds tokenizer, checkpoints, not made by `sconce orchestrate`: choose another {flag}\n")


@pytest.mark.parametrize(
    ("override", "flag"),
    [
        ("tokenizer.tokenizer_json={tokenizer}", "--tokenizer-json"),
        ("data.train_shards[0]=more.txt", "--input"),
        ("data.validation_shards=more.txt", "--validation"),
        ("runtime.run_dir=elsewhere", "--run-dir"),
        ("runtime.checkpoint.directory=elsewhere/checkpoints", "--run-dir"),
    ],
)
@pytest.mark.parametrize("where", ["local", "begun", "cloud"])
def test_what_a_flag_says_is_not_said_by_an_override(tmp_path, corpus, tokenizer, override, flag, where):
    """It would have left the flag's own part undone: the size asked for, the text named, the folder."""
    options = [
        "--input",
        corpus,
        "--vocab-size",
        400,
        *overrides("scheduler.total_steps=1", "scheduler.warmup_steps=0"),
    ]
    place = ["--mode", "cloud", "--experiment", "a"] if where == "cloud" else ["--run-dir", tmp_path / "new"]
    environment = roots(tmp_path / "workspace")
    if where == "begun":
        assert sconce_here("orchestrate", *options, *place, "--backend", "cpu").returncode == 0
    before = sorted(tmp_path.rglob("*"))
    key = override.partition("=")[0].removesuffix("[0]")
    flag = "--experiment" if (flag, where) == ("--run-dir", "cloud") else flag
    said = refusal(*options, *place, "--override", override.format(tokenizer=tokenizer), env=environment)
    assert said == f"sconce: --override: {key}: give it to `sconce orchestrate` as {flag}\n"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--tokenizer-max-bytes", "--tokenizer-max-lines"])
@pytest.mark.parametrize("instead", ["--skip-tokenizer", "--tokenizer-json"])
def test_what_a_tokenizer_is_to_learn_from_is_refused_where_none_learns(tmp_path, corpus, tokenizer, flag, instead):
    given = (instead, tokenizer) if instead == "--tokenizer-json" else (instead,)
    said = refusal("--input", corpus, "--run-dir", tmp_path / "other", *given, flag, 100)
    assert f"{flag}: would do nothing with {instead}" in said
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("flag", ["--train-shard-lines", "--validation-shard-lines", "--reuse-shards"])
def test_how_text_is_cut_is_refused_where_none_is_cut(tmp_path, corpus, flag):
    workspace, value = tmp_path / "workspace", () if flag == "--reuse-shards" else (4,)
    placed = workspace / "datasets/train/a/text.txt"
    placed.parent.mkdir(parents=True)
    placed.write_bytes(corpus.read_bytes())
    before = sorted(workspace.rglob("*"))
    for named in ((), ("--input", placed)):
        said = refusal("--mode", "cloud", "--experiment", "a", flag, *value, *named, env=roots(workspace))
        assert f"{flag}: cuts nothing here" in said
    assert sorted(workspace.rglob("*")) == before
    if flag == "--validation-shard-lines":
        names = ("--experiment", "b", "--input", corpus)
        assert "cuts nothing" in refusal("--mode", "cloud", *names, flag, 4, env=roots(workspace))


def test_the_command_that_cut_the_text_works_again_on_a_pod_without_it(tmp_path, corpus):
    workspace = tmp_path / "workspace"
    lines = ("--train-shard-lines", 4, "--validation-shard-lines", 2)
    text = ("--input", corpus, "--validation", write_corpus(tmp_path / "held-out.txt", lines=60))
    small = overrides("scheduler.total_steps=2", "scheduler.warmup_steps=0")
    command = ("orchestrate", "--mode", "cloud", "--experiment", "a", *text, *lines, "--vocab-size", 300, *small)
    with mock.patch.dict(os.environ, roots(workspace)):
        assert sconce_here(*command, "--backend", "cpu").returncode == 0
        corpus.unlink()
        (tmp_path / "held-out.txt").unlink()
        done = sconce_here(*command, "--backend", "cpu")
    assert "nothing left to do" in done.stdout, done.stderr


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_text_that_is_gone_cannot_be_cut_anew(tmp_path, corpus, dry):
    workspace = tmp_path / "workspace"
    small = overrides("scheduler.total_steps=1", "scheduler.warmup_steps=0")
    command = ("--mode", "cloud", "--experiment", "a", "--input", corpus, "--vocab-size", 300, *small)
    with mock.patch.dict(os.environ, roots(workspace)):
        assert sconce_here("orchestrate", *command, "--backend", "cpu").returncode == 0
    (workspace / "runs/a").rename(tmp_path / "gone")
    corpus.unlink()
    before = sorted(workspace.rglob("*"))
    said = refusal(*command, "--force-reshard", *dry, env=roots(workspace))
    assert f"--force-reshard: {corpus} is not here" in said
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize("name", ["manifest.json", ".hidden.txt", ".input-000.tmp-new/train/text.txt"])
def test_what_is_no_text_is_not_taken_for_it(tmp_path, corpus, name):
    workspace = tmp_path / "workspace"
    for place in ("train", "val"):
        path = workspace / "datasets" / place / "a" / name
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    cloud = ("--mode", "cloud", "--experiment", "a")
    assert "train/a: no text there: give --input" in refusal(*cloud, "--dry-run", env=roots(workspace))
    with mock.patch.dict(os.environ, roots(workspace)):
        assert plan(*cloud, "--input", corpus)["data"]["validation_shards"] == []
        (workspace / "datasets/val/a/held-out.txt").write_bytes(corpus.read_bytes())
        assert plan(*cloud, "--input", corpus)["data"]["validation_shards"] == [str(workspace / "datasets/val/a")]


@pytest.mark.parametrize("mode", ["local", "cloud"])
def test_a_dry_run_as_json_is_the_same_plan(tmp_path, corpus, mode):
    where = ("--run-dir", tmp_path / "run") if mode == "local" else ("--mode", "cloud", "--experiment", "a")
    with mock.patch.dict(os.environ, roots(tmp_path / "workspace")):
        given = plan("--input", corpus, *where, *overrides())
        options = ("--input", corpus, *where, *overrides(), "--backend", "cpu", "--dry-run", "--json")
        done = sconce_here("orchestrate", *options)
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert sorted(found) == ["checks", "config", "plan"]
    assert any(check.startswith("memory: ") for check in found["checks"]) == (mode == "cloud")
    assert found["plan"]["configured"]["micro_batch_size"] == 4
    for section in ("optimizer", "scheduler"):
        assert given[section].items() <= found["config"][section].items()
    assert found["config"]["data"]["train_shards"] == [str(corpus)]


def test_the_last_rate_stays_the_same_share_of_the_peak(tmp_path, corpus):
    preset = preset_table("m3_20m")
    share = preset["scheduler"]["min_lr"] / preset["optimizer"]["learning_rate"]
    options = ("--input", corpus, "--run-dir", tmp_path / "run", "--profile", "m3_20m")
    found = plan(*options, "--learning-rate", 5e-4)
    assert found["scheduler"]["min_lr"] / found["optimizer"]["learning_rate"] == pytest.approx(share)
    found = plan(*options, "--learning-rate", 5e-4, "--schedule", "polynomial")
    assert found["scheduler"]["min_lr"] == pytest.approx(5e-4 * share)
    assert "min_lr" not in plan(*options, "--schedule", "constant")["scheduler"]
    asked = plan(*options, "--learning-rate", 5e-4, "--override", "scheduler.min_lr=1e-6")
    assert asked["scheduler"]["min_lr"] == 1e-6


@pytest.mark.parametrize("rate", ["0", "inf", "fast"])
def test_a_rate_that_is_none_is_one_fault(tmp_path, corpus, rate):
    said = refusal("--input", corpus, "--run-dir", tmp_path / "run", "--override", f"optimizer.learning_rate={rate}")
    assert "--override: optimizer.learning_rate: found" in said


def test_no_worker_at_all_is_refused_with_what_to_give(tmp_path, corpus):
    options = ("--input", corpus, "--run-dir", tmp_path / "run", "--loader-workers")
    assert "give 1, or leave it out" in refusal(*options, 0)
    assert plan(*options, 1)["data"]["prefetch"] == 1


@pytest.mark.parametrize("variable", ["ATTN_BACKEND", "ATTN_PRECISION"])
def test_a_variable_that_is_refused_leaves_no_run_behind(tmp_path, corpus, variable):
    options = ("--input", corpus, "--run-dir", tmp_path / "run", "--override", "runtime.attention_backend=fused")
    assert f"{variable}: " in refusal(*options, env={variable: "reference"})
    assert not (tmp_path / "run").exists()


def test_a_run_under_attn_backend_goes_on_under_it(tmp_path, corpus):
    command = ("--input", corpus, "--run-dir", tmp_path / "run", "--vocab-size", 300, "--backend", "cpu")
    small = overrides("scheduler.total_steps=2", "scheduler.warmup_steps=0")
    with mock.patch.dict(os.environ, ATTN_BACKEND="reference"):
        assert sconce_here("orchestrate", *command, *small).returncode == 0
        own = ("train", "--config", tmp_path / "run/training.toml", "--backend", "cpu")
        done = sconce_here(*own, "--override", "scheduler.total_steps=3")
        assert done.returncode == 0, done.stderr
        assert checkpoints(tmp_path / "run")[-1] == "step-00000003"
        other = sconce_here(*own, "--override", "runtime.attention_backend=fused")
    assert other.returncode == 2
    assert other.stderr == (
        "sconce: ATTN_BACKEND: found reference, and runtime.attention_backend is fused: unset it, or leave that key at "
        "auto\n"
    )
