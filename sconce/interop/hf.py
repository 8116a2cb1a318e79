"""A model's folder as Hugging Face tools expect it: which of their classes is this model, and back.

Tensor names need no translation, they are Hugging Face's already; what remains is naming the class. Only a class
that computes exactly this model counts:

    norm       MLP    class     not when
    rmsnorm    gated  llama     qk_norm
    rmsnorm    gated  mistral   (with sliding_window) qk_norm, attention_bias, mlp_bias
    rmsnorm    gated  qwen2     (with attention_bias but not attention_output_bias) qk_norm, mlp_bias
    rmsnorm    gated  qwen3     (with qk_norm) mlp_bias
    rmsnorm    plain  arcee     qk_norm
    layernorm  plain  jais2     qk_norm
    layernorm  gated  stablelm  qk_norm, attention_bias, mlp_bias, or head_dim is not hidden_size / num_heads

Only mistral, qwen2 and qwen3 have a sliding window; only qwen2 has biases on queries, keys and values alone. All but
qwen3 also refuse a hidden_size that num_heads does not divide. transformers loads every one of them; what mlx-lm makes
of them is in `mlx_lm_refusals`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, cast

from sconce.errors import CheckpointError, in_short
from sconce.interop.config_reader import ConfigReader
from sconce.interop.hf_rope import ROPE_KEYS, has_default_attention, read_rope, rope_tables
from sconce.spec import INIT_STD, ModelSpec

if TYPE_CHECKING:  # not imported: `sconce --help` names the classes, and a tokenizer brings numpy
    from sconce.tokenizer.bpe import Tokenizer

Norm = Literal["rmsnorm", "layernorm"]
MLP = Literal["gated", "plain"]
Activation = Literal["silu", "gelu", "relu2"]

MAX_LAYERS = 10_000  # a stray number must not ask for a billion
NATIVE = "sconce"  # model_type of a model that no Hugging Face class computes
DROPOUT = ("attn_dropout", "residual_dropout")  # of the spec: how it was trained, and no part of the model
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "relu2")
# Fields of these classes that Sconce's models lack, with the one value that leaves them out.
_LACKING: Mapping[str, object] = {
    "use_parallel_residual": False,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "num_experts": None,
    "num_local_experts": None,
    "no_rope_layers": None,
    "rope_interleaved": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "quantization_config": None,
    "quantization": None,
    "auto_map": None,  # code of its own
}
_WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
# What these classes have besides what is read here: no part of the function that the model is.
_IDLE = (
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "hidden_dropout",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "_name_or_path",
)


@dataclass(frozen=True, slots=True)
class _Class:
    """A Hugging Face class; `biased` and `partial_rotary` are its defaults where a config is silent.

    One that is `qkv_biased` always has biases on queries, keys and values, and there alone.
    """

    architecture: str
    norm: Norm
    mlp: MLP
    qk_norm: bool = False
    biased: bool = False
    qkv_biased: bool = False
    partial_rotary: float = 1.0

    @property
    def eps_key(self) -> str:
        return "rms_norm_eps" if self.norm == "rmsnorm" else "layer_norm_eps"


_CLASSES = {
    "llama": _Class("LlamaForCausalLM", "rmsnorm", "gated"),
    "mistral": _Class("MistralForCausalLM", "rmsnorm", "gated"),
    "qwen2": _Class("Qwen2ForCausalLM", "rmsnorm", "gated", qkv_biased=True),
    "qwen3": _Class("Qwen3ForCausalLM", "rmsnorm", "gated", qk_norm=True),
    "arcee": _Class("ArceeForCausalLM", "rmsnorm", "plain"),
    "jais2": _Class("Jais2ForCausalLM", "layernorm", "plain", biased=True),
    "stablelm": _Class("StableLmForCausalLM", "layernorm", "gated", partial_rotary=0.25),
}
CLASSES = tuple(_CLASSES)  # by model_type


def hf_config(spec: ModelSpec, *, bos_id: int | None, eos_id: int, pad_id: int | None) -> dict[str, object] | None:
    """config.json of the class that holds exactly this model, or None when there is none (see the module)."""
    model_type = _model_type(spec)
    if model_type is None:
        return None
    kind = _CLASSES[model_type]
    rope, rope_scaling = rope_tables(spec.rope_theta, spec.rope_scaling)
    config: dict[str, object] = {
        "architectures": [kind.architecture],
        "model_type": model_type,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_position_embeddings,
        "hidden_act": spec.activation,
        kind.eps_key: spec.norm_eps,
        "attention_bias": spec.attention_bias,
        "attention_dropout": 0.0,
        "mlp_bias": spec.mlp_bias,
        "rope_theta": spec.rope_theta,  # mlx-lm's llama reads this one, and without it takes 10000
        "rope_parameters": rope,  # transformers 5 reads this one
        "tie_word_embeddings": spec.tie_word_embeddings,
        "initializer_range": INIT_STD,
        "use_cache": True,
        **_token_ids(bos_id, eos_id, pad_id),  # also when null: the classes have defaults of their own
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    if rope_scaling is not None:
        config["rope_scaling"] = rope_scaling  # mlx-lm and transformers 4 read this one
    if model_type == "mistral":
        config["sliding_window"] = spec.sliding_window
    if model_type in ("qwen2", "qwen3") and spec.sliding_window is not None:
        layer_types = ["sliding_attention"] * spec.num_layers
        sliding = {"use_sliding_window": True, "sliding_window": spec.sliding_window, "layer_types": layer_types}
        config |= {**sliding, "max_window_layers": 0}
    if model_type == "stablelm":
        rope["partial_rotary_factor"] = 1.0
        config |= {"partial_rotary_factor": 1.0, "use_qkv_bias": False, "hidden_dropout": 0.0}
    return config


def model_files(spec: ModelSpec, tokenizer: "Tokenizer") -> dict[str, bytes]:
    """The files beside the weights, by name: config, generation config, tokenizer and its config.

    With them a checkpoint loads in transformers, and mostly in mlx-lm, as it is. A model that no class holds gets
    a config.json that says so: model_type "sconce", and the spec's own fields.
    """
    bos_id, eos_id, pad_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    ids = _token_ids(bos_id, eos_id, pad_id)
    config = hf_config(spec, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id) or {**_native_config(spec), **ids}
    return {
        "config.json": json_bytes(config),
        "generation_config.json": json_bytes(ids),
        "tokenizer.json": tokenizer.content,
        "tokenizer_config.json": json_bytes(
            {**tokenizer_config(tokenizer), "model_max_length": spec.max_position_embeddings}
        ),
    }


def tokenizer_config(tokenizer: "Tokenizer") -> dict[str, object]:
    """tokenizer_config.json's table, but for the model's length."""
    table: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokenizer.special_texts,  # also where there is none, as tools else look for usual names
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    return table if tokenizer.chat_template is None else {**table, "chat_template": tokenizer.chat_template}


def architecture(model_type: str) -> str | None:
    """What `architectures` in config.json calls the class; None for a model that no Hugging Face class computes."""
    return None if model_type == NATIVE else _CLASSES[model_type].architecture


def loads_in_transformers(spec: ModelSpec) -> bool:
    """Whether a Hugging Face class computes exactly this model."""
    return _model_type(spec) is not None


def class_for(spec: ModelSpec, wanted: str | None = None) -> str:
    """The class (its model_type) that computes exactly this model; `wanted` if that is the one.

    Raises CheckpointError with the reasons when none does, or not the one that is wanted.
    """
    if wanted is not None and wanted not in CLASSES:
        raise CheckpointError(f"{wanted}: not a class Sconce knows; expected {', '.join(CLASSES)}")
    for name in CLASSES if wanted is None else (wanted,):
        if not refusals(spec, name):
            return name
    if wanted is not None:
        found = _model_type(spec)
        instead = "no other class computes it either" if found is None else f"{found} computes it"
        raise CheckpointError(f"{wanted}: {', '.join(refusals(spec, wanted))}; {instead}")
    reasons = "; ".join(f"{name}: {', '.join(refusals(spec, name))}" for name in CLASSES)
    raise CheckpointError(f"no Hugging Face class computes this model: {reasons}")


def refusals(spec: ModelSpec, model_type: str) -> list[str]:
    """Why that class cannot hold exactly this model; empty if it can. At most one class can."""
    kind = _CLASSES[model_type]
    has, lacks = ("QK-norm", "none") if kind.qk_norm else ("no QK-norm", "one")
    stablelm = model_type == "stablelm"
    qkv_biased = spec.attention_bias and not spec.attention_output_bias
    narrow = spec.head_dim * spec.num_heads != spec.hidden_size
    reasons = {
        f"its norm is {kind.norm}, this model's is {spec.norm}": kind.norm != spec.norm,
        f"its MLP is {kind.mlp}, this model's is {spec.mlp}": kind.mlp != spec.mlp,
        f"it has {has}, this model has {lacks}": kind.qk_norm != spec.qk_norm,
        "its attention has no biases, this model's has": model_type in ("mistral", "stablelm") and spec.attention_bias,
        "its attention has biases on all projections or none, this model's on queries, keys and values alone": (
            qkv_biased and not kind.qkv_biased
        ),
        "its attention has biases on queries, keys and values alone, this model's has not": (
            kind.qkv_biased and not qkv_biased
        ),
        "its MLP has no biases, this model's has": (
            model_type in ("mistral", "qwen2", "qwen3", "stablelm") and spec.mlp_bias
        ),
        "its attention has no sliding window, this model's has": (
            model_type not in ("mistral", "qwen2", "qwen3") and spec.sliding_window is not None
        ),
        "its attention has a sliding window, this model's has none": (
            model_type == "mistral" and spec.sliding_window is None
        ),
        f"its heads are hidden_size / num_heads wide, this model's are {spec.head_dim}": stablelm and narrow,
        f"its num_heads divides hidden_size, this model's {spec.num_heads} does not divide {spec.hidden_size}": (
            model_type != "qwen3" and spec.hidden_size % spec.num_heads != 0
        ),
    }
    return [reason for reason, applies in reasons.items() if applies]


def caution(spec: ModelSpec) -> str | None:
    """What whoever wants to load this model elsewhere should know, None when there is nothing."""
    if not loads_in_transformers(spec):
        return "no Hugging Face class computes this model: its checkpoints load in Sconce alone"
    reasons = mlx_lm_refusals(spec)
    return f"mlx-lm does not compute this model: {'; '.join(reasons)}" if reasons else None


def mlx_lm_refusals(spec: ModelSpec) -> list[str]:
    """Why mlx-lm computes another model from this one's files, or none; empty if it computes this one."""
    model_type = _model_type(spec)
    if model_type is None:
        return ["no Hugging Face class computes this model"]
    scaling = spec.rope_scaling
    reasons = {
        f"it has no {model_type}": model_type in ("mistral", "arcee", "jais2"),
        "it attends to everything whatever the config says, this model has a sliding window": (
            spec.sliding_window is not None
        ),
        f"it computes silu whatever the config says, this model {spec.activation}": spec.activation != "silu",
        "its qwen3 has no attention biases, this model has": model_type == "qwen3" and spec.attention_bias,
        "its stablelm has a head of its own, this model's is tied": (
            model_type == "stablelm" and spec.tie_word_embeddings
        ),
        f"its qwen2 has heads of hidden_size / num_heads, this model's are {spec.head_dim}": (
            model_type == "qwen2" and spec.head_dim * spec.num_heads != spec.hidden_size
        ),
        "its stablelm does not scale the rotary embedding": model_type == "stablelm" and scaling is not None,
        "it follows no attention_factor": scaling is not None and not has_default_attention(scaling),
    }
    return [reason for reason, applies in reasons.items() if applies]


