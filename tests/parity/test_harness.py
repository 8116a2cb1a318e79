"""Tasks of lm-evaluation-harness: our adapter, on each backend, against the harness's own `hf` model of the export."""

import importlib
import json
import math

import foreign
import numpy as np
import pytest
from commands import sconce_here
from small_run import TEXT, write_run
from tiny import INSTALLED

import sconce
from sconce.errors import ConfigError, DataError
from sconce.evaluation.harness import TaskOptions, _adapter, run_tasks
from sconce.evaluation.requests import _sampling, write_continuations
from sconce.training.export import ExportJob, export_checkpoint

evaluator = pytest.importorskip("lm_eval.evaluator", reason="pip install 'sconce-lm[eval]'")
pytest.importorskip("transformers", reason="the reference")

TASKS = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "local_writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{written}}",
        "generation_kwargs": {"until": [" h"], "max_gen_toks": 20},
        "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
    },
    "local_single_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "{{choices[:1]}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_likelihood": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{start}}",
        "target_delimiter": "",
        "doc_to_target": "{{choices[2]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "local_cut": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{cut}}",
        # Each is the end of one token and the beginning of the next, in what this model happens to write.
        "generation_kwargs": {"until": ["cc", "onB", "igh}", "B\x12"], "max_gen_toks": 20},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def phrases(rng, count):
    words = TEXT.split()
    return " ".join(words[index] for index in rng.integers(0, len(words), count))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("models") / "night", scale=3.0)


@pytest.fixture(scope="module")
def exported(run):
    folder = run.parent / "exported"
    export_checkpoint(ExportJob(place=run, out=folder))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    """Tasks whose questions are short, and longer than the model's positions; some of whose answers it would write."""
    home = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    questions = [phrases(rng, count) for count in (1, 2, 5, 9, 30, 200) for _ in range(3)]
    model = sconce.load(run, backend=INSTALLED[0])
    written, cut, whole = (
        write_continuations(model, [(question, kwargs) for question in questions], 4, 0)
        for kwargs in (
            TASKS["local_writing"]["generation_kwargs"],
            TASKS["local_cut"]["generation_kwargs"],
            {"max_gen_toks": 20},
        )
    )
    assert 5 < sum(short != long for short, long in zip(cut, whole, strict=True)) < len(questions)
    documents = [
        {
            "question": question,
            "choices": [" " + phrases(rng, 3), phrases(rng, 2), written[index][:9] or "x"],
            "answer": index % 3,
            "page": phrases(rng, 20 * index + 1),
            "written": written[index] if index % 2 else "nothing",
            "start": ("", question + "  ", question)[index % 3],  # no context, one that ends in spaces, another
            "cut": cut[index],
        }
        for index, question in enumerate(questions)
    ]
    (home / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name, task in TASKS.items():
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(home / "data.jsonl")}}}
        (home / f"{name}.yaml").write_text(json.dumps({"task": name, **where, "test_split": "test", **task}))
    return home


def huggingface_model(folder):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    return huggingface.HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def expected(exported, folder):
    """What the harness finds with its own model: figures of each task."""
    model = huggingface_model(exported)
    manager = evaluator.TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluator.simple_evaluate(
        model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, num_fewshot=None, log_samples=False
    )
    return {name: found["results"][name] for name in TASKS}


@pytest.mark.parametrize("backend", INSTALLED)
def test_scores_are_those_of_the_harness_itself(run, folder, expected, backend):
    options = TaskOptions(tasks=list(TASKS), include=folder, batch_size=5)
    results = {result["name"]: result for result in run_tasks(sconce.load(run, backend=backend), options)}
    assert list(results) == list(TASKS)
    for name, figures in expected.items():
        for metric in TASKS[name]["metric_list"]:
            key = f"{metric['metric']},none"
            assert results[name]["figures"][key] == pytest.approx(figures[key], rel=1e-5), (name, key)
        assert results[name]["figures"]["questions"] == 18
    assert 0 < expected["local_choice"]["acc,none"] < 1
    assert expected["local_writing"]["exact_match,none"] == pytest.approx(0.5)
    assert expected["local_cut"]["exact_match,none"] == 1
    assert 0 < expected["local_likelihood"]["acc,none"] < 1
    assert results["local_choice"]["settings"] | {"harness": "", "version": ""} == {
        "num_fewshot": 0,
        "limit": None,
        "seed": 1234,
        "harness": "",
        "version": "",
    }


@pytest.fixture(scope="module")
def begins_with_bos(tmp_path_factory):
    """A run whose tokenizer puts BOS before a text, as Llama 3's does, and what is exported of it."""
    root = tmp_path_factory.mktemp("bos")
    foreign.write_model(root / "model", "llama3-untied", tokenizer="llama3", config={"initializer_range": 0.5})
    for words in (("import", root / "model", "--out", root / "run"), ("export", root / "run", "--out", root / "out")):
        done = sconce_here(*words)
        assert done.returncode == 0, done.stderr
    return root


SPELLED = "<|begin_of_text|>a lamp<|end_of_text|> on the wall"


