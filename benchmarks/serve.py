"""`sconce serve` under load: clients that stream for a minute, next to others that misbehave.

    python benchmarks/serve.py RUN [--backend cpu|cuda|mlx] [--clients 32] [--seconds 60] [--max-tokens 100]
                               [--growth-mib 50]

Every client writes greedily, again and again, from prompts of its own, whose continuations were asked for one by one
before: each must come out the same in company. Meanwhile one more client sends broken JSON, prompts that are too long,
and requests that it drops halfway. Printed: faults of any kind, tokens a second, the time to the first token, and the
server's memory every few seconds. From a third of the time on, when every client has been served, it may grow by
`--growth-mib` at most: more is a fault. Exit code 1 if there was one.
"""

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROMPTS_EACH = 2
WORDS = ("The", "licence", "def", "return self", "software", "In the", "import", "any", "with", "#", "for", "while the")


@dataclass
class Tally:
    """What the clients saw; each list is only appended to."""

    faults: list[str] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


@contextmanager
def serving(arguments):
    """The server's port and its process, which ends with the block."""
    command = [sys.executable, "-c", "from sconce_cli.main import main; main()", "serve", arguments.run, "--port", "0"]
    command += ["--backend", arguments.backend, "--concurrency", str(arguments.clients)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        found = (re.search(r"at http://[^:]+:(\d+)/v1", line) for line in process.stderr)
        yield next((int(match[1]) for match in found if match), None), process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def post(port, body):
    """A connection on which a request was made."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
    return connection


def write(port, prompt, max_tokens):
    """Text, seconds to the first token, and tokens of a stream read to its end."""
    started, first, text, tokens = time.perf_counter(), None, "", 0
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    connection = post(port, body | {"stream_options": {"include_usage": True}})
    response = connection.getresponse()
    if response.status != 200:
        raise ValueError(f"status {response.status}: {response.read().decode()}")
    ended = False
    for line in response:
        if line.strip() == b"data: [DONE]":
            ended = True
        elif line.startswith(b"data: "):
            first = first or time.perf_counter() - started
            event = json.loads(line[6:])
            text += "".join(choice["text"] for choice in event["choices"])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    connection.close()
    if not ended:
        raise ValueError("a stream broke off")
    return text, first, tokens


def keep_writing(port, prompts, alone, until, arguments, tally):
    turn = 0
    while time.monotonic() < until:
        prompt = prompts[turn % len(prompts)]
        turn += 1
        try:
            text, first, tokens = write(port, prompt, arguments.max_tokens)
        except (OSError, ValueError, http.client.HTTPException) as error:
            tally.faults.append(f"{prompt!r}: {error}")
            continue
        if text != alone[prompt]:
            tally.faults.append(f"{prompt!r}: in company {text!r}, alone {alone[prompt]!r}")
        tally.first_seconds.append(first)
        tally.tokens.append(tokens)


def keep_misbehaving(port, until, tally):
    bad = ((b'{"prompt": ', 400), (b"\xff", 400), ({"prompt": "word " * 20_000}, 400), ({"prompt": "a" * 2**21}, 413))
    while time.monotonic() < until:
        for body, expected in bad:
            try:
                status = post(port, body).getresponse().status
            except (BrokenPipeError, ConnectionResetError):
                status = 413  # it had heard enough before all was sent
            tally.refused.append(status)
            if status != expected:
                tally.faults.append(f"a bad request got {status}, expected {expected}")
        connection = post(port, {"prompt": "dropped", "max_tokens": 200, "stream": True, "temperature": 1})
        connection.getresponse().readline()
        connection.close()
        tally.dropped.append(1)
        time.sleep(0.25)


def memory_mib(process):
    """Of the server, where /proc tells."""
    status = Path(f"/proc/{process.pid}/status")
    return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024 if status.is_file() else float("nan")


def growth(memory):
    """MiB from a third of the way to the end."""
    return memory[-1] - memory[len(memory) // 3]


def open_requests(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/health")
    return json.load(connection.getresponse())["requests"]


def load(port, process, prompts, alone, arguments):
    """What came of it, and the server's memory over time in MiB."""
    tally, started = Tally(), time.monotonic()
    until = started + arguments.seconds
    threads = [
        threading.Thread(target=keep_writing, args=(port, own, alone, until, arguments, tally)) for own in prompts
    ]
    threads.append(threading.Thread(target=keep_misbehaving, args=(port, until, tally)))
    for thread in threads:
        thread.start()
    memory = [memory_mib(process)]
    while time.monotonic() < until:
        time.sleep(min(arguments.seconds / 6, 10))
        memory.append(memory_mib(process))
    for thread in threads:
        thread.join()
    return tally, memory, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--backend", default="auto", choices=["auto", "cpu", "cuda", "mlx"])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--growth-mib", type=float, default=50)
    arguments = parser.parse_args()
    count = range(arguments.clients)
    prompts = [[f"{WORDS[(i + j) % len(WORDS)]} {i * PROMPTS_EACH + j}" for j in range(PROMPTS_EACH)] for i in count]
    with serving(arguments) as (port, process):
        if port is None:
            print("the server ended before it served")
            return 1
        alone = {prompt: write(port, prompt, arguments.max_tokens)[0] for own in prompts for prompt in own}
        before = memory_mib(process)
        tally, memory, seconds = load(port, process, prompts, alone, arguments)
        left = open_requests(port)
    if growth(memory) > arguments.growth_mib:
        tally.faults.append(f"memory grew by {growth(memory):.0f} MiB, and may by {arguments.growth_mib:.0f}")
    first = sorted(tally.first_seconds)
    print(f"{len(tally.tokens)} streams by {arguments.clients} clients in {seconds:.0f} s, {len(tally.faults)} faults")
    print(f"{len(set(alone.values()))} different continuations of {len(alone)} prompts; each as it is alone")
    print(f"{len(tally.refused)} bad requests refused, {len(tally.dropped)} dropped halfway; {left} requests left over")
    print(f"{sum(tally.tokens) / seconds:,.0f} tok/s in all")
    if first:
        print(
            f"first token after {statistics.median(first):.2f} s, 95th percentile {first[int(len(first) * 0.95)]:.2f}"
        )
    print(f"memory: {before:.0f} MiB before, then " + ", ".join(f"{size:.0f}" for size in memory))
    for fault in tally.faults[:5]:
        print(f"FAULT {fault}")
    return 1 if tally.faults or left else 0


if __name__ == "__main__":
    sys.exit(main())
