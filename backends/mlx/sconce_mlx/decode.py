"""Incremental inference in MLX: a preallocated key/value cache around the model's own layers."""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from sconce.spec import ModelSpec
from sconce_mlx.model import Attention, Model


class MLXDecoder:
    """Owns the cache, (rows, num_kv_heads, max_len, head_dim) a layer, and how much of it is filled."""

    def __init__(self, model: Model, spec: ModelSpec, rows: int, max_len: int) -> None:
        self.model = model
        self.filled = 0
        shape = (2, rows, spec.num_kv_heads, max_len, spec.head_dim)
        self.cache = [mx.zeros(shape, model.dtype) for _ in range(spec.num_layers)]

    def feed(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Append (rows, n) tokens; float32 logits (rows, V) after the last."""
        x_BTH = self.model.embed(mx.array(tokens))
        for block, cache in zip(self.model.model.layers, self.cache, strict=True):
            x_BTH = x_BTH + self._attend(block.self_attn, block.input_layernorm(x_BTH), cache)
            x_BTH = x_BTH + block.mlp(block.post_attention_layernorm(x_BTH))
        self.filled += tokens.shape[1]
        return np.array(self.model.head(x_BTH[:, -1]).astype(mx.float32))

    def _attend(self, attention: Attention, x_BTH: mx.array, cache: mx.array) -> mx.array:
        q_BNTD, k_BKTD, v_BKTD = attention.project(x_BTH, offset=self.filled)
        end = self.filled + x_BTH.shape[1]
        cache[0, :, :, self.filled : end] = k_BKTD
        cache[1, :, :, self.filled : end] = v_BKTD
        return attention.merge(attention.attend_cached(q_BNTD, cache[0, :, :, :end], cache[1, :, :, :end]))
