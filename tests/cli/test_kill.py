"""kill -9 at random moments, checkpoint writes included: a resumed run ends as if nothing had happened."""

import random
import signal
import time

import pytest
from commands import overrides, sconce, start, weights, write_corpus
from tiny import INSTALLED

# Many checkpoints in a short run, so that many kills land inside a write.
OPTIONS = overrides(
    "scheduler.total_steps=60",
    "runtime.checkpoint.every_n_steps=2",
    "runtime.evaluation.every_n_steps=4",
    "runtime.checkpoint.max_keep=2",
)


def run_with_kills(config, folder, kills, backend, startup, seed):
    """Kill and resume until the run has been killed `kills` times; returns how many kills hit a live run."""
    moments = random.Random(seed)
    hit = 0
    for _ in range(kills):
        process = start("train", "--config", config, "--run-dir", folder, "--backend", backend, "--resume", *OPTIONS)
        # From just before the first update on: start-up takes a near constant time, measured by the caller.
        time.sleep(startup * moments.uniform(0.8, 1.25))
        hit += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return hit


@pytest.mark.slow
@pytest.mark.parametrize("hardware", INSTALLED)
def test_twenty_kills_leave_the_weights_bit_identical(tmp_path, hardware):
    corpus = write_corpus(tmp_path / "corpus.txt")
    made = sconce(
        "orchestrate",
        "--input",
        corpus,
        "--run-dir",
        tmp_path / "whole",
        "--backend",
        hardware,
        "--vocab-size",
        300,
        *OPTIONS,
    )
    assert made.returncode == 0, made.stderr
    config = tmp_path / "whole" / "training.toml"
    started = time.monotonic()
    again = sconce(
        "train",
        "--config",
        config,
        "--run-dir",
        tmp_path / "probe",
        "--backend",
        hardware,
        "--stop-at",
        1,
        *OPTIONS,
    )
    assert again.returncode == 0, again.stderr
    startup = time.monotonic() - started
    hit = run_with_kills(config, tmp_path / "killed", 20, hardware, startup, seed=7)
    assert hit >= 10, "the kills came too late to test anything"
    last = sconce(
        "train", "--config", config, "--run-dir", tmp_path / "killed", "--backend", hardware, "--resume", *OPTIONS
    )
    assert last.returncode == 0, last.stderr
    assert weights(tmp_path / "killed", 60) == weights(tmp_path / "whole", 60)
