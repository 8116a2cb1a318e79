"""What `sconce export` writes computes the same in the tools it is for."""

import contextlib
import itertools
import json

import numpy as np
import pytest
from ggml import GGUF
from safetensors import safe_open
from small_run import TEXT, write_run
from tiny import QKV_BIASES, SCALINGS

from sconce.checkpoint.load import open_checkpoint
from sconce.generation.model import Prompt, load_model
from sconce.generation.sampling import Sampling
from sconce.rope import make_scaling
from sconce.training.export import ExportJob, export_checkpoint

torch = pytest.importorskip("torch", reason="transformers' models run in torch")
transformers = pytest.importorskip("transformers", reason="transformers is a reader under test")

# Rows of 64 values, which every way to quantise takes.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
KINDS = {
    "llama": {**WIDE, "attention_bias": True, "mlp_bias": True},
    "llama3": {**WIDE, "tie_word_embeddings": False, "rope_scaling": SCALINGS["llama3"]},
    "yarn": {**WIDE, "rope_scaling": make_scaling("yarn", {"factor": 4.0, "original_max_position_embeddings": 32})},
    "qwen2": {**WIDE, **QKV_BIASES, "rope_scaling": SCALINGS["linear"]},
    "qwen3": {**WIDE, "qk_norm": True, "head_dim": 32},
}
WORDS = TEXT.split()
PROMPTS = [" ".join(WORDS[start % 12 : start % 12 + 1 + start % 5]) for start in range(20)]


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """A run of random weights, of each kind."""
    return write_run(tmp_path_factory.mktemp(request.param) / "run", scale=3.0, **KINDS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("plain") / "run", **KINDS["llama"])


def greedy(run, count=8):
    """Token ids that follow each prompt."""
    model, _ = load_model(run, hardware="cpu")
    asked = [Prompt(text=text, max_tokens=count, sampling=Sampling(temperature=0.0)) for text in PROMPTS]
    return [[token.id for token in written.tokens] for written in model.complete(asked)]


def test_transformers_chooses_the_same_tokens(run, tmp_path):
    export_checkpoint(ExportJob(place=run, out=tmp_path / "model", max_shard_bytes=2**16))
    assert (tmp_path / "model" / "model.safetensors.index.json").is_file()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    for number, (prompt, expected) in enumerate(zip(PROMPTS, greedy(run), strict=True)):
        inputs = tokenizer(prompt, return_tensors="pt")
        asked = inputs.input_ids.shape[1]
        if number % 10 == 0:
            written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, asked:].tolist()
        else:  # what generate() would choose after each beginning of it, at once
            whole = torch.cat([inputs.input_ids, torch.tensor([expected], dtype=torch.long)], 1)
            written = model(whole).logits[0, asked - 1 :].argmax(-1).tolist()
        assert written[: len(expected)] == expected
        assert len(expected) == 8 or written[len(expected)] == tokenizer.eos_token_id


@pytest.mark.parametrize(("dtype", "name", "bits"), [("bf16", "BF16", 8), ("fp16", "F16", 11)])
def test_weights_are_rounded_to_the_nearest(plain, tmp_path, dtype, name, bits):
    export_checkpoint(ExportJob(place=plain, out=tmp_path / "model", dtype=dtype))
    ours = load_weights(plain)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            expected = torch.from_numpy(ours[key]).to(getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype]))
            assert torch.equal(file.get_tensor(key), expected)
            assert file.get_slice(key).get_dtype() == name
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]


