"""How much of its speed the CPU backend keeps beside one busy process, and what spinning costs or gains.

    python benchmarks/busy_neighbour.py

Each setting runs in a process of its own, alone and then beside `while True: pass`; tokens/s of training and of
generating, the medians of three.
"""

import os
import statistics
import subprocess
import sys
import time

import numpy as np

SETTINGS = {
    "as shipped": {},
    "no spinning": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "OpenMP's default": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": ""},
}
SEQ, ROWS, STEPS = 256, 4, 20
NEW = 200  # tokens


def measure() -> tuple[float, float]:
    """Tokens/s of the local preset's shape in this process, trained and generated."""
    from sconce.backend import ComputeOptions, StepScalars, load_backend
    from sconce.data.batches import Batch
    from sconce.init import InitialWeights
    from sconce.optim import OptimSpec
    from sconce.spec import ModelSpec

    spec = ModelSpec(
        vocab_size=1024,
        hidden_size=160,
        intermediate_size=448,
        num_layers=3,
        num_heads=5,
        num_kv_heads=5,
        head_dim=32,
        max_position_embeddings=SEQ,
    )
    learner = load_backend("cpu").learner(spec, OptimSpec(), ComputeOptions(), InitialWeights(spec, 0))
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (ROWS, SEQ + 1)).astype(np.int32)
    batch = Batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
    rates = []
    for chunk in range(4):
        started = time.perf_counter()
        for step in range(STEPS):
            learner.step([batch], StepScalars(chunk * STEPS + step, 1e-4, seed=0)).read()
        rates.append(STEPS * ROWS * SEQ / (time.perf_counter() - started))
    generated = []
    for _ in range(4):
        decoder = learner.decoder(1, NEW)
        started = time.perf_counter()
        for token in range(NEW):
            decoder.feed(np.array([[token]], np.int32))
        generated.append(NEW / (time.perf_counter() - started))
    return statistics.median(rates[1:]), statistics.median(generated[1:])


def in_process(environment: dict[str, str]) -> list[float]:
    merged = {key: value for key, value in {**os.environ, **environment}.items() if value}
    if environment.get("OMP_WAIT_POLICY") == "":  # keep the package from setting its own
        merged |= {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": ""}
    out = subprocess.run(
        [sys.executable, __file__, "measure"], env=merged, capture_output=True, text=True, check=True
    ).stdout
    return [float(rate) for rate in out.split()]


def main() -> None:
    print(f"{'':<18}{'training':^24}{'generating':^24}")
    print(f"{'setting':<18}" + 2 * f"{'alone':>10}{'beside one':>12}  ")
    for name, environment in SETTINGS.items():
        alone = in_process(environment)
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            beside = in_process(environment)
        finally:
            neighbour.kill()
        rates = zip(alone, beside, strict=True)
        print(f"{name:<18}" + "".join(f"{quiet:>10,.0f}{busy:>12,.0f}  " for quiet, busy in rates), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        print(*measure())
    else:
        main()
