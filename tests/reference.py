"""The model and AdamW written out in numpy float64, from the papers: what both backends must equal."""

import math

import numpy as np

from sconce.spec import ModelSpec


def norm(x, weights, name, spec: ModelSpec, kind: str):
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + spec.norm_eps) * weights[f"{name}.weight"]
    return y + weights[f"{name}.bias"] if kind == "layernorm" else y


def linear(x, weights, name):
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def activation(x, kind: str):
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return np.maximum(x, 0) ** 2


def rope(x_BNTD, theta: float):
    half = x_BNTD.shape[-1] // 2
    out = np.empty_like(x_BNTD)
    for t in range(x_BNTD.shape[2]):
        for i in range(half):
            angle = t * theta ** (-i / half)
            a, b = x_BNTD[:, :, t, i], x_BNTD[:, :, t, i + half]
            out[:, :, t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, :, t, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(x, weights, prefix, spec: ModelSpec):
    def heads(name, norm_name=None):
        y = linear(x, weights, prefix + name).reshape(*x.shape[:2], -1, spec.head_dim)
        if norm_name and spec.qk_norm:
            y = norm(y, weights, prefix + norm_name, spec, "rmsnorm")
        return y.transpose(0, 2, 1, 3)

    q, k = rope(heads("q_proj", "q_norm"), spec.rope_theta), rope(heads("k_proj", "k_norm"), spec.rope_theta)
    v = heads("v_proj")
    out = np.empty((*q.shape[:3], spec.head_dim))
    length = x.shape[1]
    for head in range(spec.num_heads):
        group = head * spec.num_kv_heads // spec.num_heads
        scores = q[:, head] @ k[:, group].transpose(0, 2, 1) / math.sqrt(spec.head_dim)
        scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, group]
    return linear(out.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1), weights, prefix + "o_proj")


def mlp(x, weights, prefix, spec: ModelSpec):
    up = linear(x, weights, prefix + "up_proj")
    if spec.mlp == "plain":
        return linear(activation(up, spec.activation), weights, prefix + "down_proj")
    gate = activation(linear(x, weights, prefix + "gate_proj"), spec.activation)
    return linear(gate * up, weights, prefix + "down_proj")


def logits(spec: ModelSpec, weights, tokens_BT):
    """Float64 logits (batch, seq, vocab)."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    x = weights["model.embed_tokens.weight"][tokens_BT]
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, weights, prefix + "input_layernorm", spec, spec.norm)
        x = x + attention(h, weights, prefix + "self_attn.", spec)
        h = norm(x, weights, prefix + "post_attention_layernorm", spec, spec.norm)
        x = x + mlp(h, weights, prefix + "mlp.", spec)
    x = norm(x, weights, "model.norm", spec, spec.norm)
    head = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    return x @ weights[head].T


def token_nats(logits_BTV, targets_BT):
    """-log p(target), 0 where the target is -1."""
    shifted = logits_BTV - logits_BTV.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.maximum(targets_BT, 0)[..., None], -1)[..., 0]
    return np.where(targets_BT >= 0, -picked, 0.0)


def adamw(param, m, v, grad, *, t, lr, optim, decay):
    """One AdamW update in float64; returns (param, m, v)."""
    m = optim.beta1 * m + (1 - optim.beta1) * grad
    v = optim.beta2 * v + (1 - optim.beta2) * grad**2
    m_hat, v_hat = m / (1 - optim.beta1**t), v / (1 - optim.beta2**t)
    return param * (1 - lr * decay) - lr * m_hat / (np.sqrt(v_hat) + optim.eps), m, v
