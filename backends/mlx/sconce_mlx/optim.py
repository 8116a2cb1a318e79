"""`OptimSpec` in MLX: AdamW as a pure function of arrays, so that the whole update compiles."""

import mlx.core as mx

from sconce.optim import OptimSpec
from sconce.spec import ModelSpec

Tree = dict[str, mx.array]


class AdamW:
    """AdamW over named parameters; moments are float32 whatever the compute dtype."""

    def __init__(self, spec: ModelSpec, optim: OptimSpec) -> None:
        self.optim = optim
        self.decay = {param.name: optim.decay(param) for param in spec.params()}

    def scalars(self, learning_rate: float, t: int) -> list[float]:
        """What `update` needs of step `t` (from 1): the rate and both bias corrections, 1 - beta^t.

        Computed on the host in float64: in float32, 1 - 0.999 is already off by 6e-5 of its value.
        """
        return [learning_rate, 1 - self.optim.beta1**t, 1 - self.optim.beta2**t]

    def update(
        self, params: Tree, first: Tree, second: Tree, grads: Tree, scalars: mx.array
    ) -> tuple[Tree, Tree, Tree, mx.array]:
        """Clip, then update; `scalars` holds what the method of that name returned.

        Returns new parameters, new moments and the norm before clipping. Nothing changes if it is not finite.
        """
        learning_rate, correct1, correct2 = scalars
        norm = mx.sqrt(sum((mx.sum(mx.square(grad)) for grad in grads.values()), mx.array(0.0)))
        finite = mx.isfinite(norm)
        limit = self.optim.max_grad_norm or float("inf")
        scale = mx.maximum((norm + 1e-6) / limit, 1.0)
        beta1, beta2 = self.optim.beta1, self.optim.beta2
        new_params, new_first, new_second = Tree(), Tree(), Tree()
        for name, param in params.items():
            grad = grads[name] / scale
            m = beta1 * first[name] + (1 - beta1) * grad
            v = beta2 * second[name] + (1 - beta2) * mx.square(grad)
            direction = (m / correct1) / (mx.sqrt(v / correct2) + self.optim.eps)
            updated = param * (1 - learning_rate * self.decay[name]) - learning_rate * direction
            new_params[name] = mx.where(finite, updated, param)
            new_first[name] = mx.where(finite, m, first[name])
            new_second[name] = mx.where(finite, v, second[name])
        return new_params, new_first, new_second, norm
