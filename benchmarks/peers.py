"""Training steps of one Llama beside the public peers', on the same data: tokens a second and peak memory.

    python benchmarks/peers.py [--framework torch|mlx] [--shape M|S] [--precision fp32|bf16] [--seq N] [--json]
    python benchmarks/peers.py --device cuda --precision bf16 --shape 20M|124M|400M|1B [--seq N] [--rows N]
    python benchmarks/peers.py --tensors [--shape M|S]

Contestants take turns, a few steps each, so that a slower minute of the machine meets all of them: the figure to read
is the median of the ratios to the first contestant, round by round; on a machine that has other work, the ratio by
processor time. On a GPU, whose memory would not hold them all, each does its rounds and leaves. Each is a process of
its own, with its own allocator's settings, whose peak memory is given: of the process on a CPU, of its arrays in MLX
and on CUDA. At S most of the first is libraries and compiler: `--tensors` counts tensors there instead, from the
first weight to the third step, in a run that measures nothing else; the Trainer's thread is out of its sight.
Everybody computes Llama with AdamW, the same betas, weight decay and clipping to norm 1; transformers' Trainer is the
one in its own dress, loss and all, and nanoGPT-style a GPT-2 of as many FLOPs, as people write it by hand. MFU is of
a matrix product measured before, in the same precision, by the FLOPs of the spec: what is recomputed does not count.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from shapes import SHAPES, Shape, spec_of

ROUNDS, STEPS = 7, 3
LEARNING_RATE, BETAS, EPS, DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1
FRAMEWORKS = {
    "torch": [
        "transformers compiled",
        "transformers eager",
        "transformers Trainer",
        "nanoGPT-style compiled",
        "nanoGPT-style eager",
        "sconce",
        "sconce compiled",
        "sconce lean",
    ],
    "mlx": ["mlx-lm compiled", "sconce", "sconce compiled", "sconce lean"],
}
Step = Callable[[], None]
PROBE = "matrix products"  # not a contestant, but a process like theirs
ANSWER = "taken: "  # what a contestant's line to us begins with, among whatever its libraries print


@dataclass(frozen=True)
class Taken:
    """What some steps took; the peak is that of all steps so far."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def batches(shape: Shape) -> Iterator[np.ndarray]:
    """Fresh random rows of seq + 1 tokens, the same for every contestant."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, shape.vocab, (shape.rows, shape.seq + 1)).astype(np.int32)


def sconce_step(name: str, shape: Shape, arguments: argparse.Namespace) -> Step:
    from sconce.backend import ComputeOptions, StepScalars, load_backend
    from sconce.data.batches import Batch
    from sconce.init import InitialWeights
    from sconce.optim import OptimSpec
    from sconce.training.recipe import default_loss_chunk

    spec = spec_of(shape)
    lean = name.endswith("lean")
    compute = ComputeOptions(
        precision=arguments.precision,
        compile=name.endswith("compiled"),
        recompute_every=1 if lean else 0,
        loss_chunk=arguments.loss_chunk
        or (512 if lean else default_loss_chunk(shape.rows * shape.seq, shape.vocab, arguments.device)),
    )
    optim = OptimSpec(beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY)
    hardware = "mlx" if arguments.framework == "mlx" else arguments.device
    learner = load_backend(hardware).learner(spec, optim, compute, InitialWeights(spec, 0))
    source, done = batches(shape), 0

    def step() -> None:
        nonlocal done
        tokens = next(source)
        batch = Batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
        learner.step([batch], StepScalars(done, LEARNING_RATE, seed=0)).read()
        done += 1

    return step


def llama(shape: Shape, device: str):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.seq,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(device)


def transformers_step(name: str, shape: Shape, arguments: argparse.Namespace) -> Step:
    import torch

    torch.manual_seed(0)
    model = llama(shape, arguments.device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, BETAS, EPS, DECAY, fused=True)
    forward = torch.compile(model, dynamic=False) if name.endswith("compiled") else model
    source = batches(shape)

    def step() -> None:
        tokens = torch.from_numpy(next(source).astype(np.int64)).to(arguments.device)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"):
            logits = forward(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def nanogpt_step(name: str, shape: Shape, arguments: argparse.Namespace) -> Step:
    """GPT-2's blocks in plain PyTorch: learned positions, LayerNorm, GELU, one matrix for queries, keys and values."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    hidden, ffn = shape.hidden, shape.intermediate * 3 // 2  # two matrices of the MLP instead of three

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(hidden, bias=False), nn.LayerNorm(hidden, bias=False)
            self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
            self.up, self.down = nn.Linear(hidden, ffn, bias=False), nn.Linear(ffn, hidden, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, length, _ = x.shape
            heads = (rows, length, shape.heads, hidden // shape.heads)
            q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).reshape(rows, length, hidden))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(shape.vocab, hidden), nn.Embedding(shape.seq, hidden)
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm = nn.LayerNorm(hidden, bias=False)
            self.head = nn.Linear(hidden, shape.vocab, bias=False)
            self.head.weight = self.tokens.weight
            for param in self.parameters():
                if param.ndim == 2:
                    nn.init.normal_(param, std=0.02)

        def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.tokens(inputs) + self.places.weight
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())

    torch.manual_seed(0)
    model = GPT().to(arguments.device)
    matrices = [param for param in model.parameters() if param.ndim >= 2]
    vectors = [param for param in model.parameters() if param.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, BETAS, EPS, fused=True)
    forward = torch.compile(model, dynamic=False) if name.endswith("compiled") else model
    source = batches(shape)

    def step() -> None:
        tokens = torch.from_numpy(next(source).astype(np.int64)).to(arguments.device)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def trainer_step(shape: Shape, arguments: argparse.Namespace) -> Step:
    """One step is `train()` of one step, its set-up apart: the Trainer's own loop runs in a thread and is let go."""
    import queue
    import threading

    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    go: queue.Queue[None] = queue.Queue()
    finished: queue.Queue[None] = queue.Queue()

    class Gate(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            go.get()

        def on_step_end(self, *_: object, **__: object) -> None:
            finished.put(None)

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            for tokens in batches(shape):
                for row in torch.from_numpy(tokens[:, :-1].astype(np.int64)):
                    yield {"input_ids": row, "labels": row}

    options = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.rows,
        max_steps=10**6,
        learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=DECAY,
        bf16=arguments.precision == "bf16",
        use_cpu=arguments.device == "cpu",
        torch_compile=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(llama(shape, arguments.device), options, train_dataset=Rows(), callbacks=[Gate()])
    threading.Thread(target=trainer.train, daemon=True).start()

    def step() -> None:
        go.put(None)
        finished.get()

    return step


def mlx_lm_step(shape: Shape) -> Step:
    import mlx.core as mx
    import mlx.optimizers
    from mlx import nn
    from mlx_lm.models.llama import Model, ModelArgs

    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.intermediate,
            num_attention_heads=shape.heads,
            rms_norm_eps=1e-5,
            vocab_size=shape.vocab,
            tie_word_embeddings=True,
        )
    )
    mx.eval(model.parameters())
    optimizer = mlx.optimizers.AdamW(LEARNING_RATE, list(BETAS), EPS, DECAY)

    def loss_of(inputs: mx.array, targets: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(inputs), targets, reduction="mean")

    state = [model.state, optimizer.state]
    differentiate = nn.value_and_grad(model, loss_of)

    def update(inputs: mx.array, targets: mx.array) -> mx.array:
        loss, grads = differentiate(inputs, targets)
        grads, _ = mlx.optimizers.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        return loss

    compiled = mx.compile(update, inputs=state, outputs=state)
    source = batches(shape)

    def step() -> None:
        tokens = next(source)
        loss = compiled(mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:]))
        mx.eval(loss, state)

    return step


