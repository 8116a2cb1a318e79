"""Tokens a second of generation beside transformers and mlx-lm: greedy, a prompt of 64, 256 new tokens.

    python benchmarks/generate.py [--backend cpu|cuda|mlx] [--dtype fp32|bf16] [--rounds 5] [--clock wall|process]

The same random weights in both. Rounds alternate between the two, so that a slower minute of the machine meets both;
the median of each and of the rounds' ratios is printed. Ours goes all the way: engine, sampling on the host, events.
On a CPU that others use too, seconds of the process say more: --clock process, with OMP_NUM_THREADS and
OPENBLAS_NUM_THREADS 1, as threads that wait are counted.
"""

import argparse
import statistics
import time

import numpy as np

PROMPT, NEW, BATCH = 64, 256, 8
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_layers": 6,
    "num_heads": 6,
    "num_kv_heads": 6,
    "head_dim": 64,
    "max_position_embeddings": 512,
}


def make_ours(backend, dtype, spec, weights):
    from sconce.backend import ComputeOptions, load_backend
    from sconce.generation.engine import Engine, Request
    from sconce.generation.sampling import Sampling

    model = load_backend(backend).language_model(spec, ComputeOptions(precision=dtype), weights)

    def run(prompts):
        engine = Engine(model, rows=len(prompts), max_len=PROMPT + NEW)
        for prompt in prompts:
            engine.add(Request(prompt=prompt, max_tokens=NEW, sampling=Sampling(temperature=0)))
        drawn = {}
        while not engine.idle:
            for event in engine.step():
                drawn.setdefault(event.ticket, []).append(event.token)
        return list(drawn.values())

    return run


def make_transformers(backend, dtype, spec, weights):
    import torch
    import transformers

    from sconce.interop.hf import hf_config

    config = transformers.AutoConfig.for_model(**hf_config(spec, bos_id=0, eos_id=1, pad_id=2))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights}, strict=False)
    model.tie_weights()
    model.to("cuda" if backend == "cuda" else "cpu", {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])

    def run(prompts):
        ids = torch.tensor(prompts, device=model.device)
        mask = torch.ones_like(ids)
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=2
        )
        return out[:, PROMPT:].tolist()

    return run


def make_mlx_lm(_, dtype, spec, weights):
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models import llama

    from sconce.interop.hf import hf_config

    config = hf_config(spec, bos_id=0, eos_id=1, pad_id=2)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    kind = {"fp32": mx.float32, "bf16": mx.bfloat16}[dtype]
    model.load_weights([(name, mx.array(weights[name]).astype(kind)) for name in weights], strict=False)
    mx.eval(model.parameters())

    def run(prompts):
        (prompt,) = prompts
        return [[int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=NEW)]]

    return run


def rate(run, prompts, clock):
    started = clock()
    out = run(prompts)
    seconds = clock() - started
    assert all(len(tokens) == NEW for tokens in out)
    return len(prompts) * NEW / seconds, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu", choices=["cpu", "cuda", "mlx"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "process"])
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time

    from sconce.init import InitialWeights
    from sconce.spec import ModelSpec

    spec = ModelSpec(**SHAPE)
    weights = InitialWeights(spec, 0)
    prompts = np.random.default_rng(0).integers(3, spec.vocab_size, (BATCH, PROMPT)).tolist()
    options = arguments.backend, arguments.dtype, spec, {name: weights[name] for name in weights}
    ours = make_ours(*options)
    peer, name = (
        (make_mlx_lm(*options), "mlx-lm")
        if arguments.backend == "mlx"
        else (make_transformers(*options), "transformers")
    )
    variants = {"ours": (ours, prompts[:1]), name: (peer, prompts[:1]), f"ours, {BATCH} rows": (ours, prompts)}
    rates = {variant: [] for variant in variants}
    for turn in range(arguments.rounds + 1):
        outs = {}
        for variant, (run, given) in variants.items():
            measured, outs[variant] = rate(run, given, clock)
            if turn:  # the first warms up
                rates[variant].append(measured)
        if turn == 0:
            same = sum(a == b for a, b in zip(outs["ours"][0], outs[name][0], strict=True))
            print(f"{arguments.backend} {arguments.dtype}: {same} of {NEW} greedy tokens are the same in {name}")
        else:
            print("  ".join(f"{variant} {rates[variant][-1]:,.0f}" for variant in variants), flush=True)
    for variant, measured in rates.items():
        pairs = list(zip(rates["ours"], measured, strict=True))
        if variant == name:
            beside = f"ours alone is {statistics.median(a / b for a, b in pairs):.2f} times that"
        else:
            beside = f"{statistics.median(b / a for a, b in pairs):.2f} times ours alone"
        print(f"{variant:<14}{statistics.median(measured):>8,.0f} tok/s   {beside}")


if __name__ == "__main__":
    main()