def test_mlx_lm_computes_the_same(run, tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is the reader under test")
    import mlx.core as mx

    export_checkpoint(ExportJob(place=run, out=tmp_path / "model", to="mlx-lm"))
    model, _ = mlx_lm.load(str(tmp_path / "model"))
    ours, _ = load_model(run, hardware="mlx")
    ids = ours.encode(TEXT)[:60]
    expected = ours.logits(ids)
    assert np.abs(np.array(model(mx.array([ids])))[0] - expected).max() < 1e-4 * max(1, np.abs(expected).max())


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Rows of 32 values and multiples of it, as the model of `sconce orchestrate` has."""
    options = {**KINDS["llama"], "hidden_size": 96, "intermediate_size": 160, "num_heads": 6}
    return write_run(tmp_path_factory.mktemp("narrow") / "run", **options)


@pytest.mark.parametrize(
    ("kind", "bits", "group", "most"), [("plain", 8, 64, 0.05), ("plain", 4, 64, 0.6), ("narrow", 4, 32, 0.6)]
)
def test_mlx_lm_loads_what_was_quantised(request, tmp_path, kind, bits, group, most):
    run = request.getfixturevalue(kind)
    mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is the reader under test")
    import mlx.core as mx

    done = export_checkpoint(ExportJob(place=run, out=tmp_path / "model", to="mlx-lm", quantize=bits))
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(done.files)
    assert not list((tmp_path / "model").glob(".*"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (bits, group)
    model, tokenizer = mlx_lm.load(str(tmp_path / "model"))
    assert mlx_lm.generate(model, tokenizer, "a lamp", max_tokens=5)
    ours, _ = load_model(run, hardware="mlx")
    ids = ours.encode(TEXT)[:30]
    expected = ours.logits(ids)
    error = np.abs(np.array(model(mx.array([ids])))[0] - expected).mean() / np.abs(expected).mean()
    assert 0 < error < most


def test_a_gguf_file_computes_the_same_as_llama_cpp_reads_it(run, tmp_path):
    done = export_checkpoint(ExportJob(place=run, out=tmp_path / "model", to="gguf"))
    assert done.files == ("README.md", "model-fp32.gguf")
    file = GGUF(tmp_path / "model" / "model-fp32.gguf")
    ours, _ = load_model(run, hardware="cpu")
    ids = ours.encode(TEXT)[:60]
    expected = ours.logits(ids)
    assert np.abs(file.logits(ids) - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_llama_cpp_writes_the_same_text(run, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python builds the runtime under test")
    export_checkpoint(ExportJob(place=run, out=tmp_path / "model", to="gguf"))
    runtime = llama_cpp.Llama(
        str(tmp_path / "model" / "model-fp32.gguf"),
        n_ctx=128,
        n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32,  # else the cache keeps 16 bits
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    ours, _ = load_model(run, hardware="cpu")
    asked = [Prompt(text=text, max_tokens=8, sampling=Sampling(temperature=0.0)) for text in PROMPTS]
    with contextlib.closing(runtime):
        for prompt, expected in zip(PROMPTS, ours.complete(asked), strict=True):
            ids = runtime.tokenize(prompt.encode(), add_bos=False)
            assert ids == ours.encode(prompt)
            written = list(itertools.islice(runtime.generate(ids, temp=0.0), 8))
            if runtime.token_eos() in written:
                written = written[: written.index(runtime.token_eos())]
            assert written == [token.id for token in expected.tokens]
            assert runtime.detokenize(written) == b"".join(token.utf8 for token in expected.tokens)


@pytest.mark.parametrize(
    ("options", "kind", "most"),
    [
        ({"dtype": "bf16"}, "BF16", 0.02),
        ({"dtype": "fp16"}, "F16", 0.003),
        ({"quantize": 8}, "Q8_0", 0.03),
        ({"quantize": 4}, "Q4_0", 0.6),
    ],
)
def test_gguf_files_in_fewer_bits_are_near(plain, tmp_path, options, kind, most):
    export_checkpoint(ExportJob(place=plain, out=tmp_path / "model", to="gguf", **options))
    file = GGUF(next((tmp_path / "model").glob("*.gguf")))
    assert {file.kinds["blk.0.attn_q.weight"], file.kinds["token_embd.weight"]} == {kind}
    assert file.kinds["blk.0.attn_norm.weight"] == file.kinds["blk.1.ffn_up.bias"] == "F32"
    ours, _ = load_model(plain, hardware="cpu")
    ids = ours.encode(TEXT)[:30]
    expected = ours.logits(ids)
    assert 0 < np.abs(file.logits(ids) - expected).mean() / np.abs(expected).mean() < most


def test_the_tokenizer_is_in_the_gguf_file(plain, tmp_path):
    export_checkpoint(ExportJob(place=plain, out=tmp_path / "model", to="gguf"))
    values = GGUF(tmp_path / "model" / "model-fp32.gguf").values
    content = json.loads((plain / "tokenizer" / "tokenizer.json").read_bytes())
    vocab = content["model"]["vocab"]
    assert [values["tokenizer.ggml.tokens"][index] for index in vocab.values()] == list(vocab)
    assert values["tokenizer.ggml.merges"] == [" ".join(pair) for pair in content["model"]["merges"]]
    assert values["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    kept = ("model", "pre", "bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token")
    assert [values[f"tokenizer.ggml.{key}"] for key in kept] == ["gpt2", "gpt-2", 1, 1, 2, False]


def load_weights(run):
    return dict(open_checkpoint(run).weights)
