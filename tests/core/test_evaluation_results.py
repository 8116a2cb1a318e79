"""Where what evaluations find is kept, for reports and model cards."""

import json

import pytest
from small_run import write_run

from sconce.checkpoint.evaluations import keep_results, read_results, results_of, results_of_run
from sconce.checkpoint.load import open_checkpoint
from sconce.errors import CheckpointError


def result(name="held-out", loss=2.0, **settings):
    return {"kind": "text", "name": name, "figures": {"loss": loss, "tokens": 7}, "settings": {"window": 8} | settings}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_results_gather_and_the_same_again_replaces(run):
    checkpoint = run / "checkpoints/step-00000001"
    path = keep_results(checkpoint, [result(), result("book.txt")])
    assert keep_results(checkpoint, [result(loss=3.0), result(stride=4)]) == path
    kept = read_results(path)
    assert [(one["name"], one["figures"]["loss"], one["settings"]) for one in kept.results] == [
        ("book.txt", 2.0, {"window": 8}),
        ("held-out", 3.0, {"window": 8}),
        ("held-out", 2.0, {"window": 8, "stride": 4}),
    ]
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert kept.model_sha256 == {"model.safetensors": manifest["files"]["model.safetensors"]["sha256"]}
    assert (kept.checkpoint, kept.step, results_of_run(run)) == ("step-00000001", 1, [path])


def test_results_outlive_their_checkpoint_but_not_its_replacement(run, tmp_path):
    checkpoint = run / "checkpoints/step-00000001"
    path = keep_results(checkpoint, [result()])
    write_run(tmp_path / "other", scale=2.0)
    checkpoint.rename(tmp_path / "gone")
    assert read_results(path).step == 1
    (tmp_path / "other/checkpoints/step-00000001").rename(checkpoint)
    keep_results(checkpoint, [result("book.txt")])
    assert [one["name"] for one in read_results(path).results] == ["book.txt"]


def test_the_results_of_a_checkpoint_are_not_those_of_another_model(run, tmp_path):
    checkpoint = run / "checkpoints/step-00000001"
    keep_results(checkpoint, [result()])
    assert [one["name"] for one in results_of(open_checkpoint(run))] == ["held-out"]
    checkpoint.rename(tmp_path / "gone")
    (write_run(tmp_path / "other", scale=2.0) / "checkpoints/step-00000001").rename(checkpoint)
    assert results_of(open_checkpoint(run)) == ()


def test_a_checkpoint_outside_a_run_keeps_nothing(run, tmp_path):
    elsewhere = (run / "checkpoints/step-00000001").rename(tmp_path / "model")
    assert keep_results(elsewhere, [result()]) is None
    assert not (tmp_path / "evaluations").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"checkpoint": 1}', "[" * 10**5])
def test_a_file_that_is_none_is_left_alone(run, content):
    path = run / "evaluations/step-00000001.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(CheckpointError, match="not a file of evaluation results"):
        keep_results(run / "checkpoints/step-00000001", [result()])
    assert path.read_text() == content
