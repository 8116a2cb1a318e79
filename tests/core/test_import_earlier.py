"""Checkpoints of the earlier system: the same function, the same next update, and every fault by its name."""

import json
import tomllib

import earlier
import numpy as np
import pytest
import reference

from sconce.checkpoint.load import open_checkpoint
from sconce.errors import CheckpointError, ConfigError, SconceError
from sconce.interop.earlier import read_earlier
from sconce.interop.hf import class_for
from sconce.optim import OptimSpec
from sconce.training.import_earlier import ImportJob, import_earlier

TOKENS = np.random.default_rng(3).integers(0, earlier.SIZES["vocab"], (2, 12))


def load(path, heads=earlier.HEADS):
    """Spec and whole state of what was imported."""
    found = read_earlier(path)
    spec = found.spec(heads, 64)
    return spec, dict(found.state(spec))


def part(state, prefix):
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_imported_model_computes_what_the_earlier_system_did(tmp_path, heads):
    weights = earlier.random_model(layers=12)
    spec, state = load(earlier.write_checkpoint(tmp_path, weights), heads)
    expected = earlier.logits(weights, TOKENS, heads)
    np.testing.assert_allclose(reference.logits(spec, part(state, "model/"), TOKENS), expected, rtol=1e-9, atol=1e-9)
    assert class_for(spec) == "arcee"


