"""Configs: what loads, what is refused and in which words."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import tomli_w
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sconce.config import (
    config_from,
    config_from_resolved,
    differences,
    dump_toml,
    load_config,
    micro_batch_size,
    model_spec,
    reference,
    sequence_length,
    to_json,
)
from sconce.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = {
    "tokenizer": {"tokenizer_json": "tok/tokenizer.json"},
    "data": {"train_shards": ["text.txt"]},
    "scheduler": {"total_steps": 100},
}


def write(folder, table, name="run.toml"):
    path = folder / name
    dump = {".toml": tomli_w.dumps, ".json": json.dumps, ".yaml": yaml.safe_dump}[path.suffix]
    path.write_text(dump(table))
    return path


def load(folder, *overrides, **sections):
    table = {**MINIMAL, **{key: {**MINIMAL.get(key, {}), **value} for key, value in sections.items()}}
    return load_config(write(folder, table), overrides)


def faults(folder, *overrides, **sections):
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides, **sections)
    return re.split(r"\n(?! |or, )", str(caught.value))  # lines to write instead belong to their fault


@pytest.mark.parametrize("name", ["run.toml", "run.json", "run.yaml"])
def test_three_formats_mean_the_same(tmp_path, name):
    expected = load_config(write(tmp_path, MINIMAL))
    assert load_config(write(tmp_path, MINIMAL, name)) == expected


def test_paths_are_relative_to_the_file_wherever_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    path = write(tmp_path / "configs", MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("configs/run.toml")).data.train_shards == (tmp_path / "configs/text.txt",)
    assert load_config(path, ["data.train_shards=more.txt"]).data.train_shards == (tmp_path / "more.txt",)


def test_yaml_reads_3e_4_as_a_number(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(MINIMAL) + "optimizer:\n  learning_rate: 3e-4\n")
    assert load_config(tmp_path / "a.yaml").optimizer.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "[model\n", "line 1"),
        ("a.json", '{"model": {}, "model": {}}', "appears twice"),
        ("a.yaml", "model: {}\nmodel: {}\n", "line 2: the key model appears twice"),
        ("a.yaml", "model: [1\n", "line 2"),
        ("a.yaml", "- 1\n", "expected tables of keys, found list"),
        ("a.ini", "", "expected .toml, .yaml, .yml or .json"),
        ("a.toml", b"# fine\n# caf\xe9\n", "line 2: not UTF-8"),
        ("a.yaml", "model:\n  x: \x01\n", "the character U+0001"),
        ("a.json", '{"runtime": {"sample": {"prompt": "\\ud800"}}}', "half of a surrogate pair"),
        ("a.json", '{"model": ' + "[" * 300 + "]" * 300 + "}", "nests too deeply"),
        ("a.json", '{"model": ' + "[" * 10**5 + "]" * 10**5 + "}", "nests too deeply"),
        ("a.toml", "a = " + "[" * 5000, "nests too deeply"),
        ("a.yaml", "a: " + "[" * 3000, "nests too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, text, says):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / name)
    assert says in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("optimizer.learing_rate", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("hidden_size", "model.hidden_size"),
        ("scheduler.total_step", "scheduler.total_steps"),
        ("runtime.checkpoint.max_kep", "runtime.checkpoint.max_keep"),
        ("training.batch_size", "data.batch_size"),
        ("optimiser", "did you mean optimizer?"),
        ("runtime.checkpoints", "did you mean runtime.checkpoint?"),
        ("runtime.checkpoint.zzz", "lists them all"),  # nothing like it, so no guess
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path, key, guess):
    table = json.loads(json.dumps(MINIMAL))
    inner = table
    *sections, name = key.split(".")
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = 1
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, table))
    if key == "training.batch_size":
        guess = "unknown key"  # a whole unknown table is reported as one
    assert guess in str(caught.value)
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(write(tmp_path, MINIMAL), [f"{key}=1"])


def test_all_faults_come_together_and_no_consequence_of_one_is_reported(tmp_path):
    lines = faults(
        tmp_path,
        "runtime.seed=-1",
        model={"hidden_size": "wide", "num_attention_heads": 3, "num_layers": 0},
        data={"batch_size": 8, "gradient_accumulation_steps": 3},
        optimizer={"learning_rate": True},
    )
    path = tmp_path / "run.toml"
    assert sorted(lines) == sorted(
        [
            "--override: runtime.seed: found -1, expected an integer >= 0",
            f'{path}: model.hidden_size: found "wide", expected an integer >= 1',
            f"{path}: model.num_layers: found 0, expected an integer >= 1",
            f"{path}: optimizer.learning_rate: found true, expected a number > 0",
            f"{path}: data.batch_size: found 8 sequences per optimizer step, which are not equal micro-batches in "
            "3 accumulation step(s); write instead:\n  batch_size = 8\n  gradient_accumulation_steps = 2",
        ]
    )


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": {"hidden_size": 30}}, "expected a multiple of model.num_attention_heads 4"),
        ({"model": {"hidden_size": 12}}, "an even width"),
        ({"model": {"head_dim": 7}}, "expected an integer >= 2 and a multiple of 2"),
        ({"model": {"num_key_value_heads": 3}}, "expected a divisor of model.num_attention_heads 4"),
        ({"data": {"sequence_length": 1000}}, "expected at most model.max_position_embeddings 256"),
        ({"data": {"micro_batch_size": 3}}, "micro_batch_size = 2"),
        ({"data": {"micro_batch_size": 2, "gradient_accumulation_steps": 2}}, "write instead"),
        ({"scheduler": {"total_epochs": 2.0}}, "found both"),
        ({"scheduler": {"warmup_steps": 101}}, "expected at most scheduler.total_steps 100"),
        ({"scheduler": {"min_lr": 0.1}}, "expected at most optimizer.learning_rate 0.0003"),
        ({"scheduler": {"strategy": "constant", "min_lr": 1e-5}}, "would do nothing with strategy constant"),
        ({"scheduler": {"power": 2.0}}, "would do nothing with strategy cosine_with_warmup"),
        ({"scheduler": {"decay_steps": 5}}, "would do nothing"),
        ({"scheduler": {"strategy": "wsd", "warmup_steps": 60, "decay_steps": 50}}, "expected at most the 40 steps"),
        ({"data": {"train_shards": "corpus.txt"}}, 'found "corpus.txt", expected a list of paths'),
        ({"data": {"train_shards": []}}, "expected a list of text files or folders"),
        ({"optimizer": {"algorithm": "adagrad"}}, "expected one of adam_w"),
        ({"optimizer": {"momentum": 0.9}}, "would do nothing with algorithm adam_w; it is for sgd, muon"),
        ({"optimizer": {"algorithm": "sgd", "beta2": 0.9}}, "would do nothing with algorithm sgd"),
        ({"optimizer": {"algorithm": "sgd", "beta1": 0.9}}, "optimizer.beta1: would do nothing with algorithm sgd"),
        ({"optimizer": {"algorithm": "lion", "epsilon": 1e-8}}, "optimizer.epsilon: would do nothing"),
        ({"scheduler": {"strategy": "constant", "min_lr": 1e-5}}, "scheduler.min_lr: would do nothing"),
        ({"optimizer": {"algorithm": "lion", "epsilon": 1e-6}}, "would do nothing with algorithm lion"),
        ({"model": {"attn_dropout": 1.0}}, "expected"),
    ],
)
def test_contradictions_are_refused(tmp_path, sections, says):
    lines = faults(tmp_path, **sections)
    assert len(lines) == 1
    assert says in lines[0]


def test_overrides_are_typed_by_the_schema(tmp_path):
    config = load(
        tmp_path,
        "optimizer.learning_rate=1e-3",
        "model.tie_word_embeddings=false",
        "runtime.sample.prompt=12",
        "scheduler.total_steps=none",
        "scheduler.total_epochs=1.5",
        "data.train_shards=/a,/b",
        "data.train_shards[1]=/c",
        "data.train_shards[2]=/d",
    )
    assert config.optimizer.learning_rate == 1e-3
    assert config.model.tie_word_embeddings is False
    assert config.runtime.sample.prompt == "12"
    assert (config.scheduler.total_steps, config.scheduler.total_epochs) == (None, 1.5)
    assert config.data.train_shards == (Path("/a"), Path("/c"), Path("/d"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.num_layers", "expected key=value"),
        ("model.num_layers=two", 'found "two", expected an integer >= 1'),
        ("model.num_layers=2.5", "found 2.5, expected an integer >= 1"),
        ("model.num_layers[0]=2", "is not a list"),
        ("data.train_shards[5]=x", "beyond the list's end"),
        ("data.train_shards=[oops", "expected a list of paths"),
        ("model.tie_word_embeddings=1", "found 1, expected true or false"),
        ("model=5", "is a table; set its keys one by one"),
        ("runtime.sample.prompt=\udcff", "not UTF-8"),  # how Python hands over a stray byte
        ("data.train_shards=" + "[" * 10**5, "expected a list of paths"),
        ("data.train_shards[" + "9" * 5000 + "]=x", "expected key=value"),
    ],
)
def test_bad_overrides(tmp_path, override, says):
    lines = faults(tmp_path, override)
    assert len(lines) == 1
    assert lines[0].startswith("--override: ")
    assert says in lines[0]


def test_an_item_for_what_the_file_has_no_list_for_is_the_fault_of_the_file(tmp_path):
    (line,) = faults(tmp_path, "data.train_shards[0]=x", data={"train_shards": "corpus.txt"})
    assert line == f'{tmp_path / "run.toml"}: data.train_shards: found "corpus.txt", expected a list of paths'


def test_an_override_keeps_the_spaces_of_a_prompt_and_drops_those_of_a_list(tmp_path):
    config = load(tmp_path, "runtime.sample.prompt=Once upon ", "data.train_shards=/a, /b")
    assert config.runtime.sample.prompt == "Once upon "
    assert config.data.train_shards == (Path("/a"), Path("/b"))


def test_an_unknown_home_is_left_for_the_one_who_opens_it(tmp_path):
    assert load(tmp_path, tokenizer={"tokenizer_json": "~nobody-here/t.json"}).tokenizer.tokenizer_json


@given(batch=st.integers(1, 64), micro=st.none() | st.integers(1, 80), accumulation=st.integers(1, 80))
def test_the_two_lines_that_a_batch_error_suggests_are_right(tmp_path_factory, batch, micro, accumulation):
    folder = tmp_path_factory.mktemp("batch")
    data = {"batch_size": batch, "gradient_accumulation_steps": accumulation}
    data |= {"micro_batch_size": micro} if micro else {}
    try:
        config = load(folder, data=data)
    except ConfigError as error:
        config = load(folder, data=data | tomllib.loads(str(error).partition("write instead:\n")[2]))
    assert batch % micro_batch_size(config) == 0


def test_a_later_override_wins(tmp_path):
    assert load(tmp_path, "runtime.seed=1", "runtime.seed=2").runtime.seed == 2


def test_derived_values(tmp_path):
    config = load(
        tmp_path,
        model={"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2},
        data={"batch_size": 12, "gradient_accumulation_steps": 3},
    )
    spec = model_spec(config, vocab_size=500)
    assert (spec.head_dim, spec.num_kv_heads, spec.intermediate_size, spec.vocab_size) == (16, 2, 256, 500)
    assert (micro_batch_size(config), sequence_length(config)) == (4, 256)
    with pytest.raises(ConfigError, match="at least the tokenizer's 500"):
        model_spec(load(tmp_path, model={"vocab_size": 499}), vocab_size=500)


@given(
    seed=st.integers(0, 2**40),
    rate=st.floats(1e-8, 1e3),
    prompt=st.text(),
    steps=st.integers(1, 10**9),
    layers=st.integers(1, 99),
    inside=st.booleans(),
)
def test_what_is_written_reads_back_equal(tmp_path_factory, seed, rate, prompt, steps, layers, inside):
    folder = tmp_path_factory.mktemp("dump")
    shard = str(folder / "text.txt") if inside else "/elsewhere/text.txt"
    config = load(
        folder,
        data={"train_shards": [shard]},
        runtime={"seed": seed, "sample": {"prompt": prompt}},
        optimizer={"learning_rate": rate},
        scheduler={"total_steps": steps},
        model={"num_layers": layers},
    )
    (folder / "again.toml").write_text(dump_toml(config, "# header\n", folder), encoding="utf-8")
    assert load_config(folder / "again.toml") == config
    assert ('"text.txt"' in (folder / "again.toml").read_text(encoding="utf-8")) == inside


def test_paths_that_climb_or_are_links_survive_being_written(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "blob").touch()
    (tmp_path / "text.gz").symlink_to("blob")  # its ending says how to read it
    config = load(tmp_path / "configs", data={"train_shards": ["../text.gz", "../configs/../more"]})
    assert config.data.train_shards == (tmp_path / "text.gz", tmp_path / "more")
    (tmp_path / "again.toml").write_text(dump_toml(config, "", tmp_path))
    assert load_config(tmp_path / "again.toml") == config
    assert '"text.gz"' in (tmp_path / "again.toml").read_text()


def test_differences_tell_what_a_resumed_run_may_change(tmp_path):
    old = load(tmp_path, "data.micro_batch_size=2")
    new = load(
        tmp_path,
        "tokenizer.tokenizer_json=/moved/tokenizer.json",
        "data.train_shards=/moved/text.txt",
        "data.sequence_length=256",  # what it was by default
        "optimizer.learning_rate=0.01",
        "data.micro_batch_size=4",
        "runtime.loss_chunk=64",  # was the planner's to choose, which is no change of the user's
        "model.num_layers=5",
        "runtime.seed=7",
    )
    found = {change.key: change.allowed for change in differences(to_json(old), to_json(new))}
    assert found == {
        "optimizer.learning_rate": True,
        "data.micro_batch_size": True,
        "data.gradient_accumulation_steps": True,
        "model.num_layers": False,
        "runtime.seed": False,
    }


def test_the_reference_page_is_that_of_the_schema():
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference(), "run: sconce config docs"


@pytest.mark.parametrize("algorithm", ["adam_w", "adam", "sgd", "lion", "muon"])
def test_a_resolved_config_is_a_config(algorithm):
    """What a checkpoint keeps can be loaded again and means the same."""
    config = config_from({**MINIMAL, "optimizer": {"algorithm": algorithm}}, "here", [])
    resolved = to_json(config)
    assert to_json(config_from(resolved, "there", [])) == resolved
    assert resolved["optimizer"].get("momentum") == {"sgd": 0.9, "muon": 0.95}.get(algorithm)
    expected = {"sgd": None, "lion": 0.99}.get(algorithm, 0.95)
    assert resolved["optimizer"].get("beta2") == expected


@pytest.mark.parametrize("algorithm", ["adam_w", "adam", "sgd", "lion", "muon"])
def test_what_is_written_for_people_can_be_read_again(algorithm, tmp_path):
    """A default that does nothing is refused where it is given, so no file of ours may give it."""
    config = config_from({**MINIMAL, "optimizer": {"algorithm": algorithm}}, "here", [])
    path = tmp_path / "training.toml"
    path.write_text(dump_toml(config, "", tmp_path))
    assert differences(to_json(config), to_json(load_config(path))) == []


def test_a_resolved_config_may_hold_defaults_that_do_nothing():
    """As the records of older checkpoints do."""
    config = config_from({**MINIMAL, "optimizer": {"algorithm": "sgd"}}, "here", [])
    table = to_json(config)
    table["optimizer"] |= {"beta1": 0.9, "beta2": None, "epsilon": 1e-8}
    assert to_json(config_from_resolved(table, "run.json")) == to_json(config)
    table["optimizer"]["beta1"] = 0.8
    with pytest.raises(ConfigError, match=r"run\.json: optimizer\.beta1: would do nothing"):
        config_from_resolved(table, "run.json")
