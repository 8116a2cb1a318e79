"""A run that moves between MLX and PyTorch, with all it may change on the way, against the run that never moves."""

import numpy as np
import pytest
from commands import SMALL, overrides, records, write_corpus
from commands import sconce_here as sconce
from tiny import INSTALLED

pytestmark = pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both mlx and torch: pip install 'mlx[cpu]' torch")

MORE = ("model.attn_dropout=0.1", "model.residual_dropout=0.1", "runtime.log_every_n_steps=1")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config with a tokenizer, and a cache of token shards for all runs of this module."""
    home = tmp_path_factory.mktemp("moves")
    text = write_corpus(home / "corpus.txt")
    made = sconce("tokenizer", "train", "--input", text, "--out", home / "tokenizer", "--vocab-size", 300)
    assert made.returncode == 0, made.stderr
    path = home / "run.toml"
    path.write_text(
        f'tokenizer.tokenizer_json = "{home}/tokenizer/tokenizer.json"\n'
        f'data.train_shards = ["{text}"]\ndata.cache_dir = "{home}/cache"\n'
    )
    return path


def train(config, folder, backend, *more, optimizer="adam_w", rate="1e-3"):
    extra = (*MORE, f"optimizer.algorithm={optimizer}", f"optimizer.learning_rate={rate}")
    options = [word for word in more if str(word).startswith("--") or not isinstance(word, str)]
    changed = [word for word in more if word not in options]
    command = ("train", "-c", config, "--run-dir", folder, "--resume", "--backend", backend)
    done = sconce(*command, *options, *overrides(*extra, *changed))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("rate", ["3e-4", "1e-3"])
@pytest.mark.parametrize("optimizer", ["adam_w", "muon"])
@pytest.mark.parametrize(("first", "second"), [("mlx", "cpu"), ("cpu", "mlx")], ids=["mlx first", "torch first"])
def test_there_and_back(config, tmp_path, first, second, optimizer, rate):
    chosen = {"optimizer": optimizer, "rate": rate}
    train(config, tmp_path / "whole", first, **chosen)
    moved = tmp_path / "moved"
    train(config, moved, first, "--stop-at", 12, **chosen)
    said = train(config, moved, second, "--stop-at", 21, "data.micro_batch_size=2", **chosen)
    names = {"mlx": "mlx", "cpu": "torch"}
    assert f"written by {names[first]} on cpu, going on with {names[second]} on cpu" in said
    assert "certificate: the next micro-batch has the loss it had" in said
    train(config, moved, first, **chosen)
    whole, other = records(tmp_path / "whole"), records(moved)
    assert [line["step"] for line in other if "loss" in line] == list(range(1, 31))
    for a, b in zip(whole, other, strict=True):
        assert a.get("rows_sha256") == b.get("rows_sha256")
        for key in ("loss", "eval_loss"):
            assert a.get(key) == pytest.approx(b.get(key), abs=5e-5), a["step"]


@pytest.mark.parametrize(("there", "here"), [("cpu", "mlx"), ("mlx", "cpu")])
def test_bf16_moves_within_its_own_drift(config, tmp_path, there, here):
    """A move changes the losses less than training in bf16 instead of fp32 does."""
    losses = {}
    for name, precision in (("fp32", "fp32"), ("whole", "bf16")):
        train(config, tmp_path / name, there, f"runtime.precision={precision}")
        losses[name] = losses_of(tmp_path / name)
    train(config, tmp_path / "moved", there, "--stop-at", 12, "runtime.precision=bf16")
    train(config, tmp_path / "moved", here, "runtime.precision=bf16")
    moved = np.abs(losses["whole"] - losses_of(tmp_path / "moved"))
    drift = np.abs(losses["whole"] - losses["fp32"])
    assert not moved[:12].any()
    assert 0 < moved.max() <= drift.max()


def losses_of(run):
    return np.array([line["loss"] for line in records(run) if "loss" in line])


def test_precision_may_change_on_the_way(config, tmp_path):
    train(config, tmp_path, "cpu", "--stop-at", 12, "runtime.precision=bf16")
    said = train(config, tmp_path, "mlx", "--stop-at", 15)
    assert "changed: runtime.precision from " in said
    assert "certificate: the next micro-batch has the loss it had" in said


def test_the_global_batch_may_not_change(config, tmp_path):
    train(config, tmp_path, "cpu", "--stop-at", 12)
    done = sconce("train", "-c", config, "--run-dir", tmp_path, "--resume", *overrides(*MORE, "data.batch_size=8"))
    assert done.returncode == 2
    assert "data.batch_size: 4 in the checkpoint, 8 now" in done.stderr


def test_small_config_is_what_the_legs_assume():
    assert "scheduler.total_steps=30" in SMALL
    assert "data.batch_size=4" in SMALL
