"""The resume certificate: proof by one forward pass that a checkpoint is taken up as it was put down."""

import numpy as np

from sconce.backend import DeviceInfo
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.checkpoint.record import Certificate, Checkpoint
from sconce.config import micro_batch_size, sequence_length
from sconce.data.batches import Batch, read_batch, rows_sha256
from sconce.errors import CheckpointError
from sconce.training.run import Run

# Largest difference of the mean loss, in nats a token, that rounding explains; each about ten times what was measured
# (benchmarks/resume_across_backends.py), and a tenth of what a single swapped matrix of a tiny model costs.
SAME_DEVICE = {"fp32": 1e-5, "bf16": 2e-3}
OTHER_DEVICE = {"fp32": 1e-4, "bf16": 1e-2}


def certify(run: Run) -> Certificate:
    """The certificate of the run as it stands."""
    rows = run.order.rows(run.step)[: micro_batch_size(run.config)]
    batches = _batches(run, rows)
    return Certificate(tuple(rows.tolist()), rows_sha256(rows, batches), _loss(run, batches))


def check_certificate(run: Run, loaded: LoadedCheckpoint) -> str:
    """Reproduce the checkpoint's certificate; what was found, as a line for people.

    Raises CheckpointError, naming what differs: the order of the rows, their tokens, or the model's loss on them.
    """
    expected = loaded.record.certificate
    if expected is None:
        return "certificate: this checkpoint has none (it was imported); nothing to compare with"
    rows = np.array(expected.rows, np.int64)
    if run.order.rows(run.step)[: len(rows)].tolist() != list(expected.rows):
        raise _failed(loaded, "the next rows are others than when it was saved: the seed or the number of rows differs")
    batches = _batches(run, rows)
    if rows_sha256(rows, batches) != expected.tokens_sha256:
        raise _failed(loaded, f"rows {expected.rows[:4]}... hold other tokens than when it was saved")
    loss, allowed = _loss(run, batches), tolerance(loaded.record, run.backend.device(), run.config.runtime.precision)
    if not abs(loss - expected.loss) <= allowed:
        raise _failed(
            loaded,
            f"the next micro-batch has loss {loss:.6f} here and had {expected.loss:.6f} when it was saved, which "
            f"rounding does not explain (allowed {allowed:g}): the weights, or what model.* makes of them, differ; "
            "or this backend computes wrongly, which `sconce doctor` shows",
        )
    difference = abs(loss - expected.loss)
    return f"certificate: the next micro-batch has the loss it had, {loss:.6f} (off by {difference:.1e} of {allowed:g})"


def tolerance(record: Checkpoint, device: DeviceInfo, precision: str) -> float:
    """How far apart the two losses may be, by the coarser of the two precisions and by whether the device is another.

    A change of precision counts as a change of device: its rounding no longer cancels.
    """
    there = (record.backend, record.hardware.get("kind"), record.precision)
    table = SAME_DEVICE if there == (device.backend, device.kind, precision) else OTHER_DEVICE
    return table["bf16" if "bf16" in (record.precision, precision) else "fp32"]


def _batches(run: Run, rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> list[Batch]:
    size, seq_len = micro_batch_size(run.config), sequence_length(run.config)
    return [read_batch(run.tokens.train, rows[i : i + size], seq_len) for i in range(0, len(rows), size)]


def _loss(run: Run, batches: list[Batch]) -> float:
    nats = sum(float(run.learner.nats(batch).astype(np.float64).sum()) for batch in batches)
    return nats / sum(int((batch.targets >= 0).sum()) for batch in batches)


def _failed(loaded: LoadedCheckpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"{loaded.path}: certificate failed: {what}. Restore what differs, or give --no-certificate to go on all the "
        "same, as another run than the one that was saved"
    )
