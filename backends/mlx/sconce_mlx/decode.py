"""Incremental inference in MLX: the model's layers with joined matrices, around a key/value cache."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from sconce.cache import CHUNK
from sconce.spec import ModelSpec
from sconce_mlx.cache import Cache, Target
from sconce_mlx.memory import settled
from sconce_mlx.model import Block, Linear, Model


class Joined(NamedTuple):
    """Linear layers over the same input as one: weights below each other, in the compute dtype."""

    weight: mx.array
    bias: mx.array | None

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight.T if self.bias is None else mx.addmm(self.bias, x, self.weight.T)


def laid_out(weight: mx.array) -> mx.array:
    """The same matrix, by columns where that is quicker: on a CPU in float32, a few rows times it, by a third."""
    if mx.default_device().type != mx.DeviceType.cpu or weight.dtype != mx.float32:
        return weight
    return mx.contiguous(weight.T).T


def join(dtype: mx.Dtype, *linears: Linear) -> Joined:
    """A copy of `linears` as one layer."""
    weight = laid_out(mx.concatenate([linear.weight for linear in linears]).astype(dtype))
    biases = [linear.bias for linear in linears if "bias" in linear]
    return Joined(weight, mx.concatenate(biases).astype(dtype) if biases else None)


class Layer(NamedTuple):
    """A block, ready to decode: few and large operations, for at one token each of them costs its launch."""

    attention_norm: nn.Module
    qkv: Joined
    q_norm: nn.Module
    k_norm: nn.Module
    out: Joined
    mlp_norm: nn.Module
    up: Joined
    down: Joined


def make_layer(block: Block, dtype: mx.Dtype) -> Layer:
    """The block's weights, copied and joined."""
    attention, mlp = block.self_attn, block.mlp
    gated = () if mlp.gate_proj is None else (mlp.gate_proj,)
    return Layer(
        attention_norm=block.input_layernorm,
        qkv=join(dtype, attention.q_proj, attention.k_proj, attention.v_proj),
        q_norm=attention.q_norm,
        k_norm=attention.k_norm,
        out=join(dtype, attention.o_proj),
        mlp_norm=block.post_attention_layernorm,
        up=join(dtype, *gated, mlp.up_proj),
        down=join(dtype, mlp.down_proj),
    )


class DecodeWeights:
    """What a decoder multiplies by, in the compute dtype; norms stay the model's own, float32."""

    def __init__(self, model: Model, spec: ModelSpec) -> None:
        self.spec = spec
        self.dtype = model.dtype
        blocks = model.model.layers
        self.layers = [make_layer(block, model.dtype) for block in blocks]
        self.embedding = model.model.embed_tokens.weight.astype(model.dtype)
        self.norm = model.model.norm
        head = model.lm_head
        self.head = self.embedding if head is None else laid_out(head.weight.astype(model.dtype))
        self.activation = blocks[0].mlp.activation
        self.rope = blocks[0].self_attn.rope
        mx.eval(self.embedding, self.head, [(layer.qkv, layer.out, layer.up, layer.down) for layer in self.layers])


class MLXDecoder:
    """Decodes rows of different lengths at once."""

    def __init__(self, weights: DecodeWeights, rows: int, max_len: int) -> None:
        self.max_rows = rows
        self.weights = weights
        self.spec = weights.spec
        self.cache = Cache(weights.spec, weights.dtype, max_len)

    @settled()
    def feed(
        self, tokens: NDArray[np.int32], *, first_row: int = 0, lengths: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Append (B, n) tokens to the rows from `first_row` on; float32 logits (B, V) after the last that counts."""
        rows = slice(first_row, first_row + len(tokens))
        assert rows.stop <= self.max_rows, "the decoder was made for fewer rows"
        counts = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
        last = mx.zeros((len(tokens), self.spec.hidden_size), self.weights.dtype)
        for start in range(0, tokens.shape[1], CHUNK):
            chunk = tokens[:, start : start + CHUNK]
            x_BTH = self._forward(chunk, first_row)
            here = np.clip(counts - start, 0, chunk.shape[1])
            self.cache.rows.filled[rows] += here
            if (here == chunk.shape[1]).all():
                last = x_BTH[:, -1]
            else:
                ends = x_BTH[mx.arange(len(tokens)), mx.array(np.maximum(here - 1, 0))]
                last = mx.where(mx.array(here)[:, None] > 0, ends, last)
            if start + CHUNK < tokens.shape[1]:
                mx.eval(last, self.cache.layers)  # one chunk's scores at a time
        return np.array((self.weights.norm(last) @ self.weights.head.T).astype(mx.float32))

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        self.cache.move(source, target)

    def clear(self, first_row: int = 0) -> None:
        """Forget the rows from `first_row` on; with the last of them the cache's memory goes too."""
        self.cache.clear(first_row)

    def _forward(self, tokens: NDArray[np.int32], first_row: int) -> mx.array:
        weights = self.weights
        place, target = self.cache.place(first_row, *tokens.shape)
        x_BTH = weights.embedding[mx.array(tokens)]
        first = place.positions[:, 0]
        offset = int(first[0]) if (first == first[0]).all() else mx.array(first)
        mask = None if tokens.shape[1] == 1 else "causal"
        if place.mask is not None:
            mask = mx.array(place.mask.view(np.uint8)).astype(mx.bool_)
        for index, layer in enumerate(weights.layers):
            x_BTH = x_BTH + self._attend(index, layer, layer.attention_norm(x_BTH), target, offset, mask)
            x_BTH = x_BTH + self._mlp(layer, layer.mlp_norm(x_BTH))
        return x_BTH

    def _attend(
        self,
        index: int,
        layer: Layer,
        x_BTH: mx.array,
        target: Target,
        offset: int | mx.array,
        mask: str | mx.array | None,
    ) -> mx.array:
        heads, shared, width = self.spec.num_heads, self.spec.num_kv_heads, self.spec.head_dim
        qkv = layer.qkv(x_BTH).reshape(*x_BTH.shape[:2], heads + 2 * shared, width).swapaxes(1, 2)
        qk = qkv[:, : heads + shared]
        if self.spec.qk_norm:
            qk = mx.concatenate([layer.q_norm(qk[:, :heads]), layer.k_norm(qk[:, heads:])], axis=1)
        qk = self.weights.rope(qk, offset)
        keys, values = self.cache.store(index, target, qk[:, heads:], qkv[:, heads + shared :])
        out = mx.fast.scaled_dot_product_attention(qk[:, :heads], keys, values, scale=width**-0.5, mask=mask)
        return layer.out(out.swapaxes(1, 2).flatten(2))

    def _mlp(self, layer: Layer, x_BTH: mx.array) -> mx.array:
        up = layer.up(x_BTH)
        if self.spec.mlp == "plain":
            return layer.down(self.weights.activation(up))
        gate, up = mx.split(up, 2, axis=-1)
        return layer.down(self.weights.activation(gate) * up)
