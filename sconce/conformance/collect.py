"""Run the checks of every framework that is here, each in its own process, and gather what they say.

In one process MLX would have to do without its fast BLAS, which changes torch's results, and a crash of one backend
would end them all.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

from sconce.backend import DeviceInfo, Hardware, installed
from sconce.conformance.kit import Result

FRAMEWORKS = ("mlx", "torch")
TIME_LIMIT_S = 300.0  # for all together; seconds are usual, a cold network disk takes a minute or two


@dataclass(slots=True)
class Column:
    """The checks of one device in one precision, as many as were done."""

    hardware: Hardware
    device: DeviceInfo
    precision: str
    results: list[Result] = field(default_factory=list[Result])

    @property
    def title(self) -> str:
        """Such as "torch cpu bf16"."""
        return f"{self.device.backend} {self.device.kind} {self.precision}"


@dataclass(slots=True)
class FrameworkReport:
    """What one framework's process said. `fault` says how it ended when it did not end well."""

    framework: str
    columns: list[Column] = field(default_factory=list[Column])
    facts: dict[str, str] = field(default_factory=dict[str, str])
    fault: str = ""

    @property
    def passed(self) -> bool:
        """Everything was checked and is right."""
        return not self.fault and all(result.passed for column in self.columns for result in column.results)


def run_frameworks(time_limit: float = TIME_LIMIT_S) -> list[FrameworkReport]:
    """Reports of the frameworks that are installed, their processes side by side, all within `time_limit` seconds."""
    deadline = time.monotonic() + time_limit
    # -P: the present folder may hold a file called torch.py, and is none of our business.
    started = {
        name: subprocess.Popen(
            [sys.executable, "-P", "-m", "sconce.conformance", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for name in FRAMEWORKS
        if installed(name)
    }
    return [_finish(name, process, deadline, time_limit) for name, process in started.items()]


def _finish(framework: str, process: subprocess.Popen[str], deadline: float, time_limit: float) -> FrameworkReport:
    overdue = ""
    with process:
        try:
            out, err = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            overdue = f"not done after {time_limit:.0f} s, so it was stopped"
    return read_report(framework, out, err, process.returncode, overdue)


def read_report(framework: str, out: str, err: str, exit_code: int, overdue: str = "") -> FrameworkReport:
    """What a process wrote, and how it ended: anything but its last word is a fault, with the last line of `err`.

    `overdue` says that it had to be stopped, which is then the fault.
    """
    report, done = FrameworkReport(framework), False
    hardware, device = cast(Hardware, "auto"), DeviceInfo(framework, "", "", "", 0)
    for line in out.splitlines():
        said = _parse(line)
        if "device" in said:
            hardware, device = said["hardware"], DeviceInfo(**said["device"])
            report.facts |= said["facts"]
        elif "begin" in said:
            report.columns.append(Column(hardware, device, said["begin"]))
        elif "result" in said:
            report.columns[-1].results.append(_read_result(said["result"]))
        done = done or "done" in said
    if exit_code != 0 or not done:
        last = (err.strip().splitlines() or ["it said nothing"])[-1]
        at = f" in {report.columns[-1].title}" if report.columns else ""
        report.fault = f"{overdue}{at}" if overdue else f"ended with exit code {exit_code}{at}: {last}"
    return report


def _parse(line: str) -> dict[str, Any]:
    """A line of ours; anything else, such as a library's greeting, is no news."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return cast(dict[str, Any], said) if isinstance(said, dict) else {}


def _read_result(fields: dict[str, Any]) -> Result:
    error = float("inf") if fields["error"] is None else fields["error"]
    return Result(check=fields["check"], error=error, tolerance=fields["tolerance"], where=fields["where"])
