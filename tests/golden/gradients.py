"""Loss and its gradient by hand-derived backward passes in numpy float64, for a Llama with norms on queries and keys.

The forward pass is `reference.logits` again, each piece with its derivative beside it; a test ties the two together,
and another ties the derivatives to central differences.
"""

import math

import numpy as np

from sconce.dropout import keep_mask, row_keys
from sconce.spec import ModelSpec


def linear(x, weight):
    """y (..., out) and a function from dy to (dx, dweight)."""

    def back(dy):
        return dy @ weight, dy.reshape(-1, weight.shape[0]).T @ x.reshape(-1, weight.shape[1])

    return x @ weight.T, back


def rms_norm(x, weight, eps):
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    unit = x * scale

    def back(dy):
        dunit = dy * weight
        dx = scale * (dunit - unit * (dunit * unit).mean(-1, keepdims=True))
        return dx, (dy * unit).reshape(-1, weight.size).sum(0)

    return unit * weight, back


def rotate(x_BNTD, theta, sign=1):
    """Rotary embedding; its transpose, which is its inverse, with sign -1."""
    half = x_BNTD.shape[-1] // 2
    angles_TD = np.outer(np.arange(x_BNTD.shape[2]), theta ** (-np.arange(half) / half)) * sign
    cos, sin = np.cos(angles_TD), np.sin(angles_TD)
    a, b = x_BNTD[..., :half], x_BNTD[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def drops(spec: ModelSpec, seed: int, step: int):
    """A function to what dropout multiplies activations (B, ...) by, from layer, site and their shape."""
    rates = {"attention": spec.attn_dropout, "attention_output": spec.residual_dropout}

    def factor(layer, site, shape):
        rate = rates.get(site, spec.residual_dropout)
        keys = row_keys(seed, step, 0, shape[0])
        return keep_mask(keys, layer, site, math.prod(shape[1:]), rate).reshape(shape) / (1 - rate)

    return factor


class Attention:
    """Causal grouped-query attention of one layer, dropped probabilities and output included."""

    def __init__(self, spec, weights, prefix, layer, factor):
        self.spec, self.weights, self.prefix, self.layer, self.factor = spec, weights, prefix, layer, factor
        self.groups = spec.num_heads // spec.num_kv_heads

    def heads(self, x, name):
        """Rotated and normed heads (B, N, T, D), and the way back to (dx, gradients)."""
        y, linear_back = linear(x, self.weights[f"{self.prefix}{name}_proj.weight"])
        y = y.reshape(*x.shape[:2], -1, self.spec.head_dim)
        norm_back = None
        if name != "v":
            y, norm_back = rms_norm(y, self.weights[f"{self.prefix}{name}_norm.weight"], self.spec.norm_eps)
        y = y.transpose(0, 2, 1, 3)
        y = rotate(y, self.spec.rope_theta) if name != "v" else y

        def back(dy):
            grads = {}
            if norm_back is not None:
                dy = rotate(dy, self.spec.rope_theta, -1)
            dy = dy.transpose(0, 2, 1, 3)
            if norm_back is not None:
                dy, grads[f"{self.prefix}{name}_norm.weight"] = norm_back(dy)
            dx, grads[f"{self.prefix}{name}_proj.weight"] = linear_back(dy.reshape(*x.shape[:2], -1))
            return dx, grads

        return y, back

    def __call__(self, x):
        length, root = x.shape[1], math.sqrt(self.spec.head_dim)
        (q, q_back), (k, k_back), (v, v_back) = (self.heads(x, name) for name in "qkv")
        k_all, v_all = np.repeat(k, self.groups, 1), np.repeat(v, self.groups, 1)
        scores = q @ k_all.transpose(0, 1, 3, 2) / root
        scores[..., np.triu(np.ones((length, length), bool), 1)] = -np.inf
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        kept = self.factor(self.layer, "attention", probs.shape)
        merged = (probs * kept @ v_all).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
        out, out_back = linear(merged, self.weights[self.prefix + "o_proj.weight"])
        dropped = self.factor(self.layer, "attention_output", out.shape)

        def back(dy):
            grads = {}
            dmerged, grads[self.prefix + "o_proj.weight"] = out_back(dy * dropped)
            dheads = dmerged.reshape(*x.shape[:2], -1, self.spec.head_dim).transpose(0, 2, 1, 3)
            dprobs = dheads @ v_all.transpose(0, 1, 3, 2) * kept
            dscores = probs * (dprobs - (dprobs * probs).sum(-1, keepdims=True)) / root
            dk, dv = dscores.transpose(0, 1, 3, 2) @ q, (probs * kept).transpose(0, 1, 3, 2) @ dheads
            dx = np.zeros_like(x)
            for part_back, part in ((q_back, dscores @ k_all), (k_back, self.shared(dk)), (v_back, self.shared(dv))):
                part_dx, part_grads = part_back(part)
                dx += part_dx
                grads |= part_grads
            return dx, grads

        return out * dropped, back

    def shared(self, dy):
        """Gradients of heads that were repeated, summed back into those there are."""
        return dy.reshape(dy.shape[0], -1, self.groups, *dy.shape[2:]).sum(2)


def mlp(x, weights, prefix, kept):
    (gate, gate_back), (up, up_back) = (linear(x, weights[f"{prefix}{name}_proj.weight"]) for name in ("gate", "up"))
    sigmoid = 1 / (1 + np.exp(-gate))
    out, down_back = linear(gate * sigmoid * up, weights[prefix + "down_proj.weight"])

    def back(dy):
        grads = {}
        dhidden, grads[prefix + "down_proj.weight"] = down_back(dy * kept)
        dgate = dhidden * up * sigmoid * (1 + gate * (1 - sigmoid))
        dx_gate, grads[prefix + "gate_proj.weight"] = gate_back(dgate)
        dx_up, grads[prefix + "up_proj.weight"] = up_back(dhidden * gate * sigmoid)
        return dx_gate + dx_up, grads

    return out * kept, back


def residual(x, norm_name, branch, weights, eps):
    """x + branch(norm(x)), and the way back."""
    h, norm_back = rms_norm(x, weights[norm_name], eps)
    y, branch_back = branch(h)

    def back(dy):
        dh, grads = branch_back(dy)
        dx, grads[norm_name] = norm_back(dh)
        return dy + dx, grads

    return x + y, back


def loss_and_gradients(spec: ModelSpec, weights, batch, seed=0, step=0):
    """Mean nats a scored token, logits (B, T, V) and the loss's gradient by parameter."""
    assert spec.norm == "rmsnorm"
    assert spec.mlp == "gated"
    assert spec.activation == "silu"
    assert spec.qk_norm
    assert spec.tie_word_embeddings
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    factor, backs = drops(spec, seed, step), []
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[batch.inputs]
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        kept = factor(layer, "mlp_output", x.shape)
        attention = Attention(spec, weights, prefix + "self_attn.", layer, factor)

        def feed_forward(h, prefix=prefix, kept=kept):
            return mlp(h, weights, prefix + "mlp.", kept)

        for name, branch in (("input", attention), ("post_attention", feed_forward)):
            x, back = residual(x, f"{prefix}{name}_layernorm.weight", branch, weights, spec.norm_eps)
            backs.append(back)
    x, norm_back = rms_norm(x, weights["model.norm.weight"], spec.norm_eps)
    logits, head_back = linear(x, embedding)
    loss, dlogits = nats_and_gradient(logits, batch.targets)
    dx, dembedding = head_back(dlogits)
    dx, norm_grad = norm_back(dx)
    grads = {"model.norm.weight": norm_grad}
    for back in reversed(backs):
        dx, part = back(dx)
        grads |= part
    np.add.at(dembedding, batch.inputs, dx)
    return loss, logits, grads | {"model.embed_tokens.weight": dembedding}


def nats_and_gradient(logits, targets):
    """Mean over the scored targets of -log p, and its derivative by the logits."""
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    scored = targets >= 0
    at_target = np.maximum(targets, 0)[..., None]
    picked = np.take_along_axis(probs, at_target, -1)[..., 0]
    loss = -(np.log(picked) * scored).sum() / scored.sum()
    np.put_along_axis(probs, at_target, (picked - 1)[..., None], -1)
    return loss, probs * scored[..., None] / scored.sum()
