"""`OptimSpec` in PyTorch: torch's own AdamW, grouped by decay."""

import torch
from torch import Tensor, nn

from sconce.optim import OptimSpec
from sconce.spec import ModelSpec


class _FusedAdamW(torch.optim.AdamW):
    """Declares the two inputs that torch's fused kernel reads from its optimizer under loss scaling."""

    grad_scale: Tensor
    found_inf: Tensor


class AdamW:
    """AdamW over named parameters; moments are float32 whatever the compute dtype."""

    def __init__(self, spec: ModelSpec, optim: OptimSpec, params: dict[str, nn.Parameter]) -> None:
        self.max_grad_norm = optim.max_grad_norm
        self.params = params
        by_decay: dict[float, list[nn.Parameter]] = {}
        for param in spec.params():
            by_decay.setdefault(optim.decay(param), []).append(params[param.name])
        groups = [{"params": group, "weight_decay": decay} for decay, group in by_decay.items()]
        self.adamw = _FusedAdamW(groups, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
        self.restore({name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in params.items()}, step=0)

    def update(self, learning_rate: float) -> Tensor:
        """Clip, then update from the gradients; returns the norm before clipping, on the device."""
        grads = [param.grad for param in self.params.values() if param.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        # The fused kernel divides by grad_scale, which saves a pass over the gradients, and skips the update when
        # found_inf is 1: a non-finite norm changes nothing, and the host does not wait to find out.
        limit = self.max_grad_norm or float("inf")
        self.adamw.grad_scale = ((norm + 1e-6) / limit).clamp(min=1.0)
        self.adamw.found_inf = (~norm.isfinite()).float()
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        return norm

    def moments(self, name: str) -> tuple[Tensor, Tensor]:
        """First and second moment of one parameter."""
        state = self.adamw.state[self.params[name]]
        return state["exp_avg"], state["exp_avg_sq"]

    def restore(self, moments: dict[str, tuple[Tensor, Tensor]], step: int) -> None:
        """Replace all moments, as they were after `step` updates."""
        for name, (m, v) in moments.items():
            count = torch.tensor(float(step), device=m.device)
            self.adamw.state[self.params[name]] = {"step": count, "exp_avg": m, "exp_avg_sq": v}
