"""`sconce report` as a user types it: on finished runs, on one under way, on what is no run."""

import json
import time

import pytest
from commands import overrides, sconce_here, start, write_corpus
from tiny import INSTALLED


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def run(home):
    corpus = write_corpus(home / "corpus.txt")
    options = ("--input", corpus, "--run-dir", home / "run", "--backend", INSTALLED[-1], "--quiet", *overrides())
    done = sconce_here("orchestrate", *options)
    assert done.returncode == 0, done.stderr
    return home / "run"


def data_of(page):
    html = page.read_text(encoding="utf-8")
    return json.loads(html.split('id="report">')[1].split("</script>")[0])


def test_a_real_run_becomes_a_page_and_pictures(run, home):
    assert sconce_here("eval", run, "--backend", INSTALLED[-1]).returncode == 0
    done = sconce_here("report", run, "--png", home / "png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "report.html: run, 9 lines of figures" in done.stdout
    assert (home / "png/loss_over_tokens.png").is_file()
    (shown,) = data_of(run / "report.html")["runs"]
    assert (shown["step"], shown["total_steps"]) == (30, 30)
    assert shown["curves"]["loss"]["step"] == [1, 5, 10, 15, 20, 25, 30]
    assert [sample["step"] for sample in shown["samples"]] == [15, 30]
    (evaluated,) = shown["evaluations"]
    (result,) = evaluated["results"]
    assert result["figures"]["loss"] == pytest.approx(shown["curves"]["eval_loss"]["mean"][-1], abs=1e-5)
    facts = dict(shown["data"]) | dict(shown["hardware"])
    assert {"training", "held out", "tokenizer sha256", "device", "backend", "python"} <= facts.keys()
    again = sconce_here("report", run)
    assert again.returncode == 0


def test_a_run_under_way_can_be_looked_at(run, home):
    more = overrides("scheduler.total_steps=100000", "runtime.log_every_n_steps=1")
    options = ("--input", home / "corpus.txt", "--run-dir", home / "live", "--backend", INSTALLED[-1], "--quiet", *more)
    with start("orchestrate", *options) as process:
        try:
            end = time.monotonic() + 60
            while not (home / "live/metrics.jsonl").is_file() and time.monotonic() < end:
                time.sleep(0.05)
            for _ in range(3):
                done = sconce_here("report", home / "live", run, "--out", home / "both.html")
                assert (done.returncode, done.stderr) == (0, "")
                time.sleep(0.1)
            assert process.poll() is None
        finally:
            process.kill()
            process.communicate()
    assert [shown["name"] for shown in data_of(home / "both.html")["runs"]] == ["live", "run"]


def test_what_cannot_be_reported_is_one_line(run, home):
    def refused(*arguments):
        done = sconce_here("report", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        return done.stderr

    assert "no run here" in refused(home)
    assert "no such folder" in refused(run, home / "nowhere")
    assert "named twice" in refused(run, run)
    assert "exists and is no report" in refused(run, "--out", home / "corpus.txt")
    assert "no such folder" in refused(run, "--out", home / "nowhere/report.html")
    assert "corpus.txt" in refused(home / "corpus.txt")
    page = run / "report.html"
    page.unlink(missing_ok=True)
    assert refused(run, "--png", home / "corpus.txt").endswith("corpus.txt: File exists\n")
    assert not page.exists()
