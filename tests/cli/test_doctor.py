"""`sconce doctor`, as a user runs it, on this machine and on machines with something missing or broken."""

import json
import os
import sys
import time

import pytest
from commands import sconce
from tiny import INSTALLED

from sconce.conformance.collect import read_report, run_frameworks

NEEDS_BOTH = pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both mlx and torch: pip install 'mlx[cpu]' torch")


def doctor(tmp_path, at_start, *options):
    """The command, with Python code that every process of it runs first."""
    (tmp_path / "sitecustomize.py").write_text(at_start)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return sconce("doctor", *options, env={"PYTHONPATH": path}, cwd=tmp_path)


def without(*modules):
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in modules)


def test_this_machine_passes():
    done = sconce("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all checks passed\n")
    assert "FAIL" not in done.stdout
    for label in ("processor", "memory", "disk here", "open files", "numpy", "--backend auto"):
        assert label in done.stdout


def test_json_says_the_same(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('a file of the user must not be imported')")
    done = sconce("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["passed"]
    assert said["faults"] == {}
    assert set(INSTALLED) <= {column["hardware"] for column in said["backends"]}
    for column in said["backends"]:
        assert len(column["results"]) == 10
        assert all(result["passed"] and result["error"] <= result["tolerance"] for result in column["results"])


@NEEDS_BOTH
@pytest.mark.parametrize(("missing", "hint"), [("mlx", "pip install mlx"), ("torch", "pip install torch")])
def test_a_machine_without_one_of_the_frameworks(tmp_path, missing, hint):
    done = doctor(tmp_path, without(missing), "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert {column["device"]["backend"] for column in said["backends"]} == {"mlx", "torch"} - {missing}
    assert any(hint in line for line in said["missing"])
    if missing == "torch" and sys.platform == "linux":
        assert said["auto"] == "none: torch does not work here"


def test_a_machine_without_any_framework_does_not_pass(tmp_path):
    done = doctor(tmp_path, without("mlx", "torch"))
    assert done.returncode == 1
    assert "torch is not installed: pip install torch" in done.stdout


def test_a_wrong_mask_is_a_failure_with_its_meaning(tmp_path):
    """Half of what should be dropped is kept: in numpy's reference and, built on the same number, in the backends."""
    done = doctor(tmp_path, "import sconce.dropout as d\nd.threshold = lambda rate: round(rate * 2**23)\n")
    assert done.returncode == 1
    assert "dropout mask is wrong" in done.stdout
    assert "gradients is wrong" not in done.stdout
    assert "FAILED: computes wrongly, so do not train with it: --backend" in done.stdout


@NEEDS_BOTH
def test_a_backend_that_cannot_start_is_its_own_failure(tmp_path):
    done = doctor(tmp_path, without("sconce_mlx"), "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert "exit code 1" in said["faults"]["mlx"]
    assert [column["device"]["backend"] for column in said["backends"]] == ["torch"] * 3
    assert all(result["passed"] for column in said["backends"] for result in column["results"])


DEVICE = {"backend": "torch", "version": "2", "kind": "cuda", "name": "a GPU", "memory_bytes": 1}
RESULT = {"check": "gradients", "error": None, "tolerance": 1e-4, "where": "w", "passed": False}


def lines(*objects):
    return "".join(json.dumps(one) + "\n" for one in objects)


def test_a_crash_keeps_what_was_done_and_says_where_it_happened():
    out = lines({"device": DEVICE, "hardware": "cuda", "facts": {}}, {"begin": "bf16"}, {"result": RESULT})
    report = read_report("torch", "a greeting of the driver\n" + out, "first\nCUDA error: misaligned address\n", -6)
    assert report.fault == "ended with exit code -6 in torch cuda bf16: CUDA error: misaligned address"
    (column,) = report.columns
    assert [result.error for result in column.results] == [float("inf")]
    assert not report.passed


def test_backends_that_hang_share_one_deadline(tmp_path, monkeypatch):
    """Two that hang take the time of one, and what was done before is kept."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif 'sconce.conformance' in str(sys.orig_argv): time.sleep(60)"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    started = time.monotonic()
    reports = run_frameworks(time_limit=1.0)
    assert time.monotonic() - started < 15
    assert [report.fault for report in reports] == ["not done after 1 s, so it was stopped"] * len(INSTALLED)


def test_silence_is_a_failure_too():
    assert read_report("mlx", "", "", 0).fault == "ended with exit code 0: it said nothing"