def test_one_update_of_theirs_reordered_is_one_update_of_ours(tmp_path):
    """AdamW works on each value alone: so it does on the moments, if they are reordered as the weights are."""
    weights = earlier.random_model()
    moments, gradients = earlier.random_moments(weights), earlier.random_model(seed=9)
    optim, step = OptimSpec(), 7

    def update(param, m, v, gradient):
        values = (array.astype(np.float64) for array in (param, gradient, m, v))
        return reference.adamw(*values, t=step + 1, lr=1e-2, optim=optim, decay=0.1)

    after = {name: update(w, *moments[name], gradients[name]) for name, w in weights.items()}
    base = earlier.write_checkpoint(tmp_path / "before", weights, step=step, moments=moments)
    _, state = load(base)
    _, gradient = load(earlier.write_checkpoint(tmp_path / "gradient", gradients))
    written = {name: w.astype(np.float32) for name, (w, _, _) in after.items()}
    written_moments = {name: (m.astype(np.float32), v.astype(np.float32)) for name, (_, m, v) in after.items()}
    _, expected = load(earlier.write_checkpoint(tmp_path / "after", written, step=8, moments=written_moments))
    for name in part(state, "model/"):
        ours = update(*(state[f"{kind}/{name}"] for kind in ("model", "adam_m", "adam_v")), gradient[f"model/{name}"])
        for kind, array in zip(("model", "adam_m", "adam_v"), ours, strict=True):
            np.testing.assert_allclose(array, expected[f"{kind}/{name}"], rtol=1e-6, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_16_bit_weights_are_widened_and_masters_win(tmp_path, dtype):
    weights = earlier.random_model()
    if dtype == "BF16":
        weights = {name: (w.view("<u4") & 0xFFFF0000).view("<f4") for name, w in weights.items()}
    else:
        weights = {name: w.astype("<f2").astype("<f4") for name, w in weights.items()}
    bare = tmp_path / "model.safetensors"
    bare.write_bytes(earlier.safetensors_bytes(weights, dtype))
    spec, state = load(bare)
    expected = earlier.logits(weights, TOKENS)
    np.testing.assert_allclose(reference.logits(spec, part(state, "model/"), TOKENS), expected, rtol=1e-9, atol=1e-9)
    masters = earlier.random_model(seed=4)
    spec, state = load(earlier.write_checkpoint(tmp_path, weights, dtype=dtype, masters=masters))
    expected = earlier.logits(masters, TOKENS)
    np.testing.assert_allclose(reference.logits(spec, part(state, "model/"), TOKENS), expected, rtol=1e-9, atol=1e-9)


def test_a_bare_file_has_no_progress_and_zero_moments(tmp_path):
    path = tmp_path / "published.safetensors"
    path.write_bytes(earlier.safetensors_bytes(earlier.random_model()))
    found = read_earlier(path)
    assert (found.step, found.seed, found.optimizer) == (0, None, None)
    _, state = load(path)
    assert not any(array.any() for name, array in state.items() if name.startswith("adam"))


def test_of_a_folder_of_checkpoints_the_newest_is_taken(tmp_path):
    for step in (9, 1000, 200):
        earlier.write_checkpoint(tmp_path, earlier.random_model(), step=step)
    assert (read_earlier(tmp_path).step, read_earlier(tmp_path).seed) == (1000, 5)


def test_without_its_optimizer_a_checkpoint_begins_at_step_0(tmp_path):
    folder = earlier.write_checkpoint(tmp_path, earlier.random_model())
    (folder / "optimizer.json").unlink()
    assert read_earlier(folder).step == 0


def test_every_wrong_tensor_is_named_at_once(tmp_path):
    weights = earlier.random_model()
    del weights["blocks.1.qkv.bias"]
    weights["blocks.0.norm_attn.bias"] = np.zeros(16, np.float32)
    weights["blocks.0.out_proj.weight"] = np.zeros((16, 15), np.float32)
    weights["final_norm.weight"] = np.zeros((16, 1), np.float32)
    with pytest.raises(CheckpointError) as error:
        read_earlier(earlier.write_checkpoint(tmp_path, weights))
    for says in (
        "missing blocks.1.qkv.bias",
        "unknown blocks.0.norm_attn.bias",
        "blocks.0.out_proj.weight has shape [16, 15], expected [16, 16]",
        "final_norm.weight has shape [16, 1], expected [16]",
    ):
        assert says in str(error.value)


def drop_up_proj(weights):
    for layer in range(2):
        del weights[f"blocks.{layer}.mlp.up_proj.weight"]


TENSORS = {
    "no embedding": (lambda w: w.pop("embedding.weight"), "missing embedding.weight"),
    "flat embedding": (lambda w: w.update({"embedding.weight": np.zeros(9)}), r"embedding.weight has shape \[9\]"),
    "no width": (drop_up_proj, "missing blocks.0.mlp.up_proj.weight, blocks.1.mlp.up_proj.weight"),
    "a layer is gone": (
        lambda w: [w.pop(name) for name in list(w) if name.startswith("blocks.0.")],
        "missing blocks.0.norm_attn.weight, blocks.0.norm_mlp.weight, blocks.0.qkv.weight",
    ),
    "a stray layer": (
        lambda w: w.update({"blocks.999999999999.qkv.bias": np.zeros(48)}),
        "unknown blocks.999999999999.qkv.bias",
    ),
    "another model": (
        lambda w: (w.clear(), w.update({"model.norm.weight": np.zeros(4)})),
        "no tensor of the earlier system's models in it; it begins with model.norm.weight",
    ),
    "nothing": (lambda w: w.clear(), "it is empty"),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_other_tensors_are_refused(tmp_path, change, message):
    weights = earlier.random_model()
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        read_earlier(earlier.write_checkpoint(tmp_path, weights, moments={}))


def entry(table, name):
    return next(item for item in table["parameters"] if item["name"] == name)


OPTIMIZER = {
    "null moment": (
        lambda t: entry(t, "final_norm.weight").update(second_moment=[float("nan")] * 16),
        "second_moment of final_norm.weight holds null",
    ),
    "null master": (
        lambda t: entry(t, "blocks.1.qkv.bias").update(master=[None] * 48),
        "master of blocks.1.qkv.bias holds null",
    ),
    "too few": (
        lambda t: entry(t, "blocks.0.qkv.bias").update(first_moment=[0.0]),
        "first_moment of blocks.0.qkv.bias has 1 values, not the 48",
    ),
    "no moment": (
        lambda t: entry(t, "blocks.0.qkv.bias").pop("first_moment"),
        "first_moment of blocks.0.qkv.bias is not a list",
    ),
    "shape": (lambda t: entry(t, "blocks.0.qkv.bias").update(shape=[3, 16]), r"blocks.0.qkv.bias has shape \[3, 16\]"),
    "missing": (lambda t: t["parameters"].pop(), "missing final_norm.weight"),
    "unknown": (lambda t: t["parameters"].append({"name": "lm_head.weight"}), "unknown lm_head.weight"),
    "no list": (lambda t: t.pop("parameters"), "parameters is missing"),
    "text": (lambda t: entry(t, "final_norm.weight").update(first_moment=["x"]), "optimizer.json: not the JSON"),
    "a table": (lambda t: entry(t, "final_norm.weight").update(first_moment=[{}]), "optimizer.json: not the JSON"),
    "a huge number": (lambda t: entry(t, "final_norm.weight").update(first_moment=[10**400] * 16), "not the JSON"),
    "a huge step": (lambda t: t.update(step=2**40), r"step is 1099511627776; expected a whole number below 2\*\*40"),
    "another step": (lambda t: t.update(step=3), "step 3, and manifest.json says 7"),
}


@pytest.mark.parametrize(("edit", "message"), OPTIMIZER.values(), ids=OPTIMIZER)
def test_a_wrong_optimizer_state_is_refused_by_name(tmp_path, edit, message):
    with pytest.raises(CheckpointError, match=message):
        read_earlier(earlier.write_checkpoint(tmp_path, earlier.random_model(), edit=edit))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json, so it was never finished"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "version None"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: not the JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"version": 1}'), "model is not the table"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors: 1 bytes"),
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors: its sha256"),
        (lambda folder: flip(folder / "optimizer.json"), "optimizer.json: its sha256"),
    ],
)
def test_what_is_not_as_the_manifest_says_is_refused(tmp_path, harm, message):
    folder = earlier.write_checkpoint(tmp_path, earlier.random_model())
    harm(folder)
    with pytest.raises(CheckpointError, match=message):
        read_earlier(folder)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_a_weight_that_is_no_number_and_an_unknown_type_are_named(tmp_path):
    weights = earlier.random_model()
    weights["blocks.1.qkv.bias"][4] = np.nan
    path = tmp_path / "model.safetensors"
    path.write_bytes(earlier.safetensors_bytes(weights))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.qkv\.bias holds NaN"):
        load(path)
    path.write_bytes(earlier.safetensors_bytes(weights).replace(b'"F32"', b'"I32"'))
    with pytest.raises(CheckpointError, match=r"embedding\.weight is I32"):
        load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(path)


