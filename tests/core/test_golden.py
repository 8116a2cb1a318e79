"""The shipped values: made again they are the same, and their gradients are the slopes of their loss."""

import numpy as np
import pytest
from golden import make_golden
from golden.gradients import loss_and_gradients
from reference import logits, token_nats

from sconce.conformance import golden, kit
from sconce.conformance.golden import SPEC, load_golden
from sconce.data.order import shuffled_order
from sconce.optim import NEWTON_SCHULZ

SPECS = [SPEC, golden.dropping("attn_dropout", "residual_dropout")]


def test_the_shipped_file_is_what_the_reference_makes():
    made, shipped = make_golden.make(), load_golden().arrays
    assert made.keys() == shipped.keys()
    for name, value in made.items():
        assert value.dtype == shipped[name].dtype, name
        if value.dtype == np.float32:  # another platform's exp may round the last bit of the float64 differently
            np.testing.assert_allclose(shipped[name], value, rtol=2e-7, atol=1e-9, err_msg=name)
        elif value.dtype == np.float64:
            np.testing.assert_allclose(shipped[name], value, rtol=1e-14, err_msg=name)
        else:
            assert (value == shipped[name]).all(), name


def test_the_shipped_file_is_small():
    assert make_golden.FILE.stat().st_size < 200_000


def test_the_differentiated_forward_pass_is_the_reference():
    weights, batch = make_golden.make_case()
    loss, here, _ = loss_and_gradients(SPEC, weights, batch)
    expected = logits(SPEC, weights, batch.inputs)
    np.testing.assert_allclose(here, expected, atol=1e-12)
    assert loss == pytest.approx(token_nats(expected, batch.targets).sum() / (batch.targets >= 0).sum(), abs=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=["nothing dropped", "dropout"])
def test_analytic_gradients_are_central_differences(spec):
    weights, batch = make_golden.make_case()
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    _, _, gradients = loss_and_gradients(spec, weights, batch, seed=3, step=5)
    rng = np.random.default_rng(0)
    assert gradients.keys() == weights.keys()
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        moved = [
            loss_and_gradients(spec, {**weights, name: weights[name] + h * direction}, batch, 3, 5)[0]
            for h in (1e-5, -1e-5)
        ]
        slope = (moved[0] - moved[1]) / 2e-5
        assert slope == pytest.approx((gradient * direction).sum(), abs=1e-8 * np.abs(gradient * direction).sum()), name


def test_newton_schulz_on_singular_values_is_the_matrix_iteration():
    x = matrix = np.random.default_rng(0).standard_normal((5, 8))
    x = x / np.linalg.norm(x)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    np.testing.assert_allclose(make_golden.newton_schulz(matrix), x, atol=1e-12)


def failed():
    return {result.check for result in kit.check_host() if not result.passed}


def test_this_machine_passes():
    assert [result.check for result in kit.check_host()] == [
        "schedules",
        "data order",
        "initial weights",
        "dropout mask",
    ]
    assert failed() == set()


@pytest.mark.parametrize(
    ("name", "wrong", "check"),
    [
        ("learning_rate", lambda schedule, step: schedule.peak_lr * (step + 1) / 100, "schedules"),
        ("ORDER", shuffled_order(num_rows=1000, batch_size=8, seed=21), "data order"),
        ("InitialWeights", lambda spec, seed: make_golden.InitialWeights(spec, seed + 1), "initial weights"),
        ("row_keys", lambda *_: np.arange(4, dtype=np.uint32), "dropout mask"),
    ],
)
def test_each_check_of_the_host_sees_its_fault(monkeypatch, name, wrong, check):
    monkeypatch.setattr(kit, name, wrong)
    assert failed() == {check}
