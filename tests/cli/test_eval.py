"""`sconce eval` against what training itself measured, and against one long forward pass."""

import json

import numpy as np
import pytest
from commands import sconce_here, write_corpus
from small_run import write_run
from tiny import INSTALLED

import sconce as library
from sconce.data.batches import Batch
from sconce.data.corpus import document_hash
from sconce.generation.score import HeldTokens, Windows, score_tokens
from sconce.tokenizer.bpe import train_tokenizer
from sconce.training.score import ScoreOptions, score_model

BACKEND = INSTALLED[-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return library.load(write_run(tmp_path_factory.mktemp("run")), backend=BACKEND)


def test_held_out_figures_are_those_of_training(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.txt", lines=200)
    tokenizer = train_tokenizer([corpus.read_text()], 300, tmp_path / "tokenizer", [])
    config = {
        "model": {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32},
        "tokenizer": {"tokenizer_json": str(tokenizer.path)},
        "data": {"train_shards": [str(corpus)], "batch_size": 4},
        "scheduler": {"total_steps": 10},
    }
    run = tmp_path / "run"
    measured = library.train(config, run_dir=run, backend=BACKEND).evaluation
    for backend in INSTALLED:
        ((source, score),) = score_model(library.load(run, backend=backend), ScoreOptions())
        figures = score.figures()
        assert source == "held-out"
        assert figures["tokens"] == measured.tokens
        assert figures["loss"] == pytest.approx(measured.loss, abs=1e-5)
        assert figures["bits_per_byte"] == pytest.approx(measured.bits_per_byte, abs=1e-5)
        assert 0 < figures["accuracy"] < 1
    text = ("--text", corpus, "--text", corpus, "--backend", BACKEND, "--max-batches", 2, "--window", 16, "--json")
    one, two, both = map(json.loads, sconce_here("eval", run, *text).stdout.splitlines())
    assert (one["source"], both["source"]) == (str(corpus), "all")
    assert one["loss"] == two["loss"] == pytest.approx(both["loss"])
    refused = sconce_here("eval", run, "--window", 99, "--backend", BACKEND)
    assert (refused.returncode, refused.stderr) == (2, "sconce: --window 99: the model has 32 positions\n")


def test_what_is_held_out_is_scored_by_source(tmp_path):
    """Each source's figures are those of its held-out documents as a text of their own."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} dog {n * n} answers {n}\n" for n in range(300)))
    tokenizer = train_tokenizer([(tmp_path / "a.txt").read_text()], 280, tmp_path / "tokenizer", [])
    run, paths = tmp_path / "run", [str(tmp_path / f"{name}.txt") for name in "ab"]
    config = {
        "model": {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32},
        "tokenizer": {"tokenizer_json": str(tokenizer.path)},
        "data": {"train_shards": paths, "document": "line", "validation_fraction": 0.2, "batch_size": 4},
        "scheduler": {"total_steps": 2},
    }
    measured = library.train(config, run_dir=run, backend=BACKEND).evaluation
    *sources, total = map(json.loads, sconce_here("eval", run, "--backend", BACKEND, "--json").stdout.splitlines())
    assert [one["source"] for one in sources] == [f"held-out: {path}" for path in paths]
    assert total["source"] == "all"
    assert total["tokens"] == sum(one["tokens"] for one in sources) == measured.tokens - 1
    assert total["loss"] == pytest.approx(measured.loss, abs=0.02)  # windows begin anew with each source
    for name, one in zip("ab", sources, strict=True):
        documents = [
            line
            for line in (tmp_path / f"{name}.txt").read_text().splitlines()
            if document_hash(line.encode()) <= 0.2 * 2**64
        ]
        (tmp_path / "own.txt").write_text("".join(f"{line}\n" for line in documents))
        asked = ("--text", tmp_path / "own.txt", "--document", "line", "--backend", BACKEND, "--json")
        (own,) = map(json.loads, sconce_here("eval", run, *asked).stdout.splitlines())
        assert {**own, "source": ""} == {**one, "source": ""}
    kept = json.loads(next((run / "evaluations").glob("*.json")).read_text())["results"]
    assert {"held-out", *(one["source"] for one in sources)} <= {result["name"] for result in kept}


@pytest.mark.parametrize(("size", "stride"), [(8, 8), (8, 3), (8, 1), (50, 20), (128, 128)])
def test_windows_score_every_token_once_with_its_context(model, size, stride):
    ids = np.random.default_rng(0).integers(3, model.spec.vocab_size, 51).astype(np.int32)
    windows = Windows(size=size, stride=stride, batch_size=3)
    ones = np.ones(model.spec.vocab_size, np.int32)
    score = score_tokens(model.model, HeldTokens(ids), windows, ones)
    nats, hits = 0.0, 0
    for target in range(1, ids.size):
        start = 0 if target <= size else -(-(target - size) // stride) * stride
        context = ids[None, start : target + 1]
        one, hit = model.model.score(Batch(context[:, :-1], context[:, 1:]))
        nats += float(one[0, -1])
        hits += int(hit[0, -1])
    assert (score.tokens, score.text_bytes, score.hits) == (50, 50, hits)
    assert score.nats == pytest.approx(nats, rel=1e-5)
