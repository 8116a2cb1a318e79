"""The memory of `sconce data prepare`, which should depend little on the size of the text and the number of threads.

    python benchmarks/tokenise_memory.py --tokenizer runs/local/tokenizer/tokenizer.json --megabytes 10 100 1000

Each size is prepared in a process of its own, whose whole tree of processes is looked at every 20 ms: the sum of their
resident sets (RSS), and of their proportional ones (PSS, in which a page that processes share counts once). Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = 20_000
BLOCK_BYTES = 10**6


def write_text(path: Path, megabytes: int, one_line: bool) -> None:
    """Lines of words by Zipf's law, in passages, or all of it in one line; the same for the same size."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (WORDS, 9), np.uint8)
    words = np.array([bytes(row[: 2 + index % 8]).decode() for index, row in enumerate(letters)])
    with path.open("w", encoding="ascii") as file:
        written = 0
        while written < megabytes * BLOCK_BYTES:
            drawn = words[np.minimum(rng.zipf(1.2, BLOCK_BYTES // 8), WORDS) - 1].tolist()
            lines = [
                " ".join(drawn[at : at + 12]) + ("\n\n" if at % 60 == 0 else "\n") for at in range(0, len(drawn), 12)
            ]
            text = "".join(lines)
            written += file.write(text.replace("\n", " ") if one_line else text)


def tree(pid: int) -> list[int]:
    """The process and all that come from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(below for child in children for below in tree(int(child)))]


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process in MB; zeros once it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    fields = {line.split(":")[0]: int(line.split()[1]) for line in rollup[1:]}
    return fields["Rss"] * 1024 / 1e6, fields["Pss"] * 1024 / 1e6


def measure(command: list[str]) -> tuple[float, float, float, int]:
    """Peak RSS and PSS of the tree in MB, seconds, and the most processes there were."""
    started = time.monotonic()
    rss = pss = 0.0
    most = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            found = [memory(pid) for pid in tree(process.pid)]
            rss = max(rss, sum(one[0] for one in found))
            pss = max(pss, sum(one[1] for one in found))
            most = max(most, len(found))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    return rss, pss, time.monotonic() - started, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--one-line", action="store_true", help="text without a single line end")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print("workers  text MB  processes  peak RSS MB  peak PSS MB  seconds")
    with tempfile.TemporaryDirectory(prefix="sconce-memory-") as folder:
        for megabytes in options.megabytes:
            text = Path(folder) / f"{megabytes}.txt"
            write_text(text, megabytes, options.one_line)
            for workers in options.workers:
                out = Path(folder) / f"{megabytes}-{workers}"
                code = "from sconce_cli.main import main; main()"
                asked = ["--input", str(text), "--tokenizer", str(options.tokenizer), "--out", str(out)]
                command = [sys.executable, "-c", code, "data", "prepare", *asked, "--workers", str(workers), "--quiet"]
                rss, pss, seconds, most = measure(command)
                print(f"{workers:7}  {megabytes:7}  {most:9}  {rss:11.0f}  {pss:11.0f}  {seconds:7.1f}", flush=True)
            text.unlink()


if __name__ == "__main__":
    main()
