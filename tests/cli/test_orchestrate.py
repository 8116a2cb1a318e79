"""One command from text to a trained model, as a user sees it."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import checkpoints, overrides, records, sconce, sconce_here, start, weights, write_corpus
from safetensors.numpy import load_file
from tiny import INSTALLED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("orchestrate")
    corpus = write_corpus(root / "corpus.txt")
    done = sconce(
        "orchestrate",
        "--input",
        corpus,
        "--run-dir",
        root / "run",
        "--vocab-size",
        300,
        "--backend",
        "cpu",
        *overrides(),
    )
    assert done.returncode == 0, done.stderr
    (root / "run" / "stdout").write_text(done.stdout)
    return root / "run"


def test_what_it_prints(run):
    out = (run / "stdout").read_text()
    assert len([line for line in out.splitlines() if line.startswith("hardware: ")]) == 1
    for part in ("held-out loss", "perplexity", "bits per byte", "loss.png", "sample", "next:", "sconce generate"):
        assert part in out
    assert "\x1b" not in out  # not a terminal: plain lines


def test_what_it_leaves(run):
    for name in (
        "training.toml",
        "loss.png",
        "metrics.jsonl",
        "tokenizer/tokenizer.json",
        "data/manifest.json",
        "samples/step-00000030.txt",
        "checkpoints/LATEST",
        "checkpoints/BEST",
    ):
        assert (run / name).stat().st_size > 0, name
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert checkpoints(run)[-1] == "step-00000030"
    assert not list(run.rglob("*.tmp*"))


def test_figures_are_consistent(run):
    lines = records(run)
    updates = [line for line in lines if "loss" in line]
    assert [line["step"] for line in updates] == [1, 5, 10, 15, 20, 25, 30]
    assert all(line["tokens"] == line["step"] * 4 * 32 for line in updates)
    assert updates[0]["loss"] == pytest.approx(np.log(300), abs=0.05)
    assert updates[0]["lr"] == pytest.approx(2e-3 / 3)  # the first of three warm-up steps to the preset's peak
    assert {"grad_norm", "tokens_per_second", "memory_bytes"} <= updates[0].keys()
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [15, 30]
    for line in evaluations:
        assert line["perplexity"] == pytest.approx(np.exp(line["eval_loss"]))
        assert 0 < line["bits_per_byte"] < 8


def test_tensorboard_reads_its_files(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    updates = [line for line in records(run) if "loss" in line]
    read = events.Scalars("train/loss")
    assert [event.step for event in read] == [line["step"] for line in updates]
    assert [event.value for event in read] == pytest.approx([line["loss"] for line in updates], rel=1e-6)
    assert [event.step for event in events.Scalars("eval/bits_per_byte")] == [15, 30]


def test_again_it_is_finished_and_recomputes_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    shards = (run / "data/train-00000.bin").stat()
    done = sconce_here("orchestrate", "--run-dir", run, "--backend", "cpu", *overrides())
    assert done.returncode == 0, done.stderr
    assert "nothing left to do" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before
    assert (run / "data/train-00000.bin").stat() == shards


def test_evaluation_equals_a_count_by_hand(run):
    """Held-out loss and bits per byte again, from the saved weights, with transformers and no code of ours."""
    import torch
    import transformers

    folder = run / "checkpoints" / "step-00000030"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = np.fromfile(run / "data/validation-00000.bin", "<u2").astype(np.int64)
    nats = text_nats = 0.0
    text_bytes = 0
    for begin in range(0, len(tokens) - 1, 32):
        window = torch.tensor(tokens[begin : begin + 33])
        log_p = model(window[None, :-1]).logits.log_softmax(-1)[0]
        for row, target in zip(log_p, window[1:], strict=True):
            nats -= row[target].item()
            if target.item() not in tokenizer.all_special_ids:
                text_nats -= row[target].item()
    text_bytes = len(tokenizer.decode(tokens[1:], skip_special_tokens=True).encode())
    last = [line for line in records(run) if "eval_loss" in line][-1]
    assert last["eval_tokens"] == len(tokens) - 1
    assert last["eval_loss"] == pytest.approx(nats / (len(tokens) - 1), abs=2e-5)
    assert last["bits_per_byte"] == pytest.approx(text_nats / np.log(2) / text_bytes, abs=2e-4)


def test_train_takes_the_written_config_as_it_is(run, tmp_path):
    done = sconce_here(
        "train", "--config", run / "training.toml", "--run-dir", tmp_path / "again", "--backend", "cpu", *overrides()
    )
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "again", 30) == weights(run, 30)  # the same seed: the same run, bit for bit


def test_stop_at_saves_and_the_schedule_keeps_its_horizon(run, tmp_path):
    command = (
        "train",
        "--config",
        run / "training.toml",
        "--run-dir",
        tmp_path / "parts",
        "--backend",
        "cpu",
        "--resume",
        *overrides(),
    )
    first = sconce_here(*command, "--stop-at", 13)
    assert first.returncode == 0, first.stderr
    assert "stopped at step 13 of 30" in first.stdout
    assert checkpoints(tmp_path / "parts")[-1] == "step-00000013"
    assert sconce_here(*command).returncode == 0
    assert weights(tmp_path / "parts", 30) == weights(run, 30)
    assert [line["lr"] for line in records(tmp_path / "parts") if "lr" in line] == [
        line["lr"] for line in records(run) if "lr" in line
    ]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stop_signal_finishes_the_step_saves_and_says_how_to_go_on(run, tmp_path, number, exit_code):
    command = (
        "train",
        "--config",
        run / "training.toml",
        "--run-dir",
        tmp_path / "parts",
        "--backend",
        "cpu",
        *overrides("scheduler.total_steps=3000", "runtime.checkpoint.every_n_steps=3000"),
    )
    process = start(*command)
    while "step      5" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == exit_code, err
    assert f"by {number.name}; saved" in out
    assert "--resume" in out
    kept = checkpoints(tmp_path / "parts")
    assert len(kept) >= 1
    step = int(kept[-1].removeprefix("step-"))
    assert f"stopped at step {step} of 3000" in out
    assert sconce_here(*command, "--resume", "--stop-at", step + 1).returncode == 0


def test_a_signal_during_the_last_save_does_not_lose_it(run, tmp_path):
    """Signals from the first update on, so that one of them meets the save at --stop-at."""
    command = (
        "train",
        "--config",
        run / "training.toml",
        "--run-dir",
        tmp_path / "parts",
        "--backend",
        "cpu",
        *overrides("runtime.checkpoint.every_n_steps=3000", "runtime.checkpoint.save_best=false"),
    )
    process = start(*command, "--stop-at", 25)
    while "step     25" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM), err  # it may have been over already
    assert checkpoints(tmp_path / "parts")[-1] == "step-00000025"


@pytest.mark.parametrize(
    "override", ["scheduler.strategy=constant", "optimizer.learning_rate=5e-5", "model.num_attention_heads=4"]
)
def test_the_preset_follows_an_override(tmp_path, override):
    done = sconce_here(
        "orchestrate",
        "--run-dir",
        tmp_path / "run",
        "--backend",
        "cpu",
        "--override",
        override,
        "--override",
        "scheduler.total_steps=2",
        "--override",
        "model.num_layers=1",
    )
    assert done.returncode == 0, done.stderr


def test_resumed_metrics_have_every_step_once(run, tmp_path):
    """A kill after the last checkpoint leaves figures of steps that are trained again."""
    command = (
        "train",
        "--config",
        run / "training.toml",
        "--run-dir",
        tmp_path / "parts",
        "--backend",
        "cpu",
        *overrides("runtime.log_every_n_steps=1", "scheduler.total_steps=400"),
    )
    process = start(*command)
    while "step     25" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.kill()
    process.communicate()
    done = sconce_here(*command, "--resume", "--stop-at", 40)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in records(tmp_path / "parts") if "loss" in line] == list(range(1, 41))


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_other_forms_of_output(run, tmp_path, flag):
    done = sconce_here(
        "train",
        "--config",
        run / "training.toml",
        "--run-dir",
        tmp_path / "out",
        "--backend",
        "cpu",
        flag,
        *overrides(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if flag == "--quiet":
        assert done.stdout == ""
        return
    events = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 5, 10, 15, 20, 25, 30]
    assert steps[0]["loss"] == pytest.approx(np.log(300), abs=0.05)
    assert any(event["event"] == "evaluation" and "bits_per_byte" in event for event in events)


def test_a_run_folder_can_move(run, tmp_path):
    moved = Path(shutil.copytree(run, tmp_path / "elsewhere" / "run"))
    done = sconce_here(
        "train",
        "--config",
        moved / "training.toml",
        "--run-dir",
        moved,
        "--backend",
        "cpu",
        "--resume",
        *overrides("scheduler.total_steps=32"),
    )
    assert done.returncode == 0, done.stderr
    assert checkpoints(moved)[-1] == "step-00000032"


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both mlx and torch")
def test_a_run_goes_on_in_the_other_backend(run, tmp_path):
    command = ("train", "--config", run / "training.toml", "--run-dir", tmp_path / "moves", "--resume", *overrides())
    assert sconce_here(*command, "--backend", "mlx", "--stop-at", 15).returncode == 0
    done = sconce_here(*command, "--backend", "cpu")
    assert done.returncode == 0, done.stderr
    assert "written by mlx" in done.stdout
    whole = load_file(run / "checkpoints/step-00000030/model.safetensors")
    moved = load_file(tmp_path / "moves/checkpoints/step-00000030/model.safetensors")
    for name, array in whole.items():
        np.testing.assert_allclose(moved[name], array, atol=2e-4, err_msg=name)


def test_default_corpus_is_pythons_own_reference(tmp_path):
    done = sconce_here(
        "orchestrate",
        "--run-dir",
        tmp_path / "run",
        "--backend",
        "cpu",
        *overrides("scheduler.total_steps=3", "scheduler.warmup_steps=0"),
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run/corpus/python-language-reference.txt").read_text()
    assert 'The "if" statement is used for conditional execution' in text
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))


def test_generate_is_deterministic_and_continues_the_prompt(run):
    one, two = (
        sconce_here("generate", run, "--prompt", "The quick", "--max-tokens", 10, "--seed", 3, "--backend", "cpu")
        for _ in range(2)
    )
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert one.stdout.startswith("The quick")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom sconce_cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "print('LOADED', [m for m in ('mlx', 'torch', 'numpy', 'pydantic', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.search(r"LOADED \[\]", out), out
