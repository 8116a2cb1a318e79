"""A device that is too small: smaller micro-batches, the same update, and nothing lost where even one is too large."""

import json
import re
import weakref

import pytest
from commands import checkpoints, records, weights
from in_process import train
from tiny import mlx_only

from sconce.backend import Batch
from sconce.errors import OutOfMemoryError
from sconce.training import run as run_module


def error_of(backend):
    """What each framework says when it cannot allocate."""
    if backend.name == "mlx":
        return RuntimeError("[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum allowed")
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99.00 GiB\nmore")


def change_learners(monkeypatch, backend, change):
    """Let every learner that a run makes from now on go through `change`."""
    make = backend.learner

    def learner(*arguments):
        made = make(*arguments)
        change(made)
        return made

    monkeypatch.setattr(backend, "learner", learner, raising=False)
    monkeypatch.setattr(run_module, "load_backend", lambda hardware: backend)


def limit_memory(monkeypatch, backend, largest, from_step):
    """Make `backend`'s learners fail on more than `largest` rows from an update on, as if the memory were full."""
    hook = "_nats_and_grads" if backend.name == "mlx" else "_summed_nats"
    updates = {"begun": -1}

    def change(made):
        compute, step = getattr(made, hook), made.step

        def begin(batches, scalars):
            updates["begun"] = scalars.step
            return step(batches, scalars)

        def limited(first, *rest):  # a batch or its tokens
            rows = len(first.inputs) if isinstance(first, Batch) else len(first)
            if updates["begun"] >= from_step and rows > largest:
                raise error_of(backend)
            return compute(first, *rest)

        setattr(made, hook, limited)
        made.step = begin

    change_learners(monkeypatch, backend, change)


def micro_batch_of(root, step):
    return json.loads((root / f"checkpoints/step-{step:08d}/run.json").read_text())["data"]["micro_batch_size"]


def test_it_goes_on_with_smaller_micro_batches(prepared, tmp_path, backend, monkeypatch):
    """From the update that failed on, it is the run that had the smaller micro-batch, bit for bit."""
    train(prepared, tmp_path / "a", backend, resume=False, stop_at=5)
    train(prepared, tmp_path / "a", backend, "data.micro_batch_size=3", resume=True)
    limit_memory(monkeypatch, backend, largest=3, from_step=5)
    reporter = train(prepared, tmp_path / "b", backend, resume=False)
    assert reporter.text.count("out of memory") == 1
    assert "step 6: out of memory with 6 sequences at a time; going on with 3" in reporter.text
    assert weights(tmp_path / "a", 8) == weights(tmp_path / "b", 8)
    assert (micro_batch_of(tmp_path / "b", 4), micro_batch_of(tmp_path / "b", 8)) == (6, 3)
    rows = [[line["rows_sha256"] for line in records(tmp_path / run) if "loss" in line] for run in "ab"]
    assert rows[0][-1] == rows[1][-1]


def test_a_resumed_run_keeps_the_smaller_micro_batch(prepared, tmp_path, backend, monkeypatch):
    limit_memory(monkeypatch, backend, largest=3, from_step=2)
    train(prepared, tmp_path / "a", backend, resume=False)
    train(prepared, tmp_path / "b", backend, resume=False, stop_at=6)
    monkeypatch.undo()
    reporter = train(prepared, tmp_path / "b", backend, resume=True)
    assert "micro-batch: 3 of 6 sequences at a time, as before" in reporter.text
    assert weights(tmp_path / "a", 8) == weights(tmp_path / "b", 8)


def test_another_attention_by_the_environment_chooses_the_micro_batch_anew(prepared, tmp_path, backend, monkeypatch):
    """ATTN_BACKEND is in no config, and attention in full needs more memory."""
    with monkeypatch.context() as patch:
        limit_memory(patch, backend, largest=3, from_step=2)
        train(prepared, tmp_path / "a", backend, resume=False, stop_at=4)
    monkeypatch.setattr(run_module, "load_backend", lambda hardware: backend)
    monkeypatch.setenv("ATTN_BACKEND", "reference")
    assert (
        "6 of 6 sequences at a time, the most that fits"
        in train(prepared, tmp_path / "a", backend, resume=True, stop_at=6).text
    )
    assert (
        "6 of 6 sequences at a time, as before" in train(prepared, tmp_path / "a", backend, resume=True, stop_at=7).text
    )
    monkeypatch.delenv("ATTN_BACKEND")
    assert "the most that fits" in train(prepared, tmp_path / "a", backend, resume=True).text


