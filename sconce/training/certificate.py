"""The resume certificate: proof by one forward pass that a checkpoint is taken up as it was put down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sconce.backend import DeviceInfo, Learner
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.checkpoint.record import Certificate, Checkpoint
from sconce.data.batches import Batch, rows_sha256
from sconce.data.order import Order
from sconce.data.rows import NumberedRows, read_in_parts
from sconce.errors import CheckpointError

TOKENS = 256  # of the first row, whose losses are kept one by one


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What rounding explains: the largest difference of the mean loss and of one token's, in nats."""

    mean: float
    token: float


# Measured between torch and MLX, both on a CPU: fp32 up to 2e-6 in the mean and 3e-6 in a token, bf16 and any pair with
# it 5e-4 and 3e-2, fp16 2e-5 and 2e-3; on one device nothing, and in fp32 1e-7 in the mean with another micro-batch.
# The rest is room for GPUs. For comparison: one norm off by a thousandth moves a small model's mean by 1e-4.
SAME_DEVICE = {"fp32": Tolerance(1e-5, 1e-4), "fp16": Tolerance(2e-4, 5e-3), "bf16": Tolerance(1e-3, 5e-2)}
OTHER_DEVICE = {"fp32": Tolerance(1e-4, 5e-4), "fp16": Tolerance(1e-3, 2e-2), "bf16": Tolerance(5e-3, 1.5e-1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What a certificate is made of: a model on a device, and the rows that come next, or came `steps_back` before."""

    learner: Learner
    device: DeviceInfo
    precision: str
    rows: NumberedRows
    order: Order
    micro_batch_size: int
    steps_back: int = 0

    def update(self, step: int) -> int:
        """After how many updates the one comes whose first micro-batch certifies a run after `step` updates."""
        return max(0, step - self.steps_back)

    def batches(self, rows: NDArray[np.int64], step: int) -> list[Batch]:
        """The rows of the update after `step` updates, as many at a time as the device holds."""
        return read_in_parts(self.rows, rows, self.order.parts(step), self.micro_batch_size)

    def losses(self, batches: Sequence[Batch]) -> tuple[float, NDArray[np.float64]]:
        """Mean nats a token at the present weights, and the first row's first TOKENS one by one."""
        nats = [self.learner.nats(batch).astype(np.float64) for batch in batches]
        scored = sum(int((batch.targets >= 0).sum()) for batch in batches)
        return sum(float(part.sum()) for part in nats) / scored, nats[0][0, :TOKENS]


def certify(witness: Witness, step: int) -> Certificate:
    """The certificate of a run after `step` updates."""
    update = witness.update(step)
    rows = witness.order.rows(update)[: witness.micro_batch_size]
    batches = witness.batches(rows, update)
    loss, nats = witness.losses(batches)
    # Six decimals are finer than any tolerance, and keep the manifest short.
    return Certificate(tuple(rows.tolist()), rows_sha256(rows, batches), loss, tuple(np.round(nats, 6).tolist()))


def check_certificate(witness: Witness, loaded: LoadedCheckpoint) -> str:
    """Reproduce the checkpoint's certificate; what was found, for people.

    It speaks of the data and of what the model computes; the optimizer's moments are vouched for by their file's hash
    alone. Raises CheckpointError, naming what differs: the order of the rows, their tokens, or the model's losses.
    """
    expected = loaded.record.certificate
    if expected is None:
        if not loaded.record.is_imported:
            raise _failed(loaded, "it has none, and only an imported checkpoint may lack it")
        return "none in this checkpoint (it was imported), so nothing to compare with"
    rows = np.array(expected.rows, np.int64)
    update = witness.update(loaded.record.step)
    if witness.order.rows(update)[: len(rows)].tolist() != list(expected.rows):
        raise _failed(loaded, "the next rows are others than when it was saved: the seed or the number of rows differs")
    batches = witness.batches(rows, update)
    if rows_sha256(rows, batches) != expected.tokens_sha256:
        raise _failed(
            loaded, f"rows {', '.join(map(str, expected.rows[:4]))} ... hold other tokens than when it was saved"
        )
    loss, nats = witness.losses(batches)
    if not expected.is_finite:
        return _meet_diverged(loss, witness, loaded)
    which = "last" if witness.steps_back else "next"
    allowed = tolerance(loaded.record, witness.device, witness.precision)
    difference = abs(loss - expected.loss)
    if not difference <= allowed.mean:
        raise _failed(
            loaded,
            f"the {which} micro-batch has loss {loss:.6f} here and had {expected.loss:.6f} when it was saved, which "
            f"rounding does not explain (allowed {allowed.mean:g}): {CULPRITS}",
        )
    apart = np.abs(nats - np.array(expected.nats))
    worst = int(apart.argmax())
    if not apart[worst] <= allowed.token:
        raise _failed(
            loaded,
            f"token {worst + 1} of row {expected.rows[0]} has loss {nats[worst]:.6f} here and had "
            f"{expected.nats[worst]:.6f} when it was saved, which rounding does not explain (allowed "
            f"{allowed.token:g}): {CULPRITS}",
        )
    return (
        f"the {which} micro-batch has the loss it had, {loss:.6f} (off by {difference:.1e} of {allowed.mean:g}; "
        f"of {len(nats)} tokens none by more than {apart[worst]:.1e} of {allowed.token:g})"
    )


def _meet_diverged(loss: float, witness: Witness, loaded: LoadedCheckpoint) -> str:
    if not math.isfinite(loss):
        raise CheckpointError(
            f"{loaded.path}: gives no loss, as when it was saved: training had diverged, and in {witness.precision} "
            "nothing can be trained from here: rename it, for the checkpoint before to be taken"
        )
    before = loaded.record.precision
    return f"in {before}, when it was saved, it gave no loss; in {witness.precision} it gives {loss:.6f}"


CULPRITS = (
    "the weights, or what model.* makes of them, differ; or this backend computes wrongly, which `sconce doctor` shows"
)


def tolerance(record: Checkpoint, device: DeviceInfo, precision: str) -> Tolerance:
    """How far apart the losses may be, by the coarser of the two precisions and by whether the device is another.

    Another version of the framework, or another precision, counts as another device: rounding no longer cancels.
    """
    there = (record.backend, record.precision, *(record.hardware.get(fact) for fact in ("kind", "name", "version")))
    same = there == (device.backend, precision, device.kind, device.name, device.version)
    table = SAME_DEVICE if same else OTHER_DEVICE
    return max(table[record.precision], table[precision], key=lambda allowed: allowed.mean)


def _failed(loaded: LoadedCheckpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"{loaded.path}: certificate failed: {what}. Restore what differs, or give --no-certificate to go on all the "
        "same, as another run than the one that was saved"
    )
