"""Ways to compute the same thing: every option of ComputeOptions gives the plain step's numbers."""

import importlib

import numpy as np
import pytest
import reference
from tiny import make_spec, random_batch, random_weights, torch_only

from sconce.backend import INITIAL_LOSS_SCALE, LOSS_SCALE_INTERVAL, ComputeOptions, LossScale, StepScalars, load_backend
from sconce.data.batches import Batch
from sconce.optim import OptimSpec

LR = 1e-2
SPEC = {"num_layers": 4, "num_kv_heads": 2, "qk_norm": True, "tie_word_embeddings": False}


def after_steps(backend, spec, steps=3, batches=None, **run):
    """The losses of a few steps and the state they leave."""
    learner = backend.learner(spec, OptimSpec(), ComputeOptions(**run), random_weights(spec))
    given = batches or [random_batch(spec, rows=3, seed=step) for step in range(steps)]
    losses = [learner.step([batch], StepScalars(i, LR, seed=0)).read().loss for i, batch in enumerate(given)]
    return losses, {name: array.copy() for name, array in learner.tensors()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_activations_give_bit_equal_updates(backend, every, dropout, precision):
    spec = make_spec(**SPEC, residual_dropout=dropout, attn_dropout=dropout)
    losses, state = after_steps(backend, spec, precision=precision)
    again, other = after_steps(backend, spec, recompute_every=every, precision=precision)
    assert losses == again
    for name, array in state.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def assert_close(backend, spec, plain, other, batches=None):
    """The same losses and gradients (through the first moments) but for float32 rounding."""
    losses, state = after_steps(backend, spec, 1, batches, **plain)
    again, moved = after_steps(backend, spec, 1, batches, **other)
    np.testing.assert_allclose(again, losses, atol=2e-6)
    for name, array in state.items():
        if name.startswith("adam_m/"):
            limit = 1e-5 * np.abs(array).max() + 1e-9
            np.testing.assert_allclose(moved[name], array, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 16, 47, 48, 1000])
def test_chunked_loss(backend, chunk, tied):
    spec = make_spec(**{**SPEC, "tie_word_embeddings": tied})
    assert_close(backend, spec, {}, {"loss_chunk": chunk})
    batch = random_batch(spec, rows=3)
    plain, chunked = (
        backend.learner(spec, OptimSpec(), ComputeOptions(loss_chunk=size), random_weights(spec)).nats(batch)
        for size in (None, chunk)
    )
    np.testing.assert_allclose(chunked, plain, atol=2e-6)


@pytest.mark.parametrize("window", [None, 5])
def test_reference_attention_equals_the_fused(backend, window):
    spec = make_spec(**SPEC, sliding_window=window)
    assert_close(backend, spec, {"attention": "fused"}, {"attention": "reference"})


def segmented(spec, seed=0):
    """Rows of two or three documents each."""
    batch = random_batch(spec, rows=3, seed=seed)
    cuts = np.array([[4, 9], [7, 16], [1, 13]])
    segments = (np.arange(16)[None, :] >= cuts[:, :1]).astype(np.int32) + (np.arange(16)[None, :] >= cuts[:, 1:])
    return batch._replace(segments=segments.astype(np.int32))


@pytest.mark.parametrize("window", [None, 5])
def test_segments_keep_documents_apart(backend, window):
    spec = make_spec(**SPEC, sliding_window=window)
    batch, weights = segmented(spec), random_weights(spec)
    learner = backend.learner(spec, OptimSpec(), ComputeOptions(), weights)
    expected = reference.logits(spec, weights, batch.inputs, segments=batch.segments)
    np.testing.assert_allclose(learner.nats(batch), reference.token_nats(expected, batch.targets), atol=2e-5)
    # A document alone, from position 0, has the same losses: rotary embedding knows distances only.
    alone = Batch(batch.inputs[:1, 4:9], batch.targets[:1, 4:9])
    np.testing.assert_allclose(learner.nats(alone), learner.nats(batch)[:1, 4:9], atol=2e-5)
    assert_close(backend, spec, {"attention": "fused"}, {"attention": "reference"}, [batch])


