"""Chat templates: carried through import, training and export, and used by `sconce chat` and the server."""

import json
from dataclasses import replace

import pytest
from commands import sconce_here, start, write_corpus
from foreign import write_model, write_tokenizer

from sconce.errors import DataError
from sconce.generation.chat_template import render_chat
from sconce.generation.model import TextModel, load_model
from sconce.generation.session import Session
from sconce.serving.requests import ChatRequest
from sconce.tokenizer.bpe import Tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is the reference, and makes the model")

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}\n"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSING = TEMPLATE.replace(
    "<|im_start|>{{ message.role }}",
    "{% if 'forbidden' in message.content %}{{ raise_exception('not that') }}{% endif %}<|im_start|>{{ message.role }}",
)
MESSAGES = [("system", "be a lamp"), ("user", " on the wall? 🙂 "), ("assistant", "a hill"), ("user", "in the night")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An imported run whose tokenizer has a template."""
    root = tmp_path_factory.mktemp("chat")
    write_model(root / "model", "smollm")
    write_tokenizer(root / "model", chat_template=TEMPLATE)
    done = sconce_here("import", root / "model", "--out", root / "run")
    assert done.returncode == 0, done.stderr
    assert "its chat template comes along" in done.stdout
    return root / "run"


@pytest.fixture(scope="module")
def model(run):
    return load_model(run, hardware="cpu")[0]


def reference(folder, messages):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    turns = [{"role": role, "content": text} for role, text in messages]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def test_a_conversation_is_what_transformers_makes_of_it(run, model):
    ids = list(model.chat(MESSAGES))
    assert ids == reference(run.parent / "model", MESSAGES)
    assert ids[:2] == [0, 2]  # <|begin_of_text|><|im_start|>


def test_the_template_is_in_what_is_exported(run, tmp_path):
    done = sconce_here("export", run, "--out", tmp_path / "out", "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert reference(tmp_path / "out", MESSAGES) == reference(run.parent / "model", MESSAGES)
    assert "license: apache-2.0" in (tmp_path / "out" / "README.md").read_text()


def test_the_template_stays_when_the_run_trains_on(run, tmp_path):
    corpus = write_corpus(tmp_path / "corpus.txt", lines=60)
    over = [
        f'data.train_shards=["{corpus}"]',
        "scheduler.total_steps=2",
        "data.batch_size=2",
        "data.sequence_length=16",
    ]
    over += [
        "scheduler.warmup_steps=0",
        "data.document=line",
        "runtime.sample.max_tokens=2",
        "runtime.logging.tensorboard=false",
    ]
    options = [word for key in over for word in ("--override", key)]
    done = sconce_here(
        "train", "--config", run / "training.toml", "--run-dir", run, "--resume", "--backend", "cpu", *options
    )
    assert done.returncode == 0, done.stderr
    trained, _ = load_model(run, hardware="cpu")
    assert trained.path.name == "step-00000002"
    assert trained.chat(MESSAGES) == tuple(reference(run.parent / "model", MESSAGES))


def test_a_session_speaks_by_the_template_and_forgets_whole_turns(model):
    session = Session(model, dialogue=True, max_tokens=2)
    for said in ("one", "two", "three"):
        list(session.write(said))
    ids = list(session._conversation())
    assert len(ids) <= model.spec.max_position_embeddings - 2
    assert session.forgotten > 0
    assert ids[:4] == list(model.chat([("user", "three")]))[:4]


def test_a_turn_that_the_template_refuses_or_that_fills_the_model_is_taken_back(model):
    tokenizer = replace(model.tokenizer.extras, chat_template=REFUSING)
    session = Session(with_extras(model, tokenizer), dialogue=True, max_tokens=2)
    list(session.write("one"))
    before = session.text, session.settings()
    for said in ("a word that is forbidden", "in the night " * 60):
        with pytest.raises(DataError, match=r"not that|positions"):
            session.write(said)
        assert (session.text, session.settings()) == before
    list(session.write("two"))
    assert [turn.given for turn in session.turns] == ["one", "two"]


def test_what_cannot_be_written_again_stays(model):
    session = Session(model, dialogue=True, max_tokens=2)
    list(session.write("one"))
    before = session.text
    session.model = with_extras(model, replace(model.tokenizer.extras, chat_template="{{ raise_exception('no') }}"))
    with pytest.raises(DataError, match="no"):
        session.again()
    assert session.text == before


def with_extras(model, extras):
    tokenizer = Tokenizer(model.tokenizer.path, model.tokenizer.content, extras)
    return TextModel(path=model.path, spec=model.spec, tokenizer=tokenizer, model=model.model)


def test_the_server_puts_the_messages_by_the_template(model):
    asked = ChatRequest.model_validate(
        {"messages": [{"role": role, "content": text} for role, text in MESSAGES], "stop": "x"}
    )
    assert asked.turns == MESSAGES
    prompt = asked.prompts(64, model.chat(asked.turns))[0]
    assert (list(prompt.text), prompt.stop) == (list(model.chat(MESSAGES)), ("x",))
    plain = asked.prompts(64, None)[0]
    assert plain.text.startswith("System: be a lamp\nUser:")
    assert "\nUser:" in plain.stop


@pytest.mark.parametrize(
    ("options", "line"),
    [([], "User: hello"), pytest.param(["--no-dialogue"], "hello", marks=pytest.mark.slow)],
    ids=["by default", "unless told"],
)
def test_chat_uses_it_unless_told_not_to(run, options, line):
    process = start("chat", run, "--backend", "cpu", "--max-tokens", 2, *options, stdin=-1)
    out, err = process.communicate("hello\n/show\n/quit\n", timeout=120)
    assert process.returncode == 0, err
    assert any(text.startswith(line) for text in out.splitlines())
    assert ("User: " in out) == (not options)


BROKEN = {
    "syntax": ("{% for %}", "Expected"),
    "refusal": (TEMPLATE, "no such role"),
    "escape": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "undefined": ("{{ nothing.here }}", "undefined"),
    "endless": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
}


@pytest.mark.parametrize(("template", "says"), BROKEN.values(), ids=BROKEN)
def test_a_template_that_fails_says_so_in_a_line(template, says):
    with pytest.raises(DataError, match=says) as failed:
        render_chat(template, [{"role": "robot", "content": "hi"}], {"bos_token": ""})
    assert "\n" not in str(failed.value)


def test_the_template_may_be_a_file_of_its_own_or_one_of_several(tmp_path):
    from sconce.tokenizer.bpe import load_tokenizer

    write_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").chat_template is None
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": several}))
    assert load_tokenizer(tmp_path / "tokenizer.json").chat_template == "b"
    (tmp_path / "chat_template.jinja").write_text("c")
    assert load_tokenizer(tmp_path / "tokenizer.json").chat_template == "c"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|gone|>"}))
    with pytest.raises(DataError, match=r"expected <\|gone\|>, as tokenizer_config\.json beside it says"):
        load_tokenizer(tmp_path / "tokenizer.json")
