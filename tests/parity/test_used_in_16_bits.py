"""A model used in 16 bits, where their products are made in float32: its logits are those of the rounded weights."""

import numpy as np
import pytest
import reference
from tiny import VARIATIONS, make_spec, random_batch, random_weights

from sconce.backend import ComputeOptions, load_backend

torch = pytest.importorskip("torch")

from sconce_torch import products  # noqa: E402
from sconce_torch.inference import TorchLanguageModel  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PACKS = torch.backends.quantized.engine in products.FBGEMM
UNTIED = {"tie_word_embeddings": False}


@pytest.fixture(autouse=True)
def packs_everything(monkeypatch):
    """On a processor without instructions for 16 bits, however narrow a layer is."""
    if not PACKS:
        pytest.skip("PyTorch has no FBGEMM here")
    monkeypatch.setattr(products, "CPU_MULTIPLIES", {torch.float32: True, torch.bfloat16: False, torch.float16: False})
    monkeypatch.setattr(products, "MOST_FILLED", float("inf"))


def rounded(weights, precision):
    """All but the norms, as the run holds them."""
    return {
        name: weights[name]
        if "norm" in name
        else torch.from_numpy(np.array(weights[name])).to(DTYPES[precision]).float().numpy()
        for name in weights
    }


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("variation", [*VARIATIONS, "untied"])
def test_logits_losses_and_decoding(variation, precision):
    spec = make_spec(**{**VARIATIONS, "untied": UNTIED}[variation])
    weights = random_weights(spec)
    model = load_backend("cpu").language_model(spec, ComputeOptions(precision=precision), weights)
    batch = random_batch(spec)
    expected = reference.logits(spec, rounded(weights, precision), batch.inputs)
    np.testing.assert_allclose(model.logits(batch.inputs), expected, atol=3e-5)
    nats, hits = model.score(batch)
    np.testing.assert_allclose(nats, reference.token_nats(expected, batch.targets), atol=3e-5)
    np.testing.assert_array_equal(hits, expected.argmax(-1) == batch.targets)
    decoder = model.decoder(len(batch.inputs), spec.max_position_embeddings)
    for start, end in ((0, 5), (5, 6), (6, batch.inputs.shape[1])):
        found = decoder.feed(batch.inputs[:, start:end])
        np.testing.assert_allclose(found, expected[:, end - 1], atol=3e-5)


@pytest.mark.parametrize("variation", [{}, UNTIED, {"mlp": "plain"}])
def test_no_matrix_is_held_in_float32(variation):
    spec = make_spec(**variation)
    made = load_backend("cpu").language_model(spec, ComputeOptions(precision="bf16"), random_weights(spec))
    assert isinstance(made, TorchLanguageModel)
    matrices = {name: held.dtype for name, held in made.model.named_parameters() if held.ndim == 2}
    assert matrices == {"model.embed_tokens.weight": torch.bfloat16}
    held = [made.decode_weights.head]
    for layer in made.decode_weights.layers:
        held += [layer.qkv, layer.out, layer.up, layer.down]
    assert all(isinstance(product, products._Packed) for product in held)
