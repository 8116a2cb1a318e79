"""What every backend promises, held against numpy in float64. One suite, run once a backend."""

import numpy as np
import pytest
import reference
from tiny import VARIATIONS, make_spec, mlx_only, random_batch, random_weights

from sconce.backend import ComputeOptions, StepScalars, load_backend, state_names
from sconce.data.batches import Batch
from sconce.dropout import row_keys
from sconce.errors import CheckpointError
from sconce.init import InitialWeights
from sconce.optim import OptimSpec

LR = 1e-2


def make_learner(backend, spec, weights=None, optim=None, **run):
    weights = random_weights(spec) if weights is None else weights
    return backend.learner(spec, optim or OptimSpec(), ComputeOptions(**run), weights)


def state(learner):
    return {name: array.copy() for name, array in learner.tensors()}  # they may be views of what comes next


def train(learner, spec, steps, start=0, rows=4):
    """Losses of `steps` updates on one fixed stream of batches."""
    pending = [
        learner.step([random_batch(spec, rows=rows, seed=step)], StepScalars(step, LR, seed=0))
        for step in range(start, start + steps)
    ]
    return [p.read() for p in pending]


@pytest.mark.parametrize("variation", VARIATIONS)
def test_forward_is_the_papers(backend, variation):
    spec = make_spec(**VARIATIONS[variation])
    weights, batch = random_weights(spec), random_batch(make_spec())
    expected = reference.token_nats(reference.logits(spec, weights, batch.inputs), batch.targets)
    np.testing.assert_allclose(make_learner(backend, spec, weights).nats(batch), expected, atol=2e-5)


@pytest.mark.parametrize("variation", VARIATIONS)
def test_state_has_the_names_and_shapes_of_the_spec(backend, variation):
    spec = make_spec(**VARIATIONS[variation])
    tensors = list(make_learner(backend, spec).tensors())
    assert [(name, array.shape) for name, array in tensors] == state_names(spec, OptimSpec())
    assert all(array.dtype == np.float32 for _, array in tensors)


@pytest.mark.parametrize("variation", VARIATIONS)
def test_gradient_is_that_of_the_loss(backend, variation):
    """Adam's first moment after one step is (1 - beta1) * gradient: compare it with a central difference."""
    spec = make_spec(**VARIATIONS[variation], hidden_size=16, intermediate_size=24)
    weights, batch = random_weights(spec), random_batch(spec, rows=2, seq=8)
    learner = make_learner(backend, spec, weights, OptimSpec(max_grad_norm=0))
    learner.step([batch], StepScalars(0, LR, seed=0)).read()
    moments = state(learner)
    rng = np.random.default_rng(0)

    def loss(moved):
        nats = reference.token_nats(reference.logits(spec, moved, batch.inputs), batch.targets)
        return nats.sum() / (batch.targets >= 0).sum()

    for param in spec.params():
        direction = rng.standard_normal(param.shape)
        shifted = [dict(weights, **{param.name: weights[param.name] + sign * 1e-5 * direction}) for sign in (1, -1)]
        expected = (loss(shifted[0]) - loss(shifted[1])) / 2e-5
        measured = (moments[f"adam_m/{param.name}"] / 0.1 * direction).sum()
        assert measured == pytest.approx(expected, rel=2e-3, abs=2e-6), param.name


