"""Decoding row by row of different lengths, against the whole forward pass in numpy."""

import importlib

import numpy as np
import pytest
import reference
from tiny import VARIATIONS, make_spec, random_batch, random_weights

from sconce.backend import ComputeOptions
from sconce.data.batches import Batch
from sconce.errors import CheckpointError

EACH = {**VARIATIONS, "window-of-one": {"sliding_window": 1}}


@pytest.fixture
def small_chunks(backend, monkeypatch):
    """Chunks of 4 tokens, so that a ring of slots wraps soon."""
    for module in ("sconce.cache", f"sconce_{backend.name}.decode"):
        monkeypatch.setattr(importlib.import_module(module), "CHUNK", 4)


def flat(parameters):
    return importlib.import_module("mlx.utils").tree_flatten(parameters)


def make(backend, variation, **options):
    spec = make_spec(**EACH[variation])
    weights = random_weights(spec)
    return spec, weights, backend.language_model(spec, ComputeOptions(**options), weights)


CASES = [pytest.param("fp32", variation, id=f"fp32-{variation}") for variation in EACH]
CASES += [(precision, variation) for precision in ("bf16", "fp16") for variation in ("default", "window")]


@pytest.mark.parametrize(("precision", "variation"), CASES)
@pytest.mark.usefixtures("small_chunks")
def test_rows_of_different_lengths(backend, precision, variation):
    spec, weights, model = make(backend, variation, precision=precision)
    atol = {"fp32": 3e-5, "fp16": 2**-7, "bf16": 2**-4}[precision]  # in 16 bits as many roundings as 16 could add
    tokens = random_batch(spec, rows=3, seq=30).inputs
    expected = reference.logits(spec, weights, tokens)
    decoder = model.decoder(rows=8, max_len=32)
    lengths = np.array([9, 3, 6])
    logits = decoder.feed(tokens[:, :9], first_row=1, lengths=lengths)
    np.testing.assert_allclose(logits, expected[np.arange(3), lengths - 1], atol=atol)
    decoder.move(3, 0)
    decoder.clear(3)
    order = np.array([2, 0, 1])  # which sequence each row now is
    for step in range(20):
        position = lengths[order] + step
        logits = decoder.feed(tokens[order, position][:, None])
        np.testing.assert_allclose(logits, expected[order, position], atol=atol)


@pytest.mark.parametrize("variation", EACH)
@pytest.mark.usefixtures("small_chunks")
def test_rows_of_one_length_in_uneven_pieces(backend, variation):
    spec, weights, model = make(backend, variation)
    tokens = random_batch(spec, rows=3, seq=30).inputs
    expected = reference.logits(spec, weights, tokens)
    decoder, end = model.decoder(rows=3, max_len=32), 0
    for length in (5, 1, 7, 1, 1, 10):
        logits = decoder.feed(tokens[:, end : end + length])
        end += length
        np.testing.assert_allclose(logits, expected[:, end - 1], atol=3e-5)
    decoder.clear()
    np.testing.assert_allclose(decoder.feed(tokens[:1, :3]), expected[:1, 2], atol=3e-5)


@pytest.mark.parametrize("variation", EACH)
def test_logits_and_losses(backend, variation):
    spec, weights, model = make(backend, variation)
    batch = random_batch(spec)
    expected = reference.logits(spec, weights, batch.inputs)
    np.testing.assert_allclose(model.logits(batch.inputs), expected, atol=3e-5)
    nats, hits = model.score(batch)
    np.testing.assert_allclose(nats, reference.token_nats(expected, batch.targets), atol=3e-5)
    np.testing.assert_array_equal(hits, expected.argmax(-1) == batch.targets)


def test_half_precision_holds_half_the_memory_and_stays_near(backend):
    spec, weights, model = make(backend, "gqa", precision="bf16")
    tokens = random_batch(spec, rows=2, seq=12).inputs
    expected = reference.logits(spec, weights, tokens)
    error = np.abs(model.decoder(2, 16).feed(tokens) - expected[:, -1]).max()
    assert 1e-4 < error < 0.2
    parameters = dict(model.model.named_parameters() if backend.name == "torch" else flat(model.model.parameters()))
    matrices = [parameter for parameter in parameters.values() if parameter.ndim == 2]
    assert matrices
    assert all("bfloat16" in str(matrix.dtype) for matrix in matrices)


def test_the_window_bounds_the_cache(backend):
    spec = make_spec(sliding_window=5, max_position_embeddings=2000)
    model = backend.language_model(spec, ComputeOptions(), random_weights(spec))
    decoder = model.decoder(rows=1, max_len=2000)
    decoder.feed(np.ones((1, 1500), np.int32))
    layer = decoder.cache.layers[0][0]
    assert layer.shape[-2] == 256 + 5 - 1


def test_the_cache_grows_by_pages_and_goes_with_its_rows(backend):
    spec, _, model = make(backend, "default")
    spec = make_spec(max_position_embeddings=1000)
    model = backend.language_model(spec, ComputeOptions(), random_weights(spec))
    decoder = model.decoder(rows=4, max_len=1000)

    def slots():
        return decoder.cache.layers[0][0].shape[-2]

    assert slots() == 0
    decoder.feed(np.ones((2, 10), np.int32))
    assert slots() == 256
    decoder.feed(np.ones((2, 250), np.int32))
    assert slots() == 512
    decoder.clear()
    assert slots() == 0


def test_weights_of_another_model_are_refused(backend):
    spec = make_spec()
    weights = random_weights(spec)
    with pytest.raises(CheckpointError, match="missing model"):
        backend.language_model(make_spec(num_layers=3), ComputeOptions(), weights)
    with pytest.raises(CheckpointError, match="shape"):
        backend.language_model(make_spec(hidden_size=40), ComputeOptions(), weights)


def test_segments_are_kept_apart(backend):
    spec, _, model = make(backend, "default")
    batch = random_batch(spec, rows=1, seq=16)
    segments = np.repeat([0, 1], 8)[None].astype(np.int32)
    both, _ = model.score(batch._replace(segments=segments))
    second, _ = model.score(Batch(batch.inputs[:, 8:], batch.targets[:, 8:]))
    np.testing.assert_allclose(both[:, 8:], second, atol=2e-5)
