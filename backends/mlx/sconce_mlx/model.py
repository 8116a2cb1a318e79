"""The model in MLX. `sconce_torch.model` is the same file for PyTorch: read them side by side.

Layouts: B batch, T sequence, H hidden, N heads, K key/value heads, D head dimension, V vocabulary.
"""

import mlx.core as mx
from mlx import nn

from sconce.spec import ModelSpec
from sconce_mlx.dropout import drop

ACTIVATIONS = {"silu": nn.silu, "gelu": nn.gelu, "relu2": lambda x: mx.square(mx.maximum(x, 0))}


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
        self.rope_theta = spec.rope_theta
        self.head_dim = spec.head_dim
        self.dropout = spec.attn_dropout
        self.layer = layer

    def project(self, x_BTH: mx.array, offset: int) -> tuple[mx.array, mx.array, mx.array]:
        """Queries (B, N, T, D), keys and values (B, K, T, D); the first token stands at position `offset`."""
        heads = (*x_BTH.shape[:2], -1, self.head_dim)
        q_BNTD = self.q_norm(self.q_proj(x_BTH).reshape(heads)).swapaxes(1, 2)
        k_BKTD = self.k_norm(self.k_proj(x_BTH).reshape(heads)).swapaxes(1, 2)
        v_BKTD = self.v_proj(x_BTH).reshape(heads).swapaxes(1, 2)
        return self.rope(q_BNTD, offset), self.rope(k_BKTD, offset), v_BKTD

    def rope(self, x_BNTD: mx.array, offset: int) -> mx.array:
        """Rotary embedding, half-split layout (Su et al. 2021)."""
        return mx.fast.rope(x_BNTD, self.head_dim, traditional=False, base=self.rope_theta, scale=1.0, offset=offset)

    def merge(self, out_BNTD: mx.array) -> mx.array:
        """Heads back into the residual stream, (B, T, H)."""
        return self.o_proj(out_BNTD.swapaxes(1, 2).flatten(2))

    def attend(self, q_BNTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array) -> mx.array:
        """Causal attention of the last T positions over all keys, (B, N, T, D)."""
        scale = self.head_dim**-0.5
        return mx.fast.scaled_dot_product_attention(q_BNTD, k_BKTD, v_BKTD, scale=scale, mask="causal")

    def __call__(self, x_BTH: mx.array, keys_B: mx.array | None) -> mx.array:
        q, k, v = self.project(x_BTH, offset=0)
        if keys_B is not None and self.dropout > 0:
            return self.merge(self._attend_dropped(q, k, v, keys_B))
        return self.merge(self.attend(q, k, v))

    def _attend_dropped(self, q_BNTD: mx.array, k_BKTD: mx.array, v_BKTD: mx.array, keys_B: mx.array) -> mx.array:
        """Attention with dropped probabilities: the fused kernel drops none, so the scores are made in full."""
        groups = q_BNTD.shape[1] // k_BKTD.shape[1]
        k_BNTD, v_BNTD = (mx.repeat(x, groups, axis=1) for x in (k_BKTD, v_BKTD))
        scores_BNTT = (q_BNTD * self.head_dim**-0.5) @ k_BNTD.swapaxes(2, 3)
        past_TT = mx.tri(*scores_BNTT.shape[2:], dtype=mx.bool_)
        probs_BNTT = mx.softmax(mx.where(past_TT, scores_BNTT.astype(mx.float32), float("-inf")), axis=-1)
        return drop(probs_BNTT, self.dropout, keys_B, self.layer, "attention").astype(v_BNTD.dtype) @ v_BNTD


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) when gated (Shazeer 2020), else down(act(up(x)))."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden, ffn, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.gate_proj = Linear(hidden, ffn, bias) if spec.mlp == "gated" else None
        self.up_proj = Linear(hidden, ffn, bias)
        self.down_proj = Linear(ffn, hidden, bias)
        self.activation = ACTIVATIONS[spec.activation]

    def __call__(self, x: mx.array) -> mx.array:
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

    def __call__(self, x: mx.array, keys_B: mx.array | None) -> mx.array:
        branch = self.self_attn(self.input_layernorm(x), keys_B)
        x = x + drop(branch, self.dropout, keys_B, self.layer, "attention_output")
        branch = self.mlp(self.post_attention_layernorm(x))
        return x + drop(branch, self.dropout, keys_B, self.layer, "mlp_output")


class Trunk(nn.Module):
    """Embedding, blocks and final norm: token ids (B, T) to hidden states (B, T, H)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [Block(spec, layer) for layer in range(spec.num_layers)]
        self.norm = make_norm(spec)


class Model(nn.Module):
    """The whole model: token ids (B, T) to logits (B, T, V) in `dtype`."""

    def __init__(self, spec: ModelSpec, dtype: mx.Dtype) -> None:
        super().__init__()
        self.model = Trunk(spec)
        tied = spec.tie_word_embeddings
        self.lm_head = None if tied else Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.dtype = dtype

    def embed(self, tokens_BT: mx.array) -> mx.array:
        """Hidden states before the first block, (B, T, H); their dtype is the compute dtype from here on."""
        return self.model.embed_tokens(tokens_BT).astype(self.dtype)

    def head(self, x: mx.array) -> mx.array:
        """Logits (..., V) of hidden states (..., H) that have left the last block."""
        x = self.model.norm(x)
        if self.lm_head is None:
            return x @ self.model.embed_tokens.weight.astype(x.dtype).T
        return self.lm_head(x)

    def __call__(self, tokens_BT: mx.array, keys_B: mx.array | None = None) -> mx.array:
        """`keys_B` are the rows' dropout keys in training; without them nothing is dropped."""
        x = self.embed(tokens_BT)
        for block in self.model.layers:
            x = block(x, keys_B)
        return self.head(x)
