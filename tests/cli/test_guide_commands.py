"""Every `sconce` command of the README and of the guides, run in a folder that holds what they speak of.

Those of a guide that needs a machine or a service of its own are run by test_guides, test_streaming and test_hub.
"""

import io
import json
import shutil
import sys
from importlib.util import find_spec
from urllib.request import urlopen

import earlier
import foreign
import pytest
import typer
from commands import SMALL, checkpoints, sconce_here, serving, write_corpus
from guides import ROOT, blocks, named_flags, sconce_commands

from sconce_cli.main import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HERE = ["README", "moving", "data", "evaluation", "reports", "serving"]
ELSEWHERE = {"runpod", "quickstart-mac", "rtx5090", "streaming", "hub", "coming-from-rust"}
# Rows long enough for the strides that the guides name, and wide enough to be quantised.
SIZES = ["model.max_position_embeddings=128", "model.hidden_size=64"]
TINY = [part for text in [*SMALL, *SIZES] for part in ("--override", text)]
# A horizon beyond each run that a guide goes on with.
LONGER = ["--override", "scheduler.total_steps=34", "--override", "scheduler.warmup_steps=0"]
# Options that a command gets behind its own.
BEHIND = {
    "orchestrate": ["--backend", "cpu", "--vocab-size", "300", *TINY],
    "train": ["--backend", "cpu", *LONGER],
    "generate": ["--backend", "cpu", "--max-tokens", "4"],
    "chat": ["--backend", "cpu", "--max-tokens", "4"],
    "eval": ["--backend", "cpu"],
}
NEEDS = {"--quantize": "mlx_lm", "gguf": "gguf", "--duplicates": "datasketch", "--tasks": "lm_eval"}
QUIZ = """task: my_quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/tasks/quiz.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a run, and with texts, tokenizers, models and configs under the names that the guides use."""
    place = tmp_path_factory.mktemp("guides")
    text = write_corpus(place / "shakespeare.txt")
    done = sconce_here("orchestrate", "--input", text, "--run-dir", "runs/local", *BEHIND["orchestrate"], cwd=place)
    assert done.returncode == 0, done.stderr
    for folder in ("corpus", "raw", "essays"):
        (place / folder).mkdir()
        write_corpus(place / folder / "text.txt", lines=400)
    for name in ("book.txt", "corpus.txt", "prompts.txt"):
        write_corpus(place / name, lines=3 if name == "prompts.txt" else 100)
    shutil.copytree(place / "runs/local/tokenizer", place / "tokenizer")
    foreign.write_model(place / "SmolLM2-135M")
    earlier.write_checkpoint(place / "checkpoints", earlier.random_model(), step=7)
    earlier.write_tokenizer(place / "tokenizer.json")
    (place / "training.yaml").write_text(
        "model: {num_attention_heads: 2, max_position_embeddings: 32}\ndata: {batch_size: 4}\n"
    )
    config = (place / "runs/local/training.toml").read_text().replace('"tokenizer/', '"runs/local/tokenizer/')
    for name in ("config.toml", "llama.toml"):
        (place / name).write_text(config)
    (place / "tasks").mkdir()
    questions = [{"question": f"{n} and one?", "choices": ["more", "less"], "answer": n % 2} for n in range(6)]
    (place / "tasks/quiz.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (place / "tasks/my_quiz.yaml").write_text(QUIZ.format(folder=place))
    for name in ("mine", "a", "b", "c"):
        shutil.copytree(place / "runs/local", place / "runs" / name)
    return place


@pytest.mark.parametrize("name", HERE)
def test_every_command_of_a_page_works(prepared, tmp_path, monkeypatch, name):
    page = ROOT / "README.md" if name == "README" else ROOT / f"docs/{name}.md"
    shutil.copytree(prepared, tmp_path / "here", symlinks=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    commands = sconce_commands(page)
    assert commands, "this page has none"
    for words in commands:
        if "arc_easy,hellaswag" in words or words == ["serve", "runs/local"]:  # test_every_option_is_there, test_serve
            continue
        if words[0] == "serve":
            check_serves(tmp_path / "here" / words[1], words[2:])
            continue
        if any(module for word, module in NEEDS.items() if word in words and find_spec(module) is None):
            continue
        done = sconce_here(*words, *BEHIND.get(words[0], []), cwd=tmp_path / "here")
        assert done.returncode == 0, f"{name}: sconce {' '.join(words)}: {done.stderr}"


def check_serves(run, options):
    """It would run until it is stopped."""
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        return
    with serving(run, "cpu", *options, "--port", 0) as (server, _):
        address = server.replace("0.0.0.0", "127.0.0.1")
        assert json.load(urlopen(f"{address}/health")) == {"status": "ok", "requests": 0}


def test_what_a_page_types_into_a_chat_is_understood(prepared, monkeypatch):
    (block,) = blocks(ROOT / "docs/serving.md", "chat")
    monkeypatch.setattr(sys, "stdin", io.StringIO(block.text))
    done = sconce_here("chat", "runs/local", *BEHIND["chat"], cwd=prepared)
    assert done.returncode == 0
    started, *told = done.stderr.splitlines()
    assert "/help for what can be done" in started
    expected = [
        "temperature 0.5  top_k 50",
        "temperature 0.5  top_k 50",
        "took back: 'a lamp on the wall'",
        "starting over",
    ]
    assert all(line.startswith(start) for line, start in zip(told, expected, strict=False)), told
    assert len(done.stdout.splitlines()) >= 3


@pytest.mark.slow
def test_the_readmes_python_runs(prepared, tmp_path, monkeypatch):
    """But for the client of a server, which test_serve has."""
    shutil.copytree(prepared, tmp_path / "here", symlinks=True)
    shutil.copytree(ROOT / "configs", tmp_path / "here/configs")
    shutil.copytree(prepared / "corpus", tmp_path / "here/runs/local/corpus")  # as without --input
    monkeypatch.chdir(tmp_path / "here")
    scripts = [block.text for block in blocks(ROOT / "README.md", "python") if "openai" not in block.text]
    assert len(scripts) == 2
    script = "\n".join(scripts).replace("scheduler.total_steps=100", "scheduler.total_steps=30")
    names: dict = {}
    exec(script.replace("runs/shakespeare/checkpoints/step-00000600", "runs/local/checkpoints/step-00000030"), names)
    assert names["outcome"].step == 30
    assert names["logits"].shape[1] == 300


def test_no_page_is_left_out():
    """A guide is run here, or by a test of its own; those without commands need none."""
    with_commands = {page.stem for page in PAGES if sconce_commands(page)}
    assert with_commands == {*HERE, *ELSEWHERE}


def options_of(words):
    """The options of the command that `words` begin with; None where there is no such command."""
    command = typer.main.get_command(app)
    for word in words.split():
        inner = getattr(command, "commands", None)  # a group's
        if inner is None:
            break
        if word not in inner:
            return None
        command = inner[word]
    return {"--help", *(name for param in command.params for name in [*param.opts, *param.secondary_opts])}


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted((ROOT / "infra").glob("*.*")), *sorted((ROOT / "configs").iterdir())],
    ids=lambda page: page.name,
)
def test_every_option_is_there(page):
    for words, flags in named_flags(page.read_text(encoding="utf-8")):
        known = options_of(words)
        assert known is not None, f"{page.name}: sconce {words}: no such command"
        for flag in flags:
            assert flag in known, f"{page.name}: sconce {words}: no option {flag}"


def test_a_command_that_is_wrong_is_found_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`sconce eval RUN --stide 3`\n```\nsconce eval runs/a  # why\nsconce generate -p $'a\\n' > out\n```\n"
    )
    assert sconce_commands(page) == [["eval", "runs/a"], ["generate", "-p", "a\n"]]
    (found, *_) = named_flags(page.read_text())
    assert found == ("eval", ["--stide"])
    assert "--stide" not in options_of("eval")
    assert options_of("evaluate") is None
    assert checkpoints(tmp_path) == []