def test_one_sequence_too_many_saves_and_says_what_to_change(prepared, tmp_path, backend, monkeypatch):
    limit_memory(monkeypatch, backend, largest=0, from_step=5)
    with pytest.raises(OutOfMemoryError) as caught:
        train(prepared, tmp_path / "a", backend, resume=False)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in (
        "step 6",
        "1 sequence",
        "step 5 is saved",
        "activation_checkpointing",
        "loss_chunk",
        "sequence_length",
    ):
        assert part in message
    assert caught.value.exit_code == 1
    assert checkpoints(tmp_path / "a")[-1] == "step-00000005"
    monkeypatch.undo()
    train(prepared, tmp_path / "a", backend, "runtime.activation_checkpointing=block", resume=True)
    assert checkpoints(tmp_path / "a")[-1] == "step-00000008"


def test_rows_that_grew_in_a_stage_are_what_to_change(prepared, tmp_path, backend, monkeypatch):
    stages = ("data.sequence_length=16", 'data.stages=[{"from_step": 4, "sequence_length": 32}]')
    for from_step, advice in (
        (2, "begin a run with a shorter data.sequence_length or"),
        (5, "begin a run with shorter rows in data.stages (32 long from step 5 on) or"),
    ):
        with monkeypatch.context() as patch:
            limit_memory(patch, backend, largest=0, from_step=from_step)
            with pytest.raises(OutOfMemoryError, match=re.escape(advice)):
                train(prepared, tmp_path / str(from_step), backend, *stages, resume=False)


LOST = "[METAL] Command buffer execution failed: Insufficient Memory (00000008)"


class Lost:
    """The loss of an update that the device could not finish, which shows only when it is read."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError(LOST)


def lose_updates(monkeypatch, backend, largest, from_step):
    """Make updates of more than `largest` rows at a time fail unseen: half applied, or in MLX when they are read."""

    def change(made):
        step = made.step

        def lossy(batches, scalars):
            pending = step(batches, scalars)
            if scalars.step >= from_step and len(batches[0].inputs) > largest:
                made.load({name: array + 1 for name, array in made.tensors()}, scalars.step)
                if backend.name != "mlx":
                    raise OutOfMemoryError("full", intact=False)
                pending.loss = Lost()
            return pending

        made.step = lossy

    change_learners(monkeypatch, backend, change)


@pytest.mark.parametrize(("from_step", "back_to"), [(0, 0), (6, 4)])
def test_a_lost_update_is_made_again_from_the_last_sound_state(
    prepared, tmp_path, backend, monkeypatch, from_step, back_to
):
    """It becomes the run that was resumed there with the smaller micro-batch, bit for bit, metrics included."""
    if back_to:
        train(prepared, tmp_path / "a", backend, resume=False, stop_at=back_to)
    train(prepared, tmp_path / "a", backend, "data.micro_batch_size=3", resume=bool(back_to))
    lose_updates(monkeypatch, backend, largest=3, from_step=from_step)
    reporter = train(prepared, tmp_path / "b", backend, resume=False)
    assert reporter.text.count("out of memory") == 1
    reason = LOST if backend.name == "mlx" else "full"
    assert f"({reason}); going on from step {back_to} with 3, and with as many an update as before" in reporter.text
    assert weights(tmp_path / "a", 8) == weights(tmp_path / "b", 8)
    kept = [[(line["step"], line.get("loss")) for line in records(tmp_path / run)] for run in "ab"]
    assert kept[0] == kept[1]


def test_where_nothing_is_smaller_a_lost_update_is_not_saved(prepared, tmp_path, backend, monkeypatch):
    train(prepared, tmp_path / "a", backend, resume=False, stop_at=5)
    lose_updates(monkeypatch, backend, largest=0, from_step=5)
    with pytest.raises(OutOfMemoryError, match=r"with 1 sequence\(s\) .* the last checkpoint is of step 5"):
        train(prepared, tmp_path / "a", backend, resume=True)
    assert checkpoints(tmp_path / "a")[-1] == "step-00000005"


@mlx_only
def test_a_device_that_says_it_late_is_believed_only_where_it_was_waited_for(monkeypatch):
    """As Metal: an error may be of an earlier call, whose arrays are garbage; but in the first step of a shape."""
    from tiny import make_spec, random_batch, random_weights

    from sconce.backend import ComputeOptions, StepScalars, load_backend
    from sconce.optim import OptimSpec
    from sconce_mlx import learner as learning
    from sconce_mlx import memory

    backend, spec = load_backend("mlx"), make_spec()
    waited = []
    synchronize = memory.mx.synchronize
    monkeypatch.setattr(memory.mx, "synchronize", lambda: waited.append(synchronize()))
    for module in (learning, memory):
        monkeypatch.setattr(module, "AT_ONCE", False)
    learner = backend.learner(spec, OptimSpec(), ComputeOptions(), random_weights(spec))
    small, large = random_batch(spec, rows=2), random_batch(spec, rows=4)
    for step in range(2):
        learner.step([small], StepScalars(step, 1e-3, seed=0)).read()
        assert len(waited) == 2, "before the first step and before its update, and never again"

    def full(*_):
        raise error_of(backend)

    monkeypatch.setattr(learner, "_nats_and_grads", full)
    for batch, intact in ((small, False), (large, True)):
        with pytest.raises(OutOfMemoryError) as caught:
            learner.step([batch], StepScalars(1, 1e-3, seed=0))
        assert caught.value.intact is intact


@mlx_only
@pytest.mark.parametrize("reason", ["Insufficient Memory (00000008)", "Caused GPU Timeout Error (00000002)"])
def test_what_metal_says_of_a_command_that_is_too_large(reason):
    from sconce_mlx.memory import out_of_memory

    said = f"[METAL] Command buffer execution failed: {reason}"
    with pytest.raises(OutOfMemoryError, match=re.escape(said)), out_of_memory(intact=False):
        raise RuntimeError(said)


class Held:
    """Stands for an array in a frame of the framework's caller."""