def make(name: str, arguments: argparse.Namespace) -> Step:
    shape = shape_of(arguments)
    if name.startswith("sconce"):
        return sconce_step(name, shape, arguments)
    if name.startswith("mlx-lm"):
        return mlx_lm_step(shape)
    if name.startswith("nanoGPT"):
        return nanogpt_step(name, shape, arguments)
    return trainer_step(shape, arguments) if name.endswith("Trainer") else transformers_step(name, shape, arguments)


def shape_of(arguments: argparse.Namespace) -> Shape:
    shape = SHAPES[arguments.shape]
    return Shape(**{**vars(shape), "seq": arguments.seq or shape.seq, "rows": arguments.rows or shape.rows})


def peak_bytes(arguments: argparse.Namespace) -> int:
    if arguments.framework == "mlx":
        import mlx.core as mx

        return mx.get_peak_memory()
    if arguments.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # whose ru_maxrss a process inherits from the one that started it
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Contestant:
    """A process that makes the step of one name and does as many as it is told, and says what they took."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = [sys.executable, __file__, *sys.argv[1:], "--contestant", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, steps: int) -> Taken:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return Taken(**json.loads(line.removeprefix(ANSWER)))
        raise SystemExit(f"{self.name} has ended")

    def leave(self) -> None:
        """End the process, and with it what it holds."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def contest(arguments: argparse.Namespace) -> None:
    """Be the contestant: a number of steps a line in, what they took a line out, until there is no more."""
    step = make(arguments.contestant, arguments)
    for line in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        taken = Taken(time.perf_counter() - clock, time.process_time() - processor, peak_bytes(arguments))
        print(ANSWER + json.dumps(asdict(taken)), flush=True)


