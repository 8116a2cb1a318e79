"""The report: what its curves hold, what its page holds, and that a page needs nothing else."""

import json
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from small_run import write_run

from sconce.errors import CheckpointError, SconceError
from sconce.report.figures import draw_charts
from sconce.report.gather import MOST_SAMPLES, view_runs
from sconce.report.page import page_data, render, write_page
from sconce.report.series import Curve, decimate, read_curves

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = "</script><script>alert(1)</script><!-- <svg onload=alert(2)> \u2028 🙂 /* data */"


def write_metrics(folder, steps=20, every=1, **figures):
    """A run whose update takes a second for each 100 tokens, and a tenth as long from half way on."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        if step % every == 0 or step == 1:
            rate = 100.0 if step <= steps // 2 else 1000.0
            record = {"step": step, "loss": 1 + 6 / step, "lr": 1e-3, "tokens": 100 * step, "tokens_per_second": rate}
            lines.append(json.dumps(record | figures))
    lines.append(json.dumps({"step": steps, "eval_loss": 1.5, "bits_per_byte": 0.75}))
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def embedded(html):
    """The data inside a page, as a browser would read it."""
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', html, re.S)
    return json.loads(found[1])


@pytest.mark.parametrize("every", [1, 5])
def test_time_adds_up_from_tokens_and_their_rate(tmp_path, every):
    curve = read_curves(write_metrics(tmp_path, 20, every) / "metrics.jsonl").curves["loss"]
    assert curve.step[-1] == 20
    assert curve.tokens[-1] == 2000
    assert curve.seconds[0] == pytest.approx(1)
    assert curve.seconds[-1] == pytest.approx(10 * 1 + 10 * 0.1)


def test_an_imported_run_did_not_train_its_first_steps_here(tmp_path):
    record = {"step": 5001, "loss": 2.0, "tokens": 500100, "tokens_per_second": 100.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert read_curves(tmp_path / "metrics.jsonl").curves["loss"].seconds[0] == pytest.approx(1)


def test_held_out_figures_stand_where_their_step_does(tmp_path):
    curves = read_curves(write_metrics(tmp_path) / "metrics.jsonl").curves
    assert (curves["eval_loss"].tokens[0], curves["eval_loss"].seconds[0]) == (2000, curves["loss"].seconds[-1])


def test_broken_lines_are_passed_over_and_counted(tmp_path):
    path = write_metrics(tmp_path) / "metrics.jsonl"
    good = path.read_bytes()
    bad = [b"{", b"[1, 2]", b'{"loss": 1}', b'{"step": "3", "loss": 1}', b"\xff\xfe", b'{"step": -1}', b"[" * 100000]
    odd = b'{"step": 7, "loss": NaN, "lr": "high", "grad_norm": 1' + b"0" * 400 + b', "mfu": true}'
    path.write_bytes(good + b"\n".join([*bad, odd]) + b'\n{"step": 21, "loss"')
    metrics = read_curves(path)
    assert (metrics.broken, metrics.lines) == (len(bad), good.count(b"\n") + len(bad) + 1)
    assert {name: curve.values.size for name, curve in metrics.curves.items()} == {
        **dict.fromkeys(("loss", "lr", "tokens_per_second"), 20),
        **dict.fromkeys(("eval_loss", "bits_per_byte"), 1),
    }


@pytest.mark.parametrize("n", [1, 2, 49, 50, 51, 99, 1234])
def test_thinned_curves_keep_ends_extremes_and_mean(n):
    values = np.random.default_rng(n).normal(size=n)
    values[n // 3] = 100
    at = np.arange(1.0, n + 1)
    points = decimate(Curve(at, at * 2, at / 2, values), 50)
    assert points.step.size == min(n, 50)
    assert (points.step[0], points.step[-1]) == (1, n)
    assert (points.mean[0], points.mean[-1]) == (values[0], values[-1])
    assert (points.low.min(), points.high.max()) == (values.min(), values.max())
    assert np.all(np.diff(points.step) > 0)
    assert np.all((points.low <= points.mean + 1e-12) & (points.mean <= points.high + 1e-12))
    assert np.array_equal(points.tokens, points.step * 2)
    if n <= 50:
        assert points.behind == 1
        assert np.array_equal(points.mean, values)


def test_the_page_is_of_bounded_size(tmp_path):
    figures = {"grad_norm": 1.234567, "memory_bytes": 123456789, "mfu": 0.1234567, "mfu_measured": 0.1234567}
    sizes = []
    for steps in (4_000, 40_000):
        views = view_runs([write_metrics(tmp_path / str(steps), steps, **figures)])
        sizes.append(len(render(page_data(views, NOW))))
    assert sizes[1] < 1.1 * sizes[0] < 600_000
    data = embedded(render(page_data(views, NOW)))
    curve = data["runs"][0]["curves"]["loss"]
    assert (len(curve["mean"]), curve["behind"]) == (800, 51)
    assert max(curve["high"]) == 7


def test_a_page_of_hostile_text_holds_it_as_data_and_loads_nothing(tmp_path):
    run = write_metrics(tmp_path / "a <b>&amp; run")
    (run / "samples").mkdir()
    (run / "samples/step-00000010.txt").write_text(HOSTILE)
    (run / "run.json").write_text(json.dumps({"runtime": {"sample": {"prompt": HOSTILE}}}))
    html = render(page_data(view_runs([run]), NOW))
    (data,) = embedded(html)["runs"]
    assert data["samples"] == [{"step": 10, "text": HOSTILE, "cut": False}]
    assert json.loads(data["config"]["runtime.sample.prompt"]) == HOSTILE
    assert html.count("</script>") == 2
    outside = html.replace("http://www.w3.org/2000/svg", "")  # the name of a namespace, which nobody fetches
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\((?!#)|fetch\(|XMLHttpRequest", outside)
    assert "default-src 'none'" in html


def test_what_a_run_left_is_on_the_page(tmp_path):
    run = write_run(write_metrics(tmp_path / "run"))
    config = {"optimizer": {"learning_rate": 0.5}, "scheduler": {"total_steps": 40}, "data": {"train_shards": []}}
    config["tokenizer"] = {"tokenizer_json": str(run / "tokenizer/tokenizer.json")}
    (run / "run.json").write_text(json.dumps(config))
    (run / "samples").mkdir()
    for step in range(200):
        (run / f"samples/step-{step:08d}.txt").write_text("x" * 5000)
    (data,) = page_data(view_runs([run]), NOW)["runs"]
    assert (data["step"], data["total_steps"]) == (20, 40)
    assert data["config"]["optimizer.learning_rate"] == "0.5"
    assert data["config"]["tokenizer.tokenizer_json"] == '"tokenizer/tokenizer.json"'
    assert data["headline"]["best_eval_loss"] == 1.5
    assert data["headline"]["parameters"] > 1000
    (checkpoint,) = data["checkpoints"]
    manifest = json.loads((run / "checkpoints/step-00000001/manifest.json").read_text())
    assert checkpoint["files"] == {name: file["sha256"] for name, file in manifest["files"].items()}
    assert checkpoint["latest"]
    samples = data["samples"]
    assert [len(samples), samples[0]["step"], samples[-1]["step"]] == [MOST_SAMPLES, 0, 199]
    assert all(sample["cut"] and len(sample["text"]) == 4000 for sample in samples)
    assert any("60 of 200" in note for note in data["notes"])


def test_a_run_that_has_only_begun_or_is_damaged_still_gives_a_page(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/run.json").write_text("{}")
    damaged = write_run(write_metrics(tmp_path / "damaged"))
    (damaged / "checkpoints/step-00000001/manifest.json").write_text("{")
    (damaged / "run.json").write_text("{ no json")
    (damaged / "data").mkdir()
    (damaged / "data/manifest.json").write_text("[]")
    (damaged / "evaluations").mkdir()
    (damaged / "evaluations/step-00000001.json").write_text("null")
    begun, broken = page_data(view_runs([tmp_path / "begun", damaged]), NOW)["runs"]
    assert (begun["step"], begun["curves"], begun["notes"]) == (0, {}, [])
    assert len(broken["curves"]["loss"]["mean"]) == 20
    assert "not JSON" in broken["checkpoints"][0]["fault"]
    assert len(broken["notes"]) == 3


def test_runs_of_one_name_are_told_apart(tmp_path):
    places = [write_metrics(tmp_path / name) for name in ("a/run", "b/run")]
    assert [view.name for view in view_runs(places)] == ["a/run", "b/run"]
    with pytest.raises(SconceError, match="named twice"):
        view_runs([places[0], tmp_path / "b/../a/run"])


def test_what_is_no_run_and_what_is_no_report_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        view_runs([tmp_path / "nothing"])
    with pytest.raises(CheckpointError, match="no run here"):
        view_runs([tmp_path])
    views = view_runs([write_metrics(tmp_path / "run")])
    page = tmp_path / "thesis.html"
    page.write_text("years of work")
    with pytest.raises(SconceError, match="is no report"):
        write_page(views, page, NOW)
    assert page.read_text() == "years of work"
    with pytest.raises(SconceError, match="no such folder"):
        write_page(views, tmp_path / "away/report.html", NOW)
    write_page(views, tmp_path / "report.html", NOW)
    write_page(views, tmp_path / "report.html", NOW)


def test_pictures_of_every_chart_that_has_figures(tmp_path):
    views = view_runs([write_metrics(tmp_path / name, steps) for name, steps in (("a", 20), ("long", 2000))])
    made = draw_charts(views, tmp_path / "png")
    names = ["loss", "loss_over_tokens", "loss_over_seconds", "bits_per_byte", "learning_rate", "throughput"]
    assert [path.stem for path in made] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == sorted(path.name for path in made)
