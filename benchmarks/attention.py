"""Milliseconds of a step over plain rows, rows of documents that do not see each other, and rows under a window.

    python benchmarks/attention.py [--backend cpu|mlx|cuda] [--shape M] [--seq 2048] [--rows 2] [--steps 5] [--compile]

Documents are of 256 tokens; the window is of 512. Steps of the three take turns, so that a slower minute of the machine
meets all. Each has a process of its own, whose peak memory is printed: the whole on a CPU, elsewhere the arrays.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
from shapes import SHAPES, spec_of

DOCUMENT, WINDOW = 256, 512
KINDS = ("plain", "documents", "window")


def serve(arguments: argparse.Namespace) -> None:
    """Make a step for each line that comes in, and say how long it took; at the end, how much memory there was."""
    from sconce.backend import ComputeOptions, StepScalars, load_backend
    from sconce.data.batches import Batch
    from sconce.init import InitialWeights
    from sconce.optim import OptimSpec
    from sconce.training.recipe import default_loss_chunk

    rows, seq = arguments.rows, arguments.seq
    window = WINDOW if arguments.kind == "window" else None
    spec = replace(spec_of(SHAPES[arguments.shape]), max_position_embeddings=seq, sliding_window=window)
    chunk = default_loss_chunk(rows * seq, spec.vocab_size, arguments.backend)
    compute = ComputeOptions(compile=arguments.compile, loss_chunk=chunk)
    backend = load_backend(arguments.backend)
    learner = backend.learner(spec, OptimSpec(), compute, InitialWeights(spec, 0))
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (2, rows, seq)).astype(np.int32)
    segments = np.tile(np.arange(seq, dtype=np.int32) // DOCUMENT, (rows, 1))
    batch = Batch(tokens[0], tokens[1], segments if arguments.kind == "documents" else None)
    for step, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        learner.step([batch], StepScalars(step, 1e-3, seed=0)).read()
        print(1e3 * (time.perf_counter() - started), flush=True)
    print(backend.memory(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu", choices=["cpu", "mlx", "cuda"])
    parser.add_argument("--shape", default="M", choices=SHAPES)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        serve(arguments)
        return
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    workers = {
        kind: subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--kind", kind], **pipes) for kind in KINDS
    }
    steps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in range(arguments.steps + 2):
        for kind, worker in workers.items():
            worker.stdin.write("\n")
            milliseconds = float(worker.stdout.readline())
            if step >= 2:  # the first two warm up
                steps[kind].append(milliseconds)
    for kind, worker in workers.items():
        peak, _ = worker.communicate()
        ratio = statistics.median(own / plain for own, plain in zip(steps[kind], steps["plain"], strict=True))
        print(f"{kind:<10} {statistics.median(steps[kind]):8,.0f} ms  {ratio:.2f}  {int(peak) / 1e6:8,.0f} MB")


if __name__ == "__main__":
    main()
