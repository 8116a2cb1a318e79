"""The model in PyTorch. `sconce_mlx.model` is the same file for MLX: read them side by side.

Layouts: B batch, T sequence, H hidden, N heads, K key/value heads, D head dimension, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sconce.backend import ComputeOptions
from sconce.rope import inverse_frequencies, magnitude
from sconce.spec import ModelSpec
from sconce_torch.attention import BLOCK, attend_in_blocks, biases_of
from sconce_torch.compile import Compiler
from sconce_torch.dropout import drop, site_key
from sconce_torch.products import attend, computed_in, linear, matmul

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu2": lambda x: F.relu(x).square()}


class Context(NamedTuple):
    """What every block needs to know of a batch.

    `keys_B` are the rows' dropout keys in training; without them nothing is dropped. `biases` say who sees whom, block
    by block of queries; without them attention is plainly causal.
    """

    keys_B: Tensor | None = None
    biases: tuple[Tensor, ...] = ()


class Linear(nn.Module):
    """x @ weight.T + bias in the activations' dtype; the float32 master weight is cast at use."""

    def __init__(self, in_size: int, out_size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size))
        self.bias = nn.Parameter(torch.empty(out_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


def make_norm(spec: ModelSpec) -> nn.Module:
    """The norm over the residual stream that the spec names."""
    kind = RMSNorm if spec.norm == "rmsnorm" else LayerNorm
    return kind(spec.hidden_size, spec.norm_eps)


class Rope(nn.Module):
    """Rotary embedding, half-split layout (Su et al. 2021), scaled as the spec says, from float64-built tables."""

    cos_TD: Tensor
    sin_TD: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        frequencies = torch.tensor(
            inverse_frequencies(spec.head_dim, spec.rope_theta, spec.rope_scaling), dtype=torch.float64
        )
        positions = torch.arange(spec.max_position_embeddings, dtype=torch.float64)
        angles = torch.outer(positions, frequencies).repeat(1, 2)
        scale = magnitude(spec.rope_scaling)
        self.register_buffer("cos_TD", (angles.cos() * scale).float(), persistent=False)
        self.register_buffer("sin_TD", (angles.sin() * scale).float(), persistent=False)

    def forward(self, x_BNTD: Tensor) -> Tensor:
        length = x_BNTD.shape[2]
        x = x_BNTD.float()
        left, right = x.chunk(2, dim=-1)
        rotated = torch.cat((-right, left), dim=-1)
        return (x * self.cos_TD[:length] + rotated * self.sin_TD[:length]).to(x_BNTD.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023), with optional norms on queries and keys."""

    site: Tensor

    def __init__(self, spec: ModelSpec, layer: int, run: ComputeOptions, rope: Rope) -> None:
        super().__init__()
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = Linear(spec.hidden_size, q_size, spec.attention_bias)
        self.k_proj = Linear(spec.hidden_size, kv_size, spec.attention_bias)
        self.v_proj = Linear(spec.hidden_size, kv_size, spec.attention_bias)
        self.o_proj = Linear(q_size, spec.hidden_size, spec.attention_bias and spec.attention_output_bias)
        self.qkv_proj: nn.Module | None = None  # those three in one, set where a model is not trained
        self.sizes = q_size, kv_size, kv_size
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.rope = rope
        self.head_dim = spec.head_dim
        self.dropout = spec.attn_dropout
        self.register_buffer("site", site_key(layer, "attention"), persistent=False)
        self.fused = run.attention != "reference"

    def project(self, x_BTH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, N, T, D), keys and values (B, K, T, D)."""
        if self.qkv_proj is None:
            q, k, v = self.q_proj(x_BTH), self.k_proj(x_BTH), self.v_proj(x_BTH)
        else:
            q, k, v = self.qkv_proj(x_BTH).split(self.sizes, dim=-1)
        heads = (*x_BTH.shape[:2], -1, self.head_dim)
        q_BNTD = self.q_norm(q.view(heads)).transpose(1, 2)
        k_BKTD = self.k_norm(k.view(heads)).transpose(1, 2)
        v_BKTD = v.view(heads).transpose(1, 2)
        return self.rope(q_BNTD), self.rope(k_BKTD), v_BKTD

    def merge(self, out_BNTD: Tensor) -> Tensor:
        """Heads back into the residual stream, (B, T, H)."""
        return self.o_proj(out_BNTD.transpose(1, 2).flatten(2))

    def forward(self, x_BTH: Tensor, context: Context) -> Tensor:
        q, k, v = self.project(x_BTH)
        if not self.fused or (context.keys_B is not None and self.dropout > 0):
            return self.merge(self._attend_in_full(q, k, v, context))
        groups = q.shape[1] // k.shape[1]
        if q.is_cuda and groups > 1 and (q.dtype == torch.float32 or context.biases):
            # No fused CUDA kernel shares keys between heads in float32, and none that takes a bias.
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        if context.biases:
            # Merged one by one: the gradient needs each as it is, and of all together another copy would be kept.
            return torch.cat([self.merge(block) for block in attend_in_blocks(q, k, v, context.biases)], dim=1)
        return self.merge(attend(q, k, v, mask=None, causal=True))

    def _attend_in_full(self, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, context: Context) -> Tensor:
        """Attention whose probabilities exist as an array: what dropout needs, and the reference for the rest."""
        groups = q_BNTD.shape[1] // k_BKTD.shape[1]
        k_BNTD, v_BNTD = (x.repeat_interleave(groups, dim=1) for x in (k_BKTD, v_BKTD))
        scores_BNTT = matmul(q_BNTD * self.head_dim**-0.5, k_BNTD.transpose(2, 3))
        (bias,) = context.biases
        probs_BNTT = scores_BNTT.float().masked_fill(bias < 0, float("-inf")).softmax(dim=-1)
        dropped_BNTT = drop(probs_BNTT, self.dropout, context.keys_B, self.site)
        return matmul(dropped_BNTT.to(v_BNTD.dtype), v_BNTD)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) when gated (Shazeer 2020), else down(act(up(x)))."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden, ffn, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.gate_proj = Linear(hidden, ffn, bias) if spec.mlp == "gated" else None
        self.up_proj = Linear(hidden, ffn, bias)
        self.down_proj = Linear(ffn, hidden, bias)
        self.gate_up_proj: nn.Module | None = None  # both in one, set where a model is not trained
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_up_proj is not None:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            return self.down_proj(self.activation(gate).mul_(up))
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer: attention and MLP, each added to the residual stream."""

    attention_site: Tensor
    mlp_site: Tensor

    def __init__(self, spec: ModelSpec, layer: int, run: ComputeOptions, rope: Rope) -> None:
        super().__init__()
        self.input_layernorm = make_norm(spec)
        self.self_attn = Attention(spec, layer, run, rope)
        self.post_attention_layernorm = make_norm(spec)
        self.mlp = MLP(spec)
        self.dropout = spec.residual_dropout
        self.register_buffer("attention_site", site_key(layer, "attention_output"), persistent=False)
        self.register_buffer("mlp_site", site_key(layer, "mlp_output"), persistent=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        branch = self.self_attn(self.input_layernorm(x), context)
        x = x + drop(branch, self.dropout, context.keys_B, self.attention_site)
        branch = self.mlp(self.post_attention_layernorm(x))
        return x + drop(branch, self.dropout, context.keys_B, self.mlp_site)


class Trunk(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, spec: ModelSpec, run: ComputeOptions) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        rope = Rope(spec)  # one table for all layers
        self.layers = nn.ModuleList(Block(spec, layer, run, rope) for layer in range(spec.num_layers))
        self.norm = make_norm(spec)


def call(module: nn.Module, *args: object) -> Tensor:
    """What `module` makes of `args`."""
    return module(*args)


class Model(nn.Module):
    """The whole model, computing in the run's precision; while gradients are made its layers are compiled."""

    def __init__(self, spec: ModelSpec, run: ComputeOptions, compiler: Compiler | None = None) -> None:
        super().__init__()
        self.model = Trunk(spec, run)
        # Layer by layer: what is compiled for the first serves the others, where a graph of all takes as long for each.
        self.train_module = compiler(call) if compiler else call
        tied = spec.tie_word_embeddings
        self.lm_head = None if tied else Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.dtype = DTYPES[run.precision]
        self.window = spec.sliding_window
        self.in_full = run.attention == "reference" or spec.attn_dropout > 0
        self.recompute_every = run.recompute_every

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Hidden states before the first block, (B, T, H); their dtype is the compute dtype from here on."""
        return self.model.embed_tokens(tokens_BT).to(self.dtype)

    @property
    def head_weight(self) -> Tensor:
        """(V, H), float32."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None, keys_B: Tensor | None) -> Tensor:
        """What the head multiplies, (B, T, H): the last block's output, normed.

        Tokens see those of their own segment alone. `keys_B` are the rows' dropout keys, in training.
        """
        context = Context(keys_B, self._biases(tokens_BT, segments_BT))
        run = self.train_module if torch.is_grad_enabled() else call
        x = self.embed(tokens_BT)
        for layer, block in enumerate(self.model.layers):
            if self.recompute_every and layer % self.recompute_every == 0 and torch.is_grad_enabled():
                x = checkpoint(run, block, x, context, use_reentrant=False, preserve_rng_state=False)
            else:
                x = run(block, x, context)
        return run(self.model.norm, x)

    def _biases(self, tokens_BT: Tensor, segments_BT: Tensor | None) -> tuple[Tensor, ...]:
        if not self.in_full and self.window is None and segments_BT is None:
            return ()
        length, device = tokens_BT.shape[1], tokens_BT.device
        dtype, block = computed_in(self.dtype, device), length if self.in_full else BLOCK
        return biases_of(length, self.window, segments_BT, dtype, device, block)
