"""The resume certificate: proof by one forward pass that a checkpoint is taken up as it was put down."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sconce.backend import DeviceInfo, Learner
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.checkpoint.record import Certificate, Checkpoint
from sconce.data.batches import Batch, read_batch, rows_sha256
from sconce.data.order import TrainOrder
from sconce.data.shards import TokenStore
from sconce.errors import CheckpointError

# Largest difference of the mean loss, in nats a token, that rounding explains. Measured from torch to MLX, both on a
# CPU: up to 2e-6 in fp32, 5e-4 in bf16 and between the two; on one device nothing, and 1e-7 in fp32 with another
# micro-batch. The rest is room for GPUs. For comparison: one norm off by a thousandth costs a small model 1e-4.
# fp16 rounds eight times finer than bf16.
SAME_DEVICE = {"fp32": 1e-5, "fp16": 2e-4, "bf16": 1e-3}
OTHER_DEVICE = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 5e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What a certificate is made of: a model on a device, and the rows that come next."""

    learner: Learner
    device: DeviceInfo
    precision: str
    tokens: TokenStore
    order: TrainOrder
    seq_len: int
    micro_batch_size: int

    def batches(self, rows: NDArray[np.int64]) -> list[Batch]:
        """The rows, as many at a time as the device holds."""
        size = self.micro_batch_size
        return [read_batch(self.tokens, rows[i : i + size], self.seq_len) for i in range(0, len(rows), size)]

    def loss(self, batches: Sequence[Batch]) -> float:
        """Mean nats a token at the present weights."""
        nats = sum(float(self.learner.nats(batch).astype(np.float64).sum()) for batch in batches)
        return nats / sum(int((batch.targets >= 0).sum()) for batch in batches)


def certify(witness: Witness, step: int) -> Certificate:
    """The certificate of a run after `step` updates."""
    rows = witness.order.rows(step)[: witness.micro_batch_size]
    batches = witness.batches(rows)
    return Certificate(tuple(rows.tolist()), rows_sha256(rows, batches), witness.loss(batches))


def check_certificate(witness: Witness, loaded: LoadedCheckpoint) -> str:
    """Reproduce the checkpoint's certificate; what was found, for people.

    Raises CheckpointError, naming what differs: the order of the rows, their tokens, or the model's loss on them.
    """
    expected = loaded.record.certificate
    if expected is None:
        return "none in this checkpoint (it was imported), so nothing to compare with"
    rows = np.array(expected.rows, np.int64)
    if witness.order.rows(loaded.record.step)[: len(rows)].tolist() != list(expected.rows):
        raise _failed(loaded, "the next rows are others than when it was saved: the seed or the number of rows differs")
    batches = witness.batches(rows)
    if rows_sha256(rows, batches) != expected.tokens_sha256:
        raise _failed(
            loaded, f"rows {', '.join(map(str, expected.rows[:4]))} ... hold other tokens than when it was saved"
        )
    loss, allowed = witness.loss(batches), tolerance(loaded.record, witness.device, witness.precision)
    difference = abs(loss - expected.loss)
    if not difference <= allowed:
        raise _failed(
            loaded,
            f"the next micro-batch has loss {loss:.6f} here and had {expected.loss:.6f} when it was saved, which "
            f"rounding does not explain (allowed {allowed:g}): the weights, or what model.* makes of them, differ; "
            "or this backend computes wrongly, which `sconce doctor` shows",
        )
    return f"the next micro-batch has the loss it had, {loss:.6f} (off by {difference:.1e} of {allowed:g})"


def tolerance(record: Checkpoint, device: DeviceInfo, precision: str) -> float:
    """How far apart the two losses may be, by the coarser of the two precisions and by whether the device is another.

    A change of precision counts as a change of device: its rounding no longer cancels.
    """
    there = (record.backend, record.hardware.get("kind"), record.precision)
    table = SAME_DEVICE if there == (device.backend, device.kind, precision) else OTHER_DEVICE
    return max(table[record.precision], table[precision])


def _failed(loaded: LoadedCheckpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"{loaded.path}: certificate failed: {what}. Restore what differs, or give --no-certificate to go on all the "
        "same, as another run than the one that was saved"
    )
