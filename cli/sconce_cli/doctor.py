"""`sconce doctor`: what is on this machine, and whether it computes what it should."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from sconce_cli.options import JsonOption

if TYPE_CHECKING:
    from sconce.conformance.collect import FrameworkReport
    from sconce.conformance.kit import Result

AGAIN = "run `sconce doctor` once more, and if it fails again, report the output of `sconce doctor --json`"


def doctor(
    as_json: JsonOption = False,
) -> None:
    """Show the hardware and the backends, and check each of them against values that are known."""
    import json

    from sconce.conformance.collect import run_frameworks
    from sconce.conformance.kit import check_host
    from sconce.conformance.machine import machine_facts

    machine = machine_facts()
    reports, host = run_frameworks(), list(check_host())
    for report in reports:
        machine |= report.facts
    advice, choice = what_is_missing(reports, machine), automatic(reports)
    passed = bool(reports) and all(report.passed for report in reports) and all(result.passed for result in host)
    if as_json:
        typer.echo(json.dumps(as_object(passed, choice, machine, advice, host, reports), ensure_ascii=False))
    else:
        typer.echo("\n".join(as_text(choice, machine, advice, host, reports)))
        typer.echo("\n" + ("all checks passed" if passed else "\n".join(what_failed(reports, host))))
    raise typer.Exit(0 if passed else 1)


def what_failed(reports: Sequence["FrameworkReport"], host: Sequence["Result"]) -> list[str]:
    """What each kind of failure means for a run, and what to do."""
    wrong = sorted(
        {
            f"--backend {column.hardware} with runtime.precision {column.precision}"
            for report in reports
            for column in report.columns
            if not all(result.passed for result in column.results)
        }
    )
    lines: list[str] = []
    if not reports:
        lines.append("no backend is installed: nothing can train here until one is")
    if not all(result.passed for result in host):
        lines.append("this machine itself is wrong: initial weights or data order differ from those of others")
    if wrong:
        lines.append(f"computes wrongly, so do not train with it: {'; '.join(wrong)}")
    lines += [
        f"{report.framework} could not be checked to its end: do not train with it before it can"
        for report in reports
        if report.fault
    ]
    return [f"FAILED: {line}" for line in lines] + [AGAIN]


def automatic(reports: Sequence["FrameworkReport"]) -> str:
    """What --backend auto would choose."""
    from sconce.backend import framework_for

    framework = framework_for("auto")
    here = [column.hardware for report in reports if report.framework == framework for column in report.columns]
    if "cuda" in here:
        return "cuda"
    return here[0] if here else f"none: {framework} does not work here"


def what_is_missing(reports: Sequence["FrameworkReport"], machine: Mapping[str, str]) -> list[str]:
    """A line for each thing that could be installed."""
    from sconce.backend import how_to_install
    from sconce.conformance.collect import FRAMEWORKS

    here = {report.framework for report in reports}
    lines = [f"{name} is not installed: {how_to_install(name)}" for name in FRAMEWORKS if name not in here]
    has_gpu = any(label.startswith("NVIDIA GPU") for label in machine)
    uses_gpu = any(column.hardware == "cuda" for report in reports for column in report.columns)
    if "torch" in here and has_gpu and not uses_gpu:
        lines.append("the GPU is not used: install a CUDA build of torch, as https://pytorch.org/get-started says")
    if machine["transformers"] == "not installed":
        lines.append("transformers is not installed: pip install transformers, to load checkpoints with it")
    return lines


def as_object(
    passed: bool,
    choice: str,
    machine: Mapping[str, str],
    advice: Sequence[str],
    host: Sequence["Result"],
    reports: Sequence["FrameworkReport"],
) -> dict[str, object]:
    """Everything as one JSON object."""
    from dataclasses import asdict

    from sconce.conformance.kit import as_json

    columns = [
        {
            "hardware": column.hardware,
            "precision": column.precision,
            "device": asdict(column.device),
            "results": [as_json(result) for result in column.results],
        }
        for report in reports
        for column in report.columns
    ]
    return {
        "passed": passed,
        "auto": choice,
        "machine": dict(machine),
        "missing": list(advice),
        "host": [as_json(result) for result in host],
        "backends": columns,
        "faults": {report.framework: report.fault for report in reports if report.fault},
    }


def as_text(
    choice: str,
    machine: Mapping[str, str],
    advice: Sequence[str],
    host: Sequence["Result"],
    reports: Sequence["FrameworkReport"],
) -> list[str]:
    """The same for a person, as lines."""
    width = max(map(len, machine))
    lines = [f"{label:>{width}}  {text}" for label, text in machine.items()]
    lines += [f"{'--backend auto':>{width}}  {choice}", *(f"{'missing':>{width}}  {line}" for line in advice)]
    columns = {"this machine": {result.check: result for result in host}}
    columns |= {
        column.title: {result.check: result for result in column.results}
        for report in reports
        for column in report.columns
    }
    lines += ["", "worst error / tolerance, relative to the largest value", *table(columns)]
    for title, results in columns.items():
        failed = (result for result in results.values() if not result.passed)
        lines += [
            f"{title}: {result.check} is wrong, most in {result.where}: {cell(result)} (error / tolerance)"
            for result in failed
        ]
        if title.startswith("mlx metal fp32") and not all(result.passed for result in results.values()):
            lines.append("errors near 1e-3 in float32 are TF32's: MLX_ENABLE_TF32=0 turns it off")
    return lines + [f"{report.framework}: FAIL, {report.fault}" for report in reports if report.fault]


def table(columns: Mapping[str, Mapping[str, "Result"]]) -> list[str]:
    """A row a check, a column a device and precision."""
    checks = list(dict.fromkeys(check for results in columns.values() for check in results))
    rows = [["", *columns]]
    rows += [[check, *(cell(results.get(check)) for results in columns.values())] for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def cell(result: "Result | None") -> str:
    """Such as "pass 2e-07 / 0.0001"."""
    if result is None:
        return "-"
    verdict = "pass" if result.passed else "FAIL"
    if result.tolerance == 0:
        return f"{verdict} exact" if result.passed else f"{verdict} {result.error:.0f} differ"
    return f"{verdict} {result.error:.0e} / {result.tolerance:g}"
