"""config.json: which Hugging Face class a model is, and the same model back from it."""

import json
from dataclasses import asdict

import pytest
from tiny import VARIATIONS, make_spec

from sconce.errors import CheckpointError
from sconce.interop import hf
from sconce.interop.hf import class_for, hf_config, model_files, refusals, spec_from_config

TOKENIZER = json.dumps(
    {"added_tokens": [{"id": 0, "content": "<|bos|>"}], "model": {"vocab": {"a": 3, "<|eos|>": 1, "<|bos|>": 0}}}
).encode()

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
}
MORE = {
    "layernorm-plain-biases": ({"norm": "layernorm", "mlp": "plain", "mlp_bias": True}, "jais2"),
    "layernorm-plain-wide-heads": ({"norm": "layernorm", "mlp": "plain", "head_dim": 12}, "jais2"),
    "layernorm-biases": ({"norm": "layernorm", "attention_bias": True}, None),
    "layernorm-wide-heads": ({"norm": "layernorm", "head_dim": 12}, None),
    "qk-norm-attention-bias": ({"qk_norm": True, "attention_bias": True}, "qwen3"),
    "qk-norm-mlp-bias": ({"qk_norm": True, "mlp_bias": True}, None),
    "qk-norm-plain": ({"qk_norm": True, "mlp": "plain"}, None),
    "indivisible": ({"hidden_size": 30}, None),
    "indivisible-qk-norm": ({"hidden_size": 30, "qk_norm": True}, "qwen3"),
}
CASES = {name: (VARIATIONS[name], CLASSES.get(name, "?")) for name in VARIATIONS} | MORE


def config_of(spec):
    return hf_config(spec, bos_id=0, eos_id=1, pad_id=None)


def files_of(spec):
    return model_files(spec, tokenizer_json=TOKENIZER, bos_id=0, eos_id=1, pad_id=None)


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
    assert config.items() >= asdict(spec).items()


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
    assert "pad_token" not in config
    assert (config["add_bos_token"], config["model_max_length"]) == (False, 32)
    assert files["tokenizer.json"] == TOKENIZER


def test_a_foreign_config_may_leave_defaults_out():
    config = config_of(make_spec(tie_word_embeddings=False, rope_theta=5e5))
    for key in ("head_dim", "num_key_value_heads", "attention_bias", "mlp_bias", "rope_theta", "tie_word_embeddings"):
        del config[key]
    assert spec_from_config(config) == make_spec(tie_word_embeddings=False, rope_theta=5e5)


REFUSED = {
    "another class": ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    "no class": ({"model_type": None}, "model_type is missing"),
    "no size": ({"hidden_size": None}, "hidden_size is missing; expected an integer"),
    "wrong type": ({"hidden_size": "32"}, "hidden_size is '32'"),
    "another activation": ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; expected one of silu"),
    "scaled rope": ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn'"),
    "old scaled rope": ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
    "partial rope": ({"partial_rotary_factor": 0.5}, r"over 0\.5 of each head"),
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
        "gpt2": "gpt2: not a class Sconce knows; expected llama, mistral, qwen3",
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            class_for(spec, name)
