"""Of CUDA what shows without it: eager steps on a device that computes nothing, and which kernels attention asks."""

import numpy as np
import pytest
from tiny import VARIATIONS, make_spec, random_batch, random_weights

from sconce.backend import ComputeOptions, StepScalars
from sconce.data.batches import Batch
from sconce.optim import OptimSpec

torch = pytest.importorskip("torch")
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode  # noqa: E402
from torch.backends import cuda  # noqa: E402

from sconce_torch.decode import TorchDecoder  # noqa: E402
from sconce_torch.inference import TorchLanguageModel  # noqa: E402
from sconce_torch.learner import TorchLearner  # noqa: E402
from sconce_torch.products import attend  # noqa: E402

LENGTH = 24
ELSEWHERE = torch.device("meta")  # in that mode a device like any other: its tensors have shapes and no values


def assert_steps_stay_elsewhere(spec, *, algorithm="adam_w", documents=False, **compute):
    """Two updates of two micro-batches each, on a device that refuses to be waited for or mixed with the processor."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        learner = TorchLearner(
            spec, OptimSpec(algorithm=algorithm), ComputeOptions(**compute), random_weights(spec), ELSEWHERE
        )
        batch = random_batch(spec, seq=LENGTH)
        if documents:
            segments = np.arange(LENGTH, dtype=np.int32) // 7
            batch = Batch(batch.inputs, batch.targets, np.tile(segments, (len(batch.inputs), 1)))
        for step in range(2):
            pending = learner.step([batch, batch], StepScalars(step, 1e-3, seed=0))
        assert {tensor.device for tensor in (pending.figures, *learner.params.values())} == {ELSEWHERE}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", VARIATIONS)
def test_a_step_stays_on_its_device_and_never_waits_for_it(name, precision):
    assert_steps_stay_elsewhere(make_spec(**VARIATIONS[name]), precision=precision, loss_chunk=16)


@pytest.mark.parametrize("compute", [{}, {"recompute_every": 1}, {"attention": "reference"}])
@pytest.mark.parametrize("dropout", [{}, {"residual_dropout": 0.1}, {"attn_dropout": 0.1}])
def test_with_documents_and_dropout(compute, dropout):
    assert_steps_stay_elsewhere(make_spec(num_kv_heads=2, **dropout), documents=True, precision="bf16", **compute)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("algorithm", ["adam", "sgd", "lion", "muon"])
def test_with_every_rule(algorithm, precision):
    assert_steps_stay_elsewhere(make_spec(), algorithm=algorithm, precision=precision)


def test_what_it_refuses(monkeypatch):
    """So that the tests above can fail."""
    put = TorchLearner._put
    with monkeypatch.context() as patch:
        patch.setattr(TorchLearner, "_put", lambda self, array: torch.from_numpy(array))
        with pytest.raises(RuntimeError, match="same device"):
            assert_steps_stay_elsewhere(make_spec())
    monkeypatch.setattr(TorchLearner, "_put", lambda self, array: put(self, array) * put(self, array).max().item())
    with pytest.raises(DataDependentOutputException):
        assert_steps_stay_elsewhere(make_spec())


@pytest.fixture
def kernels(monkeypatch):
    """What may compute attention, at each call of it: cuDNN, flash and memory-efficient kernels."""
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def look(*args, **kwargs):
        seen.append((cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()))
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
    return seen


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_masked_rows_never_go_to_cudnn(kernels, device):
    """Its gradient may be NaN there: pytorch#196678."""
    with FakeTensorMode():
        x = torch.empty(2, 4, 64, 16, device=device)
        attend(x, x, x, mask=None, causal=True)
        attend(x, x, x, mask=torch.zeros(1, 1, 64, 64, device=device), causal=False)
    anything = (True, True, True)
    assert kernels == [anything, (False, False, True) if device == "cuda" else anything]


def test_rows_that_grow_never_go_to_cudnn(kernels):
    """It would plan anew for every length."""
    spec = make_spec()
    model = TorchLanguageModel(spec, ComputeOptions(), random_weights(spec), torch.device("cpu"))
    decoder = model.decoder(rows=1, max_len=8)
    assert isinstance(decoder, TorchDecoder)
    for tokens in ([[1, 2, 3]], [[4]]):
        decoder.feed(np.array(tokens, np.int32))
    assert set(kernels) == {(False, True, True)}
    assert cuda.cudnn_sdp_enabled()
