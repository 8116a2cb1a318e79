"""A model in PyTorch to be used and not trained: its weights in the compute dtype, as decoding joined them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sconce.backend import Batch, ComputeOptions, TensorSource, check_names, take
from sconce.spec import ModelSpec
from sconce_torch.decode import DecodeWeights, TorchDecoder
from sconce_torch.loss import score_targets
from sconce_torch.model import Block, Linear, Model
from sconce_torch.products import Product

LOGITS_ROWS = 1024  # tokens whose logits are made at once


class TorchLanguageModel:
    """A model on one device."""

    def __init__(self, spec: ModelSpec, run: ComputeOptions, weights: TensorSource, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        with torch.device(device):
            self.model = Model(spec, run).requires_grad_(False).eval()
        params = dict(self.model.named_parameters())
        check_names([(param.name, param.shape) for param in spec.params()], weights)
        for param in spec.params():
            params[param.name].copy_(torch.from_numpy(take(weights, param.name, param.shape)))
        self.decode_weights = DecodeWeights(self.model, spec)
        _share(self.model, self.decode_weights)

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """(B, n) ids to float32 (B, n, V)."""
        with torch.inference_mode():
            x_BTH = self.model.hidden(self._put(tokens), None, None)
            return self.decode_weights.head(x_BTH).float().cpu().numpy()

    def score(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Per-token loss (batch, seq), 0 where the target is -1; and where the likeliest token is the target."""
        segments = None if batch.segments is None else self._put(batch.segments)
        with torch.inference_mode():
            x_BTH = self.model.hidden(self._put(batch.inputs), segments, None)
            nats_BT, hits_BT = score_targets(x_BTH, self.decode_weights.head, self._put(batch.targets), LOGITS_ROWS)
            return nats_BT.cpu().numpy(), hits_BT.cpu().numpy()

    def decoder(self, rows: int, max_len: int) -> TorchDecoder:
        """A fresh decoder, which shares the weights."""
        return TorchDecoder(self.decode_weights, rows, max_len)

    def _put(self, array: NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device).long()


class _Ready(Linear):
    """A linear layer, or several over one input, whose product is there already."""

    def __init__(self, product: Product) -> None:
        nn.Module.__init__(self)  # without weights
        self.product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x)


def _share(model: Model, weights: DecodeWeights) -> None:
    """Let `model` multiply by what decoding joined, in place of matrices of its own, so that none is there twice."""
    model.dtype = weights.dtype
    model.model.embed_tokens.weight.data = weights.embedding
    if model.lm_head is not None:
        model.lm_head = _Ready(weights.head)
    for layer, block in zip(weights.layers, model.model.layers, strict=True):
        assert isinstance(block, Block)
        attention, mlp = block.self_attn, block.mlp
        attention.qkv_proj, attention.o_proj = _Ready(layer.qkv), _Ready(layer.out)
        del attention.q_proj, attention.k_proj, attention.v_proj
        mlp.down_proj = _Ready(layer.down)
        if mlp.gate_proj is None:
            mlp.up_proj = _Ready(layer.up)
        else:
            mlp.gate_up_proj = _Ready(layer.up)
            del mlp.gate_proj, mlp.up_proj
