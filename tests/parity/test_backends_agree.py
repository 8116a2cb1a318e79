"""MLX and PyTorch in one process: the same numbers, and a state that moves between them."""

import numpy as np
import pytest
from tiny import INSTALLED, VARIATIONS, make_spec, random_batch, random_weights

from sconce.backend import ComputeOptions, StepScalars, load_backend
from sconce.optim import OptimSpec
from sconce.spec import ModelSpec

pytestmark = pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both mlx and torch: pip install 'mlx[cpu]' torch")

LR = 1e-3


def learners(spec: ModelSpec, weights, precision="fp32", max_grad_norm=1.0, algorithm="adam_w"):
    optim = OptimSpec(algorithm=algorithm, max_grad_norm=max_grad_norm)
    run = ComputeOptions(precision=precision)
    return [load_backend(name).learner(spec, optim, run, weights) for name in ("mlx", "cpu")]


def run_steps(learner, spec, start, end):
    """Losses of updates start..end on one fixed stream of batches, two micro-batches each."""
    losses = []
    for step in range(start, end):
        batches = [random_batch(spec, rows=2, seed=2 * step + i) for i in range(2)]
        losses.append(learner.step(batches, StepScalars(step, LR, seed=0)).read().loss)
    return np.array(losses)


@pytest.mark.parametrize("variation", VARIATIONS)
def test_logits_and_gradients(variation):
    spec = make_spec(**VARIATIONS[variation])
    batch = random_batch(spec)
    mlx, torch = learners(spec, random_weights(spec), max_grad_norm=0)
    tokens = batch.inputs
    np.testing.assert_allclose(mlx.decoder(4, 16).feed(tokens), torch.decoder(4, 16).feed(tokens), atol=2e-5)
    a, b = (learner.step([batch], StepScalars(0, LR, seed=0)).read() for learner in (mlx, torch))
    assert a.loss == pytest.approx(b.loss, abs=3e-6)
    ours, theirs = dict(mlx.tensors()), dict(torch.tensors())
    for param in spec.params():
        x, y = ours[f"adam_m/{param.name}"], theirs[f"adam_m/{param.name}"]
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max() + 1e-9, param.name


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-3)])
def test_twenty_steps(precision, tolerance):
    spec = make_spec(num_kv_heads=2, qk_norm=True)
    mlx, torch = learners(spec, random_weights(spec, scale=0.2), precision)
    np.testing.assert_allclose(run_steps(mlx, spec, 0, 20), run_steps(torch, spec, 0, 20), atol=tolerance)


# Lion's sign turns the rounding of a vanishing argument into a whole step of the rate, here 1e-3: few weights, for
# which the loss hardly differs. The others keep to float32 rounding, which the updates amplify a little.
WEIGHTS_MAY_DIFFER = {"adam_w": 2e-5, "adam": 2e-5, "sgd": 2e-6, "lion": 2e-2, "muon": 5e-5}


@pytest.mark.parametrize("algorithm", WEIGHTS_MAY_DIFFER)
@pytest.mark.parametrize("first", [0, 1], ids=["mlx to torch", "torch to mlx"])
def test_a_run_goes_on_in_the_other_backend(first, algorithm):
    spec = make_spec(num_kv_heads=2, attn_dropout=0.1, residual_dropout=0.1)
    weights = random_weights(spec, scale=0.2)
    uninterrupted = learners(spec, weights, algorithm=algorithm)[first]
    expected = run_steps(uninterrupted, spec, 0, 20)
    pair = learners(spec, weights, algorithm=algorithm)
    source, target = pair[first], pair[1 - first]
    run_steps(source, spec, 0, 10)
    target.load(dict(source.tensors()), step=10)
    np.testing.assert_allclose(run_steps(target, spec, 10, 20), expected[10:], atol=1e-5)
    for (name, x), (_, y) in zip(uninterrupted.tensors(), target.tensors(), strict=True):
        np.testing.assert_allclose(x, y, atol=WEIGHTS_MAY_DIFFER[algorithm], err_msg=name)
