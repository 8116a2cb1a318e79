"""Text to token shards: `sconce data prepare`, with each encoder, beside `datasets.map(num_proc)`; speed and memory.

    python benchmarks/tokenise.py --tokenizer tokenizer/tokenizer.json --megabytes 10 100

Each run is a process of its own, so that encoders are cold. The ways take turns, round after round: a busy machine
slows all of them, and the last column, the median of a round's ratios to datasets.map on as many workers, is what to
trust. "seconds" is from the call to the finished shards, "whole" from the command, start-up included, "CPU s" the
processor time of the whole. Peak memory is the sum over the process and its children, sampled ten times a second
(Linux). The text is the documentation inside Python, repeated with a number in each line so that no cache of whole
documents helps; --text takes another.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from statistics import median

SCONCE = """
import json, sys, time
from pathlib import Path
from sconce.data.corpus import Corpus
from sconce.data.encode import Engine
from sconce.data.prepare import prepare
from sconce.tokenizer.bpe import load_tokenizer
from sconce.tokenizer.fast import fast_encoder
text, tokenizer, out, workers, fast = sys.argv[1:]
tokenizer = load_tokenizer(Path(tokenizer))
engine = Engine(int(workers), fast_encoder(tokenizer) if fast == "fast" else None)
if __name__ == "__main__":
    started = time.perf_counter()
    corpus = Corpus(paths=(Path(text),), rule="line")
    tokens = prepare(corpus, tokenizer, Path(out) / "tokens", engine=lambda: engine)
    print(json.dumps([time.perf_counter() - started, tokens.train.num_tokens + tokens.validation.num_tokens]))
"""

DATASETS = """
import json, sys, time
import datasets, tokenizers
text, tokenizer, out, workers, _ = sys.argv[1:]
datasets.disable_progress_bars()
bpe = tokenizers.Tokenizer.from_file(tokenizer)
def encode(batch):
    return {"ids": [one.ids for one in bpe.encode_batch_fast(batch["text"], add_special_tokens=False)]}
if __name__ == "__main__":
    started = time.perf_counter()
    lines = datasets.load_dataset("text", data_files=text, cache_dir=out, split="train")
    ids = lines.map(encode, batched=True, num_proc=int(workers), remove_columns=["text"])
    ids.save_to_disk(out + "/tokens")
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, sum(len(row) + 1 for row in ids["ids"])]))
"""

WAYS = {
    "sconce, fastokens": (SCONCE, "fast"),
    "sconce, tokenizers": (SCONCE, "plain"),
    "datasets.map": (DATASETS, ""),
}
BASELINE = "datasets.map"
FIGURES = ("seconds", "whole", "cpu")


def write_text(path: Path, megabytes: int) -> None:
    lines = [line for text in topics.topics.values() for line in text.splitlines() if line.strip()]
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < megabytes * 1e6:
            file.write("".join(f"{number + index} {line}\n" for index, line in enumerate(lines)))
            number += len(lines)


def children(process: int) -> list[int]:
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [pid for child in task.read_text().split() for pid in children(int(child))]
        except OSError:
            continue
    return found


def resident_bytes(process: int) -> int:
    """Proportional set size: pages that several processes share are counted once."""
    total = 0
    for one in children(process):
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        # Pages of mapped files are the kernel's to drop.
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss_Anon:"))
    return 1024 * total


@dataclass(frozen=True)
class Run:
    seconds: float
    whole: float
    cpu: float
    tokens: int
    peak: int


def measure(script: Path, *arguments: object) -> Run:
    command = [sys.executable, str(script), *map(str, arguments)]
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, resident_bytes(process.pid))

    started, cpu_started = time.perf_counter(), cpu_of_children()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        watcher = threading.Thread(target=watch)
        watcher.start()
        out, _ = process.communicate()
        whole, cpu = time.perf_counter() - started, cpu_of_children() - cpu_started
        done.set()
        watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    seconds, tokens = json.loads(out.splitlines()[-1])
    return Run(seconds, whole, cpu, tokens, peak)


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_round(text: Path, tokenizer: Path, workers: int, ways: list[str], folder: Path) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    for way in ways:
        code, flag = WAYS[way]
        with tempfile.TemporaryDirectory(dir=folder) as out:
            script = Path(out) / "way.py"
            script.write_text(code, encoding="utf-8")
            runs[way] = measure(script, text, tokenizer, out, workers, flag)
    return runs


def report(megabytes: float, workers: int, rounds: list[dict[str, Run]]) -> None:
    for way in rounds[0]:
        runs = [one[way] for one in rounds]
        seconds, whole, cpu = (median(getattr(run, name) for run in runs) for name in ("seconds", "whole", "cpu"))
        ratios = ""
        if BASELINE in rounds[0]:
            each = [[getattr(one[BASELINE], name) / getattr(one[way], name) for one in rounds] for name in FIGURES]
            ratios = " / ".join(f"{median(figures):.1f}" for figures in each)
        print(
            f"{way:20} {megabytes:6.0f} {workers:7} {seconds:8.2f} {whole:6.2f} {cpu:6.2f} {megabytes / seconds:7.1f} "
            f"{runs[0].tokens / seconds:11,.0f} {max(run.peak for run in runs) / 1e6:8.0f}  {ratios}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--text", type=Path, help="a text file to take instead")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    options = parser.parse_args()
    print(
        f"{'':20} {'MB':>6} {'workers':>7} {'seconds':>8} {'whole':>6} {'CPU s':>6} {'MB/s':>7} {'tokens/s':>11} "
        f"{'peak MB':>8}  times {BASELINE}, by {' / '.join(FIGURES)}"
    )
    for megabytes in options.megabytes if options.text is None else [0]:
        with tempfile.TemporaryDirectory() as folder:
            text = options.text or Path(folder) / "text.txt"
            if options.text is None:
                write_text(text, megabytes)
            for workers in options.workers:
                rounds = [
                    run_round(text, options.tokenizer, workers, options.ways, Path(folder))
                    for _ in range(options.rounds)
                ]
                report(text.stat().st_size / 1e6, workers, rounds)


if __name__ == "__main__":
    main()
