"""A model in MLX to be used and not trained: one copy of its weights, in the compute dtype."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from sconce.backend import Batch, ComputeOptions, TensorSource, check_names, take
from sconce.spec import ModelSpec
from sconce_mlx.blas import share_cores
from sconce_mlx.decode import DecodeWeights, MLXDecoder
from sconce_mlx.loss import score_targets
from sconce_mlx.model import Linear, Model

LOGITS_ROWS = 1024  # tokens whose logits are made at once


class MLXLanguageModel:
    """A model on one device."""

    def __init__(self, spec: ModelSpec, run: ComputeOptions, weights: TensorSource) -> None:
        self.spec = spec
        share_cores(1)
        named = [(param.name, param.shape) for param in spec.params()]
        check_names(named, weights)
        self.model = Model(spec, run)
        assert {name for name, _ in tree_flatten(self.model.parameters())} == {name for name, _ in named}
        self.model.update(tree_unflatten([(name, mx.array(take(weights, name, shape))) for name, shape in named]))
        self.decode_weights = DecodeWeights(self.model, spec)
        self._share()

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """(B, n) ids to float32 (B, n, V)."""
        x_BTH = self.model.hidden(mx.array(tokens), None, None, differentiated=False)
        return np.array((x_BTH @ self.decode_weights.head.T).astype(mx.float32))

    def score(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Per-token loss (batch, seq), 0 where the target is -1; and where the likeliest token is the target."""
        segments = None if batch.segments is None else mx.array(batch.segments)
        x_BTH = self.model.hidden(mx.array(batch.inputs), segments, None, differentiated=False)
        targets_BT = mx.array(batch.targets)
        nats_BT, hits_BT = score_targets(x_BTH, self.model.head_weight, targets_BT, LOGITS_ROWS)
        return np.array(nats_BT), np.array(hits_BT)

    def decoder(self, rows: int, max_len: int) -> MLXDecoder:
        """A fresh decoder, which shares the weights."""
        return MLXDecoder(self.decode_weights, rows, max_len)

    def _share(self) -> None:
        """Let the model's matrices be views of those that decoding joined, so that nothing is there twice."""
        joined = self.decode_weights
        self.model.model.embed_tokens.weight = joined.embedding
        if self.model.lm_head is not None:
            self.model.lm_head.weight = joined.head
        for layer, block in zip(joined.layers, self.model.model.layers, strict=True):
            attention, mlp = block.self_attn, block.mlp
            _view([attention.q_proj, attention.k_proj, attention.v_proj], layer.qkv.weight)
            _view([attention.o_proj], layer.out.weight)
            _view([mlp.up_proj] if mlp.gate_proj is None else [mlp.gate_proj, mlp.up_proj], layer.up.weight)
            _view([mlp.down_proj], layer.down.weight)
        mx.eval(self.model.parameters())


def _view(linears: list[Linear], weight: mx.array) -> None:
    start = 0
    for linear in linears:
        end = start + linear.weight.shape[0]
        linear.weight = weight[start:end]
        start = end
