"""Seconds to the end of the first update with compilation, from nothing: no compiled kernel is kept on disk.

    python benchmarks/first_step.py [--backend cpu|mlx|cuda] [--shape M] [--precision fp32|bf16]

Each measurement is a process of its own whose TMPDIR, TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR are new and empty
(PyTorch keeps its precompiled headers in the first of them whatever the others say); of it, only the first update
counts, not the import of the framework. Then once more with what the first left there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from shapes import SHAPES, spec_of


def first_step(arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    from sconce.backend import ComputeOptions, StepScalars, load_backend
    from sconce.data.batches import Batch
    from sconce.init import InitialWeights
    from sconce.optim import OptimSpec
    from sconce.training.recipe import default_loss_chunk

    shape = SHAPES[arguments.shape]
    spec = spec_of(shape)
    compute = ComputeOptions(
        precision=arguments.precision,
        compile=True,
        loss_chunk=default_loss_chunk(shape.rows * shape.seq, shape.vocab, arguments.backend),
    )
    learner = load_backend(arguments.backend).learner(spec, OptimSpec(), compute, InitialWeights(spec, 0))
    tokens = np.random.default_rng(0).integers(0, shape.vocab, (2, shape.rows, shape.seq)).astype(np.int32)
    clock, processor = time.perf_counter(), sum(os.times()[:4])
    learner.step([Batch(tokens[0], tokens[1])], StepScalars(0, 1e-3, seed=0)).read()
    return time.perf_counter() - clock, sum(os.times()[:4]) - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu", choices=["cpu", "mlx", "cuda"])
    parser.add_argument("--shape", default="M", choices=SHAPES)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print("{:.1f} s, {:.1f} s of processor time in this process".format(*first_step(arguments)))
        return
    with tempfile.TemporaryDirectory() as empty:
        caches = {name: f"{empty}/{name}" for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        Path(caches["TMPDIR"]).mkdir()
        for label in ("from nothing", "once more"):
            command = [sys.executable, __file__, *sys.argv[1:], "--here"]
            done = subprocess.run(command, env={**os.environ, **caches}, check=True, capture_output=True, text=True)
            print(f"{label:13} {done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
