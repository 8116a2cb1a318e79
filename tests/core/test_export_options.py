"""`sconce export`: what its options refuse, and what its model card says. No framework is needed for any of it."""

import json
import sys

import pytest
from commands import edit, sconce_here
from small_run import write_run
from tiny import QKV_BIASES, SCALINGS, make_spec

from sconce.checkpoint.evaluations import keep_results
from sconce.errors import CheckpointError
from sconce.interop.gguf_file import gguf_refusals
from sconce.interop.gguf_tokenizer import gguf_tokenizer
from sconce.rope import make_scaling
from sconce.tokenizer.bpe import load_tokenizer
from sconce.training.export import parse_size


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("run") / "run")
    records = [{"step": 1, "loss": 5.5}, {"step": 1, "eval_loss": 5.25, "bits_per_byte": 2.5}, {"step": 2, "loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


REFUSED = {
    "hf quantised": (["--quantize", "4"], "--quantize is for --to mlx-lm and --to gguf"),
    "two types": (["--to", "gguf", "--quantize", "8", "--dtype", "bf16"], "--quantize and --dtype exclude each other"),
    "sharded gguf": (["--to", "gguf", "--max-shard-size", "1GB"], "a GGUF is one file"),
    "size": (["--max-shard-size", "5 apples"], "--max-shard-size 5 apples: expected a size such as 5GB"),
    "tiny size": (["--max-shard-size", "10"], "at least 64KiB"),
    "license": (["--license", "my own\nevil: true"], "expected an identifier such as apache-2.0"),
    "class": (["--as", "qwen3"], "qwen3: it has QK-norm, this model has none; llama computes it"),
    "rows": (["--to", "gguf", "--quantize", "8"], "mlp.down_proj.weight has rows of 48 values"),
    "groups": (["--to", "mlx-lm", "--quantize", "8"], "groups of 32 values or more, and rows of 48 are"),
}


@pytest.mark.parametrize(("options", "says"), REFUSED.values(), ids=REFUSED)
def test_what_would_not_work_is_refused_and_leaves_nothing(run, tmp_path, options, says):
    done = sconce_here("export", run, "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "options"), [("gguf", ["--to", "gguf"]), ("mlx_lm", ["--to", "mlx-lm", "--quantize", "8"])]
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, module, options):
    wide = write_run(tmp_path / "run", hidden_size=64, intermediate_size=64, head_dim=16)
    monkeypatch.setitem(sys.modules, module, None)
    done = sconce_here("export", wide, "--out", tmp_path / "out", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pip install 'sconce-lm[export]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_sizes_are_read_as_people_write_them():
    assert [parse_size(text) for text in ("5GB", "1.5 mb", "2GiB", "70000")] == [5 * 10**9, 1_500_000, 2**31, 70_000]


def test_the_card_says_what_is_known_up_to_the_checkpoint_and_nothing_else(run, tmp_path):
    done = sconce_here("export", run, "--out", tmp_path / "lamp", "--license", "mit")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "lamp" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    for line in ("# lamp", "| class | llama |", "| steps | 1 |", "| loss (nats a token) | 5.2500 |", "| 1 | 5.5000 |"):
        assert f"\n{line}\n" in card
    assert "| 2 | 1.0000 |" not in card  # what came after the checkpoint
    assert str(run.parent) not in card
    assert (tmp_path / "lamp" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_has_the_scores_of_these_weights_and_no_paths(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000001"
    settings = {"window": 8, "max_batches": None}
    names = ("held-out", f"held-out: {tmp_path}/a.txt", f"{tmp_path}/book.txt")
    texts = [{"kind": "text", "name": name, "figures": {"loss": 2.5}, "settings": settings} for name in names]
    task = {"kind": "task", "name": "quiz", "figures": {"acc,none": 0.25, "questions": 8}, "settings": {"limit": 8}}
    path = keep_results(checkpoint, [*texts, task])
    sconce_here("export", run, "--out", tmp_path / "lamp")
    card = (tmp_path / "lamp" / "README.md").read_text()
    for name in ("held-out", "held-out: a.txt", "book.txt"):
        assert f"\n| {name} (window 8) | loss 2.5000 |\n" in card
    assert "\n| quiz (limit 8) | acc,none 0.2500, questions 8 |\n" in card
    assert str(tmp_path) not in card
    edit(path, lambda file: file["model_sha256"].update({"model.safetensors": "another's"}))
    sconce_here("export", run, "--out", tmp_path / "other")
    assert "book.txt" not in (tmp_path / "other" / "README.md").read_text()


def test_only_what_is_passed_on_has_to_be_intact(tmp_path):
    run = write_run(tmp_path / "run")
    checkpoint = run / "checkpoints" / "step-00000001"
    push = ("push", run, "--repo", "me/lamp", "--dry-run")

    def spoil(name):
        raw = bytearray((checkpoint / name).read_bytes())
        raw[-1] ^= 1
        (checkpoint / name).write_bytes(raw)

    spoil("optimizer.safetensors")
    assert sconce_here("export", run, "--out", tmp_path / "lamp").returncode == 0
    assert sconce_here(*push, "--weights-only").returncode == 0
    assert "optimizer.safetensors: its content changed" in sconce_here(*push).stderr
    spoil("model.safetensors")
    assert "model.safetensors: its content changed" in sconce_here("export", run, "--out", tmp_path / "other").stderr
    assert "model.safetensors: its content changed" in sconce_here(*push, "--weights-only").stderr
    assert sconce_here(*push, "--tokenizer-only").returncode == 0


GGUF_REFUSED = {
    "window": ({"sliding_window": 5}, "written for llama, qwen2, qwen3, this model is mistral"),
    "gelu": ({"activation": "gelu"}, "computes silu"),
    "native": ({"norm": "layernorm", "qk_norm": True}, "no Hugging Face class computes this model"),
    "biased qwen3": ({"qk_norm": True, "attention_bias": True}, "qwen3 has no attention biases"),
    "qwen2 window": ({**QKV_BIASES, "sliding_window": 5}, "no sliding window"),
    "llama3 in qwen3": ({"qk_norm": True, "rope_scaling": SCALINGS["llama3"]}, "qwen3 has no llama3 rope_scaling"),
    "yarn of its own": ({"rope_scaling": SCALINGS["yarn"]}, "bounds or an attention_factor of its own"),
}


@pytest.mark.parametrize(("changes", "says"), GGUF_REFUSED.values(), ids=GGUF_REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(changes, says):
    reason = "; ".join(gguf_refusals(make_spec(**changes)))
    assert says in reason
    plain = make_scaling("yarn", {"factor": 2.0, "original_max_position_embeddings": 8})
    assert gguf_refusals(make_spec(rope_scaling=plain)) == []


CUTS = {
    "prefix space": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
    "no words": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    "whitespace": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel"}]},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_tokenizer_that_llama_cpp_would_cut_otherwise_is_refused(run, tmp_path, cut):
    content = json.loads((run / "tokenizer" / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"trim_offsets": True, **cut}
    for step in cut.get("pretokenizers", [])[1:]:
        step.update(add_prefix_space=False, trim_offsets=True, use_regex=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no name for how this tokenizer cuts text"):
        gguf_tokenizer(load_tokenizer(tmp_path / "tokenizer.json"), 300)
