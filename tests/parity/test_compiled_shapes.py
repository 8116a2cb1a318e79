"""torch.compile through a run: once for each shape, whatever the depth, and never given up on."""

from functools import partial

import numpy as np
import pytest

from sconce.backend import ComputeOptions, StepScalars, load_backend
from sconce.data.batches import Batch
from sconce.init import InitialWeights
from sconce.optim import OptimSpec
from sconce.spec import ModelSpec

torch = pytest.importorskip("torch")


@pytest.fixture
def counter(monkeypatch):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    return counter


def test_more_shapes_than_pytorch_would_compile_by_itself(counter):
    from sconce_torch.compile import Compiler

    double = Compiler(wanted=True)(lambda x_BT: 2 * x_BT)
    for rows in [*range(1, 13)] * 2:
        assert double(torch.ones(rows, 3)).tolist() == [[2.0] * 3] * rows
    assert counter.frame_count == 12


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_compiled_for_one_layer_serves_all(counter, dropout):
    graphs = []
    for layers in (3, 7):
        counter.clear()
        torch.compiler.reset()
        spec = ModelSpec(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_layers=layers,
            num_heads=2,
            num_kv_heads=2,
            head_dim=8,
            max_position_embeddings=8,
            attn_dropout=dropout,
            residual_dropout=dropout,
        )
        compute = ComputeOptions(compile=True, loss_chunk=8)
        learner = load_backend("cpu").learner(spec, OptimSpec(), compute, InitialWeights(spec, 0))
        tokens = np.arange(32, dtype=np.int32).reshape(4, 8)
        for step in range(2):
            assert np.isfinite(learner.step([Batch(tokens, tokens)], StepScalars(step, 1e-3, seed=0)).read().loss)
        graphs.append(counter.frame_count)
    assert graphs == [3, 3]  # a layer, the last norm, a chunk of the loss
