"""`sconce push` and `sconce pull`, against a stand-in for the hub on a loopback port."""

import json
import shlex
import shutil
import time

import pytest
from commands import checkpoints, overrides, sconce, sconce_here, sign, weights, write_corpus
from guides import ROOT, blocks
from model_hub import TOKEN, model_hub
from small_run import write_run

from sconce.checkpoint.evaluations import keep_results
from sconce.files import sha256_file

huggingface_hub = pytest.importorskip("huggingface_hub")
REPO = "me/small"
CHECKPOINT = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "optimizer.safetensors",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
PUSHED = CHECKPOINT | {"manifest.json", "metrics.jsonl", "evaluations.json", "README.md", "loss.png"}


@pytest.fixture(scope="module")
def server():
    with model_hub() as server:
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The stand-in, empty, as this process's hub; nothing waits between two tries."""
    from huggingface_hub import constants

    for name in ("repos", "large", "readers"):
        getattr(server, name).clear()
    for name in ("requests", "uploaded", "faults"):
        getattr(server, name).clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # as HF_ENDPOINT does, which is read at the import
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)
    return server


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 30 steps, with checkpoints of steps 10, 20 and 30."""
    home = tmp_path_factory.mktemp("hub")
    corpus = write_corpus(home / "corpus.txt")
    done = sconce_here(
        "orchestrate", "--input", corpus, "--run-dir", home / "run", "--backend", "cpu", "--quiet", *overrides()
    )
    assert done.returncode == 0, done.stderr
    result = {"kind": "text", "name": "/home/me/book.txt", "figures": {"loss": 2.5, "tokens": 70}, "settings": {"w": 8}}
    keep_results(home / "run/checkpoints/step-00000020", [result])
    return home / "run"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run with a checkpoint of random weights, made without training."""
    return write_run(tmp_path_factory.mktemp("small") / "run")