def test_a_place_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint of the earlier system here"):
        read_earlier(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_earlier(tmp_path / "nowhere")


@pytest.fixture
def job(tmp_path):
    """A job as a table of what the user gives."""
    earlier.write_checkpoint(tmp_path / "old", earlier.random_model())
    tokenizer = earlier.write_tokenizer(tmp_path / "tokenizer.json")
    return {"source": tmp_path / "old", "tokenizer": tokenizer, "out": tmp_path / "run"}


CONFIG = """
model: {num_attention_heads: 2, max_position_embeddings: 48, hidden_size: 16, attn_dropout: 0.05, rope_theta: 5}
data: {batch_size: 6, gradient_accumulation_steps: 3, num_workers: 2, train_shards: [gone.txt]}
optimizer: {learning_rate: 5e-4, beta2: 0.99}
scheduler: {strategy: polynomial, warmup_steps: 2, total_steps: 30, min_lr: 1e-5, max_lr: 2}
runtime: {seed: 5, precision: fp32}
"""


def test_the_run_goes_on_as_the_old_config_says(tmp_path, job):
    (tmp_path / "old.yaml").write_text(CONFIG)
    done = import_earlier(ImportJob(**job, config=tmp_path / "old.yaml"))
    loaded = open_checkpoint(tmp_path / "run")
    assert loaded.path == done.checkpoint == tmp_path / "run" / "checkpoints" / "step-00000007"
    assert dict(loaded.record.cursor) == {"fingerprint": None, "seed": 5, "rows_consumed": 42}
    assert (loaded.record.step, loaded.record.tokens) == (7, 42 * 48)
    config = tomllib.loads((tmp_path / "run" / "training.toml").read_text())
    assert config["tokenizer"]["tokenizer_json"] == "tokenizer/tokenizer.json"
    assert config["data"].items() >= {"train_shards": [], "batch_size": 6, "gradient_accumulation_steps": 3}.items()
    wanted = {"learning_rate": 5e-4, "beta2": 0.99, "weight_decay": 0.0, "max_grad_norm": 0.0}
    assert config["optimizer"].items() >= wanted.items()
    wanted = {"strategy": "polynomial", "power": 2.0, "min_lr": 1e-5, "total_steps": 30, "warmup_steps": 2}
    assert config["scheduler"] == wanted
    assert config["model"]["attn_dropout"] == 0.05
    assert [path.name for path in tmp_path.glob(".*")] == []
    with pytest.raises(SconceError, match="already exists: choose another --out"):
        import_earlier(ImportJob(**job, config=tmp_path / "old.yaml"))


REFUSED = {
    "no heads": ("", {}, "how many attention heads"),
    "heads in neither": ("{model: {}}", {}, r"has no model\.num_attention_heads"),
    "two numbers": ("{model: {num_attention_heads: 2}}", {"num_heads": 4}, "--heads 4, and .* has .* 2"),
    "no number": ("{model: {num_attention_heads: two}}", {}, "found 'two', expected a whole number"),
    "no divisor": ("", {"num_heads": 3}, "3 heads do not divide the hidden size 16"),
    "odd heads": ("", {"num_heads": 16}, "1 wide; rotary embedding needs an even width"),
    "no positions": ("{model: {rope_mode: 'off', num_attention_heads: 2}}", {}, "rope_mode is 'off': .* no positions"),
    "rope?": ("{model: {rope_mode: yes}}", {}, "rope_mode is True"),
    "another model": ("{model: {hidden_size: 32}}", {"num_heads": 2}, r"model\.hidden_size is 32, the tensors have 16"),
    "sgd": ("{optimizer: {algorithm: sgd}}", {"num_heads": 2}, r"optimizer\.algorithm: found 'sgd'"),
    "uneven": (
        "{data: {batch_size: 5, gradient_accumulation_steps: 2}}",
        {"num_heads": 2},
        r"data\.batch_size: found 5",
    ),
}


@pytest.mark.parametrize(("config", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused_in_a_line_and_leave_nothing(tmp_path, job, config, more, message):
    if config:
        (tmp_path / "old.yaml").write_text(config)
        more = {**more, "config": tmp_path / "old.yaml"}
    with pytest.raises(ConfigError, match=message) as error:
        import_earlier(ImportJob(**job, **more))
    fault, *advice = str(error.value).splitlines()  # which alone may follow, as lines to write
    assert bool(advice) == fault.endswith("write instead:")
    assert all(line.startswith("  ") for line in advice)
    assert not job["out"].exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path, job):
    earlier.write_tokenizer(tmp_path / "tokenizer.json", size=301)
    with pytest.raises(ConfigError, match=r"301 tokens, and the embedding of .* has 300"):
        import_earlier(ImportJob(**job, num_heads=2))


def test_a_fault_found_while_writing_leaves_nothing(tmp_path, job):
    weights = earlier.random_model()
    weights["final_norm.weight"][0] = np.inf
    job["source"] = earlier.write_checkpoint(tmp_path / "broken", weights)
    with pytest.raises(CheckpointError, match="final_norm"):
        import_earlier(ImportJob(**job, num_heads=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "old", "tokenizer.json"]


def test_without_a_config_the_horizon_is_ahead(tmp_path, job):
    done = import_earlier(ImportJob(**job, num_heads=2))
    assert (done.step, done.total_steps) == (7, 1007)
    assert json.loads(open_checkpoint(tmp_path / "run").read("config.json"))["max_position_embeddings"] == 2048
