"""The model in PyTorch. `sconce_mlx.model` is the same file for MLX: read them side by side.

Layouts: B batch, T sequence, H hidden, N heads, K key/value heads, D head dimension, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sconce.spec import ModelSpec
from sconce_torch.dropout import drop

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu2": lambda x: F.relu(x).square()}


class Linear(nn.Module):
    """x @ weight.T + bias in the activations' dtype; the float32 master weight is cast at use."""

    def __init__(self, in_size: int, out_size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size))
        self.bias = nn.Parameter(torch.empty(out_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


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
    """Rotary embedding, half-split layout (Su et al. 2021), from float64-built tables."""

    cos_TD: Tensor
    sin_TD: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        half = torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim
        positions = torch.arange(spec.max_position_embeddings, dtype=torch.float64)
        angles = torch.outer(positions, spec.rope_theta**-half).repeat(1, 2)
        self.register_buffer("cos_TD", angles.cos().float(), persistent=False)
        self.register_buffer("sin_TD", angles.sin().float(), persistent=False)

    def forward(self, x_BNTD: Tensor, offset: int) -> Tensor:
        end = offset + x_BNTD.shape[2]
        x = x_BNTD.float()
        left, right = x.chunk(2, dim=-1)
        rotated = torch.cat((-right, left), dim=-1)
        return (x * self.cos_TD[offset:end] + rotated * self.sin_TD[offset:end]).to(x_BNTD.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023), with optional norms on queries and keys."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = Linear(spec.hidden_size, q_size, spec.attention_bias)
        self.k_proj = Linear(spec.hidden_size, kv_size, spec.attention_bias)
        self.v_proj = Linear(spec.hidden_size, kv_size, spec.attention_bias)
        self.o_proj = Linear(q_size, spec.hidden_size, spec.attention_bias)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.rope = Rope(spec)
        self.head_dim = spec.head_dim
        self.dropout = spec.attn_dropout
        self.layer = layer

    def project(self, x_BTH: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, N, T, D), keys and values (B, K, T, D); the first token stands at position `offset`."""
        heads = (*x_BTH.shape[:2], -1, self.head_dim)
        q_BNTD = self.q_norm(self.q_proj(x_BTH).view(heads)).transpose(1, 2)
        k_BKTD = self.k_norm(self.k_proj(x_BTH).view(heads)).transpose(1, 2)
        v_BKTD = self.v_proj(x_BTH).view(heads).transpose(1, 2)
        return self.rope(q_BNTD, offset), self.rope(k_BKTD, offset), v_BKTD

    def merge(self, out_BNTD: Tensor) -> Tensor:
        """Heads back into the residual stream, (B, T, H)."""
        return self.o_proj(out_BNTD.transpose(1, 2).flatten(2))

    def forward(self, x_BTH: Tensor, keys_B: Tensor | None) -> Tensor:
        q, k, v = self.project(x_BTH, offset=0)
        if keys_B is not None and self.dropout > 0:
            return self.merge(self._attend_dropped(q, k, v, keys_B))
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))

    def _attend_dropped(self, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, keys_B: Tensor) -> Tensor:
        """Attention with dropped probabilities: the fused kernels draw their own, so the scores are made in full."""
        groups = q_BNTD.shape[1] // k_BKTD.shape[1]
        k_BNTD, v_BNTD = (x.repeat_interleave(groups, dim=1) for x in (k_BKTD, v_BKTD))
        scores_BNTT = (q_BNTD * self.head_dim**-0.5) @ k_BNTD.transpose(2, 3)
        future_TT = torch.ones(scores_BNTT.shape[2:], dtype=torch.bool, device=q_BNTD.device).triu(1)
        probs_BNTT = scores_BNTT.float().masked_fill(future_TT, float("-inf")).softmax(dim=-1)
        return drop(probs_BNTT, self.dropout, keys_B, self.layer, "attention").to(v_BNTD.dtype) @ v_BNTD


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) when gated (Shazeer 2020), else down(act(up(x)))."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden, ffn, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.gate_proj = Linear(hidden, ffn, bias) if spec.mlp == "gated" else None
        self.up_proj = Linear(hidden, ffn, bias)
        self.down_proj = Linear(ffn, hidden, bias)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer: attention and MLP, each added to the residual stream."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(spec)
        self.self_attn = Attention(spec, layer)
        self.post_attention_layernorm = make_norm(spec)
        self.mlp = MLP(spec)
        self.dropout = spec.residual_dropout
        self.layer = layer

    def forward(self, x: Tensor, keys_B: Tensor | None) -> Tensor:
        branch = self.self_attn(self.input_layernorm(x), keys_B)
        x = x + drop(branch, self.dropout, keys_B, self.layer, "attention_output")
        branch = self.mlp(self.post_attention_layernorm(x))
        return x + drop(branch, self.dropout, keys_B, self.layer, "mlp_output")


class Trunk(nn.Module):
    """Embedding, blocks and final norm: token ids (B, T) to hidden states (B, T, H)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec, layer) for layer in range(spec.num_layers))
        self.norm = make_norm(spec)


class Model(nn.Module):
    """The whole model: token ids (B, T) to logits (B, T, V) in `dtype`."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = Trunk(spec)
        tied = spec.tie_word_embeddings
        self.lm_head = None if tied else Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.dtype = dtype

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Hidden states before the first block, (B, T, H); their dtype is the compute dtype from here on."""
        return self.model.embed_tokens(tokens_BT).to(self.dtype)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., H) that have left the last block."""
        x = self.model.norm(x)
        if self.lm_head is None:
            return F.linear(x, self.model.embed_tokens.weight.to(x.dtype))
        return self.lm_head(x)

    def forward(self, tokens_BT: Tensor, keys_B: Tensor | None = None) -> Tensor:
        """`keys_B` are the rows' dropout keys in training; without them nothing is dropped."""
        x = self.embed(tokens_BT)
        for block in self.model.layers:
            x = block(x, keys_B)
        return self.head(x)
