"""The earlier system's config files: each loads as it is, or is refused with what to write instead."""

import copy
import json
import re
import shlex
import tomllib

import earlier_configs as earlier
import pytest
import yaml

from sconce.config import load_config, load_preset, load_table, micro_batch_size, model_spec, sequence_length
from sconce.config.convert import convert_config
from sconce.config.read import flat
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
    assert (spec.attn_dropout, spec.residual_dropout) == (model["attn_dropout"] or 0, model["residual_dropout"] or 0)
    assert sequence_length(config) == model["max_position_embeddings"]
    assert micro_batch_size(config) == data["batch_size"] // data["gradient_accumulation_steps"]
    assert config.data.prefetch == data.get("num_workers", 2)
    assert config.data.cache_dir == (tmp_path / "cache" if data["cache_dir"] else None)
    assert config.data.train_shards == (tmp_path / "corpus.txt",)
    assert config.runtime.run_dir == tmp_path / "run"
    assert config.runtime.logging.tensorboard is True
    assert config.runtime.checkpoint.save_best is True
    assert config.optimizer.max_grad_norm == 1.0
    _, notes = load_table(path)
    turned = ["data.shuffle_buffer_size", "runtime.checkpoint.directory", "tokenizer.special_tokens"]
    turned += ["model.rope_mode"] if model["rope_mode"] else []
    turned += ["data.num_workers"] if "num_workers" in data else []
    for key in turned:
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


def test_the_three_formats_mean_the_same_but_for_what_toml_cannot_say(tmp_path):
    """There a key without a value is one left out: gradients are clipped, as docs/coming-from-rust.md says."""
    toml, *others = (
        load_config(earlier.write(tmp_path, f"training{end}", earlier.WRITTEN), changes)
        for end, changes in ((".toml", ["optimizer.max_grad_norm=0"]), (".yaml", ()), (".json", ()))
    )
    assert others == [toml, toml]
    assert load_config(tmp_path / "configs/training.toml").optimizer.max_grad_norm == 1.0


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


@pytest.mark.parametrize("end", [".toml", ".yaml", ".json"])
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"total_epochs": 3}, [("total_steps", 1000), ("total_epochs", 3)]),
        ({"total_steps": None}, [("total_steps", 10000), ("total_epochs", 1)]),
    ],
)
def test_a_horizon_that_cannot_be_is_told_two_lines_to_choose_from(tmp_path, given, kept, end):
    table = copy.deepcopy(earlier.WRITTEN)
    table["scheduler"] |= given
    said, steps, other, epochs = fault(earlier.write(tmp_path, f"a{end}", table)).splitlines()
    assert f"a{end}: scheduler.total_steps: found " in said
    assert said.endswith(":")
    assert other == "or, to count passes over the text:"
    for line, (name, value) in zip((steps, epochs), kept, strict=True):  # each, pasted into the file, mends it
        assert pasted(line, end) == {name: value}
        mended = {key: kind for key, kind in table["scheduler"].items() if key not in dict(kept)} | pasted(line, end)
        config = load_config(earlier.write(tmp_path, f"b{end}", table | {"scheduler": mended}))
        assert getattr(config.scheduler, name) == value


def pasted(lines, end):
    """What lines of a fault are in a file of that format."""
    if end == ".json":
        return json.loads("{" + lines.strip().rstrip(",") + "}")
    return tomllib.loads(lines) if end == ".toml" else yaml.safe_load(lines)


@pytest.mark.parametrize("end", [".toml", ".yaml", ".json"])
def test_a_rate_that_a_strategy_has_not_is_told_the_line(tmp_path, end):
    table = copy.deepcopy(earlier.WRITTEN)
    table["scheduler"] |= {"strategy": "constant", "min_lr": 3e-5}
    said, advice = fault(earlier.write(tmp_path, f"a{end}", table)).split("write instead:\n")
    assert f"a{end}: scheduler.min_lr: " in said
    assert said.endswith("leave min_lr out, or ")
    assert pasted(advice, end) == {"strategy": "cosine"}
    for mended in (table["scheduler"] | {"strategy": "cosine"}, table["scheduler"] | {"min_lr": None}):
        load_config(earlier.write(tmp_path, "b.json", table | {"scheduler": mended}))


def test_lines_for_a_preset_are_options_that_mend_it():
    with pytest.raises(ConfigError) as caught:
        load_preset("local_smoke", ["data.gradient_accumulation_steps=3"])
    said, *lines = str(caught.value).splitlines()
    assert said.endswith("write instead:")
    assert lines == ["  --override data.batch_size=4", "  --override data.gradient_accumulation_steps=2"]
    config = load_preset("local_smoke", [shlex.split(line)[1] for line in lines])
    assert (config.data.batch_size, micro_batch_size(config)) == (4, 2)


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
    for word in ("shuffle_buffer_size", "validation_shards", "num_key_value_heads"):
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


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.num_workers=7", {"data.prefetch": 7}),
        ("data.num_workers=null", {"data.prefetch": 2}),
        ("optimizer.max_grad_norm=null", {"optimizer.max_grad_norm": 0.0}),
        ("optimizer.max_grad_norm=NULL", {"optimizer.max_grad_norm": 0.0}),
        ("model.attn_dropout=null", {"model.attn_dropout": 0.0}),
        ("scheduler.min_lr=null", {"scheduler.min_lr": 0.0}),
        ("runtime.checkpoint.directory={here}/other/checkpoints", {"runtime.run_dir": "{here}/other"}),
        ("runtime.checkpoint.max_keep=null", {"runtime.checkpoint.max_keep": 1_000_000}),
        ("data.shuffle_buffer_size=null", {}),
    ],
)
@pytest.mark.parametrize("end", [".yaml", ".toml"])
def test_an_override_of_its_keys_says_what_it_says_in_a_file(tmp_path, override, expected, end):
    path = earlier.write(tmp_path, f"m3_20m{end}", earlier.FILES["m3_20m_streaming.yaml"])
    before, after = (
        dict(flat(json.loads(load_config(path, changes).model_dump_json())))
        for changes in ((), [override.format(here=tmp_path)])
    )
    changed = {key: value for key, value in after.items() if value != before[key]}
    assert changed == {
        key: value.format(here=tmp_path) if isinstance(value, str) else value for key, value in expected.items()
    }


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.rope_mode=off", "a model without positions cannot be had"),
        ("model.rope_mode=preapply", "positions are always rotary"),
        ("data.shuffle_buffer_size=128", "every epoch is shuffled as a whole"),
        ("runtime.evaluation.best.directory=best", "BEST pointing at it"),
        ("tokenizer.vocab=vocab.json", "a tokenizer is one file here"),
        ("scheduler.max_lr=2.0", "scheduler.power"),
        ("runtime.checkpoint.every_n_epochs=1", "every_n_steps"),
        ("runtime.logging.enable_stdout=false", "--quiet"),
        ("runtime.logging.tensorboard=logs", "expected true or false"),
        ("optimizer.learning_rate=null", "found null, expected a number > 0"),
        ("runtime.evaluation.bset.directory=x", "unknown key"),
    ],
)
def test_an_override_that_cannot_be_kept_is_refused(tmp_path, override, says):
    path = earlier.write(tmp_path, "m3_medium.yaml", earlier.FILES["m3_medium.yaml"])
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--override: {override.partition('=')[0]}: ")
    assert says in line
