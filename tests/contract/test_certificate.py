"""The resume certificate: what it lets pass, and what it does not, from any backend to any other."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import INSTALLED, make_spec, random_weights

from sconce.backend import ComputeOptions, load_backend
from sconce.checkpoint.record import IMPORTED, Checkpoint
from sconce.data.order import shuffled_order
from sconce.data.rows import ConcatRows
from sconce.errors import CheckpointError
from sconce.optim import OptimSpec
from sconce.training.certificate import Witness, certify, check_certificate

SPEC = make_spec(num_kv_heads=2, qk_norm=True)
SEQ, ROWS, STEP = 24, 40, 3
TOKENS = np.random.default_rng(0).integers(0, SPEC.vocab_size, SEQ * ROWS + 1).astype(np.int32)
STORE = SimpleNamespace(
    num_tokens=len(TOKENS),
    read_rows=lambda starts, count: TOKENS[starts[:, None] + np.arange(count)],
)
PAIRS = [(here, there) for here in INSTALLED for there in INSTALLED]


def witness(hardware, precision="fp32", weights=None, seed=5, micro_batch_size=4, spec=SPEC):
    backend = load_backend(hardware)
    compute = ComputeOptions(precision=precision, compile=False)
    return Witness(
        learner=backend.learner(spec, OptimSpec(), compute, weights or random_weights(spec)),
        device=backend.device(),
        precision=precision,
        rows=ConcatRows(STORE, SEQ),
        order=shuffled_order(ROWS, 8, seed),
        micro_batch_size=micro_batch_size,
    )


def saved(writer, **changes):
    """What a checkpoint of `writer` says, as far as its certificate goes."""
    device = writer.device
    facts = {"kind": device.kind, "name": device.name, "version": device.version}
    record = Checkpoint(
        step=STEP,
        tokens=0,
        cursor={},
        best=None,
        certificate=certify(writer, STEP),
        backend=device.backend,
        precision=writer.precision,
        versions={},
        hardware=facts,
    )
    return SimpleNamespace(path=Path("run/checkpoints/step-00000003"), record=replace(record, **changes))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_the_same_model_and_data_pass_anywhere(there, here, precision):
    loaded = saved(witness(there, precision))
    assert "has the loss it had" in check_certificate(witness(here, precision, micro_batch_size=2), loaded)
    for other in ("fp32", "bf16"):
        assert "has the loss it had" in check_certificate(witness(here, other), loaded)


# Another number for each way of writing weights: what the coarser rounding hides is not seen.
@pytest.mark.parametrize(("precision", "off_by"), [("fp32", 1.003), ("fp16", 1.1), ("bf16", 1.7)])
@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_a_norm_that_is_off_does_not_pass(there, here, precision, off_by):
    weights = random_weights(SPEC)
    weights["model.layers.1.input_layernorm.weight"] *= off_by
    with pytest.raises(CheckpointError, match=r"certificate failed.*which rounding does not explain"):
        check_certificate(witness(here, precision, weights), saved(witness(there, precision)))


@pytest.mark.parametrize("hardware", INSTALLED)
def test_another_rotary_base_does_not_pass(hardware):
    with pytest.raises(CheckpointError, match=r"what model\.\* makes of them"):
        check_certificate(witness(hardware, spec=replace(SPEC, rope_theta=1000.0)), saved(witness(hardware)))


@pytest.mark.parametrize("hardware", INSTALLED)
def test_another_seed_or_other_tokens_do_not_pass(hardware, monkeypatch):
    loaded = saved(witness(hardware))
    with pytest.raises(CheckpointError, match="the next rows are others"):
        check_certificate(witness(hardware, seed=6), loaded)
    monkeypatch.setitem(globals(), "TOKENS", np.roll(TOKENS, 1))
    with pytest.raises(CheckpointError, match="hold other tokens"):
        check_certificate(witness(hardware), loaded)


class Losses:
    """A learner with these losses, whatever the batch."""

    def __init__(self, nats):
        self.values = nats

    def nats(self, batch):
        return self.values[: len(batch.inputs)].astype(np.float32)


def test_losses_that_are_equal_in_the_mean_alone_do_not_pass():
    nats = np.random.default_rng(1).uniform(1, 5, (4, SEQ))
    writer = replace(witness(INSTALLED[0]), learner=Losses(nats))
    loaded = saved(writer)
    assert "has the loss it had" in check_certificate(writer, loaded)
    exchanged = nats.copy()
    exchanged[0, [3, 7]] = nats[0, [7, 3]]
    with pytest.raises(CheckpointError, match=r"token [48] of row .* which rounding does not explain"):
        check_certificate(replace(writer, learner=Losses(exchanged)), loaded)


def test_one_device_is_held_to_more_than_another():
    nats = np.random.default_rng(1).uniform(1, 5, (4, SEQ))
    writer = replace(witness(INSTALLED[0]), learner=Losses(nats))
    loaded, here = saved(writer), replace(writer, learner=Losses(nats + 5e-5))
    with pytest.raises(CheckpointError, match=r"allowed 1e-05"):
        check_certificate(here, loaded)
    for fact in ("name", "version", "kind"):
        moved = replace(here, device=replace(here.device, **{fact: "another"}))
        assert "has the loss it had" in check_certificate(moved, loaded)


def test_only_an_imported_checkpoint_may_lack_one():
    writer = witness(INSTALLED[0])
    with pytest.raises(CheckpointError, match="it has none"):
        check_certificate(writer, saved(writer, certificate=None))
    found = check_certificate(writer, saved(writer, certificate=None, backend=IMPORTED))
    assert "nothing to compare with" in found
