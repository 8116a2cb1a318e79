"""The checks: what a backend computes beside the reference's values, and what is exact on any machine.

An error is the largest difference in a tensor over the largest value in it, and of a check the worst tensor's.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sconce.backend import WEIGHTS, Backend, ComputeOptions, Learner, Precision, StepMetrics, StepScalars, TensorSource
from sconce.conformance.golden import (
    DROPOUT,
    DROPPED_ROWS,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    ORDER,
    ORDER_STEPS,
    PLAIN,
    ROWS,
    RULES,
    SCHEDULE_STEPS,
    SEED,
    SEQ,
    SPEC,
    STEP,
    STRATEGIES,
    DroppedBy,
    Floats,
    dropping,
    load_golden,
    optim_spec,
    schedule,
    slots_before,
)
from sconce.data.batches import Batch
from sconce.dropout import SITES, keep_mask, row_keys
from sconce.init import InitialWeights
from sconce.optim import OptimSpec, Rule
from sconce.schedule import learning_rate
from sconce.spec import ModelSpec

Numbers = NDArray[np.generic] | Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One check: `error` is not a number, or infinite, where the backend's value was; `where` is the worst tensor."""

    check: str
    error: float
    tolerance: float
    where: str = ""

    @property
    def passed(self) -> bool:
        """Within the tolerance; an error that is not a number never is."""
        return self.error <= self.tolerance


def as_json(result: Result) -> dict[str, object]:
    """A result with its verdict. JSON has no infinity: an error that is no number is null."""
    error = result.error if math.isfinite(result.error) else None
    return {**asdict(result), "error": error, "passed": result.passed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """How far a right answer may be off, relative to the tensor's largest value."""

    forward: float
    mean_loss: float
    gradient: float
    update: float


TOLERANCES: dict[Precision, Tolerances] = {
    # Float32 rounds at 6e-8, some hundred roundings deep; measured on CPUs 5e-7 in the forward pass, 2e-6 in gradients
    # and 5e-6 in updates. The rest is room for GPUs, with their own orders of summation and fast sin, cos and exp. A
    # wrong formula is off by percents; weights rounded as TF32 rounds them (5e-4) do not pass for float32 either.
    "fp32": Tolerances(forward=1e-4, mean_loss=5e-5, gradient=2e-4, update=2e-4),
    # bfloat16 rounds at 4e-3, some thirty times on the way through two layers and twice as often back; measured 2e-2
    # forward, 6e-4 in a loss averaged over tokens, and 5e-2 in the gradient that cancels most (k_norm's). The update
    # is float32 and takes over a tenth of the gradient's error: measured 7e-3.
    "bf16": Tolerances(forward=5e-2, mean_loss=3e-3, gradient=1.5e-1, update=3e-2),
    # float16 rounds eight times finer than bfloat16.
    "fp16": Tolerances(forward=1e-2, mean_loss=5e-4, gradient=2e-2, update=5e-3),
}


class Bench:
    """One backend in one precision, and learners of the golden model on it."""

    def __init__(self, backend: Backend, run: ComputeOptions) -> None:
        self.backend = backend
        self.run = run
        self.golden = load_golden()
        self.tolerances = TOLERANCES[run.precision]

    def learner(self, optim: OptimSpec = PLAIN, spec: ModelSpec = SPEC) -> Learner:
        """A learner with the golden weights."""
        return self.backend.learner(spec, optim, self.run, self.golden.weights)

    def gradients(self, learner: Learner, *batches: Batch) -> tuple[StepMetrics, dict[str, Floats]]:
        """Figures and gradients of one training step that moves nothing, its learning rate being 0."""
        scalars = StepScalars(step=STEP, learning_rate=0.0, seed=SEED)
        metrics = learner.step(batches, scalars).read()
        # As in training, an update that overflows fp16 is skipped and halves the loss scale, here down to 1 at most.
        halvings = 15 if self.run.precision == "fp16" else 0
        while halvings and not math.isfinite(metrics.grad_norm):
            metrics = learner.step(batches, scalars).read()
            halvings -= 1
        return metrics, _part(learner, "sgd_m")


def check_backend(backend: Backend, run: ComputeOptions) -> Iterator[Result]:
    """Every check of a backend in one precision, each as it is done; what the backend raises passes through."""
    bench = Bench(backend, run)
    for check in (_loss, _logits, _gradients):
        yield check(bench)
    for rule in RULES:
        yield _update(bench, rule)
    yield _dropout_mask(bench)
    yield _dropout_loss(bench)


def check_host() -> Iterator[Result]:
    """What numpy and Python compute on this machine, for every backend alike."""
    golden = load_golden()
    rates = {str(name): [learning_rate(schedule(name), step) for step in SCHEDULE_STEPS] for name in STRATEGIES}
    expected = {str(name): golden.arrays["schedule"][row] for row, name in enumerate(STRATEGIES)}
    # Float64 rounds at 1e-16; a platform's cos and sqrt may differ in their last bits.
    yield _worst("schedules", 1e-12, rates, expected)
    order = np.stack([ORDER.rows(step) for step in ORDER_STEPS])
    yield _exact("data order", {"rows": order}, {"rows": golden.arrays["order"]})
    initial = InitialWeights(SPEC, SEED)
    digest = hashlib.sha256(b"".join(initial[name].astype("<f4").tobytes() for name in initial)).hexdigest()
    yield Result(check="initial weights", error=float(digest != str(golden.arrays["initial_sha256"])), tolerance=0.0)
    keys = row_keys(SEED, STEP, 0, DROPPED_ROWS)
    masks = {f"{site}": golden.arrays[f"keep/{site}"] for site in SITES}
    here: dict[str, NDArray[np.bool_]] = {}
    for site in SITES:
        width = masks[site].shape[-1]
        layers = [keep_mask(keys, layer, site, width, DROPOUT) for layer in range(SPEC.num_layers)]
        here[site] = np.stack(layers)
    yield _exact("dropout mask", here, masks)


def _loss(bench: Bench) -> Result:
    here = {"nats": bench.learner().nats(bench.golden.batch)}
    return _worst("loss a token", bench.tolerances.forward, here, {"nats": bench.golden.floats("nats")})


def _logits(bench: Bench) -> Result:
    """A prompt of several tokens at once, then one token after the other through the cache."""
    decoder = bench.learner().decoder(ROWS, SEQ)
    tokens, expected = bench.golden.batch.inputs, bench.golden.floats("logits")
    cuts = [0, SEQ // 2, *range(SEQ // 2 + 1, SEQ + 1)]
    here = {f"position {end - 1}": decoder.feed(tokens[:, start:end]) for start, end in pairwise(cuts)}
    return _worst(
        "decoder logits", bench.tolerances.forward, here, {f"position {t}": expected[:, t] for t in range(SEQ)}
    )


def _gradients(bench: Bench) -> Result:
    """Over two unequal micro-batches, which must not show."""
    golden = bench.golden
    first, rest = (Batch(golden.batch.inputs[rows], golden.batch.targets[rows]) for rows in (slice(2), slice(2, None)))
    metrics, here = bench.gradients(bench.learner(), first, rest)
    norm = np.array(math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in golden.gradients.values())))
    expected = {**golden.gradients, "the norm": norm}
    return _worst("gradients", bench.tolerances.gradient, {**here, "the norm": np.array(metrics.grad_norm)}, expected)


