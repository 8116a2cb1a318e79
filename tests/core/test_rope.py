"""The rotary embedding's frequencies: what each scaling keeps, and what it slows down."""

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from reference import rope_frequency
from tiny import VARIATIONS, make_spec

from sconce.config import config_from, dump_toml, model_spec, to_json
from sconce.config.load import config_from_resolved
from sconce.errors import ConfigError
from sconce.rope import inverse_frequencies, make_scaling, scaling_faults

LLAMA3 = make_scaling("llama3", {"factor": 8.0, "original_max_position_embeddings": 8192})
YARN = make_scaling("yarn", {"factor": 4.0, "original_max_position_embeddings": 32768})
LINEAR = make_scaling("linear", {"factor": 2.0})


@pytest.mark.parametrize("variation", ["llama3-rope", "yarn-qkv-biases"])
def test_the_small_specs_have_every_kind_of_pair(variation):
    spec = make_spec(**VARIATIONS[variation])
    plain = np.array(inverse_frequencies(spec.head_dim, spec.rope_theta, None))
    slowed = plain / inverse_frequencies(spec.head_dim, spec.rope_theta, spec.rope_scaling)
    assert slowed[0] == pytest.approx(1)
    assert slowed[-1] == pytest.approx(spec.rope_scaling.factor)
    assert any(1.01 < by < spec.rope_scaling.factor - 0.01 for by in slowed)


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3, YARN], ids=["none", "linear", "llama3", "yarn"])
def test_frequencies_are_those_of_the_papers(scaling):
    spec = make_spec(head_dim=128, rope_theta=5e5, rope_scaling=scaling)
    found = inverse_frequencies(128, 5e5, scaling)
    assert found == pytest.approx([rope_frequency(i, spec) for i in range(64)], rel=1e-12)


def test_no_frequency_leaves_its_range_and_none_overtakes_another():
    plain = np.array(inverse_frequencies(128, 5e5, None))
    for scaling in (LINEAR, LLAMA3, YARN):
        scaled = np.array(inverse_frequencies(128, 5e5, scaling))
        assert (np.diff(scaled) < 0).all()
        assert (scaled <= plain * (1 + 1e-12)).all()
        assert (scaled >= plain / scaling.factor * (1 - 1e-12)).all()


def test_yarn_makes_attention_sharper_unless_told_otherwise():
    assert YARN.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    told = {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.0}
    assert make_scaling("yarn", told).attention_factor == 1.0
    assert make_scaling("default", {}) is None


FAULTS = {
    "nothing": ("linear", {}, ["factor"]),
    "no length": ("yarn", {"factor": 2.0}, ["original_max_position_embeddings"]),
    "idle": ("linear", {"factor": 2.0, "beta_fast": 3.0, "low_freq_factor": None}, ["beta_fast"]),
    "unscaled": ("default", {"factor": 2.0}, ["factor"]),
    "bounds": (
        "llama3",
        {"factor": 2.0, "original_max_position_embeddings": 8, "low_freq_factor": 4.0},
        ["high_freq_factor"],
    ),
}


@pytest.mark.parametrize(("rope_type", "given", "keys"), FAULTS.values(), ids=FAULTS)
def test_faults_name_their_key(rope_type, given, keys):
    assert [key for key, _ in scaling_faults(rope_type, given)] == keys


CONFIGS = {
    "idle": ({"factor": 2.0}, {}, "rope_scaling.factor: would do nothing with rope_type default; it is for linear"),
    "type": ({"rope_type": "dynamic"}, {}, 'rope_scaling.rope_type: found "dynamic", expected one of default, linear'),
    "missing": ({"rope_type": "llama3"}, {}, "rope_scaling.factor: missing; rope_type llama3 needs it"),
    "small": ({"rope_type": "linear", "factor": 0.5}, {}, "found 0.5, expected a number >= 1"),
    "key": ({"rope_type": "linear", "facto": 2}, {}, "did you mean model.rope_scaling.factor"),
    "bias": ({}, {"attention_output_bias": False}, "would do nothing without model.attention_bias"),
    "theta": (
        {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 8},
        {"rope_theta": 1.0},
        "model.rope_theta: found 1.0; yarn needs more than 1",
    ),
}


@pytest.mark.parametrize(("scaling", "model", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_is_told_what_its_scaling_lacks(scaling, model, message):
    with pytest.raises(ConfigError) as told:
        read({**model, "rope_scaling": scaling})
    assert message in str(told.value)


def test_a_scaling_goes_from_the_config_into_the_model_and_back():
    config = read({"rope_scaling": {"rope_type": "linear", "factor": 2}})
    assert model_spec(config, 10).rope_scaling == LINEAR
    assert config_from_resolved(to_json(config), "again").model.rope_scaling == config.model.rope_scaling
    assert config_from(tomllib.loads(dump_toml(config, "", Path("/"))), "again").model == config.model


def read(model):
    table = {
        "model": model,
        "tokenizer": {"tokenizer_json": "/t.json"},
        "data": {"train_shards": ["/t.txt"]},
        "scheduler": {"total_steps": 1},
    }
    return config_from(table, "test")
