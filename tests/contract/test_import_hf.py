"""Models that transformers made become runs that compute the same, on each backend."""

import json

import numpy as np
import pytest
from commands import sconce_here
from foreign import MODELS, logits_of, write_model
from safetensors.numpy import load_file, save_file
from small_run import write_run
from tiny import INSTALLED

from sconce.config import load_config
from sconce.errors import SconceError
from sconce.generation.model import load_model
from sconce.training.export import ExportJob, export_checkpoint
from sconce.training.import_hf import HFImportJob, import_hf

torch = pytest.importorskip("torch", reason="transformers' models run in torch")
transformers = pytest.importorskip("transformers", reason="transformers makes the models")

# Positions up to 60, where the scaled ones were made for 8.
IDS = np.random.default_rng(0).integers(0, 300, (1, 60))
FORMATS = {"llama3-untied": "bfloat16", "qwen2": "float16"}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """The run a model became, and the model itself; some are stored in 16 bits, some in several files."""
    root = tmp_path_factory.mktemp(request.param)
    dtype = FORMATS.get(request.param, "float32")
    sharded = {"max_shard_size": "40KB"} if "untied" in request.param else {}
    theirs = write_model(root / "model", request.param, dtype, **sharded)
    done = import_hf(HFImportJob(source=root / "model", out=root / "run"))
    assert done.precision == {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[dtype]
    assert (root / "model" / "model.safetensors.index.json").exists() == bool(sharded)
    return root / "run", theirs


@pytest.mark.parametrize("backend", INSTALLED)
def test_logits_are_transformers(model, backend):
    run, theirs = model
    ours, _ = load_model(run, hardware=backend)
    expected = logits_of(theirs, IDS)
    assert np.abs(ours.logits(IDS[0].tolist()) - expected[0]).max() < 1e-4
    assert np.abs(expected).max() > 1  # or the tolerance would be of no use
    decoder = ours.model.decoder(1, 64)
    decoder.feed(IDS[:, :50].astype(np.int32))
    assert np.abs(decoder.feed(IDS[:, 50:].astype(np.int32)) - expected[:, -1]).max() < 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    write_model(place)
    return place


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the folder, to be spoilt."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def refusal(folder):
    """What import says, in one line; nothing is left of it."""
    with pytest.raises(SconceError) as refused:
        import_hf(HFImportJob(source=folder, out=folder.parent / "run"))
    assert not (folder.parent / "run").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


CONFIGS = {
    "moe": ({"model_type": "mixtral"}, "model_type 'mixtral' is not one Sconce knows (llama, "),
    "smollm3": ({"model_type": "smollm3"}, "model_type 'smollm3' is not one"),
    "experts": ({"num_experts": 8}, "num_experts = 8: Sconce's models have no such thing"),
    "layers": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types ['full_attention', 'sliding_attention']: every layer",
    ),
    "rope": ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope_scaling: rope type 'longrope'"),
    "head": ({"architectures": ["LlamaForSequenceClassification"]}, "expected LlamaForCausalLM alone"),
    "activation": ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
    "untied": ({"tie_word_embeddings": False}, "missing lm_head.weight"),
    "biased": ({"attention_bias": True}, "missing model.layers.0.self_attn.q_proj.bias"),
    "narrower": ({"intermediate_size": 47}, "gate_proj.weight has shape [48, 32], expected [47, 32]"),
    "fewer layers": ({"num_hidden_layers": 1}, "unknown model.layers.1.input_layernorm.weight"),
    "vocabulary": ({"vocab_size": 10}, "has shape [300, 32], expected [10, 32]"),
}


@pytest.mark.parametrize(("changes", "says"), CONFIGS.values(), ids=CONFIGS)
def test_what_cannot_be_mapped_is_named(copied, changes, says):
    edit(copied / "config.json", **changes)
    assert says in refusal(copied)


