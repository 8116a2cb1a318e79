"""`sconce import` and `sconce export` as a user types them."""

import json
import shlex

import earlier
import numpy as np
import pytest
from commands import checkpoints, records, sconce, sconce_here, write_corpus
from safetensors.numpy import load_file
from tiny import INSTALLED

CONFIG = """
model: {num_attention_heads: 2, max_position_embeddings: 32}
data: {batch_size: 4}
scheduler: {strategy: constant, total_steps: 12}
"""


@pytest.fixture
def imported(tmp_path):
    """A run folder, and what the command said."""
    earlier.write_checkpoint(tmp_path / "old", earlier.random_model(), step=7)
    earlier.write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "old.yaml").write_text(CONFIG)
    done = sconce(
        "import", "old", "--tokenizer", "tokenizer.json", "--config", "old.yaml", "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return tmp_path, done.stdout


@pytest.mark.parametrize("backend", INSTALLED)
def test_an_imported_run_generates_and_trains_on(imported, backend):
    root, said = imported
    assert "with moments, at step 7" in said
    write_corpus(root / "corpus.txt", lines=200)
    generate, train = (shlex.split(line)[1:] for line in said.splitlines()[-2:])
    done = sconce_here(*generate, "--max-tokens", 5, "--backend", backend, cwd=root)
    assert done.returncode == 0, done.stderr
    done = sconce_here(*train, "--backend", backend, "--stop-at", 9, cwd=root)
    assert done.returncode == 0, done.stderr
    assert checkpoints(root / "run")[-1] == "step-00000009"
    for step, remarked in ((7, True), (8, False)):  # also after the imported checkpoint itself is gone
        shown = sconce_here("data", "show", "run", "--step", step, cwd=root)
        assert ("steps 1 to 7 were done before the import" in shown.stdout) == remarked
    done = sconce_here(*train, "--backend", backend, cwd=root)
    assert done.returncode == 0, done.stderr
    assert checkpoints(root / "run")[-1] == "step-00000012"
    assert np.isfinite([record["loss"] for record in records(root / "run") if "loss" in record]).all()
    write_corpus(root / "corpus.txt", lines=100)
    (root / "run" / "data").rename(root / "gone")
    done = sconce_here(*train, "--backend", backend, cwd=root)
    assert done.returncode == 2
    assert "not the tokens this run was trained on" in done.stderr  # from the first save on the text is its own


def test_bare_weights_begin_a_run_at_step_0(tmp_path):
    weights = earlier.random_model()
    (tmp_path / "model.safetensors").write_bytes(earlier.safetensors_bytes(weights, "BF16"))
    earlier.write_tokenizer(tmp_path / "tokenizer.json")
    write_corpus(tmp_path / "corpus.txt", lines=200)
    options = ("--tokenizer", "tokenizer.json", "--heads", 2, "--max-position-embeddings", 32, "--out", "run")
    done = sconce_here("import", "model.safetensors", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "without moments, at step 0" in done.stdout
    train = shlex.split(done.stdout.splitlines()[-1])[1:]
    done = sconce_here(*train, "--backend", INSTALLED[0], "--stop-at", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming from step-00000000, which was imported" in done.stdout
    assert "no checkpoint" not in done.stdout
    assert checkpoints(tmp_path / "run")[-1] == "step-00000002"


def test_the_text_has_to_be_named_to_train_on(imported):
    root, _ = imported
    done = sconce_here("train", "--config", "run/training.toml", "--run-dir", "run", "--resume", cwd=root)
    assert done.returncode == 2
    fault, *advice = done.stderr.splitlines()
    assert "data.train_shards: missing" in fault
    assert '  train_shards = ["hf://org/name"]' in advice


def test_bad_input_is_one_line(imported):
    root, _ = imported
    for more, says in (
        (["old", "--config", "old.yaml", "--out", "run"], "run: already exists: choose another --out"),
        (["old", "--out", "new"], "how many attention heads? no tensor says it: give --heads"),
        (["old", "--heads", "3", "--out", "new"], "3 heads do not divide"),
        (["nowhere", "--heads", "2", "--out", "new"], "nowhere: no such file or folder"),
    ):
        done = sconce_here("import", *more, "--tokenizer", "tokenizer.json", cwd=root)
        assert done.returncode == 2
        assert done.stderr.startswith("sconce: ")
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (root / "new").exists()


def test_export_copies_what_others_load_and_refuses_another_class(imported):
    root, _ = imported
    done = sconce_here("export", "run", "--out", "model", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "as arcee" in done.stdout
    folder = root / "run" / "checkpoints" / "step-00000007"
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    card = (root / "model" / "README.md").read_text()
    assert "| steps | 7 |" in card
    assert sorted(path.name for path in (root / "model").iterdir()) == ["README.md", *names]
    assert all((root / "model" / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert json.loads((root / "model" / "config.json").read_text())["model_type"] == "arcee"
    assert load_file(root / "model" / "model.safetensors")["model.norm.weight"].shape == (16,)
    for more, says in (
        (["--out", "model"], "model: already exists"),
        (["--out", "other", "--as", "llama"], "llama: its MLP is gated, this model's is plain; arcee computes it"),
    ):
        done = sconce_here("export", "run", *more, cwd=root)
        assert done.returncode == 2
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (root / "other").exists()


def test_a_damaged_checkpoint_is_not_exported(imported):
    root, _ = imported
    path = root / "run" / "checkpoints" / "step-00000007" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = sconce_here("export", "run", "--out", "model", cwd=root)
    assert done.returncode == 2
    assert "its content changed since it was written" in done.stderr
    assert not (root / "model").exists()
