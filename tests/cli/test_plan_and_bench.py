"""`sconce plan` and `sconce bench`, as a user runs them."""

import json
import re

import numpy as np
import pytest
from commands import checkpoints, overrides, records, sconce, sconce_here, write_corpus
from tiny import INSTALLED

from sconce.config import load_config
from sconce.tokenizer.bpe import load_tokenizer
from sconce.training.data import rows_and_order
from sconce.training.tokens import run_tokens

LLAMA_1B = """
[model]
vocab_size = 128256
hidden_size = 2048
intermediate_size = 8192
num_layers = 16
num_attention_heads = 32
num_key_value_heads = 8
max_position_embeddings = 4096
[tokenizer]
tokenizer_json = "none.json"
[data]
train_shards = ["none.txt"]
batch_size = 64
[scheduler]
total_steps = 1000
[runtime]
precision = "bf16"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("planned")
    corpus = write_corpus(root / "corpus.txt")
    small = overrides("scheduler.total_steps=10")
    done = sconce("orchestrate", "--input", corpus, "--run-dir", root / "run", "--backend", "cpu", *small)
    assert done.returncode == 0, done.stderr
    assert "micro-batch: 4 of 4 sequences at a time, the most that fits" in done.stdout
    assert "of matmul" in done.stdout
    return root / "run"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "llama.toml"
    path.write_text(LLAMA_1B)
    return path


def plan(config, *options):
    done = sconce_here("plan", "--config", config, "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_known_model_on_a_known_device(llama):
    made = plan(llama, "--device", "h100", "--mfu", "0.5", "--price", "2")
    assert made["parameters"] == 1_235_814_400
    assert made["non_embedding_parameters"] == 1_235_814_400 - 128256 * 2048
    attention = 16 * 4 * 32 * 64 * 4097 // 2  # layers x (q.k and p.v, 2 each) x heads x head_dim x mean keys
    assert made["flops_per_token"]["attention"] == attention
    norms = 33 * 2048
    assert made["flops_per_token"]["training"] == 6 * (1_235_814_400 - norms) + 3 * attention
    memory = made["chosen"]["memory"]
    assert memory["weights"] == 4 * 1_235_814_400
    assert memory["optimizer"] == 8 * 1_235_814_400
    assert memory["peak"] <= made["device"]["usable_bytes"]
    estimate = made["configured"]["estimate"]
    assert made["total_tokens"] == 1000 * 64 * 4096
    assert estimate["tokens_per_second"] == pytest.approx(0.5 * 989.4e12 / made["flops_per_token"]["training"])
    assert estimate["hours"] == pytest.approx(made["total_tokens"] / estimate["tokens_per_second"] / 3600)
    assert estimate["cost"] == pytest.approx(2 * estimate["hours"])


def test_less_memory_means_smaller_micro_batches_and_then_recomputing(llama):
    big, small = plan(llama, "--device", "h200"), plan(llama, "--device", "rtx-5090")
    assert small["chosen"]["micro_batch_size"] < big["chosen"]["micro_batch_size"]
    assert big["chosen"]["keys"]["runtime.activation_checkpointing"] == "none"
    assert big["configured"]["fits"]
    assert small["chosen"]["fits"]


def test_the_text_says_what_it_assumes(llama):
    done = sconce_here("plan", "--config", llama, "--device", "m3-max-64")
    assert done.returncode == 0, done.stderr
    for part in (
        "assuming 30% MFU",
        "an assumption",
        "1,235,814,400 parameters",
        "activations",
        "data.micro_batch_size",
    ):
        assert part in done.stdout


def test_it_lists_the_stages_and_plans_for_the_longest(llama):
    stages = 'data.stages=[{"from_step": 100, "batch_size": 128}, {"from_step": 200, "sequence_length": 4096}]'
    options = ("--device", "h100", "--override", "data.sequence_length=1024", "--override", stages)
    made = plan(llama, *options)
    assert [(stage["first_step"], stage["batch_size"], stage["seq_len"]) for stage in made["stages"]] == [
        (0, 64, 1024),
        (100, 128, 1024),
        (200, 128, 4096),
    ]
    assert made["total_tokens"] == 100 * 64 * 1024 + 100 * 128 * 1024 + 800 * 128 * 4096
    whole = plan(llama, "--device", "h100", "--override", "data.batch_size=128")
    assert made["chosen"]["memory"] == whole["chosen"]["memory"]
    lines = sconce_here("plan", "--config", llama, *options).stdout.splitlines()
    assert any("64 rows of 1024; 128 rows of 1024 from step 101; 128 rows of 4096 from step 201" in x for x in lines)
    alone = sconce_here("plan", "--config", llama, "--device", "h100").stdout
    assert not [line for line in alone.splitlines() if line.startswith("stages")]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--device", "h1000"), "h100"),
        (("--device", "h100", "--backend", "mlx"), "give one of them"),
        (("--device", "h100", "--override", "runtime.activation_checkpointing=blocks"), "activation_checkpointing"),
        (("--device", "h100", "--override", "runtime.activation_checkpointing=every-2x"), "activation_checkpointing"),
    ],
)
def test_what_cannot_be_planned_is_one_line(llama, flags, says):
    done = sconce_here("plan", "--config", llama, *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr


def test_packed_rows_need_room_for_their_masks(llama):
    apart, packed = (
        plan(llama, "--device", "h100", "--override", f"data.packing={how}") for how in ("concat", "bestfit")
    )
    assert packed["configured"]["memory"]["activations"] > apart["configured"]["memory"]["activations"]
    note = "attention is counted over whole rows"
    assert note in sconce_here("plan", "--config", llama, "--override", "data.packing=bestfit").stdout
    assert note not in sconce_here("plan", "--config", llama).stdout


def test_a_vocabulary_that_is_not_known_yet(llama, tmp_path):
    (tmp_path / "open.toml").write_text(LLAMA_1B.replace("vocab_size = 128256\n", ""))
    done = sconce_here("plan", "--config", tmp_path / "open.toml", "--device", "h100")
    assert done.returncode == 2
    assert "model.vocab_size" in done.stderr


def test_training_does_what_plan_says(run):
    made = plan(run / "training.toml", "--device", "cpu")
    newest = run / "checkpoints" / checkpoints(run)[-1]
    recorded = json.loads((newest / "run.json").read_text())
    assert recorded["data"]["micro_batch_size"] == made["configured"]["micro_batch_size"] == 4
    hardware = json.loads((newest / "manifest.json").read_text())["hardware"]
    assert hardware["matmul_flops_per_second"] > 1e8
    last = [line for line in records(run) if "loss" in line][-1]
    achieved = last["tokens_per_second"] * made["flops_per_token"]["training"]
    assert last["mfu_measured"] == pytest.approx(achieved / hardware["matmul_flops_per_second"], abs=1e-3)


def test_packed_documents_are_credited_with_the_attention_they_have(run, tmp_path):
    """FLOPs a token by the segments of the rows that are trained on, pair by pair."""
    packed = overrides("scheduler.total_steps=64", "data.packing=bestfit")
    options = ("--config", run / "training.toml", "--run-dir", tmp_path / "run", "--backend", "cpu", *packed)
    done = sconce_here("train", *options)
    assert done.returncode == 0, done.stderr
    said = int(re.search(r"speed: ([\d,]+) FLOPs a token", done.stdout)[1].replace(",", ""))
    config = load_config(run / "training.toml", packed[1::2])
    tokens = run_tokens(config, tmp_path / "run", load_tokenizer(config.tokenizer.tokenizer_json), None, print)
    rows, order = rows_and_order(config, tokens)
    scored = pairs = 0
    for step in range(64):
        batch = rows.batch(order.rows(step))
        for targets, segments in zip(batch.targets, batch.segments, strict=True):
            lengths = np.bincount(segments[targets >= 0])
            scored, pairs = scored + lengths.sum(), pairs + (lengths * (lengths + 1) // 2).sum()
    made = plan(run / "training.toml", "--device", "cpu")["flops_per_token"]
    per_pair = 4 * config.model.num_layers * config.model.hidden_size
    assert said == 3 * (made["projections"] + made["head"] + per_pair * pairs // scored)
    assert said < made["training"]


@pytest.mark.parametrize("backend", INSTALLED)
def test_bench_says_that_it_compiles(run, backend):
    """The first update then takes far longer than the others, and nothing else would say why."""
    options = ("--config", run / "training.toml", "--backend", backend, "--steps", 1)
    said = "compiling at the first update"
    assert said not in sconce_here("bench", *options, "--override", "runtime.compile=false").stdout
    if backend == "mlx":  # whose compiling takes no time
        done = sconce_here("bench", *options, "--override", "runtime.compile=true")
        assert said in done.stdout.split("tokens/s")[0], done.stderr
        assert "the first step took" in done.stdout


@pytest.mark.parametrize("backend", INSTALLED)
def test_bench_times_every_phase_and_leaves_nothing(run, backend):
    before = sorted(path for path in run.rglob("*"))
    done = sconce_here("bench", "--config", run / "training.toml", "--backend", backend, "--steps", 5, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens_per_step"] == 4 * 32
    step, rate = found["step_ms"], found["tokens_per_second"]
    assert rate["low"] <= rate["median"] <= rate["high"]
    assert rate["median"] == pytest.approx(128e3 / step["median"], rel=0.01)
    assert found["forward_backward_ms"] + found["optimizer_ms"] == pytest.approx(step["median"])
    assert 0 < found["host_ms"]["median"] <= 2 * step["median"]  # of a model this small the host's part is all
    assert found["data_ms"]["median"] > found["data_wait_ms"]["low"] >= 0
    assert found["first_step_seconds"] > 0
    assert found["memory_bytes"] > 2**20
    assert found["utilization"]["mfu_measured"] > 0
    assert sorted(path for path in run.rglob("*")) == before
