"""A micro-batch computed in two halves side by side is the micro-batch computed whole."""

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from tiny import make_spec, random_batch, random_weights  # noqa: E402

from sconce.backend import ComputeOptions, StepScalars, load_backend  # noqa: E402
from sconce.optim import OptimSpec  # noqa: E402
from sconce_mlx import learner as learner_module  # noqa: E402
from sconce_mlx.lanes import shares  # noqa: E402

pytestmark = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="a GPU has one lane")


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_every_row_is_in_one_share(rows):
    parts = [list(range(rows))[own] for own in shares(rows, 2)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) <= (rows + 1) // 2


def steps(rows, **options):
    spec = make_spec(residual_dropout=0.2, attn_dropout=0.2)
    made = load_backend("mlx").learner(spec, OptimSpec(), ComputeOptions(**options), random_weights(spec))
    batches = [random_batch(spec, rows=rows, seed=seed) for seed in (1, 2)]
    read = [made.step(batches, StepScalars(step, 1e-2, seed=3)).read() for step in range(3)]
    return [(one.loss, one.grad_norm) for one in read], dict(made.tensors()), made.nats(batches[0])


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("options", [{}, {"compile": True}, {"recompute_every": 1, "loss_chunk": 7}])
def test_two_lanes_train_as_one(monkeypatch, rows, options):
    figures, tensors, nats = steps(rows, **options)
    monkeypatch.setattr(learner_module, "lanes", lambda: [mx.default_stream(mx.cpu)])
    whole_figures, whole_tensors, whole_nats = steps(rows, **options)
    np.testing.assert_allclose(figures, whole_figures, rtol=1e-5)
    np.testing.assert_allclose(nats, whole_nats, atol=1e-4)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, whole_tensors[name], atol=2e-5, err_msg=name)
