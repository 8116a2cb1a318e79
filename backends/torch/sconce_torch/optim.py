"""`OptimSpec` in PyTorch: its fused kernel where Adam is the rule, the others spelled out."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sconce.backend import INITIAL_LOSS_SCALE, LOSS_SCALE_INTERVAL, LOSS_SCALE_RANGE, LossScale
from sconce.optim import MUON_RMS, NEWTON_SCHULZ, NEWTON_SCHULZ_EPS, NEWTON_SCHULZ_ROUNDS, OptimSpec
from sconce.spec import ModelSpec, ParamSpec

FUSED = {  # in which torch.optim's two end
    "adam_w": torch.ops.aten._fused_adamw_.default,
    "adam": torch.ops.aten._fused_adam_.default,
}


class LossScaler:
    """fp16's loss scale on the device, so that the host need not wait for it: `sconce.backend.LossScale`."""

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.zeros((), device=device)
        self.clean = torch.zeros((), device=device)
        self.set(INITIAL_LOSS_SCALE)

    def update(self, finite: Tensor) -> None:
        """After an update: halve the scale if it was skipped, double it after enough that were not."""
        clean = torch.where(finite, self.clean + 1, 0)
        grow = clean >= LOSS_SCALE_INTERVAL
        factor = torch.where(finite, torch.where(grow, 2.0, 1.0), 0.5)
        self.scale = (self.scale * factor).clamp(*LOSS_SCALE_RANGE)
        self.clean = torch.where(grow, 0, clean)

    def read(self) -> LossScale:
        """The present one; waits for the device."""
        return LossScale(self.scale.item(), int(self.clean.item()))

    def set(self, value: LossScale) -> None:
        """Go on with this one."""
        self.scale.fill_(value.scale)
        self.clean.fill_(value.clean_updates)


class _Group(NamedTuple):
    """What one call of a fused kernel updates."""

    kernel: Callable[..., None]
    decay: float
    params: list[nn.Parameter]
    m: list[Tensor]
    v: list[Tensor]
    counts: list[Tensor]


class Optimizer:
    """The rule of each parameter. The slots it remembers are float32 whatever the compute dtype."""

    def __init__(self, spec: ModelSpec, optim: OptimSpec, params: dict[str, nn.Parameter]) -> None:
        self.optim = optim
        self.params = params
        self.slots = {
            param.name: {slot: torch.zeros_like(params[param.name]) for slot in optim.slots(param)}
            for param in spec.params()
        }
        fused = [param for param in spec.params() if optim.rule(param) in FUSED]
        # One tensor whose elements are every parameter's own count of updates, as the fused kernel wants them.
        self.counts = torch.zeros(len(fused), device=next(iter(params.values())).device)
        self.groups = self._groups(fused)
        self.rules = {"sgd": self._sgd, "lion": self._lion, "muon": self._muon}
        self.others = [param for param in spec.params() if optim.rule(param) not in FUSED]

    def update(self, learning_rate: float, step: int, loss_scale: Tensor | None) -> Tensor:
        """Clip, then update from the gradients, which `loss_scale` multiplied; `step` updates were done before.

        Returns the norm before clipping, on the device.
        """
        norm = torch.nn.utils.get_total_norm([_grad(param) for param in self.params.values()])
        if loss_scale is not None:
            norm = norm / loss_scale
        scale = ((norm + 1e-6) / (self.optim.max_grad_norm or float("inf"))).clamp(min=1.0)
        if loss_scale is not None:
            scale = scale * loss_scale
        finite = norm.isfinite()
        with torch.no_grad():
            if self.groups:
                self._update_fused(learning_rate, step, scale, finite)
            for param in self.others:
                self._update_one(param, learning_rate, scale, finite)
        return norm

    def _groups(self, specs: list[ParamSpec]) -> list[_Group]:
        by_decay: dict[float, _Group] = {}
        for spec, count in zip(specs, self.counts.unbind(), strict=True):
            decay, slots = self.optim.decay(spec), self.slots[spec.name]
            group = by_decay.setdefault(decay, _Group(FUSED[self.optim.rule(spec)], decay, [], [], [], []))
            group.params.append(self.params[spec.name])
            group.m.append(slots["adam_m"])
            group.v.append(slots["adam_v"])
            group.counts.append(count)
        return list(by_decay.values())

    def _update_fused(self, lr: float, step: int, scale: Tensor, finite: Tensor) -> None:
        """A call for each weight decay; torch.optim's step does no more, and takes the host 0.2 ms more for 20 arrays.

        The kernel divides by grad_scale, which saves a pass over the gradients, and does nothing where found_inf is 1:
        a norm that is not finite changes nothing, and the host does not wait to find out.
        """
        self.counts.fill_(float(step + 1))
        skip = (~finite).float()
        for kernel, decay, params, m, v, counts in self.groups:
            kernel(
                params,
                [_grad(param) for param in params],
                m,
                v,
                [],
                counts,
                lr=lr,
                beta1=self.optim.beta1,
                beta2=self.optim.beta2,
                weight_decay=decay,
                eps=self.optim.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
                found_inf=skip,
            )

    def _update_one(self, spec: ParamSpec, lr: float, scale: Tensor, finite: Tensor) -> None:
        """In place, as the largest parameter may be a tenth of the device; nothing changes where `finite` is false."""
        param, slots = self.params[spec.name], self.slots[spec.name]
        (held,) = slots.values()
        grad = _grad(param).div_(scale).masked_fill_(~finite, 0.0)
        gate = finite.float()
        self.rules[self.optim.rule(spec)](param, grad, self.optim.decay(spec), lr * gate, held, gate)

    def _sgd(self, param: Tensor, grad: Tensor, decay: float, lr: Tensor, m: Tensor, gate: Tensor) -> None:
        m.mul_(1 - (1 - self.optim.momentum) * gate).add_(grad.add_(param, alpha=decay).masked_fill_(gate == 0, 0.0))
        param.addcmul_(m, -lr)

    def _lion(self, param: Tensor, grad: Tensor, decay: float, lr: Tensor, m: Tensor, gate: Tensor) -> None:
        direction = m.lerp(grad, 1 - self.optim.beta1).sign_()
        m.lerp_(grad, (1 - self.optim.beta2) * gate)
        param.mul_(1 - lr * decay).addcmul_(direction, -lr)

    def _muon(self, param: Tensor, grad: Tensor, decay: float, lr: Tensor, m: Tensor, gate: Tensor) -> None:
        weight = 1 - self.optim.momentum
        m.lerp_(grad, weight * gate)
        direction = newton_schulz(m.lerp(grad, weight))
        param.mul_(1 - lr * decay).addcmul_(direction, -lr * (MUON_RMS * math.sqrt(max(param.shape))))


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def newton_schulz(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values come to lie between 0.7 and 1.2. Float32."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=NEWTON_SCHULZ_EPS)
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x
