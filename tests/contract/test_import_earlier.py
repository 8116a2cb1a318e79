"""An imported model on each backend, held against the earlier system's forward in numpy."""

import earlier
import numpy as np
import reference
from tiny import random_batch

from sconce.backend import ComputeOptions, StepScalars
from sconce.checkpoint.load import open_checkpoint
from sconce.interop.earlier import read_earlier
from sconce.optim import OptimSpec
from sconce.training.import_earlier import ImportJob, import_earlier


def test_the_backend_computes_and_goes_on_with_what_was_imported(backend, tmp_path):
    weights = earlier.random_model()
    earlier.write_checkpoint(tmp_path / "old", weights, step=40)
    tokenizer = earlier.write_tokenizer(tmp_path / "tokenizer.json")
    job = ImportJob(source=tmp_path / "old", tokenizer=tokenizer, out=tmp_path / "run", num_heads=earlier.HEADS)
    import_earlier(job)
    loaded = open_checkpoint(tmp_path / "run")
    spec = read_earlier(job.source).spec(earlier.HEADS, 64)
    learner = backend.learner(spec, OptimSpec(), ComputeOptions(), loaded.weights)
    learner.load(loaded.tensors, loaded.record.step)
    batch = random_batch(spec)
    expected = reference.token_nats(earlier.logits(weights, batch.inputs), batch.targets)
    np.testing.assert_allclose(learner.nats(batch), expected, atol=2e-5)
    before = dict(read_earlier(job.source).state(spec))
    learner.step([batch], StepScalars(40, 1e-3, seed=0)).read()
    after = {name: array.copy() for name, array in learner.tensors()}
    for param in spec.params():
        # The gradient is what moved the first moment; with it numpy makes the same update of weight and moments.
        m, v = (before[f"{kind}/{param.name}"].astype(np.float64) for kind in ("adam_m", "adam_v"))
        gradient = (after[f"adam_m/{param.name}"] - 0.9 * m) / 0.1
        weight = before[f"model/{param.name}"].astype(np.float64)
        decay = OptimSpec().decay(param)
        updated, _, v = reference.adamw(weight, gradient, m, v, t=41, lr=1e-3, optim=OptimSpec(), decay=decay)
        np.testing.assert_allclose(after[f"model/{param.name}"], updated, atol=1e-6, err_msg=param.name)
        np.testing.assert_allclose(after[f"adam_v/{param.name}"], v, rtol=1e-3, atol=1e-9, err_msg=param.name)
