"""The model and the optimizers written out in numpy float64, from the papers: what both backends must equal."""

import math

import numpy as np

from sconce.dropout import keep_mask
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


def rope_frequency(i: int, spec: ModelSpec) -> float:
    """Radians a position, of dimensions i and i + head_dim / 2: each scaling as its authors wrote it down."""
    half, scaling = spec.head_dim // 2, spec.rope_scaling
    wavelength = 2 * math.pi * spec.rope_theta ** (i / half)
    if scaling is None:
        return 2 * math.pi / wavelength
    slow = 2 * math.pi / wavelength / scaling.factor
    if scaling.rope_type == "linear":
        return slow
    turns = scaling.original_max_position_embeddings / wavelength
    if scaling.rope_type == "llama3":
        if turns < scaling.low_freq_factor:
            return slow
        if turns > scaling.high_freq_factor:
            return 2 * math.pi / wavelength
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return (1 - smooth) * slow + smooth * 2 * math.pi / wavelength

    def pair_of(turns):
        length = scaling.original_max_position_embeddings / turns
        return half * math.log(length / (2 * math.pi)) / math.log(spec.rope_theta)

    first, last = max(0, math.floor(pair_of(scaling.beta_fast))), math.ceil(pair_of(scaling.beta_slow))
    ramp = min(1.0, max(0.0, (i - first) / (last - first)))
    return ramp * slow + (1 - ramp) * 2 * math.pi / wavelength


def rope(x_BNTD, spec: ModelSpec):
    half = x_BNTD.shape[-1] // 2
    out = np.empty_like(x_BNTD)
    if spec.rope_scaling is not None and spec.rope_scaling.rope_type == "yarn":
        x_BNTD = x_BNTD * (0.1 * math.log(spec.rope_scaling.factor) + 1)
    for t in range(x_BNTD.shape[2]):
        for i in range(half):
            angle = t * rope_frequency(i, spec)
            a, b = x_BNTD[:, :, t, i], x_BNTD[:, :, t, i + half]
            out[:, :, t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, :, t, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def drop(x, rate, layer, site, keys):
    """x (B, ...) with the masks of `sconce.dropout`; `keys` None drops nothing."""
    if keys is None or rate == 0:
        return x
    keep = keep_mask(keys, layer, site, x[0].size, rate).reshape(x.shape)
    return np.where(keep, x / (1 - rate), 0.0)


def visible(length, window, segments_BT):
    """True (B or 1, T, T) where the query may see the key, cell by cell."""
    rows = 1 if segments_BT is None else len(segments_BT)
    mask = np.zeros((rows, length, length), bool)
    for row in range(rows):
        for query in range(length):
            for key in range(query + 1):
                near = window is None or query - key < window
                together = segments_BT is None or segments_BT[row, query] == segments_BT[row, key]
                mask[row, query, key] = near and together
    return mask


def attention(x, weights, layer, spec: ModelSpec, keys=None, segments=None):
    prefix = f"model.layers.{layer}.self_attn."

    def heads(name, norm_name=None):
        y = linear(x, weights, prefix + name).reshape(*x.shape[:2], -1, spec.head_dim)
        if norm_name and spec.qk_norm:
            y = norm(y, weights, prefix + norm_name, spec, "rmsnorm")
        return y.transpose(0, 2, 1, 3)

    q, k = rope(heads("q_proj", "q_norm"), spec), rope(heads("k_proj", "k_norm"), spec)
    v = heads("v_proj")
    length = x.shape[1]
    probs = np.empty((*q.shape[:3], length))
    mask = visible(length, spec.sliding_window, segments)
    for head in range(spec.num_heads):
        group = head * spec.num_kv_heads // spec.num_heads
        scores = q[:, head] @ k[:, group].transpose(0, 2, 1) / math.sqrt(spec.head_dim)
        scores = np.where(mask, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        probs[:, head] = scores / scores.sum(-1, keepdims=True)
    probs = drop(probs, spec.attn_dropout, layer, "attention", keys)
    out = np.empty((*q.shape[:3], spec.head_dim))
    for head in range(spec.num_heads):
        out[:, head] = probs[:, head] @ v[:, head * spec.num_kv_heads // spec.num_heads]
    return linear(out.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1), weights, prefix + "o_proj")


def mlp(x, weights, prefix, spec: ModelSpec):
    up = linear(x, weights, prefix + "up_proj")
    if spec.mlp == "plain":
        return linear(activation(up, spec.activation), weights, prefix + "down_proj")
    gate = activation(linear(x, weights, prefix + "gate_proj"), spec.activation)
    return linear(gate * up, weights, prefix + "down_proj")


def logits(spec: ModelSpec, weights, tokens_BT, keys=None, segments=None):
    """Float64 logits (batch, seq, vocab); with the rows' dropout keys, as in training."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    x = weights["model.embed_tokens.weight"][tokens_BT]
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, weights, prefix + "input_layernorm", spec, spec.norm)
        branch = attention(h, weights, layer, spec, keys, segments)
        x = x + drop(branch, spec.residual_dropout, layer, "attention_output", keys)
        h = norm(x, weights, prefix + "post_attention_layernorm", spec, spec.norm)
        x = x + drop(mlp(h, weights, prefix + "mlp.", spec), spec.residual_dropout, layer, "mlp_output", keys)
    x = norm(x, weights, "model.norm", spec, spec.norm)
    head = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    return x @ weights[head].T


def token_nats(logits_BTV, targets_BT):
    """-log p(target), 0 where the target is -1."""
    shifted = logits_BTV - logits_BTV.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.maximum(targets_BT, 0)[..., None], -1)[..., 0]
    return np.where(targets_BT >= 0, -picked, 0.0)


def adamw(param, grad, m, v, *, t, lr, optim, decay):
    """One AdamW update in float64; returns (param, m, v)."""
    m = optim.beta1 * m + (1 - optim.beta1) * grad
    v = optim.beta2 * v + (1 - optim.beta2) * grad**2
    m_hat, v_hat = m / (1 - optim.beta1**t), v / (1 - optim.beta2**t)
    return param * (1 - lr * decay) - lr * m_hat / (np.sqrt(v_hat) + optim.eps), m, v


def adam(param, grad, m, v, *, t, lr, optim, decay):
    return adamw(param, grad + decay * param, m, v, t=t, lr=lr, optim=optim, decay=0.0)


def sgd(param, grad, m, *, t, lr, optim, decay):
    m = optim.momentum * m + grad + decay * param
    return param - lr * m, m


def lion(param, grad, m, *, t, lr, optim, decay):
    step = np.sign(optim.beta1 * m + (1 - optim.beta1) * grad)
    return param - lr * (step + decay * param), optim.beta2 * m + (1 - optim.beta2) * grad


def muon(param, grad, m, *, t, lr, optim, decay):
    """The published quintic, on the singular values: an odd matrix polynomial acts on them alone."""
    m = optim.momentum * m + (1 - optim.momentum) * grad
    u, s, vt = np.linalg.svd(optim.momentum * m + (1 - optim.momentum) * grad, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return param - lr * (0.2 * math.sqrt(max(param.shape)) * (u * s) @ vt + decay * param), m


RULES = {"adam_w": adamw, "adam": adam, "sgd": sgd, "lion": lion, "muon": muon}
