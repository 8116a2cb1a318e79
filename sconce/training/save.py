"""What a run puts into a checkpoint."""

import json
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np

import sconce
from sconce.backend import state_names
from sconce.checkpoint.record import Checkpoint
from sconce.config import precision, to_json
from sconce.interop.hf import model_files
from sconce.log import phase
from sconce.pod import pod_facts
from sconce.training.certificate import certify
from sconce.training.recipe import attention_kind, make_optim
from sconce.training.run import Run


def save_checkpoint(run: Run, *, is_best: bool, diverged: bool = False) -> tuple[Path, bool]:
    """Commit the run as it stands; the checkpoint's folder, and whether it is one to go on from.

    Apart from these is kept what has `diverged`, as also a model shows that gives no loss on the next rows.
    """
    device = run.backend.device()
    yardstick = run.yardstick
    speeds = {"matmul_flops_per_second": yardstick.measured, "vendor_flops_per_second": yardstick.peak}
    certificate = certify(run.witness, run.step)
    diverged = diverged or not certificate.is_finite
    facts = Checkpoint(
        step=run.step,
        tokens=run.order.ramp.places(run.step),
        cursor={
            **run.data.cursor(run.step),
            "seed": run.order.seed,
            "rows_consumed": run.order.ramp.rows(run.step),
            "rows_sha256": run.rows_sha256,
            **({"imported_steps": run.imported_steps} if run.imported_steps else {}),
        },
        best=run.best,
        certificate=certificate,
        loss_scale=run.learner.loss_scale(),
        backend=run.backend.name,
        precision=precision(run.config),
        versions={
            "sconce": sconce.__version__,
            device.backend: device.version,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        hardware={**asdict(device), **speeds, "attention": attention_kind(run.config), **pod_facts()},
    )
    files = model_files(run.spec, run.tokenizer)
    files["run.json"] = json.dumps(to_json(run.config), indent=2).encode()
    names = state_names(run.spec, make_optim(run.config))
    with phase(f"checkpoint of step {run.step}"):
        state = run.learner.tensors()
        return run.store.save(state, names, facts, files=files, is_best=is_best, diverged=diverged), not diverged
