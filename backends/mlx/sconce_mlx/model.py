"""The model in MLX. `sconce_torch.model` is the same file for PyTorch: read them side by side.

Layouts: B batch, T sequence, H hidden, N heads, K key/value heads, D head dimension, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from sconce.backend import ComputeOptions
from sconce.rope import inverse_frequencies, magnitude
from sconce.spec import ModelSpec
from sconce_mlx.attention import BLOCKED_FROM, attend_in_blocks, mask_of
from sconce_mlx.dropout import drop
from sconce_mlx.recompute import Result, recomputed

DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
ACTIVATIONS = {"silu": nn.silu, "gelu": nn.gelu, "relu2": lambda x: mx.square(mx.maximum(x, 0))}


class Context(NamedTuple):
    """What every block needs to know of a batch.

    `keys_B` are the rows' dropout keys in training; without them nothing is dropped. `mask` is True (1 or B, 1, T, T)
    where a query sees a key; without it attention is plainly causal, or in blocks within `segments_BT`. What is to be
    `differentiated` keeps for its gradient only what is dear to compute: inputs of norms, results of matrix products.
    """

    keys_B: mx.array | None = None
    mask: mx.array | None = None
    segments_BT: mx.array | None = None
    in_blocks: bool = False
    differentiated: bool = False

    def recomputed(self, function: Callable[..., Result], *modules: nn.Module) -> Callable[..., Result]:
        """The same function, of arrays and of the modules' weights; its gradient keeps its arguments alone."""
        return recomputed(function, *modules) if self.differentiated else function


