"""The conformance kit: every backend passes, and every check sees the fault it is there for."""

from dataclasses import replace

import numpy as np
import pytest

from sconce.backend import ComputeOptions, StepMetrics
from sconce.conformance import golden, kit
from sconce.conformance.golden import RULES, optim_spec

CHECKS = ["loss a token", "decoder logits", "gradients", *(f"{rule} update" for rule in RULES)]
CHECKS += ["dropout mask", "dropout loss"]
UPDATES = {f"{rule} update" for rule in RULES}
SLIGHTLY = 1.001


class Faulty:
    """A backend, or what it gives out, that passes everything on; a test replaces what it breaks."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


def with_fault(backend, fault):
    """`backend` with learners that `fault(learner, spec, optim)` has seen."""

    def learner(spec, optim, run, weights):
        wrapped = Faulty(backend.learner(spec, optim, run, weights))
        fault(wrapped, spec, optim)
        return wrapped

    broken = Faulty(backend)
    broken.learner = learner
    return broken


def failed(backend, precision="fp32"):
    results = list(kit.check_backend(backend, ComputeOptions(precision=precision)))
    assert [result.check for result in results] == CHECKS
    return {result.check for result in results if not result.passed}


def change_tensors(learner, change):
    """Let the state be seen as `change(name, value)`."""
    learner.tensors = lambda: ((name, change(name, value.copy())) for name, value in learner.inner.tensors())


def change_steps(learner, change):
    """Let `step` be called with what `change(batches, scalars)` returns."""
    learner.step = lambda batches, scalars: learner.inner.step(*change(batches, scalars))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_backend_passes(backend, precision):
    assert failed(backend, precision) == set()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bf16_is_not_compared_with_itself(backend, precision):
    """float32 is exact to 1e-6, bfloat16 cannot be: the precision that was asked for is the one that ran."""
    results = {r.check: r.error for r in kit.check_backend(backend, ComputeOptions(precision=precision))}
    assert (results["decoder logits"] > 1e-3) == (precision == "bf16")


def test_tf32_does_not_pass_for_float32(backend):
    """Weights rounded to ten bits after the leading one, as a TF32 matmul reads them."""

    def learner(spec, optim, run, weights):
        bits = {
            name: value.view(np.uint32) + np.uint32(2**12) & ~np.uint32(2**13 - 1) for name, value in weights.items()
        }
        return backend.learner(spec, optim, run, {name: value.view(np.float32) for name, value in bits.items()})

    broken = Faulty(backend)
    broken.learner = learner
    assert {"loss a token", "decoder logits", "gradients"} <= failed(broken)


def test_wrong_losses_are_seen(backend):
    def fault(learner, *_):
        learner.nats = lambda batch: learner.inner.nats(batch) * np.float32(SLIGHTLY)

    assert failed(with_fault(backend, fault)) == {"loss a token"}


def test_a_loss_that_is_no_number_is_seen(backend):
    def fault(learner, *_):
        learner.nats = lambda batch: learner.inner.nats(batch) * np.float32(np.nan)

    assert failed(with_fault(backend, fault)) == {"loss a token"}


def test_a_cache_that_forgets_is_seen(backend):
    """The first feed is right, and the decoder starts anew at each later one."""

    def fault(learner, *_):
        def decoder(rows, max_len):
            wrapped = Faulty(None)
            wrapped.feed = lambda tokens: learner.inner.decoder(rows, max_len).feed(tokens)
            return wrapped

        learner.decoder = decoder

    assert failed(with_fault(backend, fault)) == {"decoder logits"}


def test_one_wrong_gradient_is_seen(backend):
    def fault(learner, *_):
        wrong = "sgd_m/model.layers.1.self_attn.q_norm.weight"
        change_tensors(learner, lambda name, value: value * np.float32(SLIGHTLY if name == wrong else 1))

    assert failed(with_fault(backend, fault)) == {"gradients"}


def test_a_forgotten_micro_batch_is_seen(backend):
    def fault(learner, *_):
        change_steps(learner, lambda batches, scalars: (batches[:1], scalars))

    assert failed(with_fault(backend, fault)) == {"gradients"}


def test_wrong_gradients_show_in_all_that_is_made_of_them(backend):
    """One target of 31 is another token; the forward pass and the masks do not depend on it."""

    def other_target(batches, scalars):
        changed = [batch._replace(targets=batch.targets.copy()) for batch in batches]
        if changed[0].targets.shape[1] > 1:
            changed[0].targets[0, 0] = (changed[0].targets[0, 0] + 1) % 47
        return changed, scalars

    broken = with_fault(backend, lambda learner, *_: change_steps(learner, other_target))
    assert failed(broken) == {"gradients", "dropout loss", *UPDATES}


@pytest.mark.parametrize("rule", RULES)
def test_a_wrong_update_is_seen(backend, rule):
    """The rate of this one rule is off by a thousandth."""

    def fault(learner, spec, optim):
        if optim == optim_spec(rule):
            change_steps(
                learner,
                lambda batches, scalars: (
                    batches,
                    replace(scalars, learning_rate=scalars.learning_rate * SLIGHTLY),
                ),
            )

    assert failed(with_fault(backend, fault)) == {f"{rule} update"}


def test_a_wrong_slot_of_lion_is_seen(backend):
    def fault(learner, *_):
        change_tensors(learner, lambda name, value: value * np.float32(SLIGHTLY if name.startswith("lion_m/") else 1))

    assert failed(with_fault(backend, fault)) == {"lion update"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_flipped_sign_of_lion_is_seen(backend, precision):
    def flip(name, value):
        if name == "model/model.norm.weight":
            value[3] += 2 * golden.LEARNING_RATE * (-1 if value[3] > golden.load_golden().weights[name[6:]][3] else 1)
        return value

    def fault(learner, spec, optim):
        if optim.algorithm == "lion":
            change_tensors(learner, flip)

    assert failed(with_fault(backend, fault), precision) == {"lion update"}


@pytest.mark.parametrize(("precision", "most"), [("fp32", 0.001), ("bf16", 0.02)])
def test_few_signs_of_lion_are_left_out(backend, precision, most):
    bench = kit.Bench(backend, ComputeOptions(precision=precision))
    known = np.concatenate([part.ravel() for part in kit._signs_known(bench, optim_spec("lion")).values()])
    assert 1 - known.mean() <= most


def test_a_wrong_mask_is_seen(backend):
    def fault(learner, *_):
        change_steps(learner, lambda batches, scalars: (batches, replace(scalars, seed=scalars.seed + 1)))

    assert failed(with_fault(backend, fault)) == {"dropout mask", "dropout loss"}


def test_a_wrong_training_loss_is_seen(backend):
    def fault(learner, spec, optim):
        def step(batches, scalars):
            metrics = learner.inner.step(batches, scalars).read()
            pending = Faulty(None)
            pending.read = lambda: StepMetrics(metrics.loss * SLIGHTLY, metrics.grad_norm, metrics.tokens)
            return pending

        learner.step = step

    assert failed(with_fault(backend, fault)) == {"dropout loss"}