OPTIMIZERS = {
    "adam_w": OptimSpec(beta2=0.999, max_grad_norm=0),
    "adam_w-clipped": OptimSpec(beta2=0.999, max_grad_norm=0.05),
    "adam": OptimSpec(algorithm="adam", max_grad_norm=0.05),
    "sgd": OptimSpec(algorithm="sgd", momentum=0.9),
    "lion": OptimSpec(algorithm="lion", beta2=0.99),
    "muon": OptimSpec(algorithm="muon", max_grad_norm=0.05),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update_is_the_papers(backend, optimizer):
    """Three updates on the backend's own gradients, repeated in numpy float64."""
    spec, optim = make_spec(tie_word_embeddings=False), OPTIMIZERS[optimizer]
    learner = make_learner(backend, spec, optim=optim)
    before = {name: array.astype(np.float64) for name, array in state(learner).items()}
    for step in range(3):
        lr = LR / (step + 1)
        gradient = gradients(backend, spec, before, random_batch(spec, seed=step))
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        clip = min(1.0, optim.max_grad_norm / (norm + 1e-6)) if optim.max_grad_norm else 1.0
        metrics = learner.step([random_batch(spec, seed=step)], StepScalars(step, lr, seed=0)).read()
        assert metrics.grad_norm == pytest.approx(norm, rel=1e-4)
        uncertain = {}
        for param in spec.params():
            keys = [f"{part}/{param.name}" for part in ("model", *optim.slots(param))]
            decay = optim.weight_decay if param.group in ("matrix", "head") else 0.0
            weight, *slots = (before[key] for key in keys)
            grad = gradient[param.name] * clip
            rule = "adam_w" if optim.algorithm == "muon" and param.group != "matrix" else optim.algorithm
            if rule == "lion":  # rounding decides the sign of what is zero but for rounding
                argument = optim.beta1 * slots[0] + (1 - optim.beta1) * grad
                uncertain[keys[0]] = (argument != 0) & (np.abs(argument) < 1e-6 * np.abs(argument).max())
            after = reference.RULES[rule](weight, grad, *slots, t=step + 1, lr=lr, optim=optim, decay=decay)
            before.update(zip(keys, after, strict=True))
        for key, array in state(learner).items():
            sure = ~uncertain.get(key, np.zeros(array.shape, bool))
            assert sure.mean() > 0.99, key
            # Float32 rounding of values of up to 1, three times over; Muon's five products of matrices round as well.
            np.testing.assert_allclose(array[sure], before[key][sure], atol=3e-6, err_msg=key)
            before[key] = array.astype(np.float64)


def gradients(backend, spec, tensors, batch):
    """The unclipped gradient at these weights, through a fresh learner's first moment."""
    weights = {param.name: tensors[f"model/{param.name}"].astype(np.float32) for param in spec.params()}
    probe = make_learner(backend, spec, weights, OptimSpec(max_grad_norm=0))
    probe.step([batch], StepScalars(0, LR, seed=0)).read()
    return {name: state(probe)[f"adam_m/{name}"].astype(np.float64) / 0.1 for name in weights}


DROPOUTS = {
    "residual": {"residual_dropout": 0.2},
    "attention": {"attn_dropout": 0.3, "num_kv_heads": 2},
    "both": {"attn_dropout": 0.1, "residual_dropout": 0.4, "qk_norm": True},
}


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_training_drops_what_the_hash_says(backend, dropout):
    """The loss of a step with dropout, and its gradient, are numpy's with the reference masks."""
    spec = make_spec(**DROPOUTS[dropout], hidden_size=16, intermediate_size=24)
    weights, batch = random_weights(spec), random_batch(spec, rows=3, seq=8)
    keys = row_keys(seed=11, step=7, first_row=0, count=3)

    def loss(moved):
        nats = reference.token_nats(reference.logits(spec, moved, batch.inputs, keys), batch.targets)
        return nats.sum() / (batch.targets >= 0).sum()

    learner = make_learner(backend, spec, weights, OptimSpec(max_grad_norm=0))
    undropped = learner.nats(batch).sum() / (batch.targets >= 0).sum()
    measured = learner.step([batch], StepScalars(7, LR, seed=11)).read().loss
    assert measured == pytest.approx(loss(weights), abs=2e-6)
    assert abs(measured - undropped) > 1e-3, "nothing was dropped, or evaluation drops as well"
    rng, moments = np.random.default_rng(0), state(learner)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        direction = rng.standard_normal(weights[name].shape)
        shifted = [dict(weights, **{name: weights[name] + sign * 1e-5 * direction}) for sign in (1, -1)]
        expected = (loss(shifted[0]) - loss(shifted[1])) / 2e-5
        assert (moments[f"adam_m/{name}"] / 0.1 * direction).sum() == pytest.approx(expected, rel=2e-3, abs=2e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_dropout_does_not_depend_on_the_micro_batch(backend, size):
    spec = make_spec(attn_dropout=0.2, residual_dropout=0.2)
    whole = random_batch(spec, rows=8, unscored=40)
    parts = [Batch(whole.inputs[i : i + size], whole.targets[i : i + size]) for i in range(0, 8, size)]
    one, many = make_learner(backend, spec), make_learner(backend, spec)
    scalars = StepScalars(3, LR, seed=5)
    a, b = one.step([whole], scalars).read(), many.step(parts, scalars).read()
    assert a.loss == pytest.approx(b.loss, abs=2e-6)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)


def test_dropout_changes_with_seed_and_step(backend):
    spec = make_spec(residual_dropout=0.2)
    losses = {
        make_learner(backend, spec).step([random_batch(spec)], StepScalars(step, LR, seed)).read().loss
        for step, seed in ((0, 0), (1, 0), (0, 1))
    }
    assert len(losses) == 3


def test_four_micro_batches_equal_one_batch(backend):
    """Also when they score different numbers of tokens: the mean is over the whole step's tokens."""
    spec = make_spec()
    whole = random_batch(spec, rows=8, unscored=40)
    quarters = [Batch(whole.inputs[i : i + 2], whole.targets[i : i + 2]) for i in range(0, 8, 2)]
    one, four = make_learner(backend, spec), make_learner(backend, spec)
    a, b = one.step([whole], StepScalars(0, LR, seed=0)).read(), four.step(quarters, StepScalars(0, LR, seed=0)).read()
    assert a.tokens == b.tokens == (whole.targets >= 0).sum()
    assert a.loss == pytest.approx(b.loss, abs=2e-6)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
    for (name, x), (_, y) in zip(one.tensors(), four.tensors(), strict=True):
        if name.startswith("adam_m"):
            np.testing.assert_allclose(x, y, atol=1e-7, err_msg=name)


def test_unscored_targets_do_not_count(backend):
    spec, batch = make_spec(), random_batch(make_spec(), unscored=30)
    learner = make_learner(backend, spec)
    nats = learner.nats(batch)
    assert (nats[batch.targets < 0] == 0).all()
    metrics = learner.step([batch], StepScalars(0, LR, seed=0)).read()
    assert metrics.loss == pytest.approx(nats.sum() / (batch.targets >= 0).sum(), abs=1e-5)


def test_loss_starts_at_ln_vocab_and_falls(backend):
    spec = make_spec()
    learner = make_learner(backend, spec, InitialWeights(spec, 42))
    batch = random_batch(spec)
    losses = [learner.step([batch], StepScalars(step, LR, seed=0)).read().loss for step in range(30)]
    assert losses[0] == pytest.approx(np.log(spec.vocab_size), abs=0.05)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_is_bit_equal(backend, precision, optimizer):
    spec = make_spec(num_kv_heads=2, qk_norm=True, attn_dropout=0.1, residual_dropout=0.1)
    optim = OPTIMIZERS[optimizer]
    whole = make_learner(backend, spec, optim=optim, precision=precision)
    train(whole, spec, 8)
    first = make_learner(backend, spec, optim=optim, precision=precision)
    train(first, spec, 4)
    second = make_learner(backend, spec, InitialWeights(spec, 7), optim=optim, precision=precision)
    second.load(state(first), step=4)
    train(second, spec, 4, start=4)
    for (name, x), (_, y) in zip(whole.tensors(), second.tensors(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("variation", ["default", "gqa", "qk-norm", "layernorm"])
@pytest.mark.parametrize("chunks", [[1] * 12, [12], [5, 4, 3]])
def test_decoder_equals_the_full_forward(backend, variation, chunks):
    spec = make_spec(**VARIATIONS[variation])
    weights = random_weights(spec)
    tokens = random_batch(spec, rows=3, seq=12).inputs
    expected = reference.logits(spec, weights, tokens)
    decoder = make_learner(backend, spec, weights).decoder(rows=3, max_len=16)
    start = 0
    for chunk in chunks:
        logits = decoder.feed(tokens[:, start : start + chunk])
        start += chunk
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[:, start - 1], atol=2e-5)


def test_bf16_stays_near_fp32_and_keeps_float32_state(backend):
    spec = make_spec()
    full, half = make_learner(backend, spec), make_learner(backend, spec, precision="bf16")
    a, b = train(full, spec, 5), train(half, spec, 5)
    for x, y in zip(a, b, strict=True):
        assert x.loss == pytest.approx(y.loss, abs=0.02)
        assert x.loss != y.loss  # it does compute in another precision
    small_steps = [np.unique(v.view(np.uint32) & 0xFFFF).size for n, v in half.tensors() if "q_proj" in n]
    assert min(small_steps) > 100, "master weights or moments were rounded to bf16"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_non_finite_gradient_changes_nothing(backend, optimizer):
    spec = make_spec()
    learner = make_learner(backend, spec, optim=OPTIMIZERS[optimizer])
    train(learner, spec, 1)
    kept = state(learner)
    poisoned = dict(kept)
    poisoned["model/model.norm.weight"] = np.full(spec.hidden_size, np.inf, np.float32)
    learner.load(poisoned, step=1)
    metrics = learner.step([random_batch(spec)], StepScalars(1, LR, seed=0)).read()
    assert not np.isfinite(metrics.grad_norm)
    for name, array in learner.tensors():
        np.testing.assert_array_equal(array, poisoned[name], err_msg=name)


def test_load_is_strict(backend):
    spec = make_spec()
    learner = make_learner(backend, spec)
    good = state(learner)
    missing = {name: array for name, array in good.items() if name != "adam_v/model.norm.weight"}
    with pytest.raises(CheckpointError, match=r"missing adam_v/model\.norm\.weight"):
        learner.load(missing, step=1)
    with pytest.raises(CheckpointError, match="unknown model/extra"):
        learner.load({**good, "model/extra": np.zeros(3, np.float32)}, step=1)
    with pytest.raises(CheckpointError, match=r"model.norm.weight has shape \[3\], expected \[32\]"):
        learner.load({**good, "model/model.norm.weight": np.zeros(3, np.float32)}, step=1)


@mlx_only
@pytest.mark.parametrize("compiled", [False, True])
def test_reading_figures_computes_nothing_in_mlx(tmp_path, compiled):
    """Else it would queue behind the updates that were asked for since."""
    import mlx.core as mx

    spec = make_spec()
    pending = make_learner(load_backend("mlx"), spec, compile=compiled).step(
        [random_batch(spec)], StepScalars(0, LR, seed=0)
    )
    mx.synchronize()
    graph = tmp_path / "graph.dot"
    mx.export_to_dot(str(graph), pending.loss, pending.grad_norm)
    assert "rectangle" not in graph.read_text(), "an operation is left to do"
    mx.export_to_dot(str(graph), pending.loss + 1)
    assert "rectangle" in graph.read_text()


def test_a_decoder_and_nats_work_between_steps(backend):
    """A compiled trace must leave nothing behind in what evaluation and decoding use."""
    spec = make_spec()
    learner = make_learner(backend, spec, compile=backend.name == "mlx")
    tokens = random_batch(spec, rows=2, seq=8).inputs
    for step in range(3):
        learner.step([random_batch(spec, seed=step)], StepScalars(step, LR, seed=0)).read()
        weights = {name.removeprefix("model/"): array for name, array in state(learner).items()}
        expected = reference.logits(spec, weights, tokens)
        np.testing.assert_allclose(learner.decoder(2, 8).feed(tokens), expected[:, -1], atol=5e-5)
        batch = Batch(tokens[:, :-1], tokens[:, 1:])
        expected_nats = reference.token_nats(expected[:, :-1], batch.targets)
        np.testing.assert_allclose(learner.nats(batch), expected_nats, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["adam_w", "adam", "sgd", "lion", "muon"])
def test_compiled_step_equals_the_eager_one(backend, algorithm):
    spec = make_spec(num_kv_heads=2, qk_norm=True, attn_dropout=0.1, residual_dropout=0.1)
    optim = OptimSpec(algorithm=algorithm)
    eager, compiled = (make_learner(backend, spec, optim=optim, compile=on) for on in (False, True))
    batches = [random_batch(spec, seed=i) for i in range(2)]
    for step in range(6):  # a rate frozen into the trace would show: it changes every step
        scalars = StepScalars(step, 1e-3 / (step + 1), seed=0)
        a, b = eager.step(batches, scalars).read(), compiled.step(batches, scalars).read()
        assert a.loss == pytest.approx(b.loss, abs=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    if backend.name == "torch":
        from torch._dynamo.utils import counters

        assert not counters["graph_break"], "torch.compile fell back to Python within the model"
