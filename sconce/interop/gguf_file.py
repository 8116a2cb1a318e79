"""A model as one GGUF file, for llama.cpp and what is built on it, through the `gguf` package.

Its classes llama, qwen2 and qwen3 are ours, with two things to mind. Its llama turns dimensions 2i and 2i + 1 of a head
together, where we (and its qwens) turn i and i + head_dim / 2: the rows of queries and keys are put in that order.
And it has no formula for Llama 3's scaling, but a factor for each pair, in a tensor of its own.
"""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sconce.errors import CheckpointError, SconceError
from sconce.interop.gguf_tokenizer import GGUFTokenizer, gguf_tokenizer
from sconce.interop.hf import class_for
from sconce.interop.hf_rope import has_default_attention
from sconce.rope import inverse_frequencies
from sconce.spec import ModelSpec, ParamSpec
from sconce.tokenizer.bpe import Tokenizer

Array = NDArray[np.float32]

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Ours by their names in the `gguf` package: of the matrices, and of the file as a whole.
FORMATS = {
    "fp32": ("F32", "ALL_F32"),
    "fp16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0"),
}
QUANTISED = ("q8_0", "q4_0")
BLOCK = 32  # values that share a scale in the quantised ones
LARGEST_FP16 = 65504.0
_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFModel:
    """What goes into the file. `format` is a key of FORMATS; vectors are float32 whatever it is."""

    spec: ModelSpec
    weights: Mapping[str, Array]
    tokenizer: Tokenizer
    name: str
    format: str


def gguf_refusals(spec: ModelSpec) -> list[str]:
    """Why llama.cpp does not compute this model; empty if it does."""
    try:
        model_type = class_for(spec)
    except CheckpointError as error:
        return [str(error)]
    scaling = spec.rope_scaling
    reasons = {
        f"it is written for {', '.join(ARCHITECTURES)}, this model is {model_type}": model_type not in ARCHITECTURES,
        f"llama.cpp computes silu there, this model {spec.activation}": spec.activation != "silu",
        "llama.cpp has no sliding window there, this model has": spec.sliding_window is not None,
        "llama.cpp's qwen3 has no attention biases, this model has": model_type == "qwen3" and spec.attention_bias,
        f"llama.cpp's {model_type} has no llama3 rope_scaling, this model has": (
            model_type != "llama" and scaling is not None and scaling.rope_type == "llama3"
        ),
        "llama.cpp has yarn as its paper has it alone, this model's has bounds or an attention_factor of its own": (
            scaling is not None
            and scaling.rope_type == "yarn"
            and not ((scaling.beta_fast, scaling.beta_slow) == (32.0, 1.0) and has_default_attention(scaling))
        ),
    }
    return [reason for reason, applies in reasons.items() if applies]


def write_gguf(path: Path, model: GGUFModel) -> tuple[str, ...]:
    """Write the file; return what llama.cpp does differently, a line each.

    Raises CheckpointError for a model or a tokenizer that llama.cpp has no equal of, SconceError without `gguf`.
    """
    if reasons := gguf_refusals(model.spec):
        raise CheckpointError(f"gguf: {'; '.join(reasons)}")
    tokenizer = gguf_tokenizer(model.tokenizer, model.spec.vocab_size)
    file = _File(path, model)
    file.describe()
    file.add_tokenizer(tokenizer)
    file.write_tensors()
    return tokenizer.notes