def done(*arguments):
    """What a command printed that had to work; the token is in none of it."""
    ended = sconce_here(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert TOKEN not in ended.stdout + ended.stderr
    return ended.stdout


def refused(*arguments):
    """The one line of a command that had to fail."""
    ended = sconce_here(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended
    assert TOKEN not in ended.stderr
    return ended.stderr


def head(hub, repo=REPO, branch="main"):
    return hub.repos[repo].branches[branch][-1]


def names(commit):
    return set(commit.files) - {".gitattributes"}


def left(folder):
    """Every file below, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_run_goes_on_elsewhere_as_if_it_had_never_moved(hub, trained, tmp_path):
    said = done("push", trained / "checkpoints/step-00000020", "--repo", REPO, "--license", "mit")
    assert "private, which was made" in said
    assert hub.repos[REPO].private
    assert names(head(hub)) == PUSHED
    assert head(hub).message == "step 20"

    said = done("pull", REPO, "--out", "there/run")
    there = tmp_path / "there/run"
    assert head(hub).oid in said
    assert json.loads((there / "hub.json").read_text())["commit"] == head(hub).oid
    assert weights(there, 20) == weights(trained, 20)
    assert (there / "evaluations/step-00000020.json").read_bytes() == head(hub).files["evaluations.json"]
    assert not any(TOKEN.encode() in path.read_bytes() for path in there.rglob("*") if path.is_file())
    assert not any(TOKEN.encode() in content for content in head(hub).files.values())

    resume = ("train", "--config", there / "training.toml", "--run-dir", there, "--resume", "--backend", "cpu")
    moved = shutil.copy(trained.parent / "corpus.txt", tmp_path / "elsewhere.txt")
    said = done(*resume, "--override", f'data.train_shards=["{moved}"]')
    assert "the next micro-batch has the loss it had" in said
    assert weights(there, 30) == weights(trained, 30)
    steps = [json.loads(line)["step"] for line in (there / "metrics.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()]


def test_the_card_tells_config_curve_evaluations_and_data(hub, trained):
    done("push", trained / "checkpoints/step-00000020", "--repo", REPO, "--license", "mit")
    files = head(hub).files
    card = files["README.md"].decode()
    front, rest = card.removeprefix("---\n").split("\n---\n", 1)
    assert "license: mit" in front.splitlines()
    manifest = json.loads(files["manifest.json"])
    assert f"| data fingerprint | {manifest['cursor']['fingerprint']} |" in rest
    assert "| data.batch_size | 4 |" in rest
    assert "| book.txt (w 8) | loss 2.5000, tokens 70 |" in rest
    assert "/home/me" not in card
    assert str(trained.parent) not in card
    assert "| 20 | " in rest
    assert "| 30 | " not in rest  # of a later step
    assert "(loss.png)" in rest
    assert files["loss.png"].startswith(b"\x89PNG")
    assert f'from_pretrained("{REPO}")' in rest
    assert f"sconce pull {REPO} " in rest


def test_what_has_not_changed_is_not_sent_again(hub, trained):
    push = ("push", trained / "checkpoints/step-00000020", "--repo", REPO)
    done(*push)
    hub.uploaded.clear()
    assert "nothing to send" in done(*push)
    assert len(hub.repos[REPO].branches["main"]) == 2
    done("push", trained / "checkpoints/step-00000030", "--repo", REPO, "--message", "the end")
    assert head(hub).message == "the end"
    (committed,) = [paths for method, _, paths in hub.requests[-1:] if method == "COMMIT"]
    assert {"model.safetensors", "optimizer.safetensors", "manifest.json", "metrics.jsonl"} <= set(committed)
    assert not {"tokenizer.json", "config.json"} & set(committed)
    assert len(hub.uploaded) == 3  # weights, moments, curve
    assert "evaluations.json" not in head(hub).files  # it was of step 20
    done("pull", REPO, "--out", "old", "--revision", hub.repos[REPO].branches["main"][1].oid)
    done("pull", REPO, "--out", "new")


def test_what_the_manifest_knows_is_not_hashed_again(hub, trained, monkeypatch):
    push = ("push", trained / "checkpoints/step-00000020", "--repo", REPO)
    done(*push)
    hashed = []
    monkeypatch.setattr("sconce.hub.connection.sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    assert "nothing to send" in done(*push)
    assert hashed == []


def test_text_that_is_on_the_hub_need_not_be_named_elsewhere(hub, trained, tmp_path):
    checkpoint = shutil.copytree(trained / "checkpoints/step-00000020", tmp_path / "there/checkpoints/step-00000020")
    config = json.loads((checkpoint / "run.json").read_text())
    config["data"]["train_shards"] = ["hf://org/toy"]
    (checkpoint / "run.json").write_text(json.dumps(config))
    sign(checkpoint)
    done("push", checkpoint, "--repo", REPO)
    assert "--resume\n```" in head(hub).files["README.md"].decode()
    assert "data.train_shards" not in done("pull", REPO, "--out", "run")
    done("push", trained / "checkpoints/step-00000020", "--repo", "me/local")
    command = """--resume --override 'data.train_shards=["corpus.txt"]'\n```"""
    assert command in head(hub, "me/local").files["README.md"].decode()


def test_weights_alone_take_the_place_of_all_and_come_by_import(hub, trained, tmp_path):
    checkpoint = trained / "checkpoints/step-00000030"
    done("push", checkpoint, "--repo", REPO)
    head(hub).files["notes.txt"] = b"the user's own"
    said = done("push", checkpoint, "--repo", REPO, "--weights-only")
    assert "removed, as they were of another push: manifest.json, optimizer.safetensors, run.json" in said
    assert names(head(hub)) == PUSHED - {"manifest.json", "optimizer.safetensors", "run.json", "evaluations.json"} | {
        "notes.txt"
    }
    assert "--resume" not in head(hub).files["README.md"].decode()
    said = done("pull", REPO, "--out", "run")
    assert "imported as a model, at step 0" in said
    assert checkpoints(tmp_path / "run") == ["step-00000000"]
    assert weights(tmp_path / "run", 0)["model.safetensors"] == weights(trained, 30)["model.safetensors"]
    assert left(tmp_path) == sorted(["run", *(f"run/{name}" for name in left(tmp_path / "run"))])
    done("push", "run", "--repo", "me/imported")  # which names no text yet
    said = done("pull", "me/imported", "--out", "again")
    assert """--override 'data.train_shards=["corpus.txt"]'""" in said
    assert weights(tmp_path / "again", 0) == weights(tmp_path / "run", 0)


def test_faults_that_pass_are_waited_for(hub, trained, tmp_path):
    patterns = ("repos/create", "GET /api/models", "validate-yaml", "preupload", "batch", "PUT /large", "/commit/")
    for pattern in patterns:
        hub.fault(pattern, 500)
    done("push", trained, "--repo", REPO)
    assert names(head(hub)) == PUSHED - {"evaluations.json"}
    assert len(hub.repos[REPO].branches["main"]) == 2
    for pattern in ("GET /api/models", "HEAD .*config.json", "GET .*/run.json", "GET /large"):
        hub.fault(pattern, 503)
    hub.fault("GET /large", "cut")
    done("pull", REPO, "--out", "run")
    assert weights(tmp_path / "run", 30) == weights(trained, 30)
    assert [fault.times for fault in hub.faults] == [0] * len(hub.faults)


def test_a_push_that_fails_leaves_the_repository_as_it_was(hub, small, tmp_path):
    done("push", small, "--repo", REPO)
    before = head(hub)
    push = ("push", write_run(tmp_path / "other", scale=2.0), "--repo", REPO)
    hub.fault("PUT /large", 400, times=99)
    assert "400" in refused(*push)
    hub.faults.clear()
    hub.fault("/commit/", 503, times=99)
    assert "503: the hub does not answer" in refused(*push)
    assert head(hub) is before
    hub.faults.clear()
    hub.fault("/commit/", "overtaken")
    assert "changed in the meantime" in refused(*push)
    assert head(hub).message == "another's"
    done(*push)
    assert "another's.txt" in head(hub).files


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, small):
    hub.fault("/commit/", "lost")
    done("push", small, "--repo", REPO)
    assert len(hub.repos[REPO].branches["main"]) == 2


@pytest.mark.parametrize("what", ["GET .*/manifest.json", "GET .*/tokenizer.json", "GET /large"])
def test_what_was_damaged_on_the_way_is_found_out_and_nothing_is_left(hub, small, tmp_path, what):
    done("push", small, "--repo", REPO)
    hub.fault(what, "damage")
    assert "what came has another hash than what was pushed" in refused("pull", REPO, "--out", "runs/it")
    assert left(tmp_path) == ["runs"]


def test_a_manifest_that_says_other_hashes_is_not_believed(hub, small, tmp_path):
    """Nor a checkpoint whose files are not as its manifest says."""
    folder = shutil.copytree(small / "checkpoints/step-00000001", tmp_path / "step-00000001")
    (folder / "model.safetensors").write_bytes(b"x" * (folder / "model.safetensors").stat().st_size)
    assert "its content changed" in refused("push", folder, "--repo", REPO)
    assert hub.requests == []  # found before anything was sent
    hub.make(REPO, {path.name: path.read_bytes() for path in folder.iterdir()})
    assert "another hash" in refused("pull", REPO, "--out", "run")
    sign(folder)
    hub.make(REPO, {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "optimizer.safetensors"})
    line = refused("pull", REPO, "--out", "run")
    assert "optimizer.safetensors is in its manifest.json and not in the repository" in line
    assert not (tmp_path / "run").exists()


def test_who_may_not_is_told_what_to_do(hub, small, tmp_path, monkeypatch):
    push, pull = ("push", small, "--repo", REPO), ("pull", REPO, "--out", "run")
    assert "404: no such repository" in refused(*pull)
    hub.readers.add(TOKEN)
    assert "403: HF_TOKEN may not do this: it needs write access to me" in refused(*push)
    hub.fault("GET /api/models", 401, times=9, says=f"no good: {TOKEN}")
    assert "401: not logged in, or HF_TOKEN is not accepted" in (line := refused(*pull))
    assert "no good: <token>" in line
    hub.faults.clear()
    hub.make(REPO, {"config.json": b"{}"}, private=True)
    assert "no such branch, tag or commit" in refused(*pull, "--revision", "nowhere")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no token to write to the hub with" in refused(*push)
    assert "401: not logged in" in refused(*pull)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refused(*pull)
    assert left(tmp_path) == []


def test_visibility_is_what_was_asked_for(hub, small):
    done("push", small, "--repo", REPO, "--public")
    assert not hub.repos[REPO].private
    assert "add --public if all may see" in refused("push", small, "--repo", REPO)
    hub.repos[REPO].private = True
    assert "leave --public out" in refused("push", small, "--repo", REPO, "--public")
    assert len(hub.repos[REPO].branches["main"]) == 2


def test_a_branch_is_made_and_the_main_one_stays(hub, small, tmp_path):
    done("push", small, "--repo", REPO, "--revision", "trial")
    assert names(head(hub)) == set()
    assert "model.safetensors" in head(hub, branch="trial").files
    assert "nothing that Sconce reads" in refused("pull", REPO, "--out", "run")


def test_a_tokenizer_alone(hub, small, tmp_path):
    folder = small / "tokenizer"
    done("push", folder, "--repo", "me/words", "--tokenizer-only")
    assert names(head(hub, "me/words")) == {"tokenizer.json", "tokenizer_config.json", "README.md"}
    assert '"eos_token": "<|eos|>"' in head(hub, "me/words").files["tokenizer_config.json"].decode()
    done("pull", "me/words", "--out", "words")
    assert (tmp_path / "words/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    done("push", small, "--repo", REPO)
    assert "holds a model" in refused("push", small, "--repo", REPO, "--tokenizer-only")
    done("pull", REPO, "--out", "again", "--tokenizer-only")
    assert left(tmp_path / "again") == ["hub.json", "tokenizer.json", "tokenizer_config.json"]
    assert "neither --with-optimizer nor --weights-only" in refused(
        "push", small, "--repo", REPO, "--tokenizer-only", "--weights-only"
    )


def test_what_cannot_be_read_is_named_and_nothing_is_left(hub, small, tmp_path):
    checkpoint = small / "checkpoints/step-00000001"
    config = json.loads((checkpoint / "config.json").read_text()) | {"model_type": "mamba", "architectures": ["M"]}
    hub.make(REPO, {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}"})
    line = refused("pull", REPO, "--out", "run")
    assert f"{REPO}/config.json" in line
    assert "mamba" in line
    hub.make(REPO, {"weights.bin": b"1"})
    assert "nothing that Sconce reads" in refused("pull", REPO, "--out", "run")
    assert "expected a repository of the hub as ORG/NAME" in refused("pull", "../here", "--out", "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine").touch()
    assert "already exists" in refused("pull", REPO, "--out", "run")
    assert left(tmp_path) == ["run", "run/mine"]


def test_a_library_that_is_not_installed_is_named(small, monkeypatch):
    monkeypatch.setattr("sconce.hub.connection.find_spec", lambda _: None)
    assert "pip install 'sconce-lm[hub]'" in refused("push", small, "--repo", REPO)


def test_a_dry_run_asks_the_hub_nothing(hub, small):
    said = done("push", small, "--repo", REPO, "--dry-run")
    assert "would go to me/small, branch main, private" in said
    assert "optimizer.safetensors" in said
    assert "--license 'my own'" in refused("push", small, "--repo", REPO, "--dry-run", "--license", "my own")
    assert hub.requests == []


def test_the_guide(hub, trained, tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    shutil.copy(trained.parent / "corpus.txt", tmp_path / "corpus/text.txt")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(trained)
    script = "".join(block.text for block in blocks(ROOT / "docs/hub.md", "sh"))
    commands = [shlex.split(line) for line in script.splitlines()]
    assert [words[:2] for words in commands].count(["sconce", "push"]) == 2
    for _, *words in commands:
        done(*words, *(["--backend", "cpu"] if words[0] in ("train", "generate") else []))


def test_the_command_finds_the_hub_by_its_environment(hub, small, tmp_path):
    hub.make(REPO, {name: (small / "tokenizer" / name).read_bytes() for name in ("tokenizer.json",)})
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
    ended = sconce("pull", REPO, "--out", tmp_path / "words", env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert head(hub).oid in ended.stdout