def in_short_blocks(backend, monkeypatch, recomputed_from=100):
    """Both backends' way with long sequences, here from a length of 8 on, in uneven blocks of 6."""
    attention = importlib.import_module(f"sconce_{backend.name}.attention")
    model = importlib.import_module(f"sconce_{backend.name}.model")
    if backend.name == "mlx":
        monkeypatch.setattr(attention, "BLOCK", 6)
        monkeypatch.setattr(attention, "RECOMPUTED_FROM", recomputed_from)
        monkeypatch.setattr(model, "BLOCKED_FROM", 8)
    else:
        monkeypatch.setattr(model, "BLOCK", 6)


@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("recomputed_from", [8, 100])
def test_attention_in_blocks_equals_the_reference(backend, monkeypatch, window, segments, recomputed_from):
    if backend.name != "mlx" and recomputed_from == 8:
        pytest.skip("PyTorch's kernels keep no scores")
    in_short_blocks(backend, monkeypatch, recomputed_from)
    spec = make_spec(**SPEC, sliding_window=window)
    batch = segmented(spec) if segments else random_batch(spec, rows=3)
    weights = random_weights(spec)
    nats = backend.learner(spec, OptimSpec(), ComputeOptions(), weights).nats(batch)
    expected = reference.logits(spec, weights, batch.inputs, segments=batch.segments)
    np.testing.assert_allclose(nats, reference.token_nats(expected, batch.targets), atol=2e-5)
    assert_close(backend, spec, {"attention": "auto"}, {"attention": "reference"}, [batch])
    losses, state = after_steps(backend, spec, 1, [batch])
    again, other = after_steps(backend, spec, 1, [batch], recompute_every=1)
    assert losses == again
    for name, array in state.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("recomputed_from", [8, 100])
def test_attention_in_blocks_is_the_same_compiled(backend, monkeypatch, window, recomputed_from):
    """What a Mac runs from 256 tokens on; PyTorch for long rows of documents or under a window."""
    if backend.name != "mlx" and recomputed_from == 8:
        pytest.skip("PyTorch's kernels keep no scores")
    in_short_blocks(backend, monkeypatch, recomputed_from)
    spec = make_spec(**SPEC, sliding_window=window)
    batches = [segmented(spec, seed) for seed in range(3)]
    assert_close(backend, spec, {}, {"compile": True}, batches[:1])
    losses, _ = after_steps(backend, spec, batches=batches)
    again, _ = after_steps(backend, spec, batches=batches, compile=True)
    assert losses == pytest.approx(again, abs=1e-5)  # the third tells of two updates


def fp16(backend, spec, weights=None):
    weights = random_weights(spec, scale=0.2) if weights is None else weights
    return backend.learner(spec, OptimSpec(), ComputeOptions(precision="fp16"), weights)


def test_fp16_trains_near_fp32(backend):
    spec = make_spec()
    half = fp16(backend, spec)
    full = backend.learner(spec, OptimSpec(), ComputeOptions(), random_weights(spec, scale=0.2))
    for step in range(5):
        batch = random_batch(spec, seed=step)
        a, b = (learner.step([batch], StepScalars(step, 1e-3, seed=0)).read() for learner in (half, full))
        assert a.loss == pytest.approx(b.loss, abs=5e-3)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-2)
        assert a.loss != b.loss
    assert half.loss_scale() == LossScale(INITIAL_LOSS_SCALE.scale, 5)
    assert full.loss_scale() is None


