"""16-bit products that are made in float32 are those that PyTorch makes, forward and backward."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from sconce_torch import products  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16]
BITS = {torch.bfloat16: 8, torch.float16: 11}


@pytest.fixture(autouse=True)
def no_instructions(monkeypatch):
    """As on a processor that has none for 16 bits."""
    monkeypatch.setattr(products, "CPU_MULTIPLIES", {torch.float32: True, torch.bfloat16: False, torch.float16: False})


def draw(*shape, dtype):
    return torch.from_numpy(np.random.default_rng(len(shape)).normal(size=shape)).to(dtype)


def assert_rounded_alike(ours, theirs, dtype):
    """Both are a sum rounded once, in another order: mostly equal, never further apart than a rounding or two."""
    ours, theirs = ours.detach().float().numpy(), theirs.detach().float().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=2.0 ** (1 - BITS[dtype]), atol=2.0 ** (2 - BITS[dtype]))
    assert (ours == theirs).mean() > 0.95


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(dtype, bias):
    x = draw(3, 7, 64, dtype=dtype).requires_grad_()
    weight = draw(48, 64, dtype=torch.float32).requires_grad_()
    offset = draw(48, dtype=torch.float32).requires_grad_() if bias else None
    inputs = [x, weight] if offset is None else [x, weight, offset]
    ours = products.linear(x, weight, offset)
    theirs = F.linear(x, weight.to(dtype), None if offset is None else offset.to(dtype))
    assert ours.dtype == dtype
    assert_rounded_alike(ours, theirs, dtype)
    grad = draw(3, 7, 48, dtype=dtype)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True
    ):
        assert mine.dtype == other.dtype
        # PyTorch rounds a weight's gradient to 16 bits, where ours stays in float32.
        assert_rounded_alike(mine.to(dtype), other.to(dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_without_gradients_takes_16_bit_weights(dtype):
    x, weight = draw(9, 64, dtype=dtype), draw(48, 64, dtype=dtype)
    assert_rounded_alike(products.linear(x, weight), F.linear(x, weight), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul(dtype):
    left, right = draw(2, 3, 16, 32, dtype=dtype), draw(2, 3, 32, 24, dtype=dtype)
    assert_rounded_alike(products.matmul(left, right), left @ right, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype):
    q, k, v = (draw(2, heads, 16, 8, dtype=dtype) for heads in (4, 2, 2))
    ours = products.attend(q, k, v, bias=None, causal=True)
    theirs = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True)
    np.testing.assert_allclose(ours.double().numpy(), theirs.numpy(), atol=2.0 ** (1 - BITS[dtype]))
    assert ours.dtype == dtype
