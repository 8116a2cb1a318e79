"""`sconce generate` as it is typed."""

import json
import re

import pytest
from commands import sconce, sconce_here
from small_run import write_run
from tiny import INSTALLED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


def generate(run, *arguments, backend=INSTALLED[-1], code=0, **options):
    done = sconce("generate", run, "--backend", backend, *arguments, **options)
    assert done.returncode == code, done.stderr
    return done


def lines(run, *arguments, **options):
    return [json.loads(line) for line in generate(run, "--json", *arguments, **options).stdout.splitlines()]


def test_text_goes_to_stdout_and_figures_to_stderr(run):
    done = generate(run, "--prompt", "a lamp", "--max-tokens", 12)
    assert done.stdout.startswith("a lamp")
    assert re.search(r"tok/s; new 12 tokens, [\d,]+ tok/s after the first\n$", done.stderr)
    assert generate(run, "--prompt", "a lamp", "--max-tokens", 12, "--quiet").stderr == ""


def test_json_is_the_same_on_every_backend_and_in_any_company(run):
    asked = ("--prompt", "a hill", "--max-tokens", 20, "--seed", 7)
    alone = lines(run, *asked)
    (one,) = alone
    assert len(one["tokens"]) == 20
    assert "".join(token["text"] for token in one["tokens"] if "\ufffd" not in token["text"]) != ""
    assert all(token["logprob"] < 0 for token in one["tokens"])
    for backend in INSTALLED:
        company = lines(run, *asked, "--prompt", "a", "--prompt", "the night; a wall", backend=backend)
        assert [len(done["tokens"]) for done in company] == [20, 20, 20]
        assert [token["id"] for token in company[0]["tokens"]] == [token["id"] for token in one["tokens"]]
        assert [t["logprob"] for t in company[0]["tokens"]] == pytest.approx(
            [t["logprob"] for t in one["tokens"]], abs=1e-4
        )


def test_samples_differ_and_the_first_is_that_of_a_single_one(run):
    three = lines(run, "--prompt", "a", "--samples", 3, "--max-tokens", 15)
    assert len({done["text"] for done in three}) == 3
    assert lines(run, "--prompt", "a", "--max-tokens", 15)[0]["text"] == three[0]["text"]


def test_prompts_of_a_file_and_of_stdin(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a lamp\nthe hill\n")
    done = lines(run, "--prompt-file", tmp_path / "prompts.txt", "--each-line", "--max-tokens", 2)
    assert [one["prompt"] for one in done] == ["a lamp", "the hill"]
    (whole,) = lines(run, "--prompt-file", tmp_path / "prompts.txt", "--max-tokens", 2)
    assert whole["prompt"] == "a lamp\nthe hill\n"
    with (tmp_path / "prompts.txt").open() as stdin:
        assert lines(run, "--prompt-file", "-", "--max-tokens", 2, stdin=stdin) == [whole]


def test_a_stop_string_ends_the_text_before_it(run):
    (free,) = lines(run, "--prompt", "a", "--max-tokens", 40)
    stop = free["text"][10:12]
    (stopped,) = lines(run, "--prompt", "a", "--max-tokens", 40, "--stop", stop)
    assert stopped["text"] == free["text"].split(stop)[0]
    assert (free["finish_reason"], stopped["finish_reason"]) == ("length", "stop")


@pytest.mark.parametrize("options", [(), ("--json",), ("--prompt", "a")])
def test_a_text_that_the_models_positions_end_is_told_of(run, options):
    """128 positions: not the tokens that were asked for, and neither the end of the document."""
    asked = ("generate", run, "--backend", INSTALLED[-1], "--prompt", "a lamp", "--top-k", 1, *options)
    which = "2 of 2 texts end" if "--prompt" in options else "the text ends"
    told = f"{which} before --max-tokens 500: the model's 128 positions, prompt included, are full"
    assert sum(told in line for line in sconce_here(*asked, "--max-tokens", 500).stderr.splitlines()) == 1
    assert "positions" not in sconce_here(*asked, "--max-tokens", 5).stderr
    assert sconce_here(*asked, "--max-tokens", 500, "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prompt", "night " * 200), "positions"),
        (("--repetition-penalty", "-1"), "repetition_penalty"),
        (("--repetition-penalty", "1e-308"), "repetition_penalty: found 1e-308, expected from 0.01 to 100"),
        (("--stop", "a", "--stop", ""), "stop: found an empty text"),
        (("--prompt-file", "nowhere.txt"), "nowhere.txt"),
        (("--logprobs", 3), "--json"),
        (("--each-line",), "--prompt-file"),
        (("--prompt", "a", "--prompt-file", "x"), "either"),
    ],
)
def test_bad_input_is_refused(run, arguments, says):
    done = generate(run, *arguments, code=2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_optimizer_state_is_not_needed_to_be_read(run, tmp_path):
    """Its size is looked at, its content is no business of the model's."""
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    optimizer = copy / "checkpoints/step-00000001/optimizer.safetensors"
    optimizer.write_bytes(b"\0" * optimizer.stat().st_size)
    assert generate(copy, "--max-tokens", 2).stdout
    model = optimizer.with_name("model.safetensors")
    model.write_bytes(b"\0" * model.stat().st_size)
    assert "changed since" in generate(copy, "--max-tokens", 2, code=2).stderr
