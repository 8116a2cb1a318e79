"""Environment variables: each does what it says, or is refused with what to do instead."""

import json
import os
import re
from unittest import mock

import pytest
from commands import checkpoints, overrides, sconce_here, start, write_corpus

from sconce.backend import ComputeOptions
from sconce.config import load_preset, model_spec
from sconce.errors import ConfigError
from sconce.log import log
from sconce.pod import pod_facts
from sconce.training.recipe import make_compute


def compute(**environment) -> ComputeOptions:
    config = load_preset("local_smoke")
    with mock.patch.dict(os.environ, environment):
        return make_compute(config, model_spec(config, 1024), "cpu")


def test_attn_backend_chooses_where_the_config_leaves_it_open():
    assert compute().attention == "auto"
    assert compute(ATTN_BACKEND="reference").attention == "reference"
    config = load_preset("local_smoke", ["runtime.attention_backend=fused"])
    for agrees in ("auto", "fused"):
        with mock.patch.dict(os.environ, ATTN_BACKEND=agrees):
            assert make_compute(config, model_spec(config, 1024), "cpu").attention == "fused"
    with (
        mock.patch.dict(os.environ, ATTN_BACKEND="reference"),
        pytest.raises(ConfigError, match=r"ATTN_BACKEND: found reference, and runtime\.attention_backend is fused"),
    ):
        make_compute(config, model_spec(config, 1024), "cpu")
    with pytest.raises(ConfigError, match="ATTN_BACKEND: found 'flash', expected one of auto, fused, reference"):
        compute(ATTN_BACKEND="flash")


@pytest.mark.parametrize(
    ("variable", "advice"),
    [
        ("ATTN_PRECISION", "runtime.precision"),
        ("ATTN_DROPOUT_P", "--override model.attn_dropout=P"),
        ("ATTN_USE_PADDING_MASK", "always causal"),
        ("ATTN_ROPE_MODE", "model.rope_theta"),
        ("ATTN_KV_ENABLED", "cache"),
        ("ATTN_KV_PAGE_SIZE", "fixed size"),
        ("ATTN_BAKEND", "there is ATTN_BACKEND"),
    ],
)
def test_the_others_are_refused_with_what_to_do(variable, advice):
    with pytest.raises(ConfigError, match=f"{variable}: has no effect: .*{re.escape(advice)}.*: unset it"):
        compute(**{variable: "1"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps."""
    root = tmp_path_factory.mktemp("trained")
    corpus = write_corpus(root / "text.txt", lines=200)
    small = overrides("scheduler.total_steps=2", "scheduler.warmup_steps=0")
    done = sconce_here("orchestrate", "--input", corpus, "--run-dir", root / "run", "--vocab-size", 300, *small)
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.mark.parametrize("command", ["train", "eval", "generate", "chat", "serve"])
def test_every_command_refuses_the_same_variables_in_the_same_line(trained, command):
    words = ("train", "--config", trained / "training.toml") if command == "train" else (command, trained)
    with mock.patch.dict(os.environ, ATTN_PRECISION="inherit"):
        done = sconce_here(*words, "--backend", "cpu")
    assert (done.returncode, done.stdout.count("\n") if command != "train" else 0) == (2, 0)
    assert done.stderr == (
        "sconce: ATTN_PRECISION: has no effect: attention computes in runtime.precision or --dtype, its softmax in "
        "float32: unset it\n"
    )


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_decoding_has_one_attention(trained, command):
    with mock.patch.dict(os.environ, ATTN_BACKEND="reference"):
        done = sconce_here(command, trained, "--backend", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "decoding is always fused: unset it" in done.stderr


def test_scoring_computes_attention_as_it_is_told(trained, monkeypatch):
    import torch.nn.functional as F

    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    found = {}
    for kind in ("fused", "reference"):
        monkeypatch.setenv("ATTN_BACKEND", kind)
        done = sconce_here("eval", trained, "--backend", "cpu", "--json")
        assert done.returncode == 0, done.stderr
        found[kind] = json.loads(done.stdout.splitlines()[-1])["loss"], len(calls)
        calls.clear()
    assert found["fused"][1] > 0
    assert found["reference"][1] == 0
    assert found["fused"][0] == pytest.approx(found["reference"][0], abs=1e-5)


def test_the_debug_log_names_files_sizes_and_times_and_leaves_standard_output_alone(tmp_path):
    corpus = write_corpus(tmp_path / "text.txt")
    arguments = ("orchestrate", "--input", corpus, "--run-dir", tmp_path / "run", "--backend", "cpu", "--quiet")
    with start(*arguments, "--vocab-size", 300, *overrides(), env={"SCONCE_LOG": "debug"}) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == ""
    assert f"text: {corpus}, {corpus.stat().st_size} bytes" in err
    model = tmp_path / "run/checkpoints" / checkpoints(tmp_path / "run")[-1] / "model.safetensors"
    assert re.search(rf"wrote \S+/model\.safetensors, {model.stat().st_size} bytes", err)
    for part in ("loading the backend for cpu", "token shards", "checkpoint of step 30", "evaluation at step 30"):
        seconds = re.search(rf"^\S+ \S+ sconce {part}: took (\d+\.\d+) s$", err, re.MULTILINE)
        assert seconds is not None, part
        assert float(seconds.group(1)) < 60


def test_a_level_that_there_is_not_is_refused():
    with mock.patch.dict(os.environ, SCONCE_LOG="loud"):
        done = sconce_here("config", "docs")
    assert done.returncode == 2
    assert "SCONCE_LOG: found 'loud', expected debug" in done.stderr
    assert not log.handlers


def test_pod_facts_never_hold_a_secret():
    environment = {
        "RUNPOD_POD_ID": "p",
        "RUNPOD_DC_ID": "EU-RO-1",
        "RUNPOD_GPU_NAME": "NVIDIA L40S",
        "RUNPOD_API_KEY": "secret",
        "RUNPOD_AI_API_KEY": "secret",
        "PUBLIC_KEY": "secret",
        "JUPYTER_PASSWORD": "secret",
    }
    expected = {"runpod_pod": "p", "runpod_datacenter": "EU-RO-1", "runpod_gpu": "NVIDIA L40S"}
    assert pod_facts(environment) == expected
    assert pod_facts({}) == {}
