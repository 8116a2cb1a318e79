"""Guides and scripts, followed to the letter: their fenced blocks are run, and what they say is printed is compared.

A block marked `sh` is run, one after the other, in one shell. A block marked `console` holds `$ command` lines, each
followed by lines of what it prints, in order, `...` for those that are left out. Other blocks are not touched.

`sconce` is the command of this checkout. What trains gets `small` options before its own, so that it takes seconds;
what a guide says itself counts, unless the test has it replaced.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands import sconce_here

ROOT = Path(__file__).parents[1]
TRAINS = ("train", "orchestrate", "bench")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str

    def commands(self) -> list[tuple[str, list[str]]]:
        """Of a `console` block: each command, and the lines it is said to print."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        return [(part.splitlines()[0], part.splitlines()[1:]) for part in parts]


def blocks(guide: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a Markdown file, of these languages."""
    found = [Block(language, text) for language, text in _FENCE.findall(guide.read_text(encoding="utf-8"))]
    return [block for block in found if block.language in languages]


def sconce_commands(guide: Path) -> list[list[str]]:
    """The words after `sconce` of every such command in a guide's blocks, whatever these are marked as.

    What a shell would do with a line is known here: comments, continued lines, quotes, `$'…'`, and `>` to a file, which
    is left out with that file.
    """
    found: list[list[str]] = []
    for _, text in _FENCE.findall(guide.read_text(encoding="utf-8")):
        for line in text.replace("\\\n", " ").splitlines():
            command = re.sub(r"\$'([^']*)'", _unescaped, line)
            if re.match(r"(\$ )?(\S*/)?sconce ", command) is None:
                continue
            words = shlex.split(command.removeprefix("$ "), comments=True)
            found.append(words[1 : words.index(">") if ">" in words else None])
    return found


def _unescaped(match: re.Match[str]) -> str:
    return shlex.quote(match[1].encode().decode("unicode_escape"))


def named_flags(text: str) -> list[tuple[str, list[str]]]:
    """Every `sconce …` of a text, in prose or in blocks: its words up to the first option, and its options."""
    found: list[tuple[str, list[str]]] = []
    lines = re.findall(r"^\s*(?:\$ |#\s+)?(?:\S*/)?(sconce .*)$", text, re.MULTILINE)
    for span in (*re.findall(r"`(sconce [^`]+)`", text), *lines):
        command = span.split("  #")[0].replace("\n", " ")
        words = re.match(r"sconce((?: [a-z]+)*)", command)[1].strip()
        found.append((words, re.findall(r"(?<=[\s`])(--[a-z][a-z-]*)", command)))
    return found


def install(folder: Path, small: Sequence[str] = (), programs: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which `sconce`, and stand-ins for `programs` by name (the text of a script), are commands."""
    folder.mkdir(parents=True, exist_ok=True)
    python, extra = shlex.quote(sys.executable), shlex.join(map(str, small))
    trains = "|".join(TRAINS)
    sconce = f"""#!/usr/bin/env bash
run() {{ exec {python} -P -c 'from sconce_cli.main import main; main()' "$@"; }}
case "$1" in {trains}) run "$1" {extra} "${{@:2}}" ;; *) run "$@" ;; esac
"""
    for name, text in {"sconce": sconce, **(programs or {})}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(str(ROOT / part) for part in (".", "backends/mlx", "backends/torch", "cli")),
        "OMP_NUM_THREADS": "1",
    }


def follow(guide: Path, place: Path, environment: Mapping[str, str], replaced: Mapping[str, str] | None = None) -> str:
    """Run every `sh` block of a guide in the folder `place`; what they printed. A command that fails fails the test.

    `replaced` are words of the guide, each of which must be there, and what is written in their place.
    """
    script = "\n".join(block.text for block in blocks(guide, "sh"))
    for old, new in (replaced or {}).items():
        assert old in script, f"{guide.name}: has no {old}"
        script = script.replace(old, new)
    with subprocess.Popen(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=place,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            out, err = shell.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            raise
    assert shell.returncode == 0, f"{guide.name}: {err[-2000:]}\n{out[-1000:]}"
    return out


def check_output(guide: Path) -> int:
    """Run every command of the `console` blocks and compare what it prints with the guide; how many there were."""
    count = 0
    for block in blocks(guide, "console"):
        for command, said in block.commands():
            program, *arguments = shlex.split(command)
            assert program == "sconce", f"{guide.name}: {command}"
            done = sconce_here(*arguments)
            printed = iter((done.stdout + done.stderr).splitlines())
            for line in said:
                if line.strip() not in ("", "..."):
                    assert line in printed, f"{guide.name}: `{command}` does not print: {line}"
            count += 1
    return count
