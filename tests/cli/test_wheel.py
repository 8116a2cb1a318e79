"""The wheel, installed in a fresh virtual environment, without the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    return next(folder.glob("*.whl"))


def environment():
    """Nothing of the checkout may be found by way of a variable."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def test_the_installed_command_trains_without_the_checkout(wheel, tmp_path):
    """The dependencies come from the present environment's folder, everything of Sconce from the wheel alone."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    # A path inside a .pth file is searched, but .pth files in it (the editable install's) are not obeyed.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(
        python,
        "-c",
        "import sconce, sconce_cli, sconce_torch; print(sconce.__file__)",
        cwd=tmp_path,
        env=environment(),
    )
    assert where.startswith(str(tmp_path))
    out = run(
        tmp_path / "venv/bin/sconce",
        "orchestrate",
        "--run-dir",
        "out",
        "--backend",
        "cpu",
        "--override",
        "scheduler.total_steps=3",
        "--override",
        "scheduler.warmup_steps=1",
        "--override",
        "model.num_layers=1",
        cwd=tmp_path,
        env=environment(),
    )
    assert "bits per byte" in out
    assert (tmp_path / "out/checkpoints/step-00000003/model.safetensors").exists()


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    names = run(sys.executable, "-m", "zipfile", "-l", wheel).splitlines()[1:]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("sconce_lm-")} == {
        "sconce",
        "sconce_cli",
        "sconce_mlx",
        "sconce_torch",
    }
    for package in ("sconce", "sconce_cli", "sconce_mlx", "sconce_torch"):
        assert any(name.startswith(f"{package}/py.typed ") for name in names), "its types are for others to use"
    for data in ("sconce/conformance/golden.npz", "sconce/configs/runpod_4b.toml", "sconce/report/charts.js"):
        assert any(name.startswith(data) for name in names), data


@pytest.mark.slow
def test_pip_installs_the_wheel_with_all_it_needs(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    run(tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel, env=environment())
    assert "orchestrate" in run(tmp_path / "venv/bin/sconce", "--help", cwd=tmp_path, env=environment())
