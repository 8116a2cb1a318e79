"""`OptimSpec` in MLX: the whole update as a pure function of arrays, so that it compiles."""

import math

import mlx.core as mx

from sconce.backend import LOSS_SCALE_INTERVAL, LOSS_SCALE_RANGE
from sconce.optim import MUON_RMS, NEWTON_SCHULZ, NEWTON_SCHULZ_EPS, NEWTON_SCHULZ_ROUNDS, OptimSpec
from sconce.spec import ModelSpec

Tree = dict[str, mx.array]


def next_loss_scale(scale: mx.array, clean: mx.array, finite: mx.array) -> tuple[mx.array, mx.array]:
    """After an update: halve the scale if it was skipped, double it after enough that were not; `LossScale`."""
    clean = mx.where(finite, clean + 1, 0)
    grow = clean >= LOSS_SCALE_INTERVAL
    factor = mx.where(finite, mx.where(grow, 2.0, 1.0), 0.5)
    return mx.clip(scale * factor, *LOSS_SCALE_RANGE), mx.where(grow, 0, clean)


class Optimizer:
    """The rule of each parameter. The slots it remembers are float32 whatever the compute dtype."""

    def __init__(self, spec: ModelSpec, optim: OptimSpec) -> None:
        self.optim = optim
        self.params = {param.name: param for param in spec.params()}
        self.rules = {"adam_w": self._adam_w, "adam": self._adam, "sgd": self._sgd, "lion": self._lion}
        self.rules["muon"] = self._muon

    def scalars(self, learning_rate: float, t: int) -> list[float]:
        """What `update` needs of step `t` (from 1): the rate and both bias corrections, 1 - beta^t.

        Computed on the host in float64: in float32, 1 - 0.999 is already off by 6e-5 of its value.
        """
        return [learning_rate, 1 - self.optim.beta1**t, 1 - self.optim.beta2**t]

    def update(
        self, params: Tree, slots: dict[str, Tree], grads: Tree, scalars: mx.array, loss_scale: mx.array
    ) -> tuple[Tree, dict[str, Tree], mx.array]:
        """Clip, then update; `scalars` holds what the method of that name returned.

        `slots` are arrays by slot and parameter; `loss_scale` multiplied the gradients. Returns new parameters, new
        slots and the norm before clipping. Nothing changes if it is not finite.
        """
        norm = mx.sqrt(sum((mx.sum(mx.square(grad)) for grad in grads.values()), mx.array(0.0))) / loss_scale
        finite = mx.isfinite(norm)
        scale = mx.maximum((norm + 1e-6) / (self.optim.max_grad_norm or float("inf")), 1.0)
        new_params: Tree = {}
        new_slots: dict[str, Tree] = {slot: {} for slot in slots}
        for name, param in params.items():
            spec = self.params[name]
            held = [slots[slot][name] for slot in self.optim.slots(spec)]
            rule = self.rules[self.optim.rule(spec)]
            grad = grads[name] / (scale * loss_scale)
            updated, *new = rule(param, grad, self.optim.decay(spec), scalars, finite, *held)
            new_params[name] = mx.where(finite, updated, param)
            for slot, array in zip(self.optim.slots(spec), new, strict=True):
                new_slots[slot][name] = array
        return new_params, new_slots, norm

    def _adam_w(
        self,
        param: mx.array,
        grad: mx.array,
        decay: float,
        scalars: mx.array,
        finite: mx.array,
        m: mx.array,
        v: mx.array,
    ) -> tuple[mx.array, ...]:
        lr, correct1, correct2 = scalars
        beta1, beta2 = self.optim.beta1, self.optim.beta2
        m = _remembered(finite, beta1 * m + (1 - beta1) * grad, m)
        v = _remembered(finite, beta2 * v + (1 - beta2) * mx.square(grad), v)
        direction = (m / correct1) / (mx.sqrt(v / correct2) + self.optim.eps)
        return param * (1 - lr * decay) - lr * direction, m, v

    def _adam(self, param: mx.array, grad: mx.array, decay: float, *rest: mx.array) -> tuple[mx.array, ...]:
        return self._adam_w(param, grad + decay * param, 0.0, *rest)

    def _sgd(
        self, param: mx.array, grad: mx.array, decay: float, scalars: mx.array, finite: mx.array, m: mx.array
    ) -> tuple[mx.array, ...]:
        m = _remembered(finite, self.optim.momentum * m + grad + decay * param, m)
        return param - scalars[0] * m, m

    def _lion(
        self, param: mx.array, grad: mx.array, decay: float, scalars: mx.array, finite: mx.array, m: mx.array
    ) -> tuple[mx.array, ...]:
        beta1, beta2 = self.optim.beta1, self.optim.beta2
        direction = mx.sign(beta1 * m + (1 - beta1) * grad)
        param = param * (1 - scalars[0] * decay) - scalars[0] * direction
        # Last, as both need the old m: first, it would be made beside it for all parameters at once.
        m, grad = mx.depends([m, grad], [param])
        return param, _remembered(finite, beta2 * m + (1 - beta2) * grad, m)

    def _muon(
        self, param: mx.array, grad: mx.array, decay: float, scalars: mx.array, finite: mx.array, m: mx.array
    ) -> tuple[mx.array, ...]:
        lr, momentum = scalars[0], self.optim.momentum
        m = _remembered(finite, momentum * m + (1 - momentum) * grad, m)
        direction = newton_schulz(momentum * m + (1 - momentum) * grad) * (MUON_RMS * math.sqrt(max(param.shape)))
        return param * (1 - lr * decay) - lr * direction, m


def _remembered(finite: mx.array, new: mx.array, old: mx.array) -> mx.array:
    """What a slot becomes: `old` where the update is skipped.

    Chosen before it is used, as compiled, choosing between two arrays afterwards costs passes over memory. A kernel of
    its own, whose result takes the place of `old`: fused with its use it would be one of several results, which MLX
    gives new memory each.
    """
    return mx.depends(mx.where(finite, new, old), finite)


def newton_schulz(matrix: mx.array) -> mx.array:
    """The nearest semi-orthogonal matrix, roughly: singular values come to lie between 0.7 and 1.2. Float32."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / mx.maximum(mx.sqrt(mx.sum(mx.square(x))), NEWTON_SCHULZ_EPS)
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x
