"""What dropout costs: one training step without it, with each of its two places, and with PyTorch's own.

    python benchmarks/dropout.py [--backend cpu|cuda|mlx]

Rounds alternate between the variants, so that a slower minute of the machine meets all of them; the median is printed.
PyTorch's own dropout (not reproducible in another framework) stands in for what there would be without the hash.
"""

import argparse
import statistics
import time

import numpy as np

ROUNDS = 7
VARIANTS = {
    "none": {},
    "residual 0.1": {"residual_dropout": 0.1},
    "attention 0.1": {"attn_dropout": 0.1},
    "both 0.1": {"attn_dropout": 0.1, "residual_dropout": 0.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu", choices=["cpu", "cuda", "mlx"])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    arguments = parser.parse_args()

    from sconce.backend import ComputeOptions, StepScalars, load_backend
    from sconce.data.batches import Batch
    from sconce.init import InitialWeights
    from sconce.optim import OptimSpec
    from sconce.spec import ModelSpec

    backend = load_backend(arguments.backend)
    tokens = np.random.default_rng(0).integers(0, 4096, (arguments.rows, arguments.seq + 1)).astype(np.int32)
    batch = Batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
    learners = {}
    for name, rates in VARIANTS.items():
        spec = ModelSpec(
            vocab_size=4096,
            hidden_size=arguments.hidden,
            intermediate_size=3 * arguments.hidden,
            num_layers=4,
            num_heads=arguments.hidden // 64,
            num_kv_heads=arguments.hidden // 64,
            head_dim=64,
            max_position_embeddings=arguments.seq,
            **rates,
        )
        learners[name] = backend.learner(spec, OptimSpec(), ComputeOptions(), InitialWeights(spec, 0))
    times = {name: [] for name in learners}
    for step in range(ROUNDS + 2):
        for name, learner in learners.items():
            started = time.perf_counter()
            learner.step([batch], StepScalars(step, 1e-4, seed=0)).read()
            next(iter(learner.tensors()))  # the update itself is done, too
            if step >= 2:
                times[name].append(time.perf_counter() - started)
    base = statistics.median(times["none"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:15} {1000 * median:8.1f} ms a step  {median / base:5.2f} x none")
    if backend.name == "torch":
        print_elementwise(arguments)


def print_elementwise(arguments: argparse.Namespace) -> None:
    """One mask over the residual stream: the hash beside torch's own dropout."""
    import torch

    from sconce_torch.dropout import drop, site_key

    x = torch.randn(arguments.rows, arguments.seq, arguments.hidden, device=arguments.backend)
    keys = torch.arange(arguments.rows, dtype=torch.int32, device=arguments.backend)
    site = site_key(0, "mlp_output").to(arguments.backend)
    ways = {
        "hash": lambda: drop(x, 0.1, keys, site),
        "torch": lambda: torch.nn.functional.dropout(x, 0.1, training=True),
    }
    for name, call in ways.items():
        times = []
        for _ in range(3 * ROUNDS):
            started = time.perf_counter()
            call().sum().item()
            times.append(time.perf_counter() - started)
        print(f"{name:15} {1000 * statistics.median(times):8.2f} ms for {x.numel():,} activations")


if __name__ == "__main__":
    main()
