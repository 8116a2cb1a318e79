"""The optimizer as data: one definition, realised by each backend and tested against numpy."""

from dataclasses import dataclass
from typing import Literal

from sconce.spec import ParamSpec

Rule = Literal["adam_w", "adam", "sgd", "lion", "muon"]

# What a rule remembers of each parameter: float32, of the parameter's shape, zero before the first update.
SLOTS: dict[Rule, tuple[str, ...]] = {
    "adam_w": ("adam_m", "adam_v"),
    "adam": ("adam_m", "adam_v"),
    "sgd": ("sgd_m",),
    "lion": ("lion_m",),
    "muon": ("muon_m",),
}

# Jordan et al. 2024 (Muon): five rounds of X <- aX + (bA + cA^2)X, A = XX^T, with the steepest quintic at zero.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_ROUNDS = 5
NEWTON_SCHULZ_EPS = 1e-7
MUON_RMS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSpec:
    """How parameters change, given the clipped gradient g, the rate lr and t, the number of updates, this one included.

    adam_w  Loshchilov & Hutter 2019, eq. 12:  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
            p = p (1 - lr decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    adam    Kingma & Ba 2015, algorithm 1, with L2: adam_w without its decay, on g + decay p
    sgd     with momentum, as in PyTorch:  m = momentum m + g + decay p;  p = p - lr m
    lion    Chen et al. 2023, algorithm 2:  p = p (1 - lr decay) - lr sign(beta1 m + (1 - beta1) g);
            m = beta2 m + (1 - beta2) g
    muon    Jordan et al. 2024, on matrices, the rest by adam_w:  m = momentum m + (1 - momentum) g;
            p = p (1 - lr decay) - lr 0.2 sqrt(max(rows, columns)) NS(momentum m + (1 - momentum) g)
            NS scales by the Frobenius norm and runs Newton-Schulz; the factor gives updates AdamW's usual root mean
            square (Liu et al. 2025, eq. 4), so that one learning rate serves both.
    """

    algorithm: Rule = "adam_w"
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0  # 0 turns clipping off

    def decay(self, param: ParamSpec) -> float:
        """Matrices decay; norms, biases and embedding tables do not."""
        return self.weight_decay if param.group in ("matrix", "head") else 0.0

    def rule(self, param: ParamSpec) -> Rule:
        """Which rule updates this parameter."""
        return "adam_w" if self.algorithm == "muon" and param.group != "matrix" else self.algorithm

    def slots(self, param: ParamSpec) -> tuple[str, ...]:
        """What the optimizer remembers of this parameter."""
        return SLOTS[self.rule(param)]