def not_taken_over(config: Mapping[str, object]) -> list[str]:
    """Keys of a config.json that say nothing to `spec_from_config`, though they say something."""
    spec = spec_from_config(config)
    if config["model_type"] == NATIVE:
        known = {*_native_config(spec), *DROPOUT, *_IDLE, *ROPE_KEYS}
    else:
        said = hf_config(spec, bos_id=None, eos_id=0, pad_id=None) or ()
        known = {*said, *_LACKING, *_IDLE, *_WINDOW, *ROPE_KEYS}
        known |= {"partial_rotary_factor"} if config["model_type"] == "stablelm" else set()
    return sorted(key for key, value in config.items() if key not in known and value is not None)


def spec_from_config(config: Mapping[str, object]) -> ModelSpec:
    """The spec of the model that a config.json describes: ours, or any of the classes above.

    Raises CheckpointError, naming the key, for a class or a feature that Sconce's models do not have.
    """
    reader = ConfigReader(config)
    model_type = reader.text("model_type")
    if model_type == NATIVE:
        return _native_spec(reader)
    if model_type not in _CLASSES:
        known = ", ".join([*_CLASSES, NATIVE])
        raise CheckpointError(f"config.json: model_type {in_short(model_type)} is not one Sconce knows ({known})")
    return _hf_spec(reader, _CLASSES[model_type])


