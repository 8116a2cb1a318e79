"""How long `sconce --help` takes: the median of eleven runs, beside typer's own import.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time

HELP = "from sconce_cli.main import main; main()"


def median_seconds(*arguments: str) -> float:
    times = []
    for _ in range(11):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    print(f"python -c 'import typer'  {median_seconds('-c', 'import typer'):.3f} s")
    print(f"sconce --help             {median_seconds('-c', HELP, '--help'):.3f} s")
