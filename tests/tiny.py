"""Small specs, batches and weights that every suite uses."""

import importlib.util

import numpy as np
import pytest

from sconce.data.batches import Batch
from sconce.init import InitialWeights
from sconce.rope import make_scaling
from sconce.spec import ModelSpec

BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 32,
}

# Made for 8 positions; with small bases, each but linear slows some pairs fully, keeps some, and mixes the rest.
_ORIGINAL = {"original_max_position_embeddings": 8}
SCALINGS = {
    "linear": make_scaling("linear", {"factor": 4.0}),
    "llama3": make_scaling("llama3", {**_ORIGINAL, "factor": 8.0, "low_freq_factor": 0.2, "high_freq_factor": 1.0}),
    "yarn": make_scaling("yarn", {**_ORIGINAL, "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.05}),
    "yarn-attention-factor": make_scaling("yarn", {**_ORIGINAL, "factor": 4.0, "attention_factor": 1.5}),
}
QKV_BIASES = {"attention_bias": True, "attention_output_bias": False}

# Every variation of the spec, alone and in the combinations that meet in one code path.
VARIATIONS = {
    "default": {},
    "gqa": {"num_kv_heads": 2},
    "mqa-wide-heads": {"num_kv_heads": 1, "head_dim": 12},
    "untied": {"tie_word_embeddings": False},
    "qk-norm": {"qk_norm": True, "num_kv_heads": 2},
    "layernorm": {"norm": "layernorm"},
    "layernorm-qk-norm-untied": {"norm": "layernorm", "qk_norm": True, "tie_word_embeddings": False},
    "plain-gelu": {"mlp": "plain", "activation": "gelu"},
    "plain-relu2-biases": {"mlp": "plain", "activation": "relu2", "mlp_bias": True, "attention_bias": True},
    "gated-gelu": {"activation": "gelu"},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "theta": {"rope_theta": 500000.0},
    "window": {"sliding_window": 5, "num_kv_heads": 2},
    "llama3-rope": {"rope_theta": 100.0, "rope_scaling": SCALINGS["llama3"]},
    "yarn-qkv-biases": {**QKV_BIASES, "rope_theta": 1000.0, "rope_scaling": SCALINGS["yarn"]},
}


def make_spec(**changes) -> ModelSpec:
    return ModelSpec(**{**BASE, **changes})


def random_batch(spec: ModelSpec, rows: int = 4, seq: int = 16, seed: int = 0, unscored: int = 5) -> Batch:
    """Random rows with a few targets that are not scored."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, spec.vocab_size, (rows, seq + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets.reshape(-1)[rng.choice(targets.size, unscored, replace=False)] = -1
    return Batch(np.ascontiguousarray(tokens[:, :-1]), targets)


def random_weights(spec: ModelSpec, seed: int = 1, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Initial weights moved off their special values, so that every bias and norm weight matters."""
    rng = np.random.default_rng(seed)
    initial = InitialWeights(spec, seed)
    return {
        name: (initial[name] + 0.1 * scale * rng.standard_normal(initial[name].shape)).astype(np.float32)
        for name in initial
    }


INSTALLED = [
    hardware for hardware, module in (("cpu", "torch"), ("mlx", "mlx")) if importlib.util.find_spec(module) is not None
]
torch_only = pytest.mark.skipif("cpu" not in INSTALLED, reason="PyTorch is not installed")
mlx_only = pytest.mark.skipif("mlx" not in INSTALLED, reason="MLX is not installed")
