"""The earlier system's config files: each loads as it is, or is refused with what to write instead."""

import copy
import re

import earlier_configs as earlier
import pytest
import yaml

from sconce.config import load_config, load_table, micro_batch_size, model_spec, sequence_length
from sconce.config.convert import convert_config
from sconce.errors import ConfigError
from sconce.interop.earlier_config import EarlierConfig

LOADS = ["local.yaml", "m3_medium.yaml", "m3_20m_streaming.yaml", "runpod_20m_streaming.yaml",
         "runpod_400m_streaming.yaml"]  # fmt: skip
EMPTY = ["rtx5090_1b.yaml", "rtx5090_550m.yaml"]
INDIVISIBLE = {"runpod_1b.yaml": (64, 32), "runpod_2b.yaml": (128, 64), "runpod_4b.yaml": (256, 256)}


def fault(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


def load_config_of(text, folder):
    (folder / "converted.toml").write_text(text)
    return load_config(folder / "converted.toml")


@pytest.mark.parametrize("name", earlier.FILES)
def test_the_fixtures_are_of_the_published_sizes(name):
    assert earlier.parameters(earlier.FILES[name]) == pytest.approx(earlier.PARAMETERS[name], rel=0.025)
    assert sorted([*LOADS, *EMPTY, *INDIVISIBLE]) == sorted(earlier.FILES)


@pytest.mark.parametrize("name", LOADS)
def test_it_loads_unmodified_and_every_key_works(tmp_path, name):
    table = earlier.FILES[name]
    path = earlier.write(tmp_path, name, table)
    config = load_config(path)
    spec = model_spec(config, 300)
    model, data = table["model"], table["data"]
    assert (spec.hidden_size, spec.num_kv_heads, spec.rope_theta) == (model["hidden_size"], spec.num_heads, 10000.0)
    assert spec.attn_dropout == model.get("attn_dropout", 0)
    assert sequence_length(config) == model["max_position_embeddings"]
    assert micro_batch_size(config) == data["batch_size"] // data["gradient_accumulation_steps"]
    assert config.data.prefetch == 4
    assert config.data.cache_dir == tmp_path / "cache"
    assert config.data.train_shards == (tmp_path / "corpus.txt",)
    assert config.runtime.run_dir == tmp_path / "run"
    assert config.runtime.logging.tensorboard is True
    assert config.runtime.checkpoint.save_best is True
    assert config.optimizer.max_grad_norm == (table["optimizer"]["max_grad_norm"] or 0)
    _, notes = load_table(path)
    for key in ("model.rope_mode", "data.num_workers", "data.shuffle_buffer_size", "runtime.checkpoint.directory"):
        assert any(note.startswith(f"{key}: ") for note in notes), key


@pytest.mark.parametrize("name", EMPTY)
def test_empty_shards_are_told_the_two_lines(tmp_path, name):
    path = earlier.write(tmp_path, name, earlier.FILES[name])
    message = fault(path)
    assert "data.train_shards: missing" in message
    _, local, streamed = re.split(r"^\S.*:$", message, flags=re.MULTILINE)
    for lines, streaming in ((local, False), (streamed, True)):
        table = copy.deepcopy(earlier.FILES[name])
        table["data"] |= yaml.safe_load(lines)
        assert load_config(earlier.write(tmp_path, name, table)).data.streaming is streaming


@pytest.mark.parametrize("name", INDIVISIBLE)
def test_batches_that_do_not_divide_are_told_the_two_lines(tmp_path, name):
    table = copy.deepcopy(earlier.FILES[name])
    message = fault(earlier.write(tmp_path, name, table))
    batch, steps = INDIVISIBLE[name]
    said, _, lines = message.partition("\n")
    assert said.endswith("write instead:")
    assert lines.splitlines() == [f"  batch_size: {batch}", f"  gradient_accumulation_steps: {steps}"]
    table["data"] |= yaml.safe_load(lines)
    config = load_config(earlier.write(tmp_path, name, table))
    assert micro_batch_size(config) == earlier.FILES[name]["data"]["batch_size"]  # what was to be held at once


@pytest.mark.parametrize("end", [".toml", ".yaml"])
def test_what_orchestrate_wrote_into_a_run_folder_has_paths_as_they_were_typed(tmp_path, monkeypatch, end):
    """`--input crates/input.txt --run-dir runs/local-smoke`: relative to where it was called, not to the file."""
    table, run = copy.deepcopy(earlier.WRITTEN), tmp_path / "runs/local-smoke"
    table["tokenizer"] = {"tokenizer_json": "runs/local-smoke/tokenizer/tokenizer.json"}
    table["data"] |= {"train_shards": ["crates/input.txt"], "validation_shards": ["crates/input.txt"]}
    table["runtime"]["checkpoint"]["directory"] = "runs/local-smoke/checkpoints"
    run.mkdir(parents=True)
    path = earlier.write(tmp_path, f"training{end}", table).rename(run / f"training{end}")
    monkeypatch.chdir("/")  # wherever it is read from
    config = load_config(path)
    assert config.tokenizer.tokenizer_json == run / "tokenizer/tokenizer.json"
    assert config.data.train_shards == config.data.validation_shards == (tmp_path / "crates/input.txt",)
    assert config.runtime.run_dir == run
    assert any(note.startswith(f"paths: relative to {tmp_path}") for note in load_table(path)[1])
    converted = load_config_of(convert_config(path, tmp_path)[0], tmp_path)
    assert (converted.data.train_shards, converted.runtime.run_dir) == (config.data.train_shards, run)
    assert EarlierConfig(path).training(0)["data"].get("train_shards") is None  # the text is gone
    (tmp_path / "crates").mkdir()
    (tmp_path / "crates/input.txt").write_text("text")
    assert EarlierConfig(path).training(0)["data"]["train_shards"] == [str(tmp_path / "crates/input.txt")]


def test_paths_that_are_absolute_stay(tmp_path):
    table = copy.deepcopy(earlier.WRITTEN)
    table["runtime"]["checkpoint"]["directory"] = str(tmp_path / "configs/checkpoints")
    config = load_config(earlier.write(tmp_path, "a.yaml", table))
    assert config.runtime.run_dir == tmp_path / "configs"
    assert config.data.train_shards == (tmp_path / "corpus.txt",)


def test_the_three_formats_mean_the_same(tmp_path):
    loaded = [load_config(earlier.write(tmp_path, f"training{end}", earlier.WRITTEN)) for end in
              (".toml", ".yaml", ".json")]  # fmt: skip
    assert loaded[0] == loaded[1] == loaded[2]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.rope_mode", "off", "a model without positions cannot be had"),
        ("tokenizer.vocab", "vocab.json", 'write instead tokenizer_json = "tokenizer.json"'),
        ("scheduler.max_lr", 1.0, "the peak is optimizer.learning_rate"),
        ("runtime.checkpoint.directory", "saved", "write instead runtime.run_dir"),
        ("runtime.checkpoint.every_n_epochs", 1, "write instead every_n_steps"),
        ("runtime.evaluation.every_n_epochs", 1, "write instead every_n_steps"),
        ("runtime.evaluation.best", 3, "save_best = true"),
        ("runtime.logging.enable_stdout", False, "--quiet"),
        ("data.num_workers", -1, "data.prefetch"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_what_to_write(tmp_path, key, value, says):
    table = copy.deepcopy(earlier.WRITTEN)
    *sections, name = key.split(".")
    inner = table
    for section in sections:
        inner = inner[section]
    inner[name] = value
    table["tokenizer"].pop("tokenizer_json") if key == "tokenizer.vocab" else None
    message = fault(earlier.write(tmp_path, "a.yaml", table))
    assert any(key in line and says in line for line in message.splitlines()), message


@pytest.mark.parametrize(
    ("scheduler", "key", "lines"),
    [
        (
            {"total_epochs": 3},
            "scheduler.total_steps",
            ["total_steps = 1000", "total_epochs = 3"],
        ),
        ({"total_steps": None}, "scheduler.total_steps", ["total_steps = 10000", "total_epochs = 1"]),
        ({"strategy": "constant", "min_lr": 3e-5}, "scheduler.min_lr", ['strategy = "cosine"', "leave min_lr out"]),
    ],
)
def test_a_schedule_that_cannot_be_is_told_the_lines(tmp_path, scheduler, key, lines):
    table = copy.deepcopy(earlier.WRITTEN)
    table["scheduler"] |= scheduler
    message = fault(earlier.write(tmp_path, "a.json", table))
    assert len(message.splitlines()) == 1
    said, advice = message.split("; write instead: ")
    assert f"a.json: {key}: " in said
    assert advice.split(", ")[0].split(" or ")[0] == lines[0]
    for line in lines:  # each of them, written as it is said, mends the file
        assert line in advice
        mended = copy.deepcopy(table["scheduler"])
        if "out" in line:
            mended.pop("min_lr")
        else:
            name, value = line.split(" = ")
            others = {"total_steps": "total_epochs", "total_epochs": "total_steps"}
            mended.pop(others.get(name), None)
            mended[name] = value.strip('"') if name == "strategy" else int(value)
        load_config(earlier.write(tmp_path, "b.json", table | {"scheduler": mended}))


@pytest.mark.parametrize(
    ("key", "ours", "value"),
    [
        ("runtime.checkpoint.max_keep", "max_keep", 1_000_000),  # all, as there
        ("runtime.checkpoint.every_n_steps", "every_n_steps", 200),
    ],
)
def test_keys_without_a_value_load(tmp_path, key, ours, value):
    table = copy.deepcopy(earlier.WRITTEN)
    table["runtime"]["checkpoint"][ours] = None
    path = earlier.write(tmp_path, "a.yaml", table)
    assert getattr(load_config(path).runtime.checkpoint, ours) == value
    assert getattr(load_config_of(convert_config(path, tmp_path)[0], tmp_path).runtime.checkpoint, ours) == value


def test_an_evaluation_that_never_came_is_said(tmp_path):
    table = copy.deepcopy(earlier.WRITTEN)
    table["runtime"]["evaluation"]["every_n_steps"] = None
    _, notes = load_table(earlier.write(tmp_path, "a.yaml", table))
    assert any(note.startswith("runtime.evaluation.every_n_steps: no value meant never") for note in notes)


def test_a_file_of_another_format_is_asked_about(tmp_path):
    written = earlier.write(tmp_path, "m3_medium.toml", earlier.WRITTEN)
    assert fault(written.with_suffix(".yaml")).endswith(f"no such file; did you mean {written}?")


def test_max_lr_was_the_exponent_of_polynomial_decay(tmp_path):
    table = copy.deepcopy(earlier.WRITTEN)
    table["scheduler"] |= {"strategy": "polynomial", "max_lr": 2.0}
    assert load_config(earlier.write(tmp_path, "a.json", table)).scheduler.power == 2.0


@pytest.mark.parametrize("name", [*LOADS, *INDIVISIBLE])
def test_a_converted_file_is_the_same_model_on_the_batches_that_were_meant(tmp_path, name):
    table = copy.deepcopy(earlier.FILES[name])
    path = earlier.write(tmp_path, name, table)
    (tmp_path / "new").mkdir()
    text, notes = convert_config(path, tmp_path / "new")
    (tmp_path / "new" / "run.toml").write_text(text)
    config = load_config(tmp_path / "new" / "run.toml")
    assert model_spec(config, 300).num_params == earlier.parameters(table)
    assert config.data.train_shards == (tmp_path / "corpus.txt",)
    assert config.data.validation_shards == ()  # it was the training text
    assert config.data.batch_size % micro_batch_size(config) == 0
    assert all(f"#   {note}" in text for note in notes)
    for word in ("shuffle_buffer_size", "validation_shards", "num_key_value_heads", "rope_theta", "rope_mode"):
        assert any(word in note for note in notes), word


def test_a_key_left_out_is_converted_to_what_it_meant(tmp_path):
    table = {
        "model": {"hidden_size": 64, "num_attention_heads": 4, "num_layers": 2},
        "tokenizer": {"tokenizer_json": "t.json"},
        "data": {"train_shards": ["a.txt"]},
        "scheduler": {"total_steps": 10, "min_lr": 1e-5},  # which its default, constant, ignored
    }
    text, _ = convert_config(earlier.write(tmp_path, "a.yaml", table), tmp_path)
    (tmp_path / "a.toml").write_text(text)
    config = load_config(tmp_path / "a.toml")
    assert (config.optimizer.weight_decay, config.optimizer.max_grad_norm) == (0, 0)
    assert (config.scheduler.strategy, config.runtime.precision) == ("constant", "bf16")
    assert config.data.document == "line"