@pytest.mark.parametrize("in_place_of", [None, ValueError])
def test_what_the_failed_computation_held_is_free_at_once(backend, in_place_of):
    """While the error is on its way: what is done about it may need the memory. A compiler wraps it, for one."""
    from importlib import import_module

    out_of_memory = import_module(f"sconce_{backend.name}.memory").out_of_memory
    alive = []

    def compute():
        held = Held()
        alive.append(weakref.ref(held))
        raise in_place_of() if in_place_of else error_of(backend)

    try:
        with out_of_memory(intact=True):
            try:
                compute()
            except ValueError:
                raise error_of(backend) from None
    except OutOfMemoryError:
        assert alive[0]() is None
    else:
        pytest.fail("it must raise")


def test_a_run_goes_on_without_the_sample_that_found_no_memory(prepared, tmp_path, backend, monkeypatch):
    def change(made):
        decoder = made.decoder

        def full(rows, max_len):
            made_for = decoder(rows, max_len)

            def forward(*_):
                raise error_of(backend)

            made_for._forward = forward
            return made_for

        made.decoder = full

    change_learners(monkeypatch, backend, change)
    reporter = train(prepared, tmp_path / "a", backend, "runtime.sample.every_n_steps=2", resume=False, stop_at=4)
    assert [line.split(":")[0] for line in reporter.lines if "no sample" in line] == ["step 2", "step 4"]
    assert checkpoints(tmp_path / "a")[-1] == "step-00000004"
    assert not list((tmp_path / "a").glob("samples/*"))


def test_other_errors_of_the_framework_stay_what_they_are(backend, monkeypatch):
    from tiny import make_spec, random_batch, random_weights

    from sconce.backend import ComputeOptions, StepScalars
    from sconce.optim import OptimSpec

    spec = make_spec()
    learner = backend.learner(spec, OptimSpec(), ComputeOptions(), random_weights(spec))

    def broken(*_):
        raise RuntimeError("shapes do not match")

    setattr(learner, "_nats_and_grads" if backend.name == "mlx" else "_summed_nats", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        learner.step([random_batch(spec)], StepScalars(0, 1e-3, seed=0))


def test_a_limited_evaluation_scores_the_same_text_whatever_the_micro_batch(prepared, tmp_path, backend):
    limited = ("runtime.evaluation.max_batches=1", "runtime.evaluation.every_n_steps=2")
    found = []
    for size in (6, 2):
        root = tmp_path / str(size)
        train(prepared, root, backend, *limited, f"data.micro_batch_size={size}", resume=False, stop_at=2)
        found += [line for line in records(root) if "eval_loss" in line]
    assert [line["eval_tokens"] for line in found] == [6 * 32, 6 * 32]
    assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], abs=1e-4)