def test_a_tokenizers_bos_stands_where_the_harness_has_it(begins_with_bos):
    """Contexts, whole texts of several windows, and what is to be continued; a text may spell BOS itself."""
    instance = importlib.import_module("lm_eval.api.instance").Instance
    model = sconce.load(begins_with_bos / "run", backend=INSTALLED[-1])
    ours, theirs = _adapter(model, TaskOptions(tasks=["any"])), huggingface_model(begins_with_bos / "out")
    texts = ["a lamp on", "", "the night  ", SPELLED, TEXT * 3, SPELLED + TEXT]
    for text in texts:
        for special in (None, True, False):
            assert ours.tok_encode(text, special) == theirs.tok_encode(text, special), (text, special)
    assert ours.tok_encode("a lamp")[0] == ours.prefix_token_id == 0
    asked = {
        "loglikelihood": [(text, continuation) for text in texts for continuation in (" the wall", "<|end_of_text|>")],
        "loglikelihood_rolling": [(text,) for text in texts if text],
        "generate_until": [(text, {"until": [" h"], "max_gen_toks": 8}) for text in texts if text],
    }
    for kind, arguments in asked.items():
        requests = [
            instance(request_type=kind, doc={}, arguments=given, idx=index) for index, given in enumerate(arguments)
        ]
        found = getattr(ours, kind)(requests)
        # One by one: in a batch, the harness looks at the first text only to see whether BOS is spelled.
        expected = [getattr(theirs, kind)([request])[0] for request in requests]
        if kind == "generate_until":
            assert found == expected
        else:
            assert np.array(found) == pytest.approx(np.array(expected), rel=1e-4, abs=1e-4), kind


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0.7, "do_sample": True},
        {"temperature": 0.7, "do_sample": False},
        {"temperature": 0.0},
        {"temperature": 0.0, "do_sample": False, "top_p": 0.5},
        {"top_p": 0.5, "top_k": 3},
        {"top_p": 0.5, "top_k": 3, "temperature": 2.0},
    ],
)
def test_sampling_is_what_the_harness_makes_of_the_options(options):
    normalize = importlib.import_module("lm_eval.models.utils").normalize_gen_kwargs
    sampling = _sampling(dict(options))
    expected = normalize(options)
    assert (sampling.temperature > 0) == expected["do_sample"]
    assert sampling.temperature == expected.get("temperature", 0.0)
    for name, neutral in (("top_p", 1.0), ("top_k", 0)):
        assert getattr(sampling, name) == expected.get(name, neutral)


def write_choices(folder, text, choices):
    """A task of two questions: a plain one, and this."""
    asked = [{"text": "a", "choices": ["b", "c"]}, {"text": text, "choices": choices}]
    (folder / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in asked))
    task = {
        "task": "local_empty",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "target_delimiter": "",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "local_empty.yaml").write_text(json.dumps(task))


def ask_huggingface(exported, folder):
    manager = evaluator.TaskManager(include_path=str(folder), include_defaults=False)
    model = huggingface_model(exported)
    return evaluator.simple_evaluate(model, tasks=["local_empty"], task_manager=manager, bootstrap_iters=0)


@pytest.mark.filterwarnings("ignore:invalid value")  # the harness divides by the choice's length
@pytest.mark.parametrize("backend", INSTALLED)
def test_an_empty_choice_is_certain_as_the_harness_has_it(run, exported, tmp_path, backend):
    write_choices(tmp_path, "a lamp", ["b", ""])
    expected = ask_huggingface(exported, tmp_path)["results"]["local_empty"]["acc,none"]
    (result,) = run_tasks(sconce.load(run, backend=backend), TaskOptions(tasks=["local_empty"], include=tmp_path))
    assert result["figures"]["acc,none"] == expected >= 0.5


@pytest.mark.parametrize(("text", "choice", "says"), [("", "", "any text"), ("  ", "a", "a context of no tokens")])
def test_what_the_harness_fails_on_is_one_line(run, exported, tmp_path, text, choice, says):
    write_choices(tmp_path, text, ["b", choice])
    done = sconce_here("eval", run, "--tasks", "local_empty", "--task-path", tmp_path, "--backend", INSTALLED[-1])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("sconce: a question cannot be scored: ")
    assert says in done.stderr
    with pytest.raises((AssertionError, IndexError)):
        ask_huggingface(exported, tmp_path)


def test_examples_and_a_limit_reach_the_task(run, folder):
    model = sconce.load(run, backend=INSTALLED[-1])
    figures = []
    for num_fewshot in (None, 2):
        options = TaskOptions(tasks=["local_choice"], include=folder, num_fewshot=num_fewshot, limit=7)
        (result,) = run_tasks(model, options)
        assert result["figures"]["questions"] == 7
        assert result["settings"]["num_fewshot"] == (num_fewshot or 0)
        figures.append(result["figures"])
    assert figures[0] != figures[1]


@pytest.mark.slow
def test_a_task_that_cannot_be_had_is_one_line(run, folder):
    model = sconce.load(run, backend=INSTALLED[-1])
    with pytest.raises(ConfigError, match="local_chioce: no task, group or tag"):
        run_tasks(model, TaskOptions(tasks=["local_chioce"], include=folder))
    with pytest.raises(ConfigError, match="no such folder"):
        run_tasks(model, TaskOptions(tasks=["local_choice"], include=folder / "away"))
    (folder / "data.yaml").write_text((folder / "local_choice.yaml").read_text().replace("data.jsonl", "gone.jsonl"))
    with pytest.raises(DataError, match="could not be loaded"):
        run_tasks(model, TaskOptions(tasks=[str(folder / "data.yaml")]))
    (folder / "data.yaml").unlink()


def test_the_command_prints_and_keeps_what_it_finds(run, folder):
    options = ("--tasks", "local_choice", "--task-path", folder, "--backend", INSTALLED[-1])
    done = sconce_here("eval", run, *options, "--json")
    assert done.returncode == 0, done.stderr
    (printed,) = map(json.loads, done.stdout.splitlines())
    kept = json.loads((run / "evaluations/step-00000001.json").read_text())
    assert kept["results"] == [printed | {"settings": kept["results"][0]["settings"]}]
    assert math.isfinite(printed["figures"]["acc,none"])
    assert kept["results"][0]["settings"]["precision"] == "fp32"
    refused = sconce_here("eval", run, *options, "--window", 16)
    assert (refused.returncode, refused.stderr) == (2, "sconce: --window: has no meaning with --tasks\n")
