"""Incremental inference in PyTorch: the model's layers with joined matrices, around a key/value cache."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from sconce.cache import CHUNK, Placement
from sconce.spec import ModelSpec
from sconce_torch.cache import Cache, Target
from sconce_torch.memory import out_of_memory
from sconce_torch.model import Block, Linear, Model, RMSNorm
from sconce_torch.products import GROWING, Product, attend, computed_in, product_with


def laid_out(weight: Tensor) -> Tensor:
    """The same matrix, by columns where that is quicker: on a CPU in float32, a few rows times it, by a quarter."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return weight
    return weight.t().contiguous().t()


def join(dtype: torch.dtype, *layers: Linear) -> Product:
    """What all of `layers` make of one input, side by side, from copies of their weights."""
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    weights = [layer.weight.detach().to(dtype) for layer in layers]
    weight = laid_out(weights[0] if len(weights) == 1 else torch.cat(weights))
    return product_with(weight, torch.cat(biases).to(dtype) if biases else None)


class PairedRMSNorm(NamedTuple):
    """RMSNorm as the layer norm of x beside -x, whose mean is 0: a third of the operations on a CPU.

    PyTorch has a kernel for layer norm there, and none for RMSNorm. Both compute in float32 and round once.
    """

    weight: Tensor  # twice, float32
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(torch.cat((x, -x), dim=-1), self.weight.shape, self.weight, None, self.eps)
        return normed[..., : x.shape[-1]]


Norm = nn.Module | PairedRMSNorm


def quick_norm(module: nn.Module) -> Norm:
    """The same norm, by fewer operations where there is a way."""
    if isinstance(module, RMSNorm) and module.weight.device.type == "cpu":
        return PairedRMSNorm(module.weight.detach().repeat(2), module.eps)
    return module


class Layer(NamedTuple):
    """A block, ready to decode: few and large operations, for at one token each of them costs its launch."""

    attention_norm: Norm
    qkv: Product
    q_norm: Norm
    k_norm: Norm
    out: Product
    mlp_norm: Norm
    up: Product
    down: Product


def make_layer(block: Block, dtype: torch.dtype) -> Layer:
    """The block's weights, copied and joined."""
    attention, mlp = block.self_attn, block.mlp
    gated = () if mlp.gate_proj is None else (mlp.gate_proj,)
    return Layer(
        attention_norm=quick_norm(block.input_layernorm),
        qkv=join(dtype, attention.q_proj, attention.k_proj, attention.v_proj),
        q_norm=quick_norm(attention.q_norm),
        k_norm=quick_norm(attention.k_norm),
        out=join(dtype, attention.o_proj),
        mlp_norm=quick_norm(block.post_attention_layernorm),
        up=join(dtype, *gated, mlp.up_proj),
        down=join(dtype, mlp.down_proj),
    )


class DecodeWeights:
    """What a decoder multiplies by, in the run's precision; its norms, float32."""

    def __init__(self, model: Model, spec: ModelSpec) -> None:
        self.spec = spec
        blocks = [block for block in model.model.layers if isinstance(block, Block)]
        self.layers = [make_layer(block, model.dtype) for block in blocks]
        self.embedding = model.model.embed_tokens.weight.detach().to(model.dtype)
        self.dtype = computed_in(model.dtype, self.device)  # of activations
        self.norm = quick_norm(model.model.norm)
        head = model.lm_head
        self.head = product_with(self.embedding, None) if head is None else join(model.dtype, head)
        self.activation = blocks[0].mlp.activation
        rope = blocks[0].self_attn.rope
        left, right = rope.sin_TD.chunk(2, dim=-1)
        self.cos_TD, self.signed_sin_TD = rope.cos_TD, torch.cat((-left, right), dim=-1)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.embedding.device


