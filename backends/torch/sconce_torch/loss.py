"""Cross-entropy in float32, in nats: with all logits at once, or in chunks that are never held together."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from sconce_torch.products import Product, linear, matmul


def score_targets(x_BTH: Tensor, head: Product, targets_BT: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """-log p(target) as float32 (B, T), 0 where target is -1, and where the likeliest token is the target.

    `head` makes logits of x, of `chunk` tokens at a time.
    """
    nats: list[Tensor] = []
    hits: list[Tensor] = []
    for x_NH, targets_N in zip(x_BTH.flatten(0, 1).split(chunk), targets_BT.flatten().split(chunk), strict=True):
        logits_NV = head(x_NH).float()
        nats.append(F.cross_entropy(logits_NV, targets_N, ignore_index=-1, reduction="none"))
        hits.append(logits_NV.argmax(-1) == targets_N)
    return torch.cat(nats).view_as(targets_BT), torch.cat(hits).view_as(targets_BT)


def nats_and_grads(x_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of -log p(target), and its gradients by x and by the weight; both are of one dtype.

    The vocabulary last: softmax over a strided axis is 4 times slower. One exponential of each logit, in place, is the
    softmax and, but for 1 at the target, the gradient. That 1 is not subtracted from float32 numbers of all logits,
    which torch.compile would then write out, but put where it belongs once they are of x's dtype.
    """
    picked = targets_N[:, None].clamp(min=0)
    scored = (targets_N[:, None] >= 0).float()
    logits = linear(x_NH, weight_VH).float()
    logits.sub_(logits.amax(-1, keepdim=True))
    target_logits = logits.gather(-1, picked)
    z = logits.exp_().sum(-1, keepdim=True)
    nats = ((z.log() - target_logits) * scored).sum()
    at_target = (target_logits.exp() / z - 1.0) * scored
    grad_NV = logits.mul_(scored / z).to(x_NH.dtype)
    grad_NV.scatter_(-1, picked, at_target.to(x_NH.dtype))
    return nats, matmul(grad_NV, weight_VH), matmul(grad_NV.T, x_NH)


Scorer = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def summed_nats(x_BTH: Tensor, weight_VH: Tensor, targets_BT: Tensor, chunk: int, scorer: Scorer) -> Tensor:
    """The sum of `score_targets`' nats, to be differentiated; `scorer` is `nats_and_grads`, compiled or not."""
    args = (x_BTH.flatten(0, 1), weight_VH, targets_BT.flatten(), chunk, scorer)
    return _SummedNats.apply(*args)  # type: ignore[return-value]


class _SummedNats(torch.autograd.Function):
    """Makes both gradients on the way forward, while a chunk's logits are there, so that none is made twice or kept.

    As F.linear_cross_entropy of PyTorch 2.13 does in as much time (3072 tokens of 384, 4096 words, chunks of 768, fp32:
    571 ms of processor time here, 543 there) and less memory (124 MB, 95). But that one torch.compile leaves out,
    and it gives the gradient of a weight that was cast to bf16 in bf16, where this one's stays float32.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, chunk: int, scorer: Scorer
    ) -> Tensor:
        weight = weight_VH.to(x_NH.dtype)
        total = torch.zeros((), device=x_NH.device)
        grad_x_NH = torch.empty_like(x_NH)
        grad_weight_VH = torch.zeros_like(weight_VH)
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            nats, grad_x_NH[part], grad_weight = scorer(x_NH[part], weight, targets_N[part])
            total += nats
            grad_weight_VH += grad_weight
        ctx.save_for_backward(grad_x_NH, grad_weight_VH)
        return total

    @staticmethod
    def backward(ctx: BackwardCFunction, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x_NH, grad_weight_VH = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        return grad_x_NH * grads[0].to(grad_x_NH.dtype), grad_weight_VH * grads[0], None, None, None
