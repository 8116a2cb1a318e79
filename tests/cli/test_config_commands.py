"""`sconce config show, check and convert`, presets by name, and what coming from the earlier system takes."""

import contextlib
import copy
import json
import re
import shlex
from pathlib import Path

import commands
import earlier_configs as earlier
import pytest
from commands import checkpoints, records, sconce_here, write_corpus

from sconce.config import load, load_config

ROOT = Path(__file__).parents[2]
QUICK = ("--hidden-size", 16, "--layers", 1, "--heads", 2, "--seq-len", 32, "--batch-size", 4, "--vocab-size", 300)


def sconce(*arguments, cwd="."):
    with contextlib.chdir(cwd):
        return sconce_here(*arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run, made with flags alone."""
    root = tmp_path_factory.mktemp("flags")
    write_corpus(root / "corpus.txt")
    write_corpus(root / "held-out.txt", 60)
    done = sconce(
        "orchestrate", "--input", root / "corpus.txt", "--validation", root / "held-out.txt", "--run-dir", root / "run",
        *QUICK, "--kv-heads", 1, "--intermediate-size", 24, "--grad-accum", 2, "--steps", 6, "--warmup-steps", 2,
        "--learning-rate", 1e-3, "--weight-decay", 0.05, "--schedule", "linear-warmup", "--checkpoint-every", 2,
        "--max-checkpoints", 1, "--evaluate-every", 3, "--eval-batches", 2, "--log-every", 2, "--precision", "bf16",
        "--seed", 9, "--no-tensorboard", "--backend", "cpu", "--loader-workers", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root / "run"


def again(run, *arguments):
    return sconce("orchestrate", "--run-dir", run, "--backend", "cpu", *arguments)


def test_every_flag_of_orchestrate_does_what_it_says(run):
    config = load_config(run / "training.toml")
    model, data, runtime = config.model, config.data, config.runtime
    assert (model.hidden_size, model.num_layers, model.max_position_embeddings) == (16, 1, 32)
    assert (model.num_attention_heads, model.num_key_value_heads, model.intermediate_size) == (2, 1, 24)
    assert (data.batch_size, data.gradient_accumulation_steps, data.prefetch) == (4, 2, 3)
    assert data.validation_shards == (run.parent / "held-out.txt",)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-3, 0.05)
    scheduler = config.scheduler
    assert (scheduler.strategy, scheduler.total_steps, scheduler.warmup_steps) == ("linear_warmup", 6, 2)
    assert (runtime.checkpoint.every_n_steps, runtime.checkpoint.max_keep) == (2, 1)
    assert (runtime.evaluation.every_n_steps, runtime.evaluation.max_batches) == (3, 2)
    assert (runtime.log_every_n_steps, runtime.precision, runtime.seed) == (2, "bf16", 9)
    assert not (run / "tensorboard").exists()
    assert checkpoints(run)[-1] == "step-00000006"
    assert [line["lr"] for line in records(run) if "lr" in line] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])
    assert len(json.loads((run / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]) == 300


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--no-resume"], "already holds a run"),
        (["--force-retrain-tokenizer"], "its checkpoints were trained with its tokenizer"),
        (["--skip-tokenizer", "--force-retrain-tokenizer"], "exclude each other"),
        (["--reuse-shards", "--force-reshard"], "exclude each other"),
        (["--profile", "runpod_1b"], "made for another job (profile"),
        (["--stream"], "made for another job (inputs"),
        (["--dataset=fineweb"], "goes with --stream"),
        (["--tokenizer-seed", 17], "draws nothing at random: leave it out"),
        (["--shuffle-buffer", 5], "every epoch is shuffled as a whole: leave it out"),
        (["--tensorboard", "logs"], "takes no folder"),
    ],
)
def test_what_orchestrate_refuses_is_one_line(run, flags, says):
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*.*"))
    done = again(run, *flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert says in done.stderr
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*.*")) == before


def test_shards_are_reused_or_made_anew_as_asked(run):
    shard = run / "data/train-00000.bin"
    content, made = shard.read_bytes(), shard.stat().st_mtime_ns
    assert again(run, "--reuse-shards").returncode == 0
    assert shard.stat().st_mtime_ns == made
    done = again(run, "--force-reshard")
    assert done.returncode == 0, done.stderr
    assert shard.stat().st_mtime_ns > made
    assert shard.read_bytes() == content


def test_a_tokenizer_is_copied_or_insisted_on(run, tmp_path):
    own = ["--input", run.parent / "corpus.txt", *QUICK[:-2], "--steps", 1, "--backend", "cpu"]
    missing = sconce("orchestrate", "--run-dir", tmp_path / "skip", "--skip-tokenizer", *own)
    assert missing.returncode == 2
    assert "leave the flag out to train one" in missing.stderr
    assert not (tmp_path / "skip").exists()
    given = run / "tokenizer/tokenizer.json"
    done = sconce("orchestrate", "--run-dir", tmp_path / "copy", "--tokenizer-json", given, *own)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy/tokenizer/tokenizer.json").read_bytes() == given.read_bytes()
    (tmp_path / "skip/tokenizer").mkdir(parents=True)
    (tmp_path / "skip/tokenizer/tokenizer.json").write_bytes(given.read_bytes())
    done = sconce("orchestrate", "--run-dir", tmp_path / "skip", "--skip-tokenizer", "--reuse-shards", *own)
    assert done.returncode == 2
    assert "--reuse-shards: " in done.stderr


def test_a_tokenizer_learns_from_as_many_lines_as_it_is_told(run, tmp_path):
    """Of a longer text as it would of its first lines alone."""
    lines = (run.parent / "corpus.txt").read_text().splitlines(keepends=True)
    short = "".join(line for line in lines if line.strip())[:4000].rpartition("\n")[0] + "\n"
    (tmp_path / "short.txt").write_text(short)
    (tmp_path / "long.txt").write_text(short + "Entirely unlike anything before, these words.\n" * 300)
    held_out = ("--validation", run.parent / "held-out.txt", "--steps", 1, "--backend", "cpu")
    most = ("--tokenizer-max-lines", short.count("\n"), "--override", "data.document=line")
    made = []
    for number, (name, more) in enumerate((("short", ()), ("long", ()), ("long", most))):
        folder = tmp_path / f"run-{number}"
        done = sconce("orchestrate", "--input", tmp_path / f"{name}.txt", "--run-dir", folder, *QUICK, *held_out, *more)
        assert done.returncode == 0, done.stderr
        made.append((folder / "tokenizer/tokenizer.json").read_bytes())
    assert made[0] == made[2] != made[1]


def test_a_dry_run_prints_plan_and_config_and_writes_nothing(run, tmp_path):
    dry = ("orchestrate", "--dry-run", "--profile", "runpod_124m", "--backend", "cpu", "--steps", 77)
    done = sconce(*dry, "--input", run.parent / "corpus.txt", "--run-dir", "new", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "# model    125,854,464 parameters" in done.stdout
    (tmp_path / "printed.toml").write_text(done.stdout)
    config = load_config(tmp_path / "printed.toml")
    assert (config.model.num_layers, config.scheduler.total_steps, config.scheduler.warmup_steps) == (16, 77, 3)


def test_train_takes_a_preset_by_name(run, tmp_path):
    small = [f"--override=tokenizer.tokenizer_json={run / 'tokenizer/tokenizer.json'}",
             f"--override=data.train_shards={run.parent / 'corpus.txt'}", "--override=model.vocab_size=300",
             "--override=model.hidden_size=24", "--override=model.num_layers=1", "--override=data.batch_size=2",
             "--override=model.max_position_embeddings=16", "--override=scheduler.total_steps=1",
             "--override=scheduler.warmup_steps=0"]  # fmt: skip
    done = sconce("train", "--profile", "m3_20m", "--backend", "cpu", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert checkpoints(tmp_path / "runs/m3_20m") == ["step-00000001"]
    assert "train --profile m3_20m --run-dir runs/m3_20m" in done.stdout


@pytest.mark.parametrize("source", [[], ["--profile", "m3_20m", "--config", "a.toml"]])
def test_a_file_or_a_preset_but_one_of_them(source):
    done = sconce("train", *source)
    assert done.returncode == 2
    assert "expected one of them; presets: full, local, local_smoke, " in done.stderr


def test_check_tells_every_fault_of_paths_tokenizer_sizes_and_memory(run, tmp_path):
    table = {
        "model": {"vocab_size": 49152, "hidden_size": 4096, "num_layers": 32, "num_attention_heads": 32},
        "tokenizer": {"tokenizer_json": "no.json"},
        "data": {"train_shards": ["no.txt"], "validation_shards": ["neither.txt"]},
        "scheduler": {"total_steps": 10},
    }
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(table))
    done = sconce("config", "check", path, "--device", "m3-16")
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (2, 4), done.stderr
    for line, part in zip(lines, ("no.txt", "neither.txt", "no.json", "GiB to use"), strict=True):
        assert part in line
    fine = sconce("config", "check", run / "training.toml", "--device", "m3-16")
    assert (fine.returncode, fine.stderr) == (0, "")
    assert "no faults; fits m3-16" in fine.stdout
    small = sconce("config", "check", run / "training.toml", "--device", "m3-16", "--override", "model.vocab_size=299")
    assert "expected at least the tokenizer's 300 tokens" in small.stderr


def test_a_config_is_read_once_and_what_was_turned_is_told_once(run, monkeypatch):
    read, reads = load.read_table, []
    monkeypatch.setattr(load, "read_table", lambda path: reads.append(path) or read(path))
    turned = run / "turned.toml"
    turned.write_text((run / "training.toml").read_text().replace("[model]\n", '[model]\nrope_mode = "on_the_fly"\n'))
    for command in (("config", "check", turned), ("train", "--config", turned, "--run-dir", run, "--resume")):
        done = sconce(*command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("note: model.rope_mode: ") == 1
    assert reads == [turned, turned]


def test_show_names_the_origin_of_each_value(run):
    done = sconce("config", "show", run / "training.toml", "--override", "runtime.seed=3", "--json")
    found = json.loads(done.stdout)
    assert found["runtime.seed"] == {"key": "runtime.seed", "value": 3, "origin": "override"}
    assert found["model.hidden_size"]["origin"] == "file"
    assert found["model.head_dim"] == {"key": "model.head_dim", "value": 8, "origin": "derived"}
    text = sconce("config", "show", "--profile", "runpod_4b").stdout
    assert re.search(r"^model.hidden_size +preset +3072$", text, re.MULTILINE)
    assert re.search(r"^model.rope_theta +default +10000.0$", text, re.MULTILINE)


def test_convert_replaces_nothing_unasked_and_writes_nothing_bad(tmp_path):
    path = earlier.write(tmp_path, "rtx5090_1b.yaml", earlier.FILES["rtx5090_1b.yaml"])
    out = tmp_path / "new.toml"
    done = sconce("config", "convert", path, "--out", out)
    assert done.returncode == 2
    assert "data.train_shards" in done.stderr
    assert not out.exists()
    fill = ("--override", "data.train_shards=corpus")
    assert sconce("config", "convert", path, "--out", out, *fill, cwd=tmp_path).returncode == 0
    assert load_config(out).data.train_shards == (tmp_path / "corpus",)
    assert "give --force" in sconce("config", "convert", path, "--out", out, *fill).stderr


def test_the_commands_of_the_guide_work(run, tmp_path):
    """The fenced commands of docs/coming-from-rust.md, on a small file of the earlier system."""
    table = copy.deepcopy(earlier.FILES["local.yaml"])
    table["model"] |= {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 300, "max_position_embeddings": 32}
    table["scheduler"] |= {"total_steps": 2, "warmup_steps": 1}
    table["tokenizer"]["tokenizer_json"] = str(run / "tokenizer/tokenizer.json")
    text = [str(run.parent / "corpus.txt")]
    table["data"] |= {"train_shards": text, "validation_shards": text}  # as that system's own files had it
    table["model"]["rope_theta"] = None
    written = earlier.write(tmp_path, "old.yaml", table)
    written.rename(tmp_path / "old.yaml")
    text = (ROOT / "docs/coming-from-rust.md").read_text(encoding="utf-8")
    commands = re.search(r"```sh\n(.*?)```", text, re.DOTALL)[1].splitlines()
    assert len(commands) == 4
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "sconce"
        done = sconce(*words, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    unconverted = sconce_here(
        "train", "--config", "old.yaml", "--run-dir", "runs/old", "--backend", "cpu", cwd=tmp_path
    )
    assert "corpus.txt: trained on as well, so held-out loss" in unconverted.stdout, unconverted.stderr
    assert checkpoints(tmp_path / "runs/new") == ["step-00000002"]
    kept = json.loads((tmp_path / "runs/new/run.json").read_text())["model"]
    assert (kept["mlp"], kept["mlp_bias"], kept["attention_bias"]) == ("plain", True, True)


def test_every_flag_that_the_guide_names_is_there():
    text = (ROOT / "docs/coming-from-rust.md").read_text(encoding="utf-8")
    listed = text.partition("knows the old flags")[2].partition("## A config file")[0]
    offered = commands.sconce("orchestrate", "--help", env={"COLUMNS": "300", "NO_COLOR": "1"}).stdout
    flags = set(re.findall(r"`(--[\w-]+)", listed))
    assert len(flags) == 42
    assert {flag for flag in flags if not re.search(rf"{flag}\b", offered)} == set()