def tensor_bytes(arguments: argparse.Namespace) -> int:
    """Peak of PyTorch's tensors on a CPU, of three steps and what was made for them; the profiler counts one thread."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step = make(arguments.contestant, arguments)
        for _ in range(3):
            step()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(change for _, change in changes))


def count_tensors(arguments: argparse.Namespace) -> None:
    """Print a line for each contestant whose steps are made by the thread that asks for them."""
    first = None
    for name in FRAMEWORKS["torch"]:
        if name.endswith("Trainer") or name in arguments.without:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--contestant", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak = int(done.stdout.splitlines()[-1])
        first = first or peak
        print(f"{name:24}{peak / 1e6:9,.1f} MB of tensors{peak / first:7.2f}", flush=True)


def matmul_speed(arguments: argparse.Namespace) -> float:
    """FLOP/s of a matrix product in this precision, by the probe that training uses, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--contestant", PROBE]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def probe(arguments: argparse.Namespace) -> float:
    from sconce.backend import load_backend
    from sconce.planning.probe import matmul_flops_per_second

    backend = load_backend("mlx" if arguments.framework == "mlx" else arguments.device)
    return matmul_flops_per_second(lambda size, count: backend.matmul_seconds(arguments.precision, size, count))


Rounds = list[list[Taken]]  # of each contestant, round by round


def in_turns(names: list[str], rounds: int) -> tuple[list[Taken], Rounds]:
    """What the first step took, and what each round did."""
    contestants = [Contestant(name) for name in names]
    first = [contestant.run(1) for contestant in contestants]
    for contestant in contestants:
        contestant.run(1)
    return first, [[contestant.run(STEPS) for contestant in contestants] for _ in range(rounds)]


def one_by_one(names: list[str], rounds: int) -> tuple[list[Taken], Rounds]:
    """The same, with one contestant at a time."""
    first: list[Taken] = []
    of_each: Rounds = []
    for name in names:
        contestant = Contestant(name)
        first.append(contestant.run(1))
        contestant.run(1)
        of_each.append([contestant.run(STEPS) for _ in range(rounds)])
        contestant.leave()
    return first, [list(taken) for taken in zip(*of_each, strict=True)]


