"""Text to token ids: `sconce data prepare`, with each encoder, beside `datasets.map(num_proc)`; speed and memory.

    python benchmarks/tokenise.py --tokenizer tokenizer/tokenizer.json --megabytes 10 100

Each figure is of a process of its own, start-up left out of the time. Peak memory is the sum over the process and its
children, sampled ten times a second (Linux). The text is the documentation inside Python, repeated with a number in
each line so that no cache of whole documents helps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from pydoc_data import topics

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


def measure(script: Path, *arguments: object) -> tuple[float, int, int]:
    """Seconds, tokens, peak bytes."""
    command = [sys.executable, str(script), *map(str, arguments)]
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, resident_bytes(process.pid))

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        watcher = threading.Thread(target=watch)
        watcher.start()
        out, _ = process.communicate()
        done.set()
        watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    seconds, tokens = json.loads(out.splitlines()[-1])
    return seconds, tokens, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    options = parser.parse_args()
    print(f"{'':20} {'MB':>6} {'workers':>7} {'seconds':>8} {'MB/s':>7} {'tokens/s':>11} {'peak MB':>8}")
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text.txt"
            write_text(text, megabytes)
            for way in options.ways:
                for workers in options.workers:
                    code, flag = WAYS[way]
                    script, out = Path(folder) / "way.py", Path(folder) / f"{way}-{workers}".replace(", ", "-")
                    script.write_text(code, encoding="utf-8")
                    out.mkdir()
                    started = time.perf_counter()
                    seconds, tokens, peak = measure(script, text, options.tokenizer, out, workers, flag)
                    assert seconds <= time.perf_counter() - started
                    print(
                        f"{way:20} {megabytes:6} {workers:7} {seconds:8.2f} {megabytes / seconds:7.1f} "
                        f"{tokens / seconds:11,.0f} {peak / 1e6:8.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
