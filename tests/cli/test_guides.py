"""The guides are followed to the letter, on a machine where other people's services are small stand-ins."""

import shlex
import sys

import pytest
from commands import SMALL, checkpoints, write_corpus
from guides import ROOT, check_output, follow, install
from workspace import roots

TINY = [part for text in SMALL for part in ("--override", text)]

# `aws s3 sync FROM TO`, where s3://VOLUME/ is a folder.
AWS = """#!{python}
import fnmatch, os, shutil, sys
from pathlib import Path
words = sys.argv[1:]
assert words[:2] == ["s3", "sync"], words
assert os.environ["AWS_ENDPOINT_URL"] == "https://s3api-us-ks-2.runpod.io"
assert os.environ["AWS_DEFAULT_REGION"] == "us-ks-2"  # AWS_REGION is not read by the `aws` that pip installs
source, target = (Path(word.replace("s3://volume7", os.environ["FAKE_VOLUME"])) for word in words[2:4])
wanted = words[words.index("--include") + 1] if "--include" in words else "*"
files = [path for path in source.rglob("*") if path.is_file() and fnmatch.fnmatch(path.name, wanted)]
assert files, f"nothing in {{source}}"
for path in files:
    (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target / path.relative_to(source))
"""
# `curl` to RunPod's API: the pod that is asked for runs here, to its end, and is stopped by the call it makes.
CURL = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
url = words[words.index("--url") + 1]
data = words[words.index("--data") + 1]
of_the_pod = url.endswith("/action")
key = "rpa_of_pod7" if of_the_pod else "rpa_key"
assert words[words.index("--header") + 1] == f"Authorization: Bearer {{key}}"
if of_the_pod:
    assert json.loads(data) == {{"action": "stop"}}
    os.kill(os.getppid(), 15)
    sys.exit()
assert url == "https://api.runpod.io/v2/pods"
pod = json.loads(open(data.removeprefix("@")).read())
assert pod["image"] == "docker.io/your-name/sconce:0.1.0" and pod["mounts"]["network"][0]["volumeId"] == "volume7"
command, *arguments = pod["args"].split()
mine = ("RUNPOD_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # what no pod is given
environment = {{name: value for name, value in os.environ.items() if name not in mine}} | pod["env"]
environment |= {{"RUNPOD_POD_ID": "pod7", "RUNPOD_API_KEY": "rpa_of_pod7"}}  # as RunPod does
done = subprocess.run([f"{infra}/{{command}}", *arguments], env=environment, stdout=subprocess.DEVNULL)
print(json.dumps({{"id": "pod7", "exit": done.returncode}}))
sys.exit(done.returncode)
"""
DOCKER = """#!/bin/sh
case "$1" in
  build) test -f infra/Dockerfile ;;
  push) test "$2" = docker.io/your-name/sconce:0.1.0 ;;
  *) exit 1 ;;
esac
"""


def checkout(place):
    """What the guides stand on: a checkout's root, as far as their commands look at it, and a folder of text."""
    (place / "corpus").mkdir()
    write_corpus(place / "corpus/text.txt")
    (place / "infra").symlink_to(ROOT / "infra")
    return place


def test_runpod_from_an_empty_volume_to_the_model_at_home(tmp_path):
    guide, volume = ROOT / "docs/runpod.md", tmp_path / "volume"
    volume.mkdir()
    python = shlex.quote(sys.executable)
    programs = {
        "aws": AWS.format(python=python),
        "curl": CURL.format(python=python, infra=ROOT / "infra"),
        "docker": DOCKER,
    }
    environment = install(tmp_path / "bin", [*TINY, "--backend", "cpu"], programs) | roots(volume)
    environment |= {"RUNPOD_API_KEY": "rpa_key", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}
    environment |= {"VOLUME": "volume7", "FAKE_VOLUME": str(volume), "TENSORBOARD_PORT": "0"}
    (tmp_path / "home").mkdir()
    place = checkout(tmp_path / "home")
    out = follow(guide, place, environment, {"scheduler.total_steps=4000": "scheduler.total_steps=34"})
    assert '"id": "pod7"' in out
    assert "the run has ended with exit code 0" in out  # its log, through the volume
    assert "Once" in out
    assert "resuming from step-00000030; changed: scheduler.total_steps from 30 to 34" in out
    assert "finished: 34 steps" in out  # trained on at home, on the token shards that came along
    assert not (place / "runs/first/corpus").exists()
    assert checkpoints(place / "runs/first")[-1] == "step-00000034"
    assert checkpoints(volume / "runs/first")[-1] == "step-00000030"
    assert not any(b"rpa_" in path.read_bytes() for path in volume.rglob("*") if path.is_file())


@pytest.mark.slow
def test_quick_start_on_a_mac(tmp_path):
    environment = install(tmp_path / "bin", [*TINY, "--backend", "cpu"])
    (tmp_path / "home").mkdir()
    place = checkout(tmp_path / "home")
    longer = {"scheduler.total_steps=12000": "scheduler.total_steps=36"}
    out = follow(ROOT / "docs/quickstart-mac.md", place, environment, longer)
    assert "all checks passed" in out
    assert (place / "runs/mine/loss.png").exists()
    assert checkpoints(place / "runs/mine")[-1] == "step-00000036"
    assert len(checkpoints(place / "runs/hello")) > 0


@pytest.mark.parametrize(("name", "commands"), [("runpod", 4), ("rtx5090", 7), ("quickstart-mac", 1)])
def test_what_a_guide_shows_is_what_is_printed(name, commands):
    assert check_output(ROOT / f"docs/{name}.md") == commands


def test_a_guide_that_is_wrong_is_found_out(tmp_path):
    guide = tmp_path / "guide.md"
    guide.write_text(
        "```console\n$ sconce plan --profile runpod_20m --device h100\nmodel    20,454,529 parameters\n```\n"
    )
    with pytest.raises(AssertionError, match="does not print: model    20,454,529"):
        check_output(guide)
    guide.write_text("```sh\nsconce plan --profile runpod_20 --device h100\n```\n")
    with pytest.raises(AssertionError, match="no such preset"):
        follow(guide, tmp_path, install(tmp_path / "bin"))
