"""torch.compile through a run: once for each shape, whatever the depth, and done without where it fails."""

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

    double = Compiler(wanted=True, device=torch.device("cpu"))(lambda x_BT: 2 * x_BT)
    for rows in [*range(1, 13)] * 2:
        assert double(torch.ones(rows, 3)).tolist() == [[2.0] * 3] * rows
    assert counter.frame_count == 12


def make_learner(layers, *, dropout=0.0, **compute):
    spec = ModelSpec(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        max_position_embeddings=16,
        attn_dropout=dropout,
        residual_dropout=dropout,
    )
    return load_backend("cpu").learner(spec, OptimSpec(), ComputeOptions(**compute), InitialWeights(spec, 0))


def make_step(learner, step=0, seq=8):
    tokens = np.arange(4 * seq, dtype=np.int32).reshape(4, seq) % 32
    return learner.step([Batch(tokens, tokens)], StepScalars(step, 1e-3, seed=0)).read()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_compiled_for_one_layer_serves_all(counter, dropout):
    graphs = []
    for layers in (3, 7):
        counter.clear()
        torch.compiler.reset()
        learner = make_learner(layers, dropout=dropout, compile=True, loss_chunk=8)
        for step in range(2):
            assert np.isfinite(make_step(learner, step).loss)
        graphs.append(counter.frame_count)
    assert graphs == [3, 3]  # a layer, the last norm, a chunk of the loss


def test_a_run_of_as_many_shapes_as_may_be_stays_compiled(counter, monkeypatch):
    import sconce_torch.compile

    torch.compiler.reset()
    monkeypatch.setattr(sconce_torch.compile, "SHAPES", 4)
    with torch._dynamo.config.patch(recompile_limit=1):
        learner = make_learner(3, compile=True)
        for seq in (4, 6, 8, 10):
            make_step(learner, seq=seq)
    assert counter.frame_count == 3 * 4


@pytest.mark.parametrize("fails", ["norm", "loss", "backward"])
def test_compiling_that_fails_halfway_is_done_without(monkeypatch, caplog, fails):
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.exc import BackendCompilerFailed

    names = iter(["layer", "norm", "loss"])

    def forward(graph, _):
        if next(names) == fails:
            raise FileNotFoundError("no space left for a kernel")
        return graph.forward

    def backward(graph, _):
        if fails == "backward":
            raise BackendCompilerFailed(backward, FileNotFoundError("no space left for a kernel"), None)
        return graph.forward

    torch.compiler.reset()
    expected = make_step(make_learner(3, recompute_every=1, loss_chunk=8))
    compiler = aot_autograd(fw_compiler=forward, bw_compiler=backward, inference_compiler=forward)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    learner = make_learner(3, recompute_every=1, loss_chunk=8, compile=True)
    assert make_step(learner) == expected
    assert make_step(learner, 1).loss < expected.loss
    (said,) = (record.getMessage() for record in caplog.records if record.name == "sconce")
    assert "no space left for a kernel" in said


def test_a_second_start_finds_what_the_first_compiled(monkeypatch):
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_cache

    import sconce_torch.products

    # As on two threads: products of few rows are asked of oneDNN, but not where they are compiled.
    monkeypatch.setattr(sconce_torch.products, "ONEDNN_IS_QUICKER", torch.backends.mkldnn.is_available())

    def start(*, compile):
        torch.compiler.reset()
        counters.clear()
        learner = make_learner(1, compile=compile)  # one layer: a graph of all, with the loss in it
        losses = [make_step(learner, step, seq=4).loss for step in range(3)]
        assert learner.compiler.works == compile
        return losses, {name: counters["aot_autograd"][f"autograd_cache_{name}"] for name in ("miss", "hit", "bypass")}

    with fresh_cache():
        first, found = start(compile=True)
        assert found == {"miss": 1, "hit": 0, "bypass": 0}
        again, found = start(compile=True)
        assert found == {"miss": 0, "hit": 1, "bypass": 0}
    assert again == first
    np.testing.assert_allclose(first, start(compile=False)[0], rtol=1e-5)
