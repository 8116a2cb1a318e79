"""The optimizer as data: one definition, realised by each backend and tested against numpy."""

from dataclasses import dataclass

from sconce.spec import ParamSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSpec:
    """AdamW (Loshchilov & Hutter 2019): bias-corrected moments, eps outside the root, decoupled decay.

    With t the number of updates done, this one included, and g the clipped gradient:
    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
    p = p (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0  # 0 turns clipping off

    def decay(self, param: ParamSpec) -> float:
        """Matrices decay; norms, biases and embedding tables do not."""
        return self.weight_decay if param.group in ("matrix", "head") else 0.0