def _model_type(spec: ModelSpec) -> str | None:
    return next((name for name in _CLASSES if not refusals(spec, name)), None)


def _hf_spec(reader: ConfigReader, kind: _Class) -> ModelSpec:
    rope = read_rope(reader, kind.partial_rotary)
    _check_features(reader)
    hidden_size, num_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    return ModelSpec(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=reader.integer("num_hidden_layers", most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=reader.integer("num_key_value_heads", num_heads),
        head_dim=reader.integer("head_dim", hidden_size // num_heads or None),
        max_position_embeddings=reader.integer("max_position_embeddings"),
        norm=kind.norm,
        norm_eps=reader.number(kind.eps_key),
        qk_norm=kind.qk_norm,
        mlp=kind.mlp,
        activation=reader.choice("hidden_act", ACTIVATIONS),
        attention_bias=kind.qkv_biased or reader.flag("attention_bias", kind.biased),
        attention_output_bias=not kind.qkv_biased,
        mlp_bias=reader.flag("mlp_bias", kind.biased),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        sliding_window=_window(reader),
    )


def _native_config(spec: ModelSpec) -> dict[str, object]:
    """config.json of a model that no class holds, but for the tokenizer's ids. Like the classes' it drops nothing."""
    fields = {key: value for key, value in asdict(spec).items() if key not in DROPOUT}
    return {"architectures": [], "model_type": NATIVE, **fields}


def _native_spec(reader: ConfigReader) -> ModelSpec:
    norms: tuple[Norm, ...] = ("rmsnorm", "layernorm")
    mlps: tuple[MLP, ...] = ("gated", "plain")
    return ModelSpec(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=reader.integer("num_layers", most=MAX_LAYERS),
        num_heads=reader.integer("num_heads"),
        num_kv_heads=reader.integer("num_kv_heads"),
        head_dim=reader.integer("head_dim"),
        max_position_embeddings=reader.integer("max_position_embeddings"),
        norm=reader.choice("norm", norms),
        norm_eps=reader.number("norm_eps"),
        qk_norm=reader.flag("qk_norm"),
        mlp=reader.choice("mlp", mlps),
        activation=reader.choice("activation", ACTIVATIONS),
        attention_bias=reader.flag("attention_bias"),
        attention_output_bias=reader.flag("attention_output_bias", True),
        mlp_bias=reader.flag("mlp_bias"),
        rope_theta=reader.number("rope_theta"),
        rope_scaling=read_rope(reader, 1.0).scaling,
        tie_word_embeddings=reader.flag("tie_word_embeddings"),
        sliding_window=reader.integer("sliding_window", 0, least=0) or None,
    )


def _window(reader: ConfigReader) -> int | None:
    """The window of a class that has one, and uses it in every layer or in none."""
    optional = reader.flag("use_sliding_window", False)
    slides = {"mistral": True, "qwen2": optional, "qwen3": optional}.get(reader.text("model_type"), False)
    return reader.integer("sliding_window", 0, least=0) or None if slides else None


def _check_features(reader: ConfigReader) -> None:
    """Raise CheckpointError for what would make this another model than any spec can say."""
    for key, absent in _LACKING.items():
        if (value := reader.values.get(key)) not in (None, absent):
            raise CheckpointError(f"config.json: {key} = {in_short(value)}: Sconce's models have no such thing")
    alike = "full_attention" if _window(reader) is None else "sliding_attention"
    listed = reader.values.get("layer_types") or [alike]
    layers = set(map(str, cast(list[object], listed) if isinstance(listed, list) else [listed]))
    if alike == "sliding_attention" and reader.integer("max_window_layers", 0, least=0) > 0:
        layers.add("full_attention")
    if layers != {alike}:
        raise CheckpointError(f"config.json: layer_types {sorted(layers)}: every layer of Sconce's attends alike")


def _token_ids(bos_id: int | None, eos_id: int, pad_id: int | None) -> dict[str, int | None]:
    return {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}


def json_bytes(value: object) -> bytes:
    """A value as the files beside the weights have it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