class TorchDecoder:
    """Decodes rows of different lengths at once."""

    def __init__(self, weights: DecodeWeights, rows: int, max_len: int) -> None:
        self.max_rows = rows
        self.weights = weights
        self.spec = weights.spec
        self.cache = Cache(weights.spec, weights.dtype, weights.device, max_len)

    @out_of_memory(intact=True)
    @sdpa_kernel(GROWING)
    @torch.inference_mode()
    def feed(
        self, tokens: NDArray[np.int32], *, first_row: int = 0, lengths: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Append (B, n) tokens to the rows from `first_row` on; float32 logits (B, V) after the last that counts."""
        rows = slice(first_row, first_row + len(tokens))
        assert rows.stop <= self.max_rows, "the decoder was made for fewer rows"
        counts = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
        last = torch.zeros((len(tokens), self.spec.hidden_size), dtype=self.weights.dtype, device=self.weights.device)
        for start in range(0, tokens.shape[1], CHUNK):
            chunk = tokens[:, start : start + CHUNK]
            x_BTH = self._forward(chunk, first_row)
            here = np.clip(counts - start, 0, chunk.shape[1])
            self.cache.rows.filled[rows] += here
            if (here == chunk.shape[1]).all():
                last = x_BTH[:, -1]
            else:
                ends = np.flatnonzero(here)
                last[ends] = x_BTH[ends, here[ends] - 1]
        return self.weights.head(self.weights.norm(last)).float().cpu().numpy()

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        self.cache.move(source, target)

    def clear(self, first_row: int = 0) -> None:
        """Forget the rows from `first_row` on; with the last of them the cache's memory goes too."""
        self.cache.clear(first_row)

    def _forward(self, tokens: NDArray[np.int32], first_row: int) -> Tensor:
        weights = self.weights
        place, target = self.cache.place(first_row, *tokens.shape)
        # All M = B T tokens below each other, as a third axis would cost every product a view or two.
        x_MH = F.embedding(torch.from_numpy(tokens.ravel()).to(weights.device), weights.embedding).to(weights.dtype)
        rope, mask = self._rope(place), self._mask(place)
        for index, layer in enumerate(weights.layers):
            x_MH = x_MH + self._attend(index, layer, layer.attention_norm(x_MH), target, rope, mask)
            x_MH = x_MH + self._mlp(layer, layer.mlp_norm(x_MH))
        return x_MH.view(*tokens.shape, -1)

    def _attend(
        self, index: int, layer: Layer, x_MH: Tensor, target: Target, rope: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        heads, shared, width = self.spec.num_heads, self.spec.num_kv_heads, self.spec.head_dim
        rows = target.rows.stop - target.rows.start
        qkv = layer.qkv(x_MH).view(rows, -1, heads + 2 * shared, width)
        if self.spec.qk_norm:
            q, k = layer.q_norm(qkv[:, :, :heads]), layer.k_norm(qkv[:, :, heads : heads + shared])
            qk = torch.cat((q, k), dim=2)
        else:
            qk = qkv[:, :, : heads + shared]
        qk = rotate(qk, *rope)
        keys, values = self.cache.store(index, target, qk[:, :, heads:], qkv[:, :, heads + shared :])
        q_BNTD = qk[:, :, :heads].transpose(1, 2)
        causal = mask is None and q_BNTD.shape[2] > 1
        out_BNTD = attend(q_BNTD, keys, values, mask=mask, causal=causal)
        return layer.out(out_BNTD.transpose(1, 2).reshape(len(x_MH), -1))

    def _mlp(self, layer: Layer, x_MH: Tensor) -> Tensor:
        up = layer.up(x_MH)
        if self.spec.mlp == "plain":
            return layer.down(self.weights.activation(up))
        gate, up = up.chunk(2, dim=-1)
        return layer.down(self.weights.activation(gate) * up)

    def _rope(self, place: Placement) -> tuple[Tensor, Tensor]:
        """cos and sin at each position, (1 or B, T, 1, D); sin has the sign that `rotate` leaves out."""
        weights = self.weights
        first, length = int(place.positions[0, 0]), place.positions.shape[1]
        if (place.positions[:, 0] == first).all():
            here = slice(first, first + length)
        else:
            here = torch.from_numpy(place.positions).to(weights.device)
        return weights.cos_TD[here].unsqueeze(-2), weights.signed_sin_TD[here].unsqueeze(-2)

    def _mask(self, place: Placement) -> Tensor | None:
        """What `place` says; torch's own causal mask serves only where queries and keys begin together."""
        if place.mask is not None:
            return torch.from_numpy(place.mask).to(self.weights.device)
        length = place.positions.shape[1]
        if length == 1 or place.start == 0:
            return None
        return torch.ones(length, place.seen, dtype=torch.bool, device=self.weights.device).tril(place.seen - length)


def rotate(x_BTND: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary embedding in float32, half-split layout (Su et al. 2021)."""
    x = x_BTND.float()
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), signed_sin).to(x_BTND.dtype)
