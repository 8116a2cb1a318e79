"""Incremental inference in PyTorch: a preallocated key/value cache around the model's own layers."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sconce.spec import ModelSpec
from sconce_torch.model import Attention, Block, Model, visible


class TorchDecoder:
    """Owns the cache, (rows, num_kv_heads, max_len, head_dim) a layer, and how much of it is filled."""

    def __init__(self, model: Model, spec: ModelSpec, rows: int, max_len: int) -> None:
        self.model = model
        self.filled = 0
        self.window = spec.sliding_window
        shape = (2, rows, spec.num_kv_heads, max_len, spec.head_dim)
        device = model.model.embed_tokens.weight.device
        self.cache = [torch.empty(shape, dtype=model.dtype, device=device) for _ in range(spec.num_layers)]

    def feed(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Append (rows, n) tokens; float32 logits (rows, V) after the last."""
        with torch.inference_mode():
            x_BTH = self.model.embed(torch.tensor(tokens, device=self.cache[0].device))
            for block, cache in zip(self.model.model.layers, self.cache, strict=True):
                assert isinstance(block, Block)
                x_BTH = x_BTH + self._attend(block.self_attn, block.input_layernorm(x_BTH), cache)
                x_BTH = x_BTH + block.mlp(block.post_attention_layernorm(x_BTH))
            self.filled += tokens.shape[1]
            return self.model.head(x_BTH[:, -1]).float().cpu().numpy()

    def _attend(self, attention: Attention, x_BTH: Tensor, cache: Tensor) -> Tensor:
        q_BNTD, k_BKTD, v_BKTD = attention.project(x_BTH, offset=self.filled)
        end = self.filled + x_BTH.shape[1]
        cache[0, :, :, self.filled : end] = k_BKTD
        cache[1, :, :, self.filled : end] = v_BKTD
        # torch aligns is_causal to the upper left; with a filled cache the mask must be aligned to the lower right.
        positions = torch.arange(end, device=x_BTH.device)
        mask_TS = visible(positions[self.filled :], positions, self.window)
        keys, values = cache[:, :, :, :end]
        out = F.scaled_dot_product_attention(q_BNTD, keys, values, attn_mask=mask_TS, enable_gqa=True)
        return attention.merge(out)
