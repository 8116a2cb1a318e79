"""Figures on disk: lines appear once, a cut line is forgotten, pauses are not training time."""

import json

from sconce.training.metrics import MetricsFile, read_metrics
from sconce.training.throughput import Throughput


def test_resuming_cuts_back_to_the_step_and_drops_a_half_written_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1.0 / step} for step in (1, 10, 20, 30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo')
    metrics = MetricsFile(path, resumed_step=20)
    metrics.write({"step": 30, "loss": 7.0})
    metrics.close()
    assert read_metrics(path) == [*lines[:3], {"step": 30, "loss": 7.0}]


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl", resumed_step=0).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_throughput_counts_tokens_over_training_time_alone():
    now = 0.0
    throughput = Throughput(lambda: now)
    throughput.resume()
    now = 2.0
    assert throughput.add(100) == 50
    throughput.pause()
    now = 100.0  # an evaluation
    throughput.resume()
    now = 102.0
    assert throughput.add(100) == 50
    throughput.lap()
    now = 103.0
    assert throughput.add(30) == 230 / 5, "one update's figures may arrive late: at least the last eight count"
    throughput.lap()
    for _ in range(9):
        now += 1
        rate = throughput.add(10)
    assert rate == 10
