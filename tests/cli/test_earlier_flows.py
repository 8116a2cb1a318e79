"""What people typed for the system before Sconce, typed here: `sconce` for its programs, all else as it was."""

import copy
import json
import os
import shlex
from pathlib import Path
from unittest import mock

import earlier_configs as earlier
import pytest
from commands import checkpoints, records, sconce_here, weights, write_corpus
from guides import ROOT
from workspace import roots

# docs/coming-from-rust.md has these commands.
CLEAN = "data clean --input data/raw --document line --collapse-spaces --min-chars 10 --duplicates keep"
TINY = "--hidden-size 16 --layers 1 --seq-len 32 --vocab-size 300 --steps 8 --warmup-steps 1"


@pytest.fixture
def place(tmp_path):
    """Where that system's commands were typed."""
    (tmp_path / "crates/pretraining-data").mkdir(parents=True)
    write_corpus(tmp_path / "crates/pretraining-data/input.txt", lines=200)
    return tmp_path


def typed(place, line, code=0):
    program, *words = shlex.split(line)
    assert program == "sconce"
    done = sconce_here(*words, cwd=place)
    assert done.returncode == code, done.stderr
    return done


def orchestrate_then_train(place, small=""):
    line = "sconce orchestrate --profile local --input crates/pretraining-data/input.txt --run-dir runs/local-smoke"
    typed(place, f"{line} {small}")
    return place / "runs/local-smoke"


def test_orchestrate_then_train_its_config(place):
    run = orchestrate_then_train(place, TINY)
    before = weights(run, 8)
    for options in ("", " --resume"):
        done = typed(place, f"sconce train --config runs/local-smoke/training.toml{options}")
        assert "finished: 8 steps (nothing left to do)" in done.stdout
    assert weights(run, 8) == before
    longer = "--override scheduler.total_steps=12 --override optimizer.learning_rate=4e-5"
    done = typed(place, f"sconce train --config runs/local-smoke/training.toml {longer}")
    assert "resuming from step-00000008; changed: " in done.stdout
    assert " runs/local-smoke/checkpoints/step-00000012" in done.stdout  # as the user would spell it
    assert checkpoints(run)[-1] == "step-00000012"
    assert records(run)[-1]["step"] == 12
    assert weights(run, 8) == before


def test_a_run_whose_schedule_is_not_finished_goes_on(place):
    run = orchestrate_then_train(place, TINY)
    (place / "whole").mkdir()
    run.rename(place / "whole/run")
    run.mkdir()
    for name in ("training.toml", "tokenizer"):
        (place / "whole/run" / name).rename(run / name)
    typed(place, "sconce train --config runs/local-smoke/training.toml --stop-at 3")
    done = typed(place, "sconce train --config runs/local-smoke/training.toml")
    assert "resuming from step-00000003" in done.stdout
    assert weights(run, 8) == weights(place / "whole/run", 8)
    refused = typed(place, "sconce train --config runs/local-smoke/training.toml --no-resume", code=2)
    assert "already holds a run at step 8" in refused.stderr


@pytest.mark.slow
def test_the_smoke_run_as_it_was_typed(place):
    run = orchestrate_then_train(place)
    assert checkpoints(run)[-1] == "step-00000200"
    typed(place, "sconce train --config runs/local-smoke/training.toml")
    assert json.loads((run / "run.json").read_text())["model"]["hidden_size"] == 128


def test_train_a_config_then_resume_and_override(place):
    table = copy.deepcopy(earlier.FILES["m3_medium.yaml"])
    table["model"] |= {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_attention_heads": 2}
    table["model"] |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 32}
    run = "../runs/m3-medium"
    table["tokenizer"] = {
        "tokenizer_json": f"{run}/tokenizer/tokenizer.json",
        "special_tokens": f"{run}/special_tokens.txt",
    }
    corpus = ["../crates/pretraining-data/input.txt"]
    table["data"] |= {"train_shards": corpus, "validation_shards": corpus}
    table["scheduler"] |= {"total_steps": 6, "warmup_steps": 1, "min_lr": 1e-6}
    table["runtime"]["checkpoint"] |= {"directory": f"{run}/checkpoints", "every_n_steps": 2}
    table["runtime"]["logging"]["tensorboard"] = f"{run}/tensorboard"
    earlier.write(place, "m3_medium.yaml", table)
    text = "crates/pretraining-data/input.txt"
    typed(place, f"sconce tokenizer train --input {text} --out runs/m3-medium/tokenizer --vocab-size 300")
    run = place / "runs/m3-medium"
    command = "sconce train --config configs/m3_medium.yaml"
    typed(place, f"{command} --stop-at 4")
    assert checkpoints(run)[-1] == "step-00000004"
    assert "add --resume to go on" in typed(place, command, code=2).stderr
    done = typed(place, f"{command} --resume --override optimizer.learning_rate=4e-5")
    assert "optimizer.learning_rate from 0.0003 to 4e-05" in done.stdout
    assert checkpoints(run)[-1] == "step-00000006"
    assert list((run / "tensorboard").iterdir())


