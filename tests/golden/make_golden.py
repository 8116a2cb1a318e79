"""Write sconce/conformance/golden.npz: PYTHONPATH=.:tests python -m golden.make_golden

All in numpy float64, none of it by a backend. What is exact by definition (the shuffle, the initial weights, the
dropout mask) comes from the core itself: there the file is what other machines must reproduce.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
from golden.gradients import loss_and_gradients
from reference import logits, token_nats

from sconce.conformance import golden
from sconce.conformance.golden import SPEC
from sconce.data.batches import Batch
from sconce.dropout import keep_mask, row_keys
from sconce.init import InitialWeights
from sconce.optim import MUON_RMS, NEWTON_SCHULZ, NEWTON_SCHULZ_EPS, NEWTON_SCHULZ_ROUNDS

FILE = Path(golden.__file__).with_name(golden.FILE)


def make_case():
    rng = np.random.default_rng(golden.SEED)
    initial = InitialWeights(SPEC, golden.SEED)
    weights = {name: (initial[name] + 0.2 * rng.standard_normal(initial[name].shape)).astype("f4") for name in initial}
    tokens = rng.integers(0, SPEC.vocab_size, (golden.ROWS, golden.SEQ + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[0, 4] = targets[1, -1] = targets[2, :3] = -1
    return weights, Batch(tokens[:, :-1].copy(), targets)


def newton_schulz(matrix):
    """Jordan et al. 2024, on singular values: the same odd polynomial of each, with no matrix iteration."""
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    singular = singular / max(math.sqrt((singular**2).sum()), NEWTON_SCHULZ_EPS)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        singular = a * singular + b * singular**3 + c * singular**5
    return left * singular @ right


def adam(optim, p, g, decay, slots, coupled):
    t, lr = golden.STEP + 1, golden.LEARNING_RATE
    g = g + decay * p if coupled else g
    m = optim.beta1 * slots["adam_m"] + (1 - optim.beta1) * g
    v = optim.beta2 * slots["adam_v"] + (1 - optim.beta2) * g**2
    direction = m / (1 - optim.beta1**t) / (np.sqrt(v / (1 - optim.beta2**t)) + optim.eps)
    return -lr * direction - (0 if coupled else lr * decay) * p


def change(optim, rule, p, g, decay, slots):
    """What the update adds to p. The formulas are those of `OptimSpec`'s docstring."""
    lr = golden.LEARNING_RATE
    if rule in ("adam_w", "adam"):
        return adam(optim, p, g, decay, slots, coupled=rule == "adam")
    if rule == "sgd":
        return -lr * (optim.momentum * slots["sgd_m"] + g + decay * p)
    if rule == "lion":
        return -lr * decay * p - lr * np.sign(optim.beta1 * slots["lion_m"] + (1 - optim.beta1) * g)
    mu = optim.momentum
    m = mu * slots["muon_m"] + (1 - mu) * g
    direction = newton_schulz(mu * m + (1 - mu) * g)
    return -lr * decay * p - lr * MUON_RMS * math.sqrt(max(p.shape)) * direction


def updates(weights, grads):
    """What each rule adds to the parameters, and lion's slot after it, by parameter."""
    norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
    assert norm > 2 * golden.MAX_GRAD_NORM, f"clipping must matter: the norm is {norm}"
    scale = (norm + 1e-6) / golden.MAX_GRAD_NORM
    shipped = {name: g.astype(np.float32) for name, g in grads.items()}  # slots are made from what a reader has
    out = {name: {} for name in (*golden.RULES, "lion_m")}
    for name in golden.RULES:
        optim = golden.optim_spec(name)
        before = golden.slots_before(optim, shipped)
        for param in SPEC.params():
            slots = {slot: before[f"{slot}/{param.name}"].astype(np.float64) for slot in optim.slots(param)}
            p, g = weights[param.name].astype(np.float64), grads[param.name] / scale
            out[name][param.name] = change(optim, optim.rule(param), p, g, optim.decay(param), slots)
            if name == "lion":
                out["lion_m"][param.name] = optim.beta2 * slots["lion_m"] + (1 - optim.beta2) * g
    return out


def flat(values):
    """All parameters, one after the other, in the spec's order."""
    return np.concatenate([values[param.name].ravel() for param in SPEC.params()])


def keeps():
    """Masks over rows of one token, (layers, rows, width) by site."""
    keys = row_keys(golden.SEED, golden.STEP, 0, golden.DROPPED_ROWS)
    widths = {"attention": SPEC.num_heads, "attention_output": SPEC.hidden_size, "mlp_output": SPEC.hidden_size}
    return {
        f"keep/{site}": np.stack(
            [keep_mask(keys, layer, site, width, golden.DROPOUT) for layer in range(SPEC.num_layers)]
        )
        for site, width in widths.items()
    }


def rate(strategy, step):
    """The rates of `golden.schedule`, written out anew."""
    if step < 10:
        return 1e-3 * (step + 1) / 10
    through = (step - 10) / 90
    left = {
        "constant": 1.0,
        "linear_warmup": 1.0,
        "cosine": math.cos(math.pi / 2 * through) ** 2,
        "cosine_with_warmup": math.cos(math.pi / 2 * through) ** 2,
        "polynomial": (1 - through) ** 2,
        "wsd": 1 - math.sqrt(max(0, step - 70) / 30),
    }
    return 1e-5 + (1e-3 - 1e-5) * left[strategy]


def make() -> dict[str, np.ndarray]:
    """Every array of the file; its docstring is that of `sconce.conformance.golden`."""
    weights, batch = make_case()
    _, _, grads = loss_and_gradients(SPEC, weights, batch)
    out = logits(SPEC, weights, batch.inputs)
    dropping = golden.dropping("attn_dropout", "residual_dropout")
    dropout_loss, _, _ = loss_and_gradients(dropping, weights, batch, golden.SEED, golden.STEP)
    initial = InitialWeights(SPEC, golden.SEED)
    floats = {"nats": token_nats(out, batch.targets), "logits": out, "dropout_loss": np.array(dropout_loss)}
    floats |= {"weights": flat(weights), "gradient": flat(grads)}
    floats |= {name: flat(values) for name, values in updates(weights, grads).items()}
    digest = hashlib.sha256(b"".join(initial[name].astype("<f4").tobytes() for name in initial)).hexdigest()
    return {
        **{name: value.astype(np.float32) for name, value in floats.items()},
        **keeps(),
        "inputs": batch.inputs,
        "targets": batch.targets,
        "schedule": np.array([[rate(s, step) for step in golden.SCHEDULE_STEPS] for s in golden.STRATEGIES]),
        "order": np.stack([golden.ORDER.rows(step) for step in golden.ORDER_STEPS]),
        "initial_sha256": np.array(digest),
    }


if __name__ == "__main__":
    np.savez_compressed(FILE, **make())
    print(f"{FILE}: {FILE.stat().st_size} bytes")