def test_tensors_beyond_the_model_are_named_unless_they_say_nothing_new(copied):
    weights = load_file(copied / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32), "lm_head.weight": embedding}
    save_file({**weights, **old}, copied / "model.safetensors")
    done = import_hf(HFImportJob(source=copied, out=copied.parent / "same"))
    assert "lm_head.weight is the embedding once more" in done.notes[0]
    save_file({**weights, "lm_head.weight": embedding + 1}, copied / "model.safetensors")
    assert "lm_head.weight differs from the embedding" in refusal(copied)
    save_file({**weights, "score.weight": embedding}, copied / "model.safetensors")
    assert "unknown score.weight" in refusal(copied)
    save_file({**weights, "model.norm.weight": np.full(32, np.nan, np.float32)}, copied / "model.safetensors")
    assert "model.norm.weight holds NaN or infinity" in refusal(copied)


def test_a_pickle_is_refused_with_the_reason(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    said = refusal(copied)
    assert "can run any code" in said
    assert "save_pretrained" in said


def test_weights_that_are_not_there(copied):
    weight_map = {"model.norm.weight": "../secret.safetensors"}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "names '../secret.safetensors', and there is no such file beside it" in refusal(copied)
    (copied / "model.safetensors.index.json").unlink()
    (copied / "model.safetensors").unlink()
    assert "no weights here" in refusal(copied)


def test_another_tokenizer_is_found_out(copied):
    edit(copied / "config.json", vocab_size=300)
    (copied / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    assert "expected a BPE model with a ByteLevel decoder" in refusal(copied)


def test_an_interrupted_import_leaves_nothing(copied):
    raw = bytearray((copied / "model.safetensors").read_bytes())
    (copied / "model.safetensors").write_bytes(raw[:-100])
    assert "not a safetensors file" in refusal(copied)


def test_a_prompt_begins_as_its_tokenizer_has_it_here_and_in_what_is_exported(tmp_path):
    write_model(tmp_path / "model", tokenizer="llama3")
    done = import_hf(HFImportJob(source=tmp_path / "model", out=tmp_path / "run"))
    assert any("a prompt begins with BOS" in note for note in done.notes)
    export_checkpoint(ExportJob(place=tmp_path / "run", out=tmp_path / "again"))
    ours, _ = load_model(tmp_path / "run", hardware=INSTALLED[0])
    for text in ("a lamp 1234", "naïve\n\n x", ""):
        folders = (tmp_path / "model", tmp_path / "again")
        theirs = [transformers.AutoTokenizer.from_pretrained(place, local_files_only=True) for place in folders]
        assert ours.encode(text) == theirs[0].encode(text) == theirs[1].encode(text)
    assert ours.encode("")[0] == ours.tokenizer.bos_id == 0


def test_a_model_that_no_class_holds_is_imported_with_the_dropout_of_its_training(tmp_path):
    run = write_run(tmp_path / "run", norm="layernorm", qk_norm=True, attn_dropout=0.1, residual_dropout=0.2)
    model = run / "checkpoints" / "step-00000001"
    for rates in ({}, {"attn_dropout": 0.1, "residual_dropout": 0.2}):  # as older checkpoints have them
        edit(model / "config.json", **rates)
        done = import_hf(HFImportJob(source=model, out=tmp_path / f"new-{len(rates)}"))
        assert not any("not taken over" in note for note in done.notes)
        config = load_config(tmp_path / f"new-{len(rates)}" / "training.toml", ['data.train_shards=["a"]']).model
        assert [config.attn_dropout, config.residual_dropout] == list(rates.values() or (0, 0))
    new, old = (load_model(tmp_path / name, hardware=INSTALLED[0])[0] for name in ("new-2", "new-0"))
    assert (new.logits([5, 6, 7]) == old.logits([5, 6, 7])).all()


def test_the_command_takes_other_positions_and_no_heads(folder, tmp_path):
    done = sconce_here("import", folder, "--out", tmp_path / "run", "--max-position-embeddings", 16)
    assert done.returncode == 0, done.stderr
    assert "note: 16 positions, where config.json says 64" in done.stdout
    assert load_model(tmp_path / "run", hardware=INSTALLED[0])[0].spec.max_position_embeddings == 16
    for options, says in (
        (["--heads", 4], "its config.json says everything: leave --heads and --config out"),
        (["--out", tmp_path / "run"], "already exists"),
    ):
        done = sconce_here("import", folder, "--out", tmp_path / "new", *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert says in done.stderr
    assert "no such file or folder" in sconce_here("import", tmp_path / "gone", "--out", tmp_path / "new").stderr
