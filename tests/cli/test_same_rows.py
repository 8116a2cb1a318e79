"""The rows of every step, through kill -9, in a moved folder, on another backend, amid stages: one chain of hashes."""

import signal
import time

import pytest
from commands import checkpoints, overrides, records, sconce_here, start, write_corpus
from tiny import INSTALLED

STAGES = '[{"from_step": 8, "batch_size": 8}, {"from_step": 16, "sequence_length": 32}]'
OPTIONS = overrides(
    "data.sequence_length=8",
    f"data.stages={STAGES}",
    "data.packing=bestfit",
    "scheduler.total_steps=24",
    "runtime.log_every_n_steps=1",
    "runtime.checkpoint.every_n_steps=4",
    "runtime.evaluation.every_n_steps=24",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    text = write_corpus(home / "corpus.txt")
    made = sconce_here(
        "orchestrate", "--input", text, "--run-dir", home / "run", "--backend", "cpu", "--vocab-size", 300, *OPTIONS
    )
    assert made.returncode == 0, made.stderr
    assert "from step 9; 8 rows of 32 from step 17" in made.stdout
    assert "step 17: from here on 8 rows of 32 an update, 8 at a time" in made.stdout
    return home / "run"


def chain(run):
    return {record["step"]: record["rows_sha256"] for record in records(run) if "rows_sha256" in record}


def test_tokens_count_every_stage(whole):
    tokens = {record["step"]: record["tokens"] for record in records(whole) if "tokens" in record}
    assert tokens[8] == 8 * 4 * 8
    assert tokens[16] == tokens[8] + 8 * 8 * 8
    assert tokens[24] == tokens[16] + 8 * 8 * 32


@pytest.mark.parametrize("hardware", INSTALLED)
def test_killed_moved_and_resumed_elsewhere(whole, tmp_path, hardware):
    arguments = ("train", "--config", whole / "training.toml", "--backend")
    first, moved = tmp_path / "first", tmp_path / "moved"
    with start(*arguments, hardware, "--run-dir", first, "--override", "data.micro_batch_size=1") as process:
        give_up = time.monotonic() + 120
        while len(checkpoints(first)) < 2 and time.monotonic() < give_up and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 2 <= len(checkpoints(first)) < 6, "the kill came too late to test anything"
    first.rename(moved)
    other = INSTALLED[-1 - INSTALLED.index(hardware)]
    resumed = sconce_here(
        *arguments,
        other,
        "--run-dir",
        moved,
        "--resume",
        "--override",
        "data.micro_batch_size=4",
        "--override",
        "data.prefetch=1",
    )
    assert resumed.returncode == 0, resumed.stderr
    assert len(chain(whole)) == 24
    assert chain(moved) == chain(whole)