def compete(arguments: argparse.Namespace) -> list[dict[str, object]]:
    from sconce.flops import count_flops

    names = [name for name in FRAMEWORKS[arguments.framework] if name not in arguments.without]
    speed = matmul_speed(arguments)  # before anybody computes
    if arguments.device == "cuda":
        first, rounds = one_by_one(names, arguments.rounds)
    else:
        first, rounds = in_turns(names, arguments.rounds)
    shape = shape_of(arguments)
    flops = count_flops(spec_of(shape), shape.seq).training
    rows = []
    for number, name in enumerate(names):
        rates = [STEPS * shape.rows * shape.seq / taken[number].seconds for taken in rounds]
        rows.append(
            {
                "name": name,
                "tokens_per_second": statistics.median(rates),
                "mfu": flops * statistics.median(rates) / speed,
                "slowest": min(rates),
                "fastest": max(rates),
                "ratio": statistics.median(taken[0].seconds / taken[number].seconds for taken in rounds),
                "processor_ratio": statistics.median(
                    taken[0].processor_seconds / taken[number].processor_seconds for taken in rounds
                ),
                "first_step_seconds": first[number].seconds,
                "peak_bytes": rounds[-1][number].peak_bytes,
            }
        )
    return rows


def refused(arguments: argparse.Namespace) -> str | None:
    """Why there can be no such contest."""
    if arguments.framework == "mlx" and arguments.precision != "fp32":
        return "mlx-lm keeps its optimizer in the weights' dtype: only fp32 compares the same training"
    if arguments.loss_chunk is not None and arguments.loss_chunk < 1:
        return "--loss-chunk is a number of tokens, 1 or more"
    if arguments.tensors and (arguments.framework, arguments.device) != ("torch", "cpu"):
        return "--tensors is for torch on a CPU: elsewhere the peak is of arrays anyway"
    if arguments.tensors and (arguments.json or arguments.rounds != ROUNDS):
        return "--tensors has no rounds and writes no JSON"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", default="torch", choices=FRAMEWORKS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of torch")
    parser.add_argument("--shape", default="M", choices=SHAPES)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seq", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a contestant out")
    parser.add_argument(
        "--loss-chunk", type=int, metavar="N", help="tokens whose logits Sconce makes at once, lean too"
    )
    parser.add_argument("--tensors", action="store_true", help="count tensors instead, of all but the Trainer")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if problem := refused(arguments):
        parser.error(problem)
    if arguments.framework == "mlx" and arguments.contestant:
        from sconce.backend import load_backend

        load_backend("mlx")  # before MLX is imported: OpenBLAS for both sides
    if arguments.contestant == PROBE:
        print(probe(arguments))
        return
    if arguments.contestant and arguments.tensors:
        print(tensor_bytes(arguments))
        return
    if arguments.contestant:
        contest(arguments)
        return
    if arguments.tensors:
        count_tensors(arguments)
        return
    rows = compete(arguments)
    if arguments.json:
        print(json.dumps(rows))
    else:
        print_table(rows, arguments)


def print_table(rows: list[dict[str, object]], arguments: argparse.Namespace) -> None:
    shape = shape_of(arguments)
    print(f"{arguments.shape}, {shape.rows} rows of {shape.seq}, {arguments.precision}, {arguments.framework}")
    print(f"{'':24}{'tokens/s':>9}{'spread':>18}{'ratio':>7}{'of CPU':>8}{'MFU':>7}{'first step':>12}{'peak MB':>9}")
    for row in rows:
        spread = f"{row['slowest']:,.0f}-{row['fastest']:,.0f}"
        print(
            f"{row['name']:24}{row['tokens_per_second']:9,.0f}{spread:>18}{row['ratio']:7.2f}"
            f"{row['processor_ratio']:8.2f}{row['mfu']:7.1%}"
            f"{row['first_step_seconds']:10.1f} s{row['peak_bytes'] / 1e6:9,.0f}"
        )


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the Trainer's thread still waits
