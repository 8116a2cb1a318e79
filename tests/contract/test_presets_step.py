"""Every preset takes steps and finishes, with its sizes scaled down and all else as it is."""

import json

import pytest
from commands import write_corpus
from hub import serving, write_toy

from sconce.config import preset_names, preset_table
from sconce.orchestrate import LocalJob, orchestrate_local
from sconce.training.run import RunFolder
from sconce_cli.console import make_reporter

SMALL = (
    "model.num_layers=1",
    "model.max_position_embeddings=32",
    "data.batch_size=4",
    "scheduler.total_steps=2",
    "runtime.sample.max_tokens=4",
    "runtime.logging.tensorboard=false",
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    write_toy(tmp_path / "repos", rows=100, name="HuggingFaceFW/fineweb-edu", config="sample-10BT")
    with serving(tmp_path / "repos", monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize("name", preset_names())
def test_it_trains(name, tmp_path, request):
    model, streams = preset_table(name)["model"], preset_table(name)["data"].get("streaming", False)
    if streams:
        request.getfixturevalue("hub")
    job = LocalJob(
        inputs=() if streams else (write_corpus(tmp_path / "corpus.txt", 200),),
        profile=name,
        vocab_size=280,
        overrides=(
            *SMALL,
            f"model.hidden_size={4 * model['num_attention_heads']}",
            f"model.num_key_value_heads={model['num_key_value_heads']}",
            *(["data.window_tokens=2048"] if streams else []),
        ),
    )
    quiet = make_reporter(quiet=True, as_json=False)
    outcome = orchestrate_local(job, RunFolder(tmp_path / "run"), hardware="cpu", reporter=quiet)
    assert outcome.step == outcome.total_steps == 2
    assert outcome.evaluation is not None
    assert (tmp_path / "run/data/window-00000000").exists() == streams
    kept = json.loads((tmp_path / "run/run.json").read_text())
    assert kept["runtime"]["precision"] == preset_table(name)["runtime"]["precision"]
    assert kept["model"]["num_key_value_heads"] == model["num_key_value_heads"]
