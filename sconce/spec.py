"""The model as data: every parameter's name, shape and initial law, and what follows from them.

`ModelSpec.params()` is the only list of parameters in the project. Its names are Hugging Face's, linear
weights are [out, in], and both backends' module trees spell exactly these names.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sconce.rope import RopeScaling

Init = Literal["normal", "ones", "zeros"]
Group = Literal["embedding", "matrix", "head", "vector"]

INIT_STD = 0.02  # GPT-2 (Radford et al. 2019); outputs into the residual stream are scaled down by depth


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One trainable tensor. `group` decides weight decay and, later, which optimizer rule applies."""

    name: str
    shape: tuple[int, ...]
    init: Init
    group: Group
    std: float = 0.0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A pre-norm decoder-only transformer. The defaults are Llama's; `qk_norm` makes it Qwen3's."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    mlp: Literal["gated", "plain"] = "gated"
    activation: Literal["silu", "gelu", "relu2"] = "silu"
    attention_bias: bool = False
    attention_output_bias: bool = True  # with attention_bias, also on the projection back; Qwen2 has none there
    mlp_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = True
    sliding_window: int | None = None  # a token sees itself and the sliding_window - 1 before it
    attn_dropout: float = 0.0  # of attention probabilities, in training
    residual_dropout: float = 0.0  # of what each branch adds to the residual stream, in training

    def params(self) -> Iterator[ParamSpec]:
        """Every parameter, in the order in which checkpoints store them."""
        yield ParamSpec(
            name="model.embed_tokens.weight",
            shape=(self.vocab_size, self.hidden_size),
            init="normal",
            std=INIT_STD,
            group="embedding",
        )
        for layer in range(self.num_layers):
            yield from self._block(f"model.layers.{layer}.")
        yield from self._norm("model.norm", self.hidden_size)
        if not self.tie_word_embeddings:
            yield ParamSpec(
                name="lm_head.weight",
                shape=(self.vocab_size, self.hidden_size),
                init="normal",
                std=INIT_STD,
                group="head",
            )

    @property
    def drops(self) -> bool:
        """Whether training drops anything."""
        return self.attn_dropout > 0 or self.residual_dropout > 0

    def _block(self, prefix: str) -> Iterator[ParamSpec]:
        # Two branches a layer add to the residual stream: 1/sqrt(2L) keeps its variance at 1 in depth (GPT-2).
        into_residual = INIT_STD / math.sqrt(2 * self.num_layers)
        hidden, ffn = self.hidden_size, self.intermediate_size
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = prefix + "self_attn."
        mlp = prefix + "mlp."
        yield from self._norm(prefix + "input_layernorm", hidden)
        yield from _linear(attention + "q_proj", q_size, hidden, INIT_STD, self.attention_bias)
        yield from _linear(attention + "k_proj", kv_size, hidden, INIT_STD, self.attention_bias)
        yield from _linear(attention + "v_proj", kv_size, hidden, INIT_STD, self.attention_bias)
        output_bias = self.attention_bias and self.attention_output_bias
        yield from _linear(attention + "o_proj", hidden, q_size, into_residual, output_bias)
        if self.qk_norm:
            yield ParamSpec(name=attention + "q_norm.weight", shape=(self.head_dim,), init="ones", group="vector")
            yield ParamSpec(name=attention + "k_norm.weight", shape=(self.head_dim,), init="ones", group="vector")
        yield from self._norm(prefix + "post_attention_layernorm", hidden)
        if self.mlp == "gated":
            yield from _linear(mlp + "gate_proj", ffn, hidden, INIT_STD, self.mlp_bias)
        yield from _linear(mlp + "up_proj", ffn, hidden, INIT_STD, self.mlp_bias)
        yield from _linear(mlp + "down_proj", hidden, ffn, into_residual, self.mlp_bias)

    def _norm(self, name: str, size: int) -> Iterator[ParamSpec]:
        yield ParamSpec(name=f"{name}.weight", shape=(size,), init="ones", group="vector")
        if self.norm == "layernorm":
            yield ParamSpec(name=f"{name}.bias", shape=(size,), init="zeros", group="vector")

    @property
    def num_params(self) -> int:
        """Trainable values; a tied head counts once."""
        return sum(param.size for param in self.params())


def _linear(name: str, out_size: int, in_size: int, std: float, bias: bool) -> Iterator[ParamSpec]:
    yield ParamSpec(name=f"{name}.weight", shape=(out_size, in_size), init="normal", std=std, group="matrix")
    if bias:
        yield ParamSpec(name=f"{name}.bias", shape=(out_size,), init="zeros", group="vector")
