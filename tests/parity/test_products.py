"""Products that are made in another way are those that PyTorch makes, forward and backward."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from sconce_torch import decode, products  # noqa: E402

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
    ours = products.attend(q, k, v, mask=None, causal=True)
    theirs = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True)
    np.testing.assert_allclose(ours.double().numpy(), theirs.numpy(), atol=2.0 ** (1 - BITS[dtype]))
    assert ours.dtype == dtype


@pytest.mark.parametrize("rows", [1, 3, 5, 8, 129])
@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES])
@pytest.mark.parametrize("quick", [False, True])
def test_multiplied_without_gradients(monkeypatch, quick, rows, dtype):
    """Whichever library does it, in either layout of the weight."""
    if quick:  # as with instructions for 16 bits, and with more than one thread
        monkeypatch.setattr(products, "CPU_MULTIPLIES", dict.fromkeys(products.CPU_MULTIPLIES, True))
    monkeypatch.setattr(products, "ONEDNN_IS_QUICKER", quick and torch.backends.mkldnn.is_available())
    x, weight, bias = (draw(*shape, dtype=dtype) for shape in ((rows, 33), (65, 33), (65,)))
    exact = x.double().numpy() @ weight.double().numpy().T
    rtol = 1e-5 if dtype == torch.float32 else 2.0 ** (1 - BITS[dtype])  # a rounding, or two with PyTorch's bias
    for laid_out in (weight, weight.t().contiguous().t()):
        for offset in (None, bias):
            expected = exact if offset is None else exact + offset.double().numpy()
            with torch.inference_mode():
                ours = products.multiply(x, laid_out, offset)
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours.double().numpy(), expected, rtol=rtol, atol=1e-5)


@pytest.fixture(params=[True, False], ids=["fbgemm", "without"])
def fbgemm(request, monkeypatch):
    """Whether FBGEMM packs what stays as it is; some processors and some builds of PyTorch have none."""
    monkeypatch.setattr(products, "MOST_FILLED", float("inf"))
    if not request.param:
        monkeypatch.setattr(products, "FBGEMM", ())
    elif torch.backends.quantized.engine not in products.FBGEMM:
        pytest.skip("PyTorch has no FBGEMM here")
    return request.param


def test_what_is_packed(fbgemm, monkeypatch):
    weight = draw(8, 384, dtype=torch.bfloat16)
    assert isinstance(products.product_with(weight, None), products._Packed) == fbgemm
    assert not isinstance(products.product_with(weight.float(), None), products._Packed)
    monkeypatch.undo()  # as it is: what would be filled up by more than a third is not packed
    monkeypatch.setattr(products, "CPU_MULTIPLIES", {torch.bfloat16: False})
    packs = torch.backends.quantized.engine in products.FBGEMM
    for inputs, little in ((384, True), (512, True), (768, True), (1100, False), (128, False)):
        product = products.product_with(draw(8, inputs, dtype=torch.bfloat16), None)
        assert isinstance(product, products._Packed) == (packs and little)


def eye(size, dtype):
    return torch.eye(size, dtype=dtype)


@pytest.mark.usefixtures("fbgemm")
@pytest.mark.parametrize("largest", [2.0**-48, 2.0**-12, 1.0, 2.0**15, 2.0**100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_stays_is_every_number_it_was(dtype, largest):
    """A row of the identity picks numbers out, in any dtype; the smallest are 2^-32 of the largest."""
    if dtype == torch.float16:
        largest = min(max(largest, 2.0**-12), 2.0**15)
    rng = np.random.default_rng(0)
    numbers = rng.uniform(0.5, 1, (65, 33)) * rng.choice([-1, 1], (65, 33)) * 2.0 ** rng.integers(-31, 1, (65, 33))
    weight = (torch.from_numpy(numbers) * largest).to(dtype)
    product = products.product_with(weight, None)
    for x in (eye(33, dtype), eye(33, torch.float32)):
        assert product(x).dtype == x.dtype
        np.testing.assert_array_equal(product(x).double().numpy(), weight.T.double().numpy())


@pytest.mark.usefixtures("fbgemm")
def test_what_a_weight_that_stays_loses_is_far_below_what_16_bits_hold():
    weight = torch.tensor([[1.0, 2.0**-35, -(2.0**-41)], [1.5, 1.01 * 2.0**-33, 0]], dtype=torch.bfloat16)
    ours = products.product_with(weight, None)(eye(3, torch.float32))
    np.testing.assert_allclose(ours.double().numpy(), weight.T.double().numpy(), rtol=0, atol=1.5 * 2.0**-40)


@pytest.mark.parametrize("rows", [1, 3, 8, 129])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 50.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_multiplied_by_a_weight_that_stays(fbgemm, dtype, scale, bias, rows):
    x, weight, offset = draw(2, rows, 33, dtype=dtype), draw(65, 33, dtype=dtype) * scale, draw(65, dtype=dtype)
    product = products.product_with(weight, offset if bias else None)
    expected = x.double().numpy() @ weight.double().numpy().T + (offset.double().numpy() if bias else 0)
    rounding = {"rtol": 2.0 ** (1 - BITS[dtype]), "atol": max(1e-5 * scale, 2.0**-24)}
    with torch.inference_mode():
        ours, wide = product(x), product(x.float())
    np.testing.assert_allclose(ours.double().numpy(), expected, **rounding)
    exact = {"rtol": 1e-5, "atol": 1e-5 * scale}
    np.testing.assert_allclose(wide.double().numpy(), expected, **(exact if fbgemm else rounding))


@pytest.mark.usefixtures("fbgemm")
def test_a_bias_beside_tiny_weights():
    weight, bias = torch.full((2, 4), 2.0**-110, dtype=torch.bfloat16), torch.tensor([300, -3]).bfloat16()
    ours = products.product_with(weight, bias)(torch.ones(1, 4))
    np.testing.assert_array_equal(ours.numpy(), [[300, -3]])


@pytest.mark.usefixtures("fbgemm")
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_stays_none(odd):
    weight = torch.tensor([[1.0, odd], [1.0, 2.0]], dtype=torch.bfloat16)
    ours = products.product_with(weight, None)(torch.ones(1, 2))
    assert not ours[0, 0].isfinite()
    assert ours[0, 1] == 3


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_norm_of_decoding(dtype, scale):
    """Of numbers whose mean is not 0, and of some so small that eps counts."""
    x, weight = (draw(5, 3, 96, dtype=torch.float32) + 2).mul(scale).to(dtype), draw(96, dtype=torch.float32)
    wide = x.double().numpy()
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight.double().numpy()
    ours = decode.PairedRMSNorm(weight.repeat(2), 1e-5)(x)
    assert ours.dtype == dtype
    rtol = 2e-6 if dtype == torch.float32 else 2.0 ** -BITS[dtype]
    np.testing.assert_allclose(ours.double().numpy(), expected, rtol=rtol, atol=1e-6)