def _update(bench: Bench, rule: Rule) -> Result:
    """One clipped update with weight decay, from slots that are not zero."""
    golden, optim = bench.golden, optim_spec(rule)
    learner = bench.learner(optim)
    state: TensorSource = {f"{WEIGHTS}/{name}": value for name, value in golden.weights.items()}
    learner.load({**state, **slots_before(optim, golden.gradients)}, STEP)
    learner.step([golden.batch], StepScalars(step=STEP, learning_rate=LEARNING_RATE, seed=SEED)).read()
    here = {name: after - golden.weights[name] for name, after in _part(learner, WEIGHTS).items()}
    expected = golden.by_parameter(rule)
    if rule == "lion":
        for name, known in _signs_known(bench, optim).items():
            here[name], expected[name] = here[name][known], expected[name][known]
        here |= {f"slot of {name}": slot for name, slot in _part(learner, "lion_m").items()}
        expected |= {f"slot of {name}": slot for name, slot in golden.by_parameter("lion_m").items()}
    return _worst(f"{rule} update", bench.tolerances.update, here, expected)


def _signs_known(bench: Bench, optim: OptimSpec) -> dict[str, NDArray[np.bool_]]:
    """Where lion's sign is certain, by parameter.

    A gradient within its own tolerance moves the sign's argument by up to `reach`; an argument nearer to zero than
    that may rightly come out on either side, and its element of the update is not compared: none of them in
    float32, one in fifty in bfloat16.
    """
    gradients = bench.golden.gradients
    slots = slots_before(optim, gradients)
    norm = math.sqrt(sum(float(np.square(g).sum()) for g in gradients.values()))
    known: dict[str, NDArray[np.bool_]] = {}
    for name, gradient in gradients.items():
        clipped = gradient * (MAX_GRAD_NORM / norm)
        argument = optim.beta1 * slots[f"lion_m/{name}"] + (1 - optim.beta1) * clipped
        reach = (1 - optim.beta1) * bench.tolerances.gradient * np.abs(clipped).max()
        known[name] = np.abs(argument) > reach
    return known