class Linear(nn.Module):
    """x @ weight.T + bias in the activations' dtype; the float32 master weight is cast at use."""

    def __init__(self, in_size: int, out_size: int, bias: bool) -> None:
        super().__init__()
        self.weight = mx.zeros((out_size, in_size))
        if bias:
            self.bias = mx.zeros((out_size,))

    def __call__(self, x: mx.array) -> mx.array:
        weight_t = self.weight.astype(x.dtype).T
        if "bias" in self:
            return mx.addmm(self.bias.astype(x.dtype), x, weight_t)
        return x @ weight_t


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((size,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x.astype(mx.float32), self.weight, self.eps).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((size,))
        self.bias = mx.zeros((size,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x.astype(mx.float32), self.weight, self.bias, self.eps).astype(x.dtype)


def make_norm(spec: ModelSpec) -> nn.Module:
    """The norm over the residual stream that the spec names."""
    kind = RMSNorm if spec.norm == "rmsnorm" else LayerNorm
    return kind(spec.hidden_size, spec.norm_eps)


class Rope:
    """Rotary embedding, half-split layout (Su et al. 2021), scaled as the spec says."""

    def __init__(self, spec: ModelSpec) -> None:
        self.width = spec.head_dim
        self.base, self.periods = spec.rope_theta, None
        if spec.rope_scaling is not None:  # each pair's own, which MLX wants as the inverse of its frequency
            frequencies = inverse_frequencies(spec.head_dim, spec.rope_theta, spec.rope_scaling)
            self.base, self.periods = None, mx.array([1 / own for own in frequencies])
        self.magnitude = magnitude(spec.rope_scaling)

    def __call__(self, x_BNTD: mx.array, offset: int | mx.array = 0) -> mx.array:
        x = x_BNTD if self.magnitude == 1 else x_BNTD * self.magnitude
        return mx.fast.rope(
            x, self.width, traditional=False, base=self.base, scale=1.0, offset=offset, freqs=self.periods
        )


def project_normed(norm: nn.Module, linears: list[Linear], x: mx.array, context: Context) -> list[mx.array]:
    """Each of `linears` of the normed x."""

    def project(x: mx.array) -> list[mx.array]:
        x = norm(x)
        return [linear(x) for linear in linears]

    return context.recomputed(project, norm, *linears)(x)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023), with optional norms on queries and keys."""

    def __init__(self, spec: ModelSpec, layer: int, run: ComputeOptions, rope: Rope) -> None:
        super().__init__()
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = Linear(spec.hidden_size, q_size, spec.attention_bias)
        self.k_proj = Linear(spec.hidden_size, kv_size, spec.attention_bias)
        self.v_proj = Linear(spec.hidden_size, kv_size, spec.attention_bias)
        self.o_proj = Linear(q_size, spec.hidden_size, spec.attention_bias and spec.attention_output_bias)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.qk_norm = spec.qk_norm
        self.rope = rope
        self.head_dim = spec.head_dim
        self.window = spec.sliding_window
        self.dropout = spec.attn_dropout
        self.layer = layer
        self.fused = run.attention != "reference"

    def project(self, norm: nn.Module, x_BTH: mx.array, context: Context) -> tuple[mx.array, mx.array, mx.array]:
        """Queries (B, N, T, D), keys and values (B, K, T, D)."""
        linears = [self.q_proj, self.k_proj, self.v_proj]
        projected = project_normed(norm, linears, x_BTH, context)
        q_BTND, k_BTKD, v_BTKD = (part.reshape(*x_BTH.shape[:2], -1, self.head_dim) for part in projected)
        if self.qk_norm:
            q_BTND = context.recomputed(self.q_norm, self.q_norm)(q_BTND)
            k_BTKD = context.recomputed(self.k_norm, self.k_norm)(k_BTKD)
        return self.rope(q_BTND.swapaxes(1, 2)), self.rope(k_BTKD.swapaxes(1, 2)), v_BTKD.swapaxes(1, 2)

    def merge(self, out_BNTD: mx.array) -> mx.array:
        """Heads back into the residual stream, (B, T, H)."""
        return self.o_proj(out_BNTD.swapaxes(1, 2).flatten(2))

    def __call__(self, norm: nn.Module, x_BTH: mx.array, context: Context) -> mx.array:
        q, k, v = self.project(norm, x_BTH, context)
        return context.recomputed(self.merge, self.o_proj)(self._attend(q, k, v, context))

    def _attend(self, q_BNTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array, context: Context) -> mx.array:
        if not self.fused or (context.keys_B is not None and self.dropout > 0):
            return self._attend_in_full(q_BNTD, k_BKTD, v_BKTD, context)
        if context.in_blocks:
            return attend_in_blocks(q_BNTD, k_BKTD, v_BKTD, self.window, context.segments_BT)
        mask = "causal" if context.mask is None else context.mask
        return mx.fast.scaled_dot_product_attention(q_BNTD, k_BKTD, v_BKTD, scale=self.head_dim**-0.5, mask=mask)

    def _attend_in_full(self, q_BNTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array, context: Context) -> mx.array:
        """Attention whose probabilities exist as an array: what dropout needs, and the reference for the rest."""
        groups = q_BNTD.shape[1] // k_BKTD.shape[1]
        k_BNTD, v_BNTD = (mx.repeat(x, groups, axis=1) for x in (k_BKTD, v_BKTD))
        scores_BNTT = (q_BNTD * self.head_dim**-0.5) @ k_BNTD.swapaxes(2, 3)
        assert context.mask is not None
        probs_BNTT = mx.softmax(mx.where(context.mask, scores_BNTT.astype(mx.float32), float("-inf")), axis=-1)
        dropped_BNTT = drop(probs_BNTT, self.dropout, context.keys_B, self.layer, "attention")
        return dropped_BNTT.astype(v_BNTD.dtype) @ v_BNTD


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) when gated (Shazeer 2020), else down(act(up(x)))."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden, ffn, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.gate_proj = Linear(hidden, ffn, bias) if spec.mlp == "gated" else None
        self.up_proj = Linear(hidden, ffn, bias)
        self.down_proj = Linear(ffn, hidden, bias)
        self.activation = ACTIVATIONS[spec.activation]

    def __call__(self, norm: nn.Module, x: mx.array, context: Context) -> mx.array:
        linears = [self.up_proj] if self.gate_proj is None else [self.gate_proj, self.up_proj]
        return context.recomputed(self._down, self.down_proj)(*project_normed(norm, linears, x, context))

    def _down(self, first: mx.array, *up: mx.array) -> mx.array:
        return self.down_proj(self.activation(first) * up[0] if up else self.activation(first))


class Block(nn.Module):
    """One pre-norm layer: attention and MLP, each added to the residual stream."""

    def __init__(self, spec: ModelSpec, layer: int, run: ComputeOptions, rope: Rope) -> None:
        super().__init__()
        self.input_layernorm = make_norm(spec)
        self.self_attn = Attention(spec, layer, run, rope)
        self.post_attention_layernorm = make_norm(spec)
        self.mlp = MLP(spec)
        self.dropout = spec.residual_dropout
        self.layer = layer

    def __call__(self, x: mx.array, context: Context) -> mx.array:
        branch = self.self_attn(self.input_layernorm, x, context)
        x = x + drop(branch, self.dropout, context.keys_B, self.layer, "attention_output")
        branch = self.mlp(self.post_attention_layernorm, x, context)
        return x + drop(branch, self.dropout, context.keys_B, self.layer, "mlp_output")


class Trunk(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, spec: ModelSpec, run: ComputeOptions) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        rope = Rope(spec)
        self.layers = [Block(spec, layer, run, rope) for layer in range(spec.num_layers)]
        self.norm = make_norm(spec)


class Model(nn.Module):
    """The whole model, computing in the run's precision."""

    def __init__(self, spec: ModelSpec, run: ComputeOptions) -> None:
        super().__init__()
        self.model = Trunk(spec, run)
        tied = spec.tie_word_embeddings
        self.lm_head = None if tied else Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.dtype = DTYPES[run.precision]
        self.window = spec.sliding_window
        self.in_full = run.attention == "reference" or spec.attn_dropout > 0
        self.in_blocks = run.attention == "auto" and spec.attn_dropout == 0
        self.recompute_every = run.recompute_every

    def embed(self, tokens_BT: mx.array) -> mx.array:
        """Hidden states before the first block, (B, T, H); their dtype is the compute dtype from here on."""
        return self.model.embed_tokens(tokens_BT).astype(self.dtype)

    @property
    def head_weight(self) -> mx.array:
        """(V, H), float32."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def head(self, x: mx.array) -> mx.array:
        """Logits (..., V) of hidden states (..., H) that have left the last block."""
        x = self.model.norm(x)
        return x @ self.head_weight.astype(x.dtype).T

    def hidden(
        self, tokens_BT: mx.array, segments_BT: mx.array | None, keys_B: mx.array | None, differentiated: bool
    ) -> mx.array:
        """What the head multiplies, (B, T, H): the last block's output, normed.

        Tokens see those of their own segment alone. `keys_B` are the rows' dropout keys, in training. What is to be
        `differentiated` is computed in ways that keep less for the gradient.
        """
        in_blocks = self.in_blocks and differentiated and tokens_BT.shape[1] >= BLOCKED_FROM
        context = self._context(tokens_BT.shape[1], segments_BT, keys_B, in_blocks)
        context = context._replace(differentiated=differentiated)
        x = self.embed(tokens_BT)
        for layer, block in enumerate(self.model.layers):
            forward = partial(block, context=context)
            if self.recompute_every and layer % self.recompute_every == 0:
                forward = context.recomputed(forward, block)
            x = forward(x)
        return context.recomputed(self.model.norm, self.model.norm)(x)

    def _context(self, length: int, segments_BT: mx.array | None, keys_B: mx.array | None, in_blocks: bool) -> Context:
        if in_blocks:
            return Context(keys_B, segments_BT=segments_BT, in_blocks=True)
        if not self.in_full and self.window is None and segments_BT is None:
            return Context(keys_B)
        everything = slice(0, length)
        return Context(keys_B, mask_of(everything, everything, self.window, segments_BT))
