"""config.json: which Hugging Face class a model is, and the same model back from it."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from tiny import VARIATIONS, make_spec

from sconce.errors import CheckpointError
from sconce.interop import hf
from sconce.interop.hf import class_for, hf_config, model_files, not_taken_over, refusals, spec_from_config
from sconce.rope import make_scaling
from sconce.tokenizer.bpe import Tokenizer, train_tokenizer
from sconce.tokenizer.extras import TokenizerExtras

CLASSES = {
    "default": "llama",
    "gqa": "llama",
    "mqa-wide-heads": "llama",
    "untied": "llama",
    "qk-norm": "qwen3",
    "layernorm": "stablelm",
    "layernorm-qk-norm-untied": None,
    "plain-gelu": "arcee",
    "plain-relu2-biases": "arcee",
    "gated-gelu": "llama",
    "biases": "llama",
    "theta": "llama",
    "window": "mistral",
    "llama3-rope": "llama",
    "yarn-qkv-biases": "qwen2",
}
MORE = {
    "layernorm-plain-biases": ({"norm": "layernorm", "mlp": "plain", "mlp_bias": True}, "jais2"),
    "layernorm-plain-wide-heads": ({"norm": "layernorm", "mlp": "plain", "head_dim": 12}, "jais2"),
    "layernorm-biases": ({"norm": "layernorm", "attention_bias": True}, None),
    "layernorm-wide-heads": ({"norm": "layernorm", "head_dim": 12}, None),
    "qk-norm-attention-bias": ({"qk_norm": True, "attention_bias": True}, "qwen3"),
    "qk-norm-mlp-bias": ({"qk_norm": True, "mlp_bias": True}, None),
    "qk-norm-plain": ({"qk_norm": True, "mlp": "plain"}, None),
    "qkv-biases-window": (
        {"attention_bias": True, "attention_output_bias": False, "sliding_window": 5},
        "qwen2",
    ),
    "qkv-biases-qk-norm": ({"attention_bias": True, "attention_output_bias": False, "qk_norm": True}, None),
    "indivisible": ({"hidden_size": 30}, None),
    "indivisible-qk-norm": ({"hidden_size": 30, "qk_norm": True}, "qwen3"),
}
CASES = {name: (VARIATIONS[name], CLASSES.get(name, "?")) for name in VARIATIONS} | MORE


def config_of(spec):
    return hf_config(spec, bos_id=0, eos_id=1, pad_id=None)


def files_of(spec):
    return model_files(spec, make_tokenizer())


@cache
def make_tokenizer():
    """Of bytes alone; texts begin with its BOS, and there is no padding."""
    with TemporaryDirectory() as folder:
        content = train_tokenizer(["a"], 259, Path(folder), []).content
    return Tokenizer(Path("tokenizer.json"), content, TokenizerExtras({"bos_token": "<|bos|>", "pad_token": None}))


@pytest.mark.parametrize(("changes", "model_type"), CASES.values(), ids=CASES)
def test_each_variation_has_the_class_that_computes_it(changes, model_type):
    config = config_of(make_spec(**changes))
    assert (config and config["model_type"]) == model_type


@pytest.mark.parametrize(("changes", "model_type"), CASES.values(), ids=CASES)
def test_the_spec_comes_back_from_its_config(changes, model_type):
    spec = make_spec(**changes)
    config = json.loads(files_of(spec)["config.json"])
    assert config["model_type"] == (model_type or "sconce")
    assert spec_from_config(config) == spec


def test_a_model_without_a_class_says_what_it_is():
    spec = make_spec(norm="layernorm", qk_norm=True)
    config = json.loads(files_of(spec)["config.json"])
    assert (config["model_type"], config["architectures"]) == ("sconce", [])
    assert config.items() >= {name: value for name, value in asdict(spec).items() if name not in hf.DROPOUT}.items()


@pytest.mark.parametrize("changes", [{}, {"norm": "layernorm", "qk_norm": True}], ids=["llama", "sconce"])
def test_dropout_is_no_part_of_the_model_that_a_config_describes(changes):
    config = json.loads(files_of(make_spec(**changes, attn_dropout=0.1, residual_dropout=0.2))["config.json"])
    assert spec_from_config(config) == make_spec(**changes)
    assert not {"attn_dropout", "residual_dropout"} & config.keys()


def test_rope_theta_is_written_for_both_readers():
    config = config_of(make_spec(rope_theta=5e5))
    assert config["rope_theta"] == 5e5
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}


def test_missing_special_tokens_are_null_not_the_class_default():
    config = hf_config(make_spec(), bos_id=None, eos_id=1, pad_id=None)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (None, 1, None)


def test_the_tokenizer_config_names_the_tokens_by_their_text():
    files = files_of(make_spec())
    config = json.loads(files["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"]) == ("<|bos|>", "<|eos|>")
    assert config["pad_token"] is None
    assert (config["add_bos_token"], config["model_max_length"]) == (False, 32)
    assert files["tokenizer.json"] == make_tokenizer().content


def test_a_foreign_config_may_leave_defaults_out():
    config = config_of(make_spec(tie_word_embeddings=False, rope_theta=5e5))
    for key in ("head_dim", "num_key_value_heads", "attention_bias", "mlp_bias", "rope_theta", "tie_word_embeddings"):
        del config[key]
    assert spec_from_config(config) == make_spec(tie_word_embeddings=False, rope_theta=5e5)


def test_rope_scaling_is_written_for_both_readers():
    config = config_of(make_spec(rope_theta=5e5, rope_scaling=make_scaling("linear", {"factor": 2.0})))
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}


def test_the_scaling_is_read_as_older_configs_spell_it():
    config = config_of(make_spec()) | {"rope_parameters": None}
    config["rope_scaling"] = {"type": "yarn", "factor": 4.0, "mscale": 0.707, "mscale_all_dim": 1.0}
    scaling = spec_from_config(config).rope_scaling
    assert scaling.original_max_position_embeddings == 32  # max_position_embeddings, as transformers takes it
    assert scaling.attention_factor == pytest.approx((0.0707 * np.log(4) + 1) / (0.1 * np.log(4) + 1))


def test_what_a_native_config_says_besides_is_named():
    config = json.loads(files_of(make_spec(norm="layernorm", qk_norm=True))["config.json"])
    assert not_taken_over(config) == []
    assert not_taken_over(config | {"hidden_act": "gelu", "residual_dropout": 0.1}) == ["hidden_act"]


def test_what_a_config_says_besides_is_named():
    config = config_of(make_spec()) | {"unsloth_version": "1", "use_cache": False, "head_scale": None}
    assert not_taken_over(config) == ["unsloth_version"]


REFUSED = {
    "another class": ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    "no class": ({"model_type": None}, "model_type is missing"),
    "no size": ({"hidden_size": None}, "hidden_size is missing; expected an integer"),
    "wrong type": ({"hidden_size": "32"}, "hidden_size is '32'"),
    "another activation": ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; expected one of silu"),
    "dynamic rope": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling: rope type 'dynamic'; Sconce"),
    "rope without factor": ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters\.factor: missing"),
    "old rope without factor": (
        {"rope_scaling": {"type": "linear"}},
        r"rope_scaling\.factor: missing; rope_type linear",
    ),
    "rope factor": ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2'; expected a number"),
    "no rope factor": ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor: found 0, expected from"),
    "another's rope": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "long_factor": [1]}},
        "rope_scaling: long_fac",
    ),
    "untruncated": ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": False}}, "truncate = false"),
    "rope bounds": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}},
        "beta_fast: found 1, expected more than beta_slow 2",
    ),
    "theta": ({"rope_theta": 0, "rope_parameters": None}, "rope_theta is 0; expected more than 0"),
    "partial rope": ({"partial_rotary_factor": 0.5}, r"over 0\.5 of each head"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}: Sconce's models have no"),
    "code": ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    "sliding window": ({"layer_types": ["sliding_attention"]}, "layer_types"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_sconce_cannot_compute_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        spec_from_config({**config_of(make_spec()), **changes})


@pytest.mark.parametrize(("changes", "model_type"), CASES.values(), ids=CASES)
def test_every_other_class_says_why_it_is_not_the_one(changes, model_type):
    spec = make_spec(**changes)
    assert [name for name in hf.CLASSES if not refusals(spec, name)] == ([model_type] if model_type else [])
    if model_type is not None:
        assert class_for(spec) == class_for(spec, model_type) == model_type
        return
    with pytest.raises(CheckpointError, match=r"no Hugging Face class computes this model: llama: it.*; stablelm: it"):
        class_for(spec)


def test_a_wanted_class_that_cannot_hold_the_model_is_refused_with_the_reason():
    spec = make_spec(mlp="plain", attention_bias=True)
    for name, reason in {
        "llama": "llama: its MLP is gated, this model's is plain; arcee computes it",
        "qwen3": "its MLP is gated, this model's is plain, it has QK-norm, this model has none",
        "stablelm": "its norm is layernorm, this model's is rmsnorm, .*, its attention has no biases, this model's has",
        "gpt2": "gpt2: not a class Sconce knows; expected llama, mistral, qwen2, qwen3",
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            class_for(spec, name)
