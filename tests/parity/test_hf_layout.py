"""A checkpoint folder is a Hugging Face folder: transformers and mlx-lm load it as it is."""

import numpy as np
import pytest
from small_run import save_model
from tiny import QKV_BIASES, SCALINGS, make_spec, random_weights

from sconce.backend import ComputeOptions
from sconce.checkpoint.load import open_checkpoint
from sconce.checkpoint.store import CheckpointStore
from sconce.interop.hf import hf_config, mlx_lm_refusals, spec_from_config
from sconce.tokenizer.bpe import train_tokenizer

torch = pytest.importorskip("torch", reason="transformers' models run in torch")
transformers = pytest.importorskip("transformers", reason="transformers is the reader under test")

TEXT = "a lamp on the wall, a wall on the hill, a hill in the night "
VOCAB = 280

LAYOUTS = {
    "default": {},
    "gqa-untied-wide-heads": {"num_kv_heads": 2, "head_dim": 12, "tie_word_embeddings": False},
    "theta": {"rope_theta": 5e5},
    "window": {"sliding_window": 7, "num_kv_heads": 2},
    "qk-norm-window": {"qk_norm": True, "sliding_window": 7},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "gelu": {"activation": "gelu"},
    "qk-norm": {"qk_norm": True, "num_kv_heads": 2, "rope_theta": 5e5},
    "qk-norm-untied-wide-heads": {"qk_norm": True, "tie_word_embeddings": False, "head_dim": 12},
    "qk-norm-bias-indivisible": {"qk_norm": True, "attention_bias": True, "hidden_size": 30},
    "plain-relu2": {"mlp": "plain", "activation": "relu2", "num_kv_heads": 2, "rope_theta": 5e5},
    "plain-gelu-biases-untied": {
        "mlp": "plain",
        "activation": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "qkv-biases": {**QKV_BIASES, "num_kv_heads": 2},
    "qkv-biases-window-untied": {**QKV_BIASES, "sliding_window": 7, "tie_word_embeddings": False},
    **{name: {"rope_scaling": scaling, "rope_theta": 100.0} for name, scaling in SCALINGS.items()},
    "qk-norm-yarn": {"qk_norm": True, "rope_scaling": SCALINGS["yarn"]},
    "qkv-biases-llama3": {**QKV_BIASES, "rope_scaling": SCALINGS["llama3"]},
    "layernorm-linear": {"norm": "layernorm", "rope_scaling": SCALINGS["linear"]},
    "layernorm": {"norm": "layernorm", "num_kv_heads": 2, "rope_theta": 5e5},
    "layernorm-untied": {"norm": "layernorm", "tie_word_embeddings": False},
    "layernorm-plain": {"norm": "layernorm", "mlp": "plain", "head_dim": 12},
    "layernorm-plain-biases": {"norm": "layernorm", "mlp": "plain", "attention_bias": True, "mlp_bias": True},
}
IN_MLX_LM = [name for name, changes in LAYOUTS.items() if not mlx_lm_refusals(make_spec(**changes))]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer([TEXT * 20], VOCAB, tmp_path_factory.mktemp("tokenizer"), [])


@pytest.fixture
def write(tokenizer, tmp_path):
    """Write a checkpoint of random weights; return its spec and its folder."""

    def written(changes, **options):
        spec = make_spec(vocab_size=tokenizer.vocab_size, **changes)
        store = CheckpointStore(tmp_path / "checkpoints", keep=1, **options)
        return spec, save_model(store, spec, random_weights(spec), tokenizer)

    return written


def load_in_transformers(folder):
    """The model in float32, after checking that every tensor found its place and none was left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert not any(report.values()), report
    return model.eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def some_ids(spec):
    return np.random.default_rng(3).integers(0, spec.vocab_size, (2, 24))


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_transformers_computes_the_same_logits(write, changes):
    from sconce_torch.model import Model

    spec, folder = write(changes)
    model = load_in_transformers(folder)
    assert model.dtype == torch.float32
    loaded = open_checkpoint(folder)
    theirs = dict(model.named_parameters())
    assert set(theirs) == set(loaded.weights)
    assert all(np.array_equal(theirs[name].detach().numpy(), array) for name, array in loaded.weights.items())
    ours = Model(spec, ComputeOptions())
    ours.load_state_dict({name: torch.from_numpy(array) for name, array in loaded.weights.items()})
    ids = some_ids(spec)
    with torch.no_grad():
        hidden = ours.hidden(torch.tensor(ids), None, None)
        expected = (hidden @ ours.head_weight.T).numpy()
    assert np.abs(logits_of(model, ids) - expected).max() < 1e-4


@pytest.mark.parametrize("changes", [LAYOUTS[name] for name in IN_MLX_LM], ids=IN_MLX_LM)
def test_mlx_lm_computes_the_same_logits(write, changes):
    mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is the reader under test")
    import mlx.core as mx

    spec, folder = write(changes)
    model, tokenizer = mlx_lm.load(str(folder))
    ids = some_ids(spec)
    expected = logits_of(load_in_transformers(folder), ids)
    assert np.abs(np.array(model(mx.array(ids))) - expected).max() < 1e-4
    assert tokenizer.eos_token_ids == {1}


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_the_tokenizer_arrives_with_the_model(write, tokenizer, changes):
    _, folder = write(changes)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "a lamp, “quoted”\n\n  in the night , don't é <|eos|"
    assert theirs.encode(text) == tokenizer.encode(text)
    assert theirs.decode(theirs.encode(text)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 1, 2)
    assert (theirs.eos_token, theirs.model_max_length) == ("<|eos|>", 32)


def test_a_sharded_checkpoint_loads_too(write):
    spec, folder = write({}, max_shard_bytes=20_000)
    assert not (folder / "model.safetensors").exists()
    assert logits_of(load_in_transformers(folder), some_ids(spec)).shape == (2, 24, spec.vocab_size)


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_a_config_saved_by_transformers_is_understood(changes, tmp_path):
    spec = make_spec(**changes)
    ours = hf_config(spec, bos_id=0, eos_id=1, pad_id=2)
    config = transformers.AutoConfig.for_model(**ours)
    config.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    assert spec_from_config(theirs) == spec


def test_the_generation_config_stops_at_the_end_of_text(write):
    _, folder = write({})
    config = transformers.GenerationConfig.from_pretrained(folder)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 1, 2)