def test_a_config_beside_its_checkpoints(place):
    """The example of that system's training crate: everything in one folder, and an override of a list's item."""
    write_corpus(place / "data.txt", lines=200)
    (place / "alt").mkdir()
    write_corpus(place / "alt/train.txt", lines=300)
    typed(place, "sconce tokenizer train --input data.txt --out artifacts --vocab-size 300")
    table = {
        "tokenizer": {"tokenizer_json": "./artifacts/tokenizer.json", "special_tokens": "./artifacts/special.txt"},
        "data": {"train_shards": ["./data.txt"], "validation_shards": ["./data.txt"], "shuffle_buffer_size": 128},
        "scheduler": {"strategy": "constant", "total_steps": 1000},
        "runtime": {
            "checkpoint": {"directory": "./checkpoints", "every_n_steps": 100, "max_keep": 3},
            "evaluation": {"every_n_steps": 200, "best": {"directory": "./checkpoints/best", "max_keep": 1}},
            "logging": {"enable_stdout": True, "tensorboard": "./runs/train", "tensorboard_flush_every_n": 20},
        },
        "model": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_attention_heads": 2,
                  "max_position_embeddings": 32},
    }  # fmt: skip
    earlier.write(place, "config.toml", table).rename(place / "config.toml")
    changes = [
        "runtime.log_every_n_steps=5",
        "optimizer.learning_rate=0.0001",
        "scheduler.total_steps=5",
        "data.train_shards[0]=./alt/train.txt",
    ]
    line = "sconce train --config config.toml " + " ".join(f"--override {change}" for change in changes)
    typed(place, line)
    assert checkpoints(place) == ["step-00000005"]
    sources = json.loads((place / "data/manifest.json").read_text())["sources"]
    assert [Path(source["path"]).name for source in sources] == ["train.txt", "data.txt"]
    assert "nothing left to do" in typed(place, line).stdout


@pytest.mark.parametrize("program", ["preprocess --mixed", "preprocess out.txt", "train-streaming --config a.toml"])
def test_a_program_that_is_another_one_here_is_told(place, program):
    done = typed(place, f"sconce {program}", code=2)
    assert done.stderr.startswith(f"sconce: {program.split()[0]}: is `sconce ")
    assert len(done.stderr.splitlines()) == 1


def test_what_the_guide_gives_for_preprocess_cleans_as_it_did(place):
    assert CLEAN in (ROOT / "docs/coming-from-rust.md").read_text()
    (place / "data/raw").mkdir(parents=True)
    (place / "data/raw/b.txt").write_text("a  line\twith   spaces\nshort\n\n")
    (place / "data/raw/a.txt").write_text("the same line again\nthe same line again\x07\n")
    typed(place, f"sconce {CLEAN} --out data/processed")
    (shard,) = (place / "data/processed/train").iterdir()
    documents = [json.loads(line)["text"].strip() for line in shard.read_text().splitlines()]
    assert documents == ["the same line again", "the same line again", "a line with spaces"]


def test_text_that_its_sharder_left_on_a_volume_is_read_as_it_is(place):
    """fineweb_sharder.py wrote train_0000.txt beside a manifest.json; orchestrate wrote train-00000.txt."""
    workspace = place / "workspace"
    for name in ("train/a/train_0000.txt", "train/a/train-00000.txt", "val/a/val_0000.txt"):
        (workspace / "datasets" / name).parent.mkdir(parents=True, exist_ok=True)
        write_corpus(workspace / "datasets" / name, lines=200)
        (workspace / "datasets" / name).with_name("manifest.json").write_text('{"shards": []}')
    with mock.patch.dict(os.environ, roots(workspace)):
        typed(place, f"sconce orchestrate --mode cloud --experiment a --profile local --backend cpu {TINY}")
    (manifest,) = (workspace / "cache/a").glob("*/manifest.json")
    found = json.loads(manifest.read_text())
    assert sorted(Path(source["path"]).name for source in found["sources"] if "val" not in source["path"]) == [
        "train-00000.txt",
        "train_0000.txt",
    ]
    assert found["validation_paths"] == [str(workspace / "datasets/val/a")]
