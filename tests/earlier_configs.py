"""Every config file that the earlier system shipped, written anew from its documented keys and sizes.

`PARAMETERS` are those of its own model by its own formula, as published; the sizes here must reproduce them.
"""

import json

import tomli_w
import yaml

PARAMETERS = {
    "local.yaml": 0.9e6,
    "m3_medium.yaml": 22.9e6,
    "m3_20m_streaming.yaml": 20.8e6,
    "runpod_20m_streaming.yaml": 20.8e6,
    "runpod_400m_streaming.yaml": 410.6e6,
    "rtx5090_1b.yaml": 378.8e6,
    "rtx5090_550m.yaml": 160.5e6,
    "runpod_1b.yaml": 1.07e9,
    "runpod_2b.yaml": 1.97e9,
    "runpod_4b.yaml": 3.72e9,
}


def _config(sizes, data, model=None, **changes):
    """As those files spell it: a key without a value is there, as null. `changes` are put into sections."""
    hidden, layers, heads, length, vocab = sizes
    table = {
        "model": {
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": length,
            "vocab_size": vocab,
            "attn_dropout": None,
            "residual_dropout": None,
            "rope_mode": None,
            "rope_theta": None,
            **(model or {}),
        },
        "tokenizer": {
            "tokenizer_json": "../tokenizer/tokenizer.json",
            "vocab": None,
            "merges": None,
            "special_tokens": "../special_tokens.txt",
        },
        "data": {
            "train_shards": ["../corpus.txt"],
            "validation_shards": ["../corpus.txt"],
            "cache_dir": None,
            "shuffle_buffer_size": 4096,
            **data,
        },
        "optimizer": {"algorithm": "adam_w", "learning_rate": 3e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95,
                      "epsilon": 1e-8},
        "scheduler": {"strategy": "cosine_with_warmup", "warmup_steps": 100, "total_steps": 1000,
                      "total_epochs": None, "min_lr": 3e-5, "max_lr": None},
        "runtime": {
            "seed": 42,
            "precision": "bf16",
            "log_every_n_steps": 10,
            "checkpoint": {"directory": "../run/checkpoints", "every_n_steps": 200, "every_n_epochs": None,
                           "max_keep": 3},
            "evaluation": {"every_n_steps": 200, "every_n_epochs": None, "max_batches": 10,
                           "best": {"directory": "../run/best", "max_keep": 1}},
            "logging": {"enable_stdout": True, "tensorboard": "../run/tensorboard", "tensorboard_flush_every_n": 10},
        },
    }  # fmt: skip
    for section, values in changes.items():
        table[section] |= values
    return table


def _micro(batch, steps=1, **more):
    return {"batch_size": batch, "gradient_accumulation_steps": steps, **more}


DROPOUT = {"attn_dropout": 0.05, "residual_dropout": 0.05, "rope_mode": "on_the_fly"}
CLIPPED = {"weight_decay": 0.05, "max_grad_norm": 1.0}
WORKERS = {"num_workers": 4, "cache_dir": "../cache"}
EMPTY = {"train_shards": [], "validation_shards": [], "sequence_length": 2048}
# Beside the tokenizer.json, the files that it was before.
PARTS = {"vocab": "../tokenizer/vocab.json", "merges": "../tokenizer/merges.txt"}

FILES = {
    "local.yaml": _config(
        (128, 2, 2, 256, 4096), _micro(4), runtime={"precision": "fp32"},
        scheduler={"strategy": "constant", "warmup_steps": 20, "total_steps": 200, "min_lr": None},
        optimizer={"learning_rate": 5e-4, "weight_decay": 0.0},
    ),
    "m3_medium.yaml": _config(
        (384, 6, 6, 512, 32000), _micro(8, 4), {"attn_dropout": 0.02, "residual_dropout": 0.02},
        runtime={"precision": "fp32"},
    ),
    "m3_20m_streaming.yaml": _config(
        (256, 16, 8, 1024, 32000), _micro(16, 16, **WORKERS, sequence_length=1024), DROPOUT, optimizer=CLIPPED,
    ),
    "runpod_20m_streaming.yaml": _config(
        (256, 16, 8, 1024, 32000), _micro(64, 16, **WORKERS, sequence_length=1024), DROPOUT, optimizer=CLIPPED,
    ),
    "runpod_400m_streaming.yaml": _config(
        (1024, 30, 16, 1024, 32000), _micro(48, 48, **WORKERS, sequence_length=1024), DROPOUT, optimizer=CLIPPED,
    ),
    "rtx5090_1b.yaml": _config(
        (1280, 16, 20, 2048, 50000), _micro(8, 8, **WORKERS, **EMPTY),
        {"residual_dropout": 0.0}, tokenizer=PARTS,
    ),
    "rtx5090_550m.yaml": _config(
        (896, 12, 14, 2048, 50000), _micro(16, 4, **WORKERS, **EMPTY),
        {"residual_dropout": 0.0}, tokenizer=PARTS, optimizer=CLIPPED,
    ),
    "runpod_1b.yaml": _config(
        (2048, 20, 16, 2048, 32000), _micro(2, 32, **WORKERS), {"residual_dropout": 0.0}, tokenizer=PARTS,
    ),
    "runpod_2b.yaml": _config(
        (2560, 24, 20, 2048, 32000), _micro(2, 64, **WORKERS), {"residual_dropout": 0.0}, tokenizer=PARTS,
    ),
    "runpod_4b.yaml": _config(
        (3072, 32, 24, 2048, 32000), _micro(1, 256, **WORKERS), {"residual_dropout": 0.0}, tokenizer=PARTS,
    ),
}  # fmt: skip

# What the earlier system's `orchestrate` wrote into each run folder, in both formats: every key it had, most of them
# without a value.
WRITTEN = _config(
    (128, 2, 2, 256, None), _micro(4, num_workers=None),
    scheduler={"min_lr": None}, optimizer={"max_grad_norm": None},
)  # fmt: skip


def write(folder, name, table):
    """The table as a file in `configs/` of `folder`, beside which what it names may lie."""
    (folder / "configs").mkdir(exist_ok=True)
    path = folder / "configs" / name
    dump = {".toml": tomli_w.dumps, ".json": json.dumps, ".yaml": yaml.safe_dump}[path.suffix]
    path.write_text(dump(_valued(table) if path.suffix == ".toml" else table), encoding="utf-8")
    return path


def _valued(table):
    """Without the keys that have no value, which TOML cannot say."""
    return {
        key: _valued(value) if isinstance(value, dict) else value for key, value in table.items() if value is not None
    }


def parameters(table):
    """By the earlier system's own formula."""
    model = table["model"]
    hidden, width, layers = model["hidden_size"], model["intermediate_size"], model["num_layers"]
    block = 4 * hidden**2 + 2 * hidden * width + 7 * hidden + width
    return model["vocab_size"] * hidden + layers * block + hidden