class _File:
    """One file being written; the `gguf` package has no types."""

    def __init__(self, path: Path, model: GGUFModel) -> None:
        try:
            self._library: Any = importlib.import_module("gguf")
        except ImportError:
            raise SconceError("--to gguf needs the gguf package: pip install 'sconce-lm[export]'") from None
        self._model = model
        self._writer: Any = self._library.GGUFWriter(path, class_for(model.spec))

    def describe(self) -> None:
        """Sizes, and how to compute."""
        writer, spec = self._writer, self._model.spec
        scaling = spec.rope_scaling
        writer.add_name(self._model.name)
        writer.add_file_type(self._library.LlamaFileType[FORMATS[self._model.format][1]])
        if self._model.format in QUANTISED:
            writer.add_quantization_version(self._library.GGML_QUANT_VERSION)
        writer.add_vocab_size(spec.vocab_size)
        writer.add_context_length(spec.max_position_embeddings)
        writer.add_embedding_length(spec.hidden_size)
        writer.add_block_count(spec.num_layers)
        writer.add_feed_forward_length(spec.intermediate_size)
        writer.add_head_count(spec.num_heads)
        writer.add_head_count_kv(spec.num_kv_heads)
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
        writer.add_layer_norm_rms_eps(spec.norm_eps)
        writer.add_rope_dimension_count(spec.head_dim)
        writer.add_rope_freq_base(spec.rope_theta)
        if scaling is not None and scaling.rope_type in ("linear", "yarn"):
            writer.add_rope_scaling_type(self._library.RopeScalingType[scaling.rope_type.upper()])
            writer.add_rope_scaling_factor(scaling.factor)
            if scaling.original_max_position_embeddings is not None:
                writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)

    def add_tokenizer(self, tokenizer: GGUFTokenizer) -> None:
        """Tokens, merges, special tokens, chat template."""
        writer, ours = self._writer, self._model.tokenizer
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(tokenizer.cut)
        writer.add_token_list(tokenizer.tokens)
        writer.add_token_types(tokenizer.kinds)
        writer.add_token_merges(tokenizer.merges)
        for token_id, add in (
            (ours.bos_id, writer.add_bos_token_id),
            (ours.eos_id, writer.add_eos_token_id),
            (ours.pad_id, writer.add_pad_token_id),
        ):
            if token_id is not None:
                add(token_id)
        writer.add_add_bos_token(bool(ours.prefix))
        writer.add_add_eos_token(False)
        if ours.chat_template is not None:
            writer.add_chat_template(ours.chat_template)

    def write_tensors(self) -> None:
        """The whole file: all that it says first, then tensor by tensor, one in memory at a time."""
        writer, spec = self._writer, self._model.spec
        factors = _rope_factors(spec)
        for param in spec.params():
            kind = self._library.GGMLQuantizationType[self._kind(param)]
            values, size = self._library.GGML_QUANT_SIZES[kind]
            bytes_shape = (*param.shape[:-1], param.shape[-1] // values * size)
            nbytes = math.prod(bytes_shape)
            writer.add_tensor_info(gguf_name(param.name), bytes_shape, np.dtype(np.uint8), nbytes, kind)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for param in spec.params():
            writer.write_tensor_data(self._stored(param))
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()

    def _kind(self, param: ParamSpec) -> str:
        """What a tensor is stored as; raises CheckpointError for a matrix that blocks do not fit."""
        name = "F32" if param.group == "vector" else FORMATS[self._model.format][0]
        if self._model.format in QUANTISED and param.group != "vector" and param.shape[-1] % BLOCK:
            raise CheckpointError(
                f"--quantize: {param.name} has rows of {param.shape[-1]} values, which are no whole blocks of {BLOCK}"
            )
        return name

    def _stored(self, param: ParamSpec) -> NDArray[np.generic]:
        kind = self._kind(param)
        array = _ordered(self._model.spec, param.name, self._model.weights[param.name])
        if kind == "F16" and (largest := float(np.abs(array).max())) > LARGEST_FP16:
            raise CheckpointError(f"{param.name}: {largest:.3g} is too large for F16: choose another type")
        return self._library.quants.quantize(array, self._library.GGMLQuantizationType[kind])


def gguf_name(name: str) -> str:
    """What llama.cpp calls one of our parameters."""
    module, kind = name.rsplit(".", 1)
    if module in _OUTER:
        return f"{_OUTER[module]}.{kind}"
    layer, inner = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_MODULES[inner]}.{kind}"


def _ordered(spec: ModelSpec, name: str, array: Array) -> Array:
    """Rows of llama's queries and keys with the two dimensions that turn together beside each other."""
    if class_for(spec) != "llama" or not any(module in name for module in ("q_proj", "k_proj")):
        return array
    halves = array.reshape(-1, 2, spec.head_dim // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _rope_factors(spec: ModelSpec) -> Array | None:
    """By what llama.cpp divides each pair's frequency, (head_dim / 2,), where it has no formula for it."""
    scaling = spec.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    own = np.array(inverse_frequencies(spec.head_dim, spec.rope_theta, None))
    return (own / inverse_frequencies(spec.head_dim, spec.rope_theta, scaling)).astype(np.float32)
