"""Losses and gradients that are no numbers: skipped once, and in the end a stop that leaves something to go on from."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from commands import checkpoints, records, weights
from in_process import train

from sconce.backend import LossScale
from sconce.checkpoint.load import open_checkpoint
from sconce.errors import CheckpointError, TrainingError
from sconce.training import run as run_module

PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.slow), "mixed", "fp16"]
LONG = "scheduler.total_steps=60"


def spoil(monkeypatch, backend, steps, loss=float("nan"), grad_norm=float("nan")):
    """Let the updates of these numbers, counted from 1, report such figures; what they did stands."""
    make = backend.learner

    class Spoiled:
        def __init__(self, pending):
            self.pending, self.ready = pending, pending.ready

        def read(self):
            return replace(self.pending.read(), loss=loss, grad_norm=grad_norm)

    def learner(*arguments):
        made = make(*arguments)
        step = made.step

        def spoiled(batches, scalars):
            pending = step(batches, scalars)
            return Spoiled(pending) if scalars.step + 1 in steps else pending

        made.step = spoiled
        return made

    monkeypatch.setattr(backend, "learner", learner, raising=False)
    monkeypatch.setattr(run_module, "load_backend", lambda hardware: backend)


def overflow(monkeypatch, backend, step):
    """Let weights become so large, before the update of this number, that activations overflow from there on."""
    make = backend.learner

    def learner(*arguments):
        made = make(*arguments)
        update = made.step

        def overflowing(batches, scalars):
            if scalars.step + 1 == step:
                state = {name: array.copy() for name, array in made.tensors()}
                state["model/model.norm.weight"][:] = 3e38
                made.load(state, scalars.step, made.loss_scale())
            return update(batches, scalars)

        made.step = overflowing
        return made

    monkeypatch.setattr(backend, "learner", learner, raising=False)
    monkeypatch.setattr(run_module, "load_backend", lambda hardware: backend)


def kept_apart(root):
    return sorted((root / "checkpoints").glob("diverged-*"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_that_diverged_stops_and_goes_on_from_before(prepared, tmp_path, backend, precision, monkeypatch):
    options = (f"runtime.precision={precision}", LONG, "data.batch_size=2")
    overflow(monkeypatch, backend, 6)
    with pytest.raises(TrainingError) as caught:
        train(prepared, tmp_path / "a", backend, *options, resume=False)
    monkeypatch.undo()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    last = 5 + (25 if precision == "fp16" else 3)
    assert re.match(rf"step {last}: loss nan, gradient norm nan, on rows \d+, \d+: training diverged;", message)
    assert "the last checkpoint is of step 4, and" in message
    assert ("bf16" in message) == (precision == "fp16")
    (apart,) = kept_apart(tmp_path / "a")
    assert str(apart) in message
    assert checkpoints(tmp_path / "a")[-1] == "step-00000004"
    saved = open_checkpoint(apart).record
    assert saved.step >= last
    assert saved.loss_scale == (LossScale(1.0, 0) if precision == "fp16" else None)
    json.loads((apart / "manifest.json").read_text(), parse_constant=pytest.fail)  # which NaN is not
    train(prepared, tmp_path / "a", backend, *options, resume=True, stop_at=8)
    train(prepared, tmp_path / "b", backend, *options, resume=False, stop_at=8)
    assert weights(tmp_path / "a", 8) == weights(tmp_path / "b", 8)


def test_a_loss_without_a_gradient_is_nothing_to_go_on_from(prepared, tmp_path, backend):
    """At so high a rate the squares of activations overflow, and norms make zeros of them: the loss looks sound."""
    train(prepared, tmp_path / "a", backend, resume=False, stop_at=4)
    with pytest.raises(TrainingError, match=r"step 8: loss \d+\.\d+, gradient norm nan.* is of step 4, and the state"):
        train(prepared, tmp_path / "a", backend, "optimizer.learning_rate=1e30", LONG, resume=True)
    assert len(kept_apart(tmp_path / "a")) == 1
    train(prepared, tmp_path / "a", backend, resume=True)
    assert checkpoints(tmp_path / "a")[-1] == "step-00000008"


def test_the_state_that_diverged_is_taken_up_only_where_it_gives_a_loss(prepared, tmp_path, backend, monkeypatch):
    overflow(monkeypatch, backend, 6)
    with pytest.raises(TrainingError):
        train(prepared, tmp_path / "a", backend, LONG, resume=False)
    monkeypatch.undo()
    (apart,) = kept_apart(tmp_path / "a")
    apart.rename(apart.with_name(apart.name.removeprefix("diverged-")))
    with pytest.raises(CheckpointError, match="gives no loss, as when it was saved"):
        train(prepared, tmp_path / "a", backend, LONG, resume=True)
    monkeypatch.setattr(run_module, "load_backend", lambda hardware: backend)
    monkeypatch.setattr("sconce.training.certificate.Witness.losses", lambda *_: (2.5, np.full(8, 2.5)))
    reporter = train(prepared, tmp_path / "a", backend, LONG, resume=True, stop_at=9)
    assert "when it was saved, it gave no loss; in fp32 it gives 2.5" in reporter.text


def test_nothing_saved_yet_means_starting_anew(prepared, tmp_path, backend, monkeypatch):
    with monkeypatch.context() as patch:
        overflow(patch, backend, 1)
        with pytest.raises(TrainingError, match="nothing was saved yet, and the state it is in now is kept in"):
            train(prepared, tmp_path / "a", backend, resume=False)
    reporter = train(prepared, tmp_path / "a", backend, resume=True)
    assert "starting at step 0" in reporter.text
    assert checkpoints(tmp_path / "a")[-1] == "step-00000008"


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
def test_a_batch_or_two_without_a_loss_are_gone_on_behind(prepared, tmp_path, backend, monkeypatch, precision):
    options = (f"runtime.precision={precision}", "runtime.log_every_n_steps=1")
    spoil(monkeypatch, backend, {2, 3, 5, 7})
    train(prepared, tmp_path / "a", backend, *options, resume=False)
    assert [line.get("skipped", 0) for line in records(tmp_path / "a") if "lr" in line] == [0, 1, 2, 2, 3, 3, 4, 4]
    assert checkpoints(tmp_path / "a")[-1] == "step-00000008"


@pytest.mark.parametrize("loss", [2.0, float("nan")])
def test_fp16_goes_on_after_few_and_stops_after_25_in_a_row(prepared, tmp_path, backend, monkeypatch, loss):
    options = ("runtime.precision=fp16", LONG, "runtime.log_every_n_steps=1")
    with monkeypatch.context() as patch:
        spoil(patch, backend, {*range(2, 26), *range(27, 33)}, loss=loss)
        train(prepared, tmp_path / "a", backend, *options, resume=False, stop_at=33)
    skipped = [line.get("skipped", 0) for line in records(tmp_path / "a") if "lr" in line]
    assert skipped == [0, *range(1, 25), 24, *range(25, 31), 30]
    spoil(monkeypatch, backend, range(2, 27), loss=loss)
    with pytest.raises(TrainingError, match=rf"step 26: loss {loss}, gradient norm nan"):
        train(prepared, tmp_path / "b", backend, *options, resume=False)
    assert checkpoints(tmp_path / "b")[-1] > "step-00000025"
