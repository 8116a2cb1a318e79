"""`sconce checkpoint` as a user types it, on the checkpoints of a small run."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import overrides, sconce_here, write_corpus
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    corpus = write_corpus(root / "corpus.txt", lines=200)
    done = sconce_here(
        "orchestrate",
        "--input",
        corpus,
        "--run-dir",
        root / "run",
        "--vocab-size",
        300,
        "--backend",
        "cpu",
        *overrides("scheduler.total_steps=20", "runtime.evaluation.every_n_steps=10"),
    )
    assert done.returncode == 0, done.stderr
    return root / "run"


def step(run, number):
    return run / "checkpoints" / f"step-{number:08d}"


def answer(*arguments):
    done = sconce_here("checkpoint", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_list(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    step(copy, 10).rename(copy / "checkpoints" / ".bad-step-00000010")
    done = sconce_here("checkpoint", "list", copy)
    assert done.returncode == 0, done.stderr
    _, newest, aside = done.stdout.splitlines()
    assert newest.split()[:2] == ["step-00000020", "2,560"]
    assert newest.endswith("LATEST, BEST")
    assert aside.startswith(".bad-step-00000010")
    assert aside.endswith("set aside")
    manifest = json.loads((step(run, 20) / "manifest.json").read_text())
    newest, aside = answer("list", copy)
    assert {key: newest[key] for key in ("step", "tokens", "best", "backend", "precision")} == {
        key: manifest[key] for key in ("step", "tokens", "best", "backend", "precision")
    }
    assert newest["bytes"] == sum(path.stat().st_size for path in step(run, 20).iterdir())
    assert (aside["set_aside"], aside["fault"]) == (True, None)


def test_inspect_says_what_the_manifest_says(run):
    found = answer("inspect", run, "--tensors")
    manifest = json.loads((step(run, 20) / "manifest.json").read_text())
    for key in ("step", "tokens", "cursor", "best", "backend", "precision", "versions", "hardware", "files"):
        assert found[key] == manifest[key], key
    model = load_file(step(run, 20) / "model.safetensors")
    assert found["model"]["parameters"] == sum(tensor.size for tensor in model.values())
    assert found["model"]["num_layers"] == 1
    assert [part["name"] for part in found["parts"]] == ["model", "adam_m", "adam_v"]
    figures = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert len(figures) == 3 * len(model)
    norm = model["model.norm.weight"].astype(np.float64)
    assert figures["model/model.norm.weight"] == {
        "name": "model/model.norm.weight",
        "shape": [16],
        "rms": pytest.approx(np.sqrt((norm**2).mean())),
        "minimum": norm.min(),
        "maximum": norm.max(),
        "non_finite": 0,
    }


def test_inspect_for_people(run):
    done = sconce_here("checkpoint", "inspect", run / "checkpoints" / "LATEST")
    assert done.returncode == 0, done.stderr
    cursor = json.loads((step(run, 20) / "manifest.json").read_text())["cursor"]
    for key, value in cursor.items():
        assert f"cursor {key}" in done.stdout
        assert str(value) in done.stdout
    for part in ("2,560", "adam_m", "adam_v", "33 tensors", "optimizer.safetensors", "num_layers"):
        assert part in done.stdout
    assert "not finite" not in done.stdout  # the figures take --tensors


def test_verify(run):
    done = sconce_here("checkpoint", "verify", step(run, 10))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["manifest", "sizes", "hashes", "tensors", "values", "intact"]
    done = sconce_here("checkpoint", "verify", run)
    assert [line for line in done.stdout.splitlines() if line.startswith("/")] == [
        str(step(run, 20)),
        str(step(run, 10)),
    ]


def test_verify_finds_one_flipped_bit(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    path = step(copy, 10) / "optimizer.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    done = sconce_here("checkpoint", "verify", step(copy, 10))
    assert done.returncode == 2
    assert done.stderr == f"sconce: {path}: its content changed since it was written\n"
    done = sconce_here("checkpoint", "verify", copy, "--json")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "1 of 2 checkpoints not intact: step-00000010" in done.stderr
    newest, damaged = map(json.loads, done.stdout.splitlines())
    assert (newest["intact"], damaged["intact"]) == (True, False)
    assert list(damaged["checks"]) == ["manifest", "sizes"]
    assert step(copy, 10).exists()  # verifying sets nothing aside


def test_diff(run):
    found = answer("diff", step(run, 10), step(run, 20))
    assert found["identical"] is False
    assert found["changed"]["step"] == {"a": 10, "b": 20}
    assert found["changed"]["cursor rows_consumed"] == {"a": 40, "b": 80}
    assert found["config"] == []
    a, b = (load_file(step(run, number) / "optimizer.safetensors") for number in (10, 20))
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    for name, tensor in a.items():
        x, y = tensor.astype(np.float64), b[name].astype(np.float64)
        assert by_name[name]["max_abs"] == np.abs(x - y).max()
        assert by_name[name]["relative"] == pytest.approx(np.abs(x - y).max() / np.abs(x).max())
    done = sconce_here("checkpoint", "diff", step(run, 10), run, "--top", 3)
    assert done.returncode == 0, done.stderr
    assert "step: 10 in A, 20 in B" in done.stdout
    worst = [line.split()[0] for line in done.stdout.rpartition("most different")[2].splitlines()[1:]]
    assert worst == [tensor["name"] for tensor in found["tensors"][:3]]


def test_diff_of_the_same(run, tmp_path):
    copy = shutil.copytree(step(run, 20), tmp_path / "copy")
    done = sconce_here("checkpoint", "diff", run / "checkpoints" / "LATEST", copy)
    assert done.stdout.splitlines()[-1] == "identical: 33 tensors, bit for bit"


@pytest.mark.parametrize("command", [("list",), ("inspect",), ("verify",), ("diff", ".")])
def test_nothing_there_is_one_line(command, tmp_path):
    done = sconce_here("checkpoint", *command, tmp_path / "nowhere")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("sconce: ")


def test_no_framework_is_imported(run):
    commands = [["list", run], ["inspect", run, "--tensors"], ["verify", run], ["diff", run, run]]
    code = (
        "import sys\nfor n in ('torch', 'mlx', 'mlx.core'): sys.modules[n] = None\n"
        "from sconce_cli.main import app\n"
        f"for command in {[list(map(str, command)) for command in commands]}:\n"
        "    app(['checkpoint', *command], standalone_mode=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