def test_fp16_overflow_skips_and_halves(backend):
    spec = make_spec()
    learner = fp16(backend, spec)
    state = {name: array.copy() for name, array in learner.tensors()}
    learner.load(state, 0, LossScale(2.0**24, 150))
    metrics = learner.step([random_batch(spec)], StepScalars(0, LR, seed=0)).read()
    assert np.isfinite(metrics.loss)
    assert not np.isfinite(metrics.grad_norm)
    assert learner.loss_scale() == LossScale(2.0**23, 0)
    for name, array in learner.tensors():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_fp16_gradients_lose_their_scale_in_float32(backend):
    """Gradients of 1e-8 are 0 in fp16: they outlive the way back scaled, and are in float32 when the scale goes."""
    spec, batch = make_spec(), random_batch(make_spec())
    weights = random_weights(spec, scale=0.2)
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e-5
    moments = {}
    for precision in ("fp32", "fp16"):
        learner = backend.learner(spec, OptimSpec(max_grad_norm=None), ComputeOptions(precision=precision), weights)
        assert np.isfinite(learner.step([batch], StepScalars(0, LR, seed=0)).read().grad_norm)
        moments[precision] = {name: array.copy() for name, array in learner.tensors() if name.startswith("adam_m")}
    for name in (f"adam_m/model.layers.0.{part}.weight" for part in ("self_attn.v_proj", "mlp.down_proj")):
        full, half = moments["fp32"][name], moments["fp16"][name]
        assert np.abs(full / (1 - OptimSpec().beta1)).max() < 1e-6, "too large to tell"
        assert np.linalg.norm(half - full) < 0.02 * np.linalg.norm(full), name


def test_fp16_grows_after_enough_clean_updates(backend):
    spec = make_spec()
    learner = fp16(backend, spec)
    learner.load(dict(learner.tensors()), 0, LossScale(4.0, LOSS_SCALE_INTERVAL - 2))
    scales = []
    for step in range(3):
        learner.step([random_batch(spec, seed=step)], StepScalars(step, 1e-3, seed=0)).read()
        scales.append(learner.loss_scale())
    assert scales == [LossScale(4.0, LOSS_SCALE_INTERVAL - 1), LossScale(8.0, 0), LossScale(8.0, 1)]


def test_a_skipped_update_still_counts(backend):
    """Bias correction goes by the step's number, so both backends and a resumed run agree on it."""
    spec, batch = make_spec(), random_batch(make_spec())
    skipped, fresh = fp16(backend, spec), fp16(backend, spec)
    skipped.load({name: array.copy() for name, array in skipped.tensors()}, 0, LossScale(2.0**24, 0))
    assert not np.isfinite(skipped.step([batch], StepScalars(0, LR, seed=0)).read().grad_norm)
    skipped.load({name: array.copy() for name, array in skipped.tensors()}, 1, INITIAL_LOSS_SCALE)
    skipped.step([batch], StepScalars(1, LR, seed=0)).read()
    fresh.step([batch], StepScalars(1, LR, seed=0)).read()
    for (name, x), (_, y) in zip(skipped.tensors(), fresh.tensors(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@torch_only
@pytest.mark.parametrize("missing", ["no C++ compiler here", "Cannot find a working triton installation"])
def test_without_a_compiler_training_goes_on_and_says_so_once(missing, monkeypatch, caplog):
    import torch
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import TritonMissing

    def compile_later(function, **_):
        def compile_now(*_):
            if "triton" in missing:
                raise TritonMissing(None)
            raise BackendCompilerFailed(function, FileNotFoundError(missing), None)

        return compile_now

    monkeypatch.setattr(torch, "compile", compile_later)
    backend, spec = load_backend("cpu"), make_spec()
    learners = [
        backend.learner(spec, OptimSpec(), ComputeOptions(compile=on), random_weights(spec)) for on in (True, False)
    ]
    for step in range(2):
        scalars = StepScalars(step, LR, seed=0)
        a, b = (learner.step([random_batch(spec, seed=step)], scalars).read() for learner in learners)
        assert a == b
    (said,) = (record.getMessage() for record in caplog.records if record.name == "sconce")
    assert "torch.compile does not work here" in said
    assert missing in said
