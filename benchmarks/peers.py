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
import time
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from contestants import make, shape_of
from shapes import SHAPES, spec_of

ROUNDS, STEPS = 7, 3
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
PROBE = "matrix products"  # not a contestant, but a process like theirs
ANSWER = "taken: "  # what a contestant's line to us begins with, among whatever its libraries print


@dataclass(frozen=True)
class Taken:
    """What some steps took; the peak is that of all steps so far."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


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
