"""Sconce used from Python: the examples run, and importing it costs nothing."""

import os
import subprocess
import sys

import numpy as np
import pytest
from commands import write_corpus
from guides import ROOT, blocks
from small_run import write_run
from tiny import INSTALLED

import sconce
from sconce.errors import BackendError, CheckpointError, ConfigError, DataError

EXAMPLES = ROOT / "examples"
BACKEND = INSTALLED[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


def example(name, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MLX_DISABLE_COMPILE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generate_example(run):
    out = example("generate.py", run, "a lamp on")
    assert out.startswith("a lamp on")
    assert out.count("%  '") == 5


def test_surprise_example_agrees_with_the_score_of_the_text(run):
    out = example("surprise.py", run, "a wall on the hill").splitlines()
    model = sconce.load(run, backend=BACKEND)
    ids = np.array([model.encode("a wall on the hill")], np.int32)
    from sconce.data.batches import Batch

    nats, _ = model.model.score(Batch(ids[:, :-1], ids[:, 1:]))
    assert len(out) == nats.size + 1
    assert float(out[-1].split()[0]) == pytest.approx(nats.mean() / np.log(2), abs=0.006)


def test_train_example(tmp_path):
    corpus = write_corpus(tmp_path / "text.txt", lines=200)
    out = example("train.py", corpus, tmp_path / "run", 10)
    assert "after 10 steps" in out
    assert len(out.splitlines()) > 1


def test_the_page_on_python_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """Its blocks, one after the other, where a run and a text are that it speaks of."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus.txt", lines=200)
    local = write_run(tmp_path / "runs/local")
    shared: dict[str, object] = {}
    for block in blocks(ROOT / "docs/python.md", "python"):
        exec(compile(block.text, "docs/python.md", "exec"), shared)
    assert repr(shared["model"]) == f"<TextModel of {local.relative_to(tmp_path)}/checkpoints/step-00000001, " + (
        f"{shared['model'].spec.num_params:,} parameters>"
    )
    assert shared["logits"].shape == (len(shared["ids"]), shared["model"].spec.vocab_size)
    assert shared["outcome"].step == 20
    assert f"20 {shared['outcome'].evaluation.loss}" in capsys.readouterr().out


def test_importing_sconce_loads_nothing_heavy():
    code = (
        "import sys, sconce\n"
        "print([m for m in ('numpy', 'pydantic', 'torch', 'mlx', 'tokenizers', 'starlette') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_logits_are_those_that_generation_draws_from(run):
    model = sconce.load(run, backend=BACKEND)
    greedy = model.generate("a lamp", max_tokens=1, temperature=0)
    assert model.tokenizer.decode([int(model.logits("a lamp")[-1].argmax())]) == greedy
    ids = model.encode("a lamp")
    np.testing.assert_array_equal(model.logits(ids), model.logits("a lamp"))


def test_one_stop_string_needs_no_list(run):
    model = sconce.load(run, backend=BACKEND)
    free = model.generate("a", max_tokens=40)
    stop = free[8:10]
    assert model.generate("a", max_tokens=40, stop=stop) == free[: free.index(stop)]


def test_what_cannot_be_is_an_error_with_a_reason(run, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        sconce.load(tmp_path / "nowhere")
    model = sconce.load(run, backend=BACKEND)
    with pytest.raises(DataError, match="128 positions"):
        model.logits([5] * 129)
    with pytest.raises(DataError, match="token id -1"):
        model.logits([-1])
    with pytest.raises(ConfigError, match="max_tokens: found 0, expected at least 1"):
        model.generate("a", max_tokens=0)
    with pytest.raises(ConfigError, match="seed: found -1"):
        model.generate("a", seed=-1)
    with pytest.raises(BackendError, match="found 'gpu', expected one of auto, mlx, cuda, cpu"):
        sconce.load(run, backend="gpu")
    with pytest.raises(ConfigError, match="dtype: found 'fp8', expected one of fp32"):
        sconce.load(run, dtype="fp8")
    with pytest.raises(ConfigError, match=r"model\.hiden_size"):
        sconce.train({"model": {"hiden_size": 3}}, run_dir=tmp_path / "run")
