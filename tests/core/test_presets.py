"""The configs that come with Sconce: true to their names, and within the memory of the machines they are for."""

import re
from pathlib import Path

import pytest

from sconce.config import config_from, load_preset, model_spec, precision, preset_names, preset_table, sequence_length
from sconce.config.presets import preset_path
from sconce.config.provenance import settings
from sconce.errors import ConfigError
from sconce.hub_address import parse_address
from sconce.planning.devices import named
from sconce.training.plan import plan_run

ROOT = Path(__file__).parents[2]
EARLIER = ("local", "full")  # with the values that the system before Sconce had under these names
DEVICES = {
    "local": "m1-8",
    "full": "m3-16",
    "local_smoke": "m1-8",
    "m3_20m": "m3-16",
    "m3_20m_streaming": "m3-16",
    "m3_medium": "m3-16",
    "rtx5090_400m": "rtx-5090",
    "rtx5090_550m": "rtx-5090",
    "runpod_20m": "rtx-4090",
    "runpod_124m": "rtx-4090",
    "runpod_400m": "a100-80",
    "runpod_1b": "l40s",
    "runpod_2b": "h100",
    "runpod_4b": "h200",
}
NAMED = {"local": 1e6, "full": 50e6, "local_smoke": 1.1e6, "m3_medium": 22e6, "m3_20m_streaming": 20e6}


def said_size(name):
    if name in NAMED:
        return NAMED[name]
    number, unit = re.search(r"(\d+)([mb])$", name).groups()
    return int(number) * {"m": 1e6, "b": 1e9}[unit]


def count(model, vocab):
    """Parameters of a gated, tied, bias-free transformer, by hand."""
    hidden, heads, kv = model["hidden_size"], model["num_attention_heads"], model["num_key_value_heads"]
    head = hidden // heads
    width = model.get("intermediate_size", -(-8 * hidden // 3 // 32) * 32)
    block = 2 * hidden * heads * head + 2 * hidden * kv * head + 3 * hidden * width + 2 * hidden
    return vocab * hidden + model["num_layers"] * block + hidden


def test_there_is_a_machine_for_each():
    assert sorted(DEVICES) == preset_names() == sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("name", DEVICES)
def test_it_has_the_parameters_it_is_named_for_and_says_how_many(name):
    config = load_preset(name)
    parameters = model_spec(config, config.model.vocab_size).num_params
    assert parameters == pytest.approx(said_size(name), rel=0.1)
    assert parameters == count(preset_table(name)["model"], config.model.vocab_size)
    assert preset_path(name).read_text(encoding="utf-8").startswith(f"# {parameters:,} parameters")


@pytest.mark.parametrize("name", DEVICES)
def test_it_fits_its_machine_without_anything_being_changed(name):
    plan = plan_run(load_preset(name), named(DEVICES[name]))
    assert plan.configured.fits
    assert plan.chosen_checkpointing == "none"


@pytest.mark.parametrize("name", [name for name in DEVICES if name not in ("local_smoke", *EARLIER)])
def test_budget_precision_and_heads(name):
    config = load_preset(name)
    tokens = config.scheduler.total_steps * config.data.batch_size * sequence_length(config)
    parameters = model_spec(config, config.model.vocab_size).num_params
    assert tokens / parameters == pytest.approx(20, rel=0.03)
    assert f"{tokens:,} tokens" in preset_path(name).read_text(encoding="utf-8")
    assert precision(config) == "bf16"
    assert config.model.num_key_value_heads < config.model.num_attention_heads
    assert config.scheduler.min_lr == pytest.approx(config.optimizer.learning_rate / 10)


def test_the_streaming_preset_is_its_namesake_on_a_stream():
    plain, streamed = load_preset("m3_20m"), load_preset("m3_20m_streaming")
    assert (streamed.model, streamed.optimizer, streamed.scheduler) == (plain.model, plain.optimizer, plain.scheduler)
    assert streamed.data.streaming
    assert [str(parse_address(path)) for path in streamed.data.train_shards] == [
        "hf://HuggingFaceFW/fineweb-edu?config=sample-10BT"
    ]


def test_the_names_of_the_earlier_system_have_its_values():
    local, full = (load_preset(name) for name in EARLIER)
    sizes = [
        (model.hidden_size, model.intermediate_size, model.num_layers, model.num_attention_heads, model.vocab_size)
        for model in (local.model, full.model)
    ]
    assert sizes == [(128, 512, 2, 2, 4096), (512, 2048, 8, 8, 32000)]
    lengths = [(config.model.max_position_embeddings, config.data.batch_size) for config in (local, full)]
    assert lengths == [(256, 4), (1024, 16)]
    rates = [(config.optimizer.learning_rate, config.optimizer.weight_decay) for config in (local, full)]
    assert rates == [(5e-4, 0.0), (3e-4, 0.1)]
    assert (local.scheduler.strategy, local.scheduler.total_steps, local.scheduler.warmup_steps) == (
        "constant",
        200,
        20,
    )
    assert full.scheduler.strategy == "cosine_with_warmup"
    rhythms = [
        (
            runtime.precision,
            runtime.checkpoint.every_n_steps,
            runtime.checkpoint.max_keep,
            runtime.evaluation.every_n_steps,
            runtime.evaluation.max_batches,
            runtime.log_every_n_steps,
        )
        for runtime in (local.runtime, full.runtime)
    ]
    assert rhythms == [("fp32", 50, 2, 50, 1, 1), ("bf16", 200, 5, 200, 1, 1)]


def test_larger_models_learn_at_lower_rates():
    rates = [
        load_preset(f"runpod_{size}").optimizer.learning_rate for size in ("20m", "124m", "400m", "1b", "2b", "4b")
    ]
    assert rates == sorted(rates, reverse=True)


def test_paths_are_those_of_the_folder_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_preset("runpod_1b")
    assert config.data.train_shards == (tmp_path / "corpus",)
    assert config.tokenizer.tokenizer_json == tmp_path / "tokenizer/tokenizer.json"


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(
        ConfigError, match=r"did you mean runpod_124m\? There are full, local, local_smoke, .*runpod_4b"
    ):
        load_preset("runpod_125m")


def test_where_each_value_comes_from():
    table = preset_table("m3_20m")
    config = config_from(preset_table("m3_20m"), "here", ["runtime.seed=7"])
    found = {entry.key: (entry.value, entry.origin) for entry in settings(config, table, {"runtime.seed"}, "preset")}
    assert found["runtime.seed"] == (7, "override")
    assert found["model.hidden_size"] == (384, "preset")
    assert found["model.head_dim"] == (64, "derived")
    assert found["model.rope_theta"] == (10000.0, "default")
    assert found["data.micro_batch_size"] == (None, "unset")
