"""`sconce orchestrate --mode cloud`, on a machine whose volume is a temporary folder."""

import json
import os
import random
import re
import shutil
import signal
import time
from unittest import mock

import pytest
from commands import checkpoints, overrides, sconce_here, start, weights, write_corpus
from hub import environment as hub_environment
from hub import serving, write_toy
from workspace import roots, snapshot

ON_CPU = ("--backend", "cpu", "--vocab-size", 300)


def cloud(root, *arguments, env=None):
    """The command in this process, as on a machine with its volume at `root`."""
    with mock.patch.dict(os.environ, roots(root) | (env or {})):
        return sconce_here("orchestrate", "--mode", "cloud", *arguments)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A volume with one finished run, `whole`, of a text that was on the pod's own disk and is gone."""
    root = tmp_path_factory.mktemp("pod")
    write_corpus(root / "ephemeral.txt")
    facts = {"RUNPOD_POD_ID": "pod7", "RUNPOD_API_KEY": "rpa_secret", "HF_TOKEN": "hf_secret"}
    done = cloud(
        root / "workspace",
        "--experiment",
        "whole",
        "--input",
        root / "ephemeral.txt",
        "--train-shard-lines",
        4,
        *ON_CPU,
        *overrides(),
        env=facts,
    )
    assert done.returncode == 0, done.stderr
    (root / "stdout").write_text(done.stdout)
    (root / "ephemeral.txt").rename(root / "kept.txt")
    return root


def test_everything_lies_below_the_roots(volume):
    workspace = volume / "workspace"
    assert sorted(path.name for path in workspace.iterdir()) == ["artifacts", "cache", "datasets", "runs"]
    assert sorted(path.name for path in (workspace / "runs/whole").iterdir() if not path.name.startswith(".")) == [
        "checkpoints",
        "loss.png",
        "metrics.jsonl",
        "orchestrate.json",
        "run.json",
        "samples",
        "tensorboard",
        "tokenizer",
        "training.toml",
    ]
    shards = [
        json.loads(path.read_text().splitlines()[-1])
        for path in workspace.glob("datasets/train/whole/input-000/train/*")
    ]
    assert len(shards) == 3  # of ten passages, at most four a file
    assert len(list(workspace.glob("cache/whole/*/train-00000.bin"))) == 1
    shared, own = (
        workspace / f"{place}/tokenizer.json" for place in ("artifacts/tokenizer/whole", "runs/whole/tokenizer")
    )
    assert shared.read_bytes() == own.read_bytes()