def _dropout_mask(bench: Bench) -> Result:
    """Bit by bit, from zeros in the gradients: with one token a row, what is dropped gives its weights none.

    In the output projections' gradients, rows of zeros are dropped outputs, and columns dropped heads.
    """
    golden = bench.golden
    shape = (SPEC.num_layers, DROPPED_ROWS)
    here: dict[str, NDArray[np.bool_]] = {
        site: np.zeros(golden.arrays[f"keep/{site}"].shape, np.bool_) for site in SITES
    }
    cases: tuple[DroppedBy, ...] = ("attn_dropout", "residual_dropout")
    for dropped_by in cases:
        learner = bench.learner(spec=dropping(dropped_by))
        for row in range(shape[1]):
            _, gradients = bench.gradients(learner, _one_scored_token(row))
            for layer in range(shape[0]):
                prefix = f"model.layers.{layer}."
                attention = gradients[prefix + "self_attn.o_proj.weight"] != 0
                if dropped_by == "attn_dropout":
                    here["attention"][layer, row] = attention.reshape(-1, SPEC.num_heads, SPEC.head_dim).any((0, 2))
                else:
                    here["attention_output"][layer, row] = attention.any(1)
                    here["mlp_output"][layer, row] = (gradients[prefix + "mlp.down_proj.weight"] != 0).any(1)
    return _exact("dropout mask", here, {site: golden.arrays[f"keep/{site}"] for site in SITES})


def _one_scored_token(row: int) -> Batch:
    """DROPPED_ROWS rows of one token, of which only `row` is scored."""
    inputs = np.arange(1, DROPPED_ROWS + 1, dtype=np.int32)[:, None]
    targets = np.where(np.arange(DROPPED_ROWS) == row, 0, -1).astype(np.int32)[:, None]
    return Batch(inputs, targets)


def _dropout_loss(bench: Bench) -> Result:
    learner = bench.learner(spec=dropping("attn_dropout", "residual_dropout"))
    metrics, _ = bench.gradients(learner, bench.golden.batch)
    expected = {"loss": bench.golden.floats("dropout_loss")}
    return _worst("dropout loss", bench.tolerances.mean_loss, {"loss": np.array(metrics.loss)}, expected)


def _part(learner: Learner, part: str) -> dict[str, Floats]:
    """Copies of the state's tensors under `part`, by parameter."""
    names = ((*name.split("/", 1), value) for name, value in learner.tensors())
    return {parameter: value.copy() for found, parameter, value in names if found == part}


def _worst(check: str, tolerance: float, here: Mapping[str, Numbers], expected: Mapping[str, Numbers]) -> Result:
    """The tensor of `here` that is furthest from `expected`, relative to the latter's largest value."""
    errors = {name: _relative_error(value, expected[name]) for name, value in here.items()}
    where = max(errors, key=errors.__getitem__)
    return Result(check=check, error=errors[where], tolerance=tolerance, where=where)


def _relative_error(here: Numbers, expected: Numbers) -> float:
    """Infinite where a value is not a number or the shapes differ, so that it sorts as the worst."""
    reference = np.asarray(expected, np.float64)
    difference = np.asarray(here, np.float64)
    if difference.shape != reference.shape or not np.isfinite(difference).all():
        return math.inf
    return float(np.abs(difference - reference).max() / np.abs(reference).max())


def _exact(check: str, here: Mapping[str, NDArray[np.generic]], expected: Mapping[str, NDArray[np.generic]]) -> Result:
    """How many elements differ; none may."""
    differing = {name: float((value != expected[name]).sum()) for name, value in here.items()}
    where = max(differing, key=differing.__getitem__)
    return Result(check=check, error=sum(differing.values()), tolerance=0.0, where=where)
