"""The case that every backend is held to, and its values from a float64 reference in numpy.

`tests/golden/make_golden.py` writes golden.npz beside this file, and a test makes it again and compares. Its arrays:

    weights           the initial ones moved off their special values
    inputs, targets   one batch (rows, seq) int32; some targets are -1
    nats, logits      (rows, seq) and (rows, seq, vocab) at those weights
    gradient          of the mean nats a scored token, nothing dropped, before clipping
    <rule>            what one update adds to the weights
    lion_m            the slot after it: unlike the other rules' slots, it is not what the weights moved by
    dropout_loss      mean nats a scored token with both dropouts at DROPOUT
    keep/<site>       (layers, rows, width): what dropout keeps of rows of a single token
    schedule          (strategies, steps): rates of `schedule` at SCHEDULE_STEPS
    order             (steps, batch): rows of ORDER at ORDER_STEPS
    initial_sha256    of the initial weights' bytes, in the spec's order

weights, gradient, the rules and lion_m are flat: all parameters one after the other, in the spec's order.
"""

from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sconce.config.schema import Strategy
from sconce.data.batches import Batch
from sconce.data.order import shuffled_order
from sconce.optim import OptimSpec, Rule
from sconce.schedule import Schedule
from sconce.spec import ModelSpec

FILE = "golden.npz"
Floats = NDArray[np.float32]
ROWS, SEQ = 3, 12
SPEC = ModelSpec(
    vocab_size=47,
    hidden_size=16,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=16,
    qk_norm=True,
)
SEED = 20
STEP = 7  # updates done before the one that is checked, so that bias corrections matter
LEARNING_RATE = 0.5  # so large that rounding the new weight does not hide what was added to it
MAX_GRAD_NORM = 0.5  # below the gradient's norm, so that clipping matters
RULES: tuple[Rule, ...] = get_args(Rule)

DROPOUT = 0.25
DROPPED_ROWS = 4
DroppedBy = Literal["attn_dropout", "residual_dropout"]

SCHEDULE_STEPS = (0, 3, 10, 57, 80, 99)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
ORDER = shuffled_order(num_rows=1000, batch_size=8, seed=SEED)
ORDER_STEPS = (0, 1, 124, 125, 9999)  # 125 batches are an epoch

# One plain update without momentum from zero slots: the slot it leaves is the gradient itself.
PLAIN = OptimSpec(algorithm="sgd", momentum=0.0, weight_decay=0.0, max_grad_norm=0.0)


def optim_spec(rule: Rule) -> OptimSpec:
    """The optimizer of the checked update: weight decay and clipping both take part."""
    return OptimSpec(algorithm=rule, max_grad_norm=MAX_GRAD_NORM)


def schedule(strategy: Strategy) -> Schedule:
    """The schedule whose rates at SCHEDULE_STEPS are in the file."""
    return Schedule(
        strategy=strategy, peak_lr=1e-3, total_steps=100, warmup_steps=10, min_lr=1e-5, power=2.0, decay_steps=30
    )


def dropping(*fields: DroppedBy) -> ModelSpec:
    """The model with these dropout rates at DROPOUT."""
    return replace(SPEC, **dict.fromkeys(fields, DROPOUT))


def slots_before(optim: OptimSpec, gradients: dict[str, Floats]) -> dict[str, Floats]:
    """What the optimizer remembers before the checked update, "<slot>/<parameter>", made from the gradients.

    Any values of their size will do; shifted by one or two places they are no longer the gradients themselves.
    """
    slots: dict[str, Floats] = {}
    for param in SPEC.params():
        gradient = gradients[param.name]
        for slot in optim.slots(param):
            if slot == "adam_v":
                square = np.square(np.roll(gradient, 2))
                slots[f"{slot}/{param.name}"] = square + square.mean()
            else:
                slots[f"{slot}/{param.name}"] = np.roll(gradient, 1)
    return slots


class Golden:
    """The reference's values, by the names that the module lists."""

    def __init__(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        self.arrays = arrays
        self.weights = self.by_parameter("weights")
        self.gradients = self.by_parameter("gradient")
        self.batch = Batch(arrays["inputs"].astype(np.int32), arrays["targets"].astype(np.int32))

    def floats(self, name: str) -> Floats:
        """One array of numbers as float32."""
        return self.arrays[name].astype(np.float32)

    def by_parameter(self, name: str) -> dict[str, Floats]:
        """One flat array, cut into the parameters' shapes."""
        params = list(SPEC.params())
        ends = np.cumsum([param.size for param in params])
        pieces = np.split(self.floats(name), ends[:-1])
        return {param.name: piece.reshape(param.shape) for param, piece in zip(params, pieces, strict=True)}


@cache
def load_golden() -> Golden:
    """The values shipped with the package."""
    with files("sconce.conformance").joinpath(FILE).open("rb") as file, np.load(file) as arrays:
        return Golden({name: arrays[name] for name in arrays.files})