def test_the_text_on_the_volume_is_the_text_that_was_given(volume):
    lines = [
        json.loads(line)["text"]
        for path in sorted((volume / "workspace/datasets/train/whole/input-000/train").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert "".join(lines) == (volume / "kept.txt").read_text()


def test_what_it_needs_is_said_before_it_begins(volume):
    lines = (volume / "stdout").read_text().splitlines()
    before = lines[: next(number for number, line in enumerate(lines) if line.startswith("text: "))]
    for part in ("memory: about", "disk: about", "pod: pod pod7"):
        assert any(line.startswith(part) for line in before), part


def test_the_pod_is_recorded_and_no_secret_is(volume):
    manifest = json.loads((volume / "workspace/runs/whole/checkpoints/step-00000030/manifest.json").read_text())
    assert manifest["hardware"]["runpod_pod"] == "pod7"
    for path in (volume / "workspace").rglob("*"):
        assert not path.is_file() or b"_secret" not in path.read_bytes(), path
    assert "_secret" not in (volume / "stdout").read_text()


def test_the_same_command_again_finds_it_finished_with_the_text_gone(volume):
    before = snapshot(volume / "workspace")
    done = cloud(
        volume / "workspace", "--experiment", "whole", "--input", volume / "ephemeral.txt", *ON_CPU, *overrides()
    )
    assert done.returncode == 0, done.stderr
    assert "nothing left to do" in done.stdout
    after = snapshot(volume / "workspace")
    assert {name for name in after if after[name] != before.get(name)} <= {
        name for name in after if "/runs/whole/" in name and "/checkpoints/" not in name
    }
    assert f"--experiment whole --input {volume}/ephemeral.txt" in done.stdout  # what to type to go on


def test_a_second_experiment_may_use_the_first_ones_text_and_tokenizer(volume):
    workspace = volume / "workspace"
    before = snapshot(workspace / "runs/whole")
    done = cloud(
        workspace,
        "--experiment",
        "other",
        "--input",
        workspace / "datasets/train/whole",
        "--tokenizer-json",
        workspace / "artifacts/tokenizer/whole/tokenizer.json",
        "--backend",
        "cpu",
        *overrides("scheduler.total_steps=2", "scheduler.warmup_steps=0"),
    )
    assert done.returncode == 0, done.stderr
    assert checkpoints(workspace / "runs/other") == ["step-00000002"]
    assert snapshot(workspace / "runs/whole") == before


def test_a_new_run_of_an_old_name_takes_the_shared_tokenizer(volume, tmp_path):
    shutil.copytree(volume / "workspace", tmp_path / "workspace")
    shutil.rmtree(tmp_path / "workspace/runs/whole")
    again = cloud(tmp_path / "workspace", "--experiment", "whole", "--backend", "cpu", *overrides())
    assert again.returncode == 0, again.stderr
    assert "tokenizer: 300 tokens, copied from" in again.stdout
    assert weights(tmp_path / "workspace/runs/whole", 30) == weights(volume / "workspace/runs/whole", 30)
    refused = cloud(
        tmp_path / "workspace", "--experiment", "whole-2", "--vocab-size", 301, "--skip-tokenizer", *overrides()
    )
    assert refused.returncode == 2


def test_records_and_held_out_text_are_cut_as_the_config_says(tmp_path):
    records = [
        json.dumps({"content": f"document {number} of the text, which says {number * number}"}) for number in range(300)
    ]
    (tmp_path / "text.jsonl").write_text("\n".join(records))
    held_out = write_corpus(tmp_path / "held-out.txt", lines=100)
    arguments = ("--experiment", "a", "--input", tmp_path / "text.jsonl", "--validation", held_out)
    small = overrides("data.text_field=content", "scheduler.total_steps=4", "scheduler.warmup_steps=0")
    done = cloud(tmp_path / "workspace", *arguments, "--validation-shard-lines", 1, *ON_CPU, *small)
    assert done.returncode == 0, done.stderr
    placed = tmp_path / "workspace/datasets"
    (train,) = (placed / "train/a/input-000/train").iterdir()
    assert [json.loads(line)["text"] for line in train.read_text().splitlines()] == [
        json.loads(record)["content"] for record in records
    ]
    assert len(list((placed / "val/a/input-000/train").iterdir())) == 2
    (manifest,) = (tmp_path / "workspace/cache/a").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["validation_paths"] == [str(placed / "val/a/input-000")]


def test_a_run_goes_on_without_its_text_or_without_its_token_shards(tmp_path):
    workspace = tmp_path / "workspace"
    corpus = write_corpus(tmp_path / "text.txt", lines=200)
    arguments = ("--experiment", "a", "--input", corpus, *ON_CPU)
    for step, gone in ((2, "none"), (3, "datasets"), (4, "cache")):
        if (workspace / gone).exists():
            (workspace / gone).rename(tmp_path / gone)
        done = cloud(workspace, *arguments, *overrides(f"scheduler.total_steps={step}", "scheduler.warmup_steps=0"))
        assert done.returncode == 0, done.stderr
        assert checkpoints(workspace / "runs/a")[-1] == f"step-{step:08d}"
        if (tmp_path / gone).exists() and not (workspace / gone).exists():
            (tmp_path / gone).rename(workspace / gone)


def test_several_inputs_keep_their_weights(tmp_path):
    workspace = tmp_path / "workspace"
    web, code = (write_corpus(tmp_path / f"{name}.txt", lines=400) for name in ("web", "code"))
    code.write_text(code.read_text().replace("fox", "function"))
    weights_ = "data.weights=[[3, 1]]"
    small = overrides("scheduler.total_steps=4", "scheduler.warmup_steps=0", weights_)
    inputs = ("--input", web, "--input", code)
    done = cloud(workspace, "--experiment", "mix", *inputs, *ON_CPU, *small)
    assert done.returncode == 0, done.stderr
    placed = workspace / "datasets/train/mix"
    assert sorted(path.name for path in placed.iterdir()) == ["input-000", "input-001"]
    shown = sconce_here("data", "show", workspace / "runs/mix", "--step", 1)
    assert "input-000" in shown.stdout
    web.unlink()
    code.unlink()  # a new pod, with nothing but the volume
    again = cloud(workspace, "--experiment", "mix", *inputs, *ON_CPU, *small)
    assert "nothing left to do" in again.stdout, again.stderr
    fewer = cloud(workspace, "--experiment", "mix", "--input", placed / "input-000", *ON_CPU, *overrides())
    assert (fewer.returncode, fewer.stderr.count("\n")) == (2, 1)
    on_volume = [word for number in (1, 0) for word in ("--input", placed / f"input-00{number}")]
    other = cloud(workspace, "--experiment", "other", *on_volume, *ON_CPU, *small)
    assert other.returncode == 0, other.stderr
    assert not (workspace / "datasets/train/other").exists()  # text that is on the volume is not there twice


def test_fewer_inputs_than_before_are_other_text(tmp_path):
    workspace, corpus = tmp_path / "workspace", write_corpus(tmp_path / "text.txt")
    small = overrides("scheduler.total_steps=1", "scheduler.warmup_steps=0")
    arguments = ("--experiment", "a", *ON_CPU)
    two = ("--input", corpus, "--input", write_corpus(tmp_path / "more.txt", lines=300))
    stopped = cloud(workspace, *arguments, *two, "--tokenizer-json", tmp_path / "none.json", *small)
    assert stopped.returncode == 2
    assert not workspace.exists()
    assert cloud(workspace, *arguments, *two, *small).returncode == 0
    shutil.rmtree(workspace / "runs")
    refused = cloud(workspace, *arguments, "--input", corpus, *small)
    assert "input-001: holds other text than --input and --validation name" in refused.stderr
    forced = cloud(workspace, *arguments, "--input", corpus, "--force-reshard", *small)
    assert forced.returncode == 0, forced.stderr
    assert [path.name for path in (workspace / "datasets/train/a").iterdir()] == ["input-000"]


def test_experiments_side_by_side_may_share_text_tokenizer_and_token_shards(volume):
    """Started at once, of one text with one tokenizer: one of them builds the shards, the other waits for them."""
    workspace = volume / "workspace"
    shared = workspace / "cache/shared"
    common = (
        *("--input", workspace / "datasets/train/whole", "--backend", "cpu"),
        *("--tokenizer-json", workspace / "artifacts/tokenizer/whole/tokenizer.json"),
    )
    small = overrides("scheduler.total_steps=3", "scheduler.warmup_steps=0", f"data.cache_dir={shared}")
    before = snapshot(workspace / "runs/whole")
    started = [
        start(
            *("orchestrate", "--mode", "cloud", "--experiment", f"seed-{seed}", "--seed", seed, *common, *small),
            env=roots(workspace) | {"SCONCE_LOG": "debug"},
        )
        for seed in (1, 2)
    ]
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    (place,) = (path for path in shared.iterdir() if not path.name.startswith("."))
    runs = [workspace / f"runs/seed-{seed}" for seed in (1, 2)]
    cursors = [json.loads((run / "checkpoints/step-00000003/manifest.json").read_text())["cursor"] for run in runs]
    assert len({cursor["fingerprint"] for cursor in cursors}) == 1
    assert len({cursor["rows_sha256"] for cursor in cursors}) == 2
    assert weights(runs[0], 3) != weights(runs[1], 3)
    assert (place / "manifest.json").is_file()
    assert snapshot(workspace / "runs/whole") == before


@pytest.mark.parametrize("mode", [pytest.param("local", marks=pytest.mark.slow), "cloud"])
def test_a_dry_run_writes_nothing_at_all(tmp_path, tmp_path_factory, mode):
    """Not even of a stream, whose data set is looked at through libraries that keep what they read."""
    write_toy(tmp_path / "repos", name="org/text")
    before = sorted(tmp_path.rglob("*"))
    where = ("--experiment", "a") if mode == "cloud" else ("--run-dir", tmp_path / "run")
    with serving(tmp_path / "repos") as hub:
        environment = hub_environment(hub, tmp_path / "hub") | roots(tmp_path / "workspace") | {"HOME": str(tmp_path)}
        environment["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("fonts"))  # which matplotlib lists once a machine
        arguments = ("--mode", mode, *where, "--stream", "--dataset", "org/text", "--backend", "cpu", "--dry-run")
        with start("orchestrate", *arguments, env=environment) as process:
            out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "# memory" in out or mode == "local"
    assert '"hf://org/text' in out
    assert sorted(tmp_path.rglob("*")) == before


def job(root, name, corpus, *changes):
    return start(
        *("orchestrate", "--mode", "cloud", "--experiment", name, "--input", corpus, *ON_CPU),
        *overrides("runtime.checkpoint.every_n_steps=3", *changes),
        env=roots(root),
    )


def interrupt(process, signal_number, marker):
    """Send a signal once a line with `marker` is printed; the exit code."""
    while marker not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=120)
    return process.returncode, line + out, err


def test_sigterm_saves_and_exits_0_and_after_sigkill_too_the_weights_are_the_same(volume, tmp_path):
    shutil.copy(volume / "kept.txt", tmp_path / "text.txt")
    workspace = tmp_path / "workspace"
    code, out, err = interrupt(job(workspace, "killed", tmp_path / "text.txt"), signal.SIGTERM, "tokenizer: 300")
    assert code == 0, err
    assert "stopped by SIGTERM" in out
    code, out, err = interrupt(job(workspace, "killed", tmp_path / "text.txt"), signal.SIGTERM, "step      5/30")
    assert code == 0, err
    assert "by SIGTERM; saved" in out or "finished" in out
    (tmp_path / "text.txt").unlink()  # a new pod, with nothing but the volume
    code, _, _ = interrupt(job(workspace, "killed", tmp_path / "text.txt"), signal.SIGKILL, "certificate: ")
    assert code == -signal.SIGKILL
    options = ("--experiment", "killed", "--input", tmp_path / "text.txt", *ON_CPU)
    last = cloud(workspace, *options, *overrides("runtime.checkpoint.every_n_steps=3"))
    assert last.returncode == 0, last.stderr
    assert weights(workspace / "runs/killed", 30) == weights(volume / "workspace/runs/whole", 30)


@pytest.mark.slow
def test_five_random_kills_leave_the_weights_bit_identical(volume, tmp_path):
    """Each kill waits for a step some way after the last checkpoint, and hundreds before the end: all five hit a run
    that trains, and none before it has saved more."""
    steps, moments, workspace = 1500, random.Random(11), tmp_path / "workspace"
    longer = [
        f"scheduler.total_steps={steps}",
        "runtime.checkpoint.every_n_steps=40",
        "runtime.evaluation.every_n_steps=500",
    ]
    whole = cloud(
        tmp_path / "whole", "--experiment", "killed", "--input", volume / "kept.txt", *ON_CPU, *overrides(*longer)
    )
    assert whole.returncode == 0, whole.stderr
    saved = 0
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = job(workspace, "killed", volume / "kept.txt", *longer)
        wait_for_step(process, saved + moments.randrange(45, 130))
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(end)
        out, err = process.communicate(timeout=120)
        assert process.returncode == (0 if end == signal.SIGTERM else -end), err
        assert ("by SIGTERM; saved" in out) == (end == signal.SIGTERM)
        before, saved = saved, int(checkpoints(workspace / "runs/killed")[-1].removeprefix("step-"))
        assert before < saved < steps
    with job(workspace, "killed", volume / "kept.txt", *longer) as last:
        out, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert f"resuming from step-{saved:08d}" in out
    assert weights(workspace / "runs/killed", steps) == weights(tmp_path / "whole/runs/killed", steps)


def wait_for_step(process, step):
    """Until the run has printed that it has done so many steps."""
    for line in process.stdout:
        found = re.match(r"step +(\d+)/", line)
        if found is not None and int(found[1]) >= step:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--experiment: missing"),
        (("--experiment", "../up"), "--experiment: found '../up'"),
        (("--experiment", "a", "--run-dir", "x"), "--run-dir: in the cloud a run is a folder of ORCHESTRATE_RUNS_ROOT"),
        (("--experiment", "a", "--backend", "cpu"), "datasets/train/a: no text there: give --input"),
        (("--experiment", "a", "--input", "nowhere.txt", "--backend", "cpu"), "nowhere.txt: no such file"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, arguments, part):
    done = cloud(tmp_path / "workspace", *arguments)
    assert done.returncode == 2
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize("flag", ["--experiment", "--train-shard-lines", "--validation-shard-lines"])
def test_flags_of_the_cloud_are_refused_elsewhere(tmp_path, flag):
    done = sconce_here("orchestrate", flag, "3", "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert f"{flag}: is for --mode cloud" in done.stderr


def test_without_a_gpu_nothing_is_spent(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    corpus = write_corpus(tmp_path / "text.txt")
    done = cloud(tmp_path / "workspace", "--experiment", "a", "--input", corpus)
    assert done.returncode == 2
    assert "no GPU here" in done.stderr
    assert not (tmp_path / "workspace").exists()


def test_other_text_than_before_is_refused_until_it_is_asked_for(volume, tmp_path):
    workspace = tmp_path / "workspace"
    shutil.copytree(volume / "workspace/datasets", workspace / "datasets")
    other = write_corpus(tmp_path / "other.txt", lines=400)
    small = overrides("scheduler.total_steps=2", "scheduler.warmup_steps=0")
    done = cloud(workspace, "--experiment", "whole", "--input", other, *ON_CPU, *small)
    assert done.returncode == 2
    assert "--force-reshard replaces it" in done.stderr
    forced = cloud(workspace, "--experiment", "whole", "--input", other, "--force-reshard", *ON_CPU, *small)
    assert forced.returncode == 0, forced.stderr
    sizes = [
        source["size"]
        for source in json.loads((workspace / "datasets/train/whole/input-000/manifest.json").read_text())["sources"]
    ]
    assert sizes == [other.stat().st_size]
    again = cloud(workspace, "--experiment", "whole", "--input", other, "--reuse-shards", *ON_CPU, *small)
    assert "nothing left to do" in again.stdout


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    from sconce.cloud import CloudJob, check_job, find_places
    from sconce.errors import DataError
    from sconce.orchestrate import LocalJob

    corpus = write_corpus(tmp_path / "text.txt")
    for variable, root in roots(tmp_path / "workspace").items():
        monkeypatch.setenv(variable, root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30 - 2**10, 2**10))
    job_ = CloudJob(name="a", local=LocalJob(inputs=(corpus,), profile="runpod_20m"))
    with pytest.raises(DataError, match=r"disk too small: this run needs about 1\.14 GiB more"):
        check_job(job_, find_places("a"), "cpu")
    assert not (tmp_path / "workspace").exists()


def test_the_hub_keeps_its_files_on_the_volume_and_the_token_in_the_environment(tmp_path):
    from sconce.cloud import set_up_hub

    environment = {"HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "home")}
    set_up_hub(tmp_path / "hub", environment)
    assert environment == {
        "HF_TOKEN": "hf_x",
        "HUGGINGFACEHUB_API_TOKEN": "hf_x",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_DATASETS_CACHE": str(tmp_path / "hub/datasets"),
        "HF_HUB_CACHE": str(tmp_path / "hub/hub"),
        "HF_TOKEN_PATH": str(tmp_path / "home/token"),
    }
    assert list(tmp_path.iterdir()) == []  # the libraries make them when they need them
