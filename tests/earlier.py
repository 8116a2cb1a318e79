"""Checkpoints of the earlier system, and its model in numpy float64: written from its format, not from our reader."""

import hashlib
import json

import numpy as np

SIZES = {"vocab": 300, "hidden": 16, "width": 24, "layers": 2}
HEADS = 2
CODES = {"F32": "<f4", "F16": "<f2"}


def shapes(vocab, hidden, width, layers):
    """Every parameter in the order of optimizer.json."""
    found = {"embedding.weight": (vocab, hidden)}
    for i in range(layers):
        found |= {
            f"blocks.{i}.norm_attn.weight": (hidden,),
            f"blocks.{i}.norm_mlp.weight": (hidden,),
            f"blocks.{i}.qkv.weight": (3 * hidden, hidden),
            f"blocks.{i}.qkv.bias": (3 * hidden,),
            f"blocks.{i}.out_proj.weight": (hidden, hidden),
            f"blocks.{i}.out_proj.bias": (hidden,),
            f"blocks.{i}.mlp.up_proj.weight": (width, hidden),
            f"blocks.{i}.mlp.up_proj.bias": (width,),
            f"blocks.{i}.mlp.down_proj.weight": (hidden, width),
            f"blocks.{i}.mlp.down_proj.bias": (hidden,),
        }
    return found | {"final_norm.weight": (hidden,)}


def random_model(seed=0, **sizes):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) * (0.5 if len(shape) == 2 else 0.3) + name.count("norm")).astype(np.float32)
        for name, shape in shapes(**{**SIZES, **sizes}).items()
    }


def random_moments(weights, seed=1):
    rng = np.random.default_rng(seed)
    return {
        name: (
            (1e-3 * rng.standard_normal(w.shape)).astype(np.float32),
            (1e-6 * rng.random(w.shape)).astype(np.float32),
        )
        for name, w in weights.items()
    }


def to_bf16(array):
    """Upper halves of float32, the nearest below: their values need no more."""
    return (array.astype("<f4").view("<u4") >> 16).astype("<u2")


def safetensors_bytes(weights, dtype="F32"):
    header, chunks, start = {}, [], 0
    for name in sorted(weights):  # blocks.10 before blocks.2, as they were written
        array = np.ascontiguousarray(weights[name])
        raw = (to_bf16(array) if dtype == "BF16" else array.astype(CODES[dtype])).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(weights[name].shape),
            "data_offsets": [start, start + len(raw)],
        }
        chunks.append(raw)
        start += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(chunks)


def optimizer_table(moments, step, masters=None):
    return {
        "step": step,
        "parameters": [
            {
                "name": name,
                "shape": list(m.shape),
                "first_moment": [float(value) for value in m.reshape(-1)],
                "second_moment": [float(value) for value in v.reshape(-1)],
                "master": None if masters is None else [float(value) for value in masters[name].reshape(-1)],
            }
            for name, (m, v) in moments.items()
        ],
    }


def write_checkpoint(base, weights, *, step=7, moments=None, masters=None, dtype="F32", seed=5, edit=None):
    """A step_… folder; `edit` may change the optimizer's table before it is written."""
    folder = base / f"step_{step:012}_global_{step:012}"
    folder.mkdir(parents=True)
    optimizer = optimizer_table(random_moments(weights) if moments is None else moments, step, masters)
    if edit is not None:
        edit(optimizer)
    contents = {
        "model.safetensors": safetensors_bytes(weights, dtype),
        "optimizer.json": (json.dumps(optimizer, indent=2) + "\n").replace("NaN", "null").encode(),
        "scheduler.json": json.dumps({"LinearWarmupCosine": {"step": step, "current_lr": 1e-4}}, indent=2).encode(),
        "scaler.json": b'"Disabled"\n',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    manifest = {
        "version": 1,
        "created_unix_timestamp": 1759400000,
        "config_sha256": "0" * 64,
        **{
            name.split(".", 1)[0]: {
                "filename": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
            }
            for name, content in contents.items()
        },
        "progress": {
            "optimizer_step": step,
            "global_step": step,
            "epoch": 0,
            "micro_batch_index": 0,
            "micro_batches_per_step": 1,
        },
        "rng": {"master_seed": seed},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return folder


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def turn(x_BNTD):
    """Rotary embedding over the pairs (2i, 2i + 1)."""
    length, size = x_BNTD.shape[2:]
    angle = np.arange(length)[:, None] * 10000.0 ** (-2.0 * np.arange(size // 2) / size)
    even, odd = x_BNTD[..., 0::2], x_BNTD[..., 1::2]
    out = np.empty_like(x_BNTD)
    out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    out[..., 1::2] = odd * np.cos(angle) + even * np.sin(angle)
    return out


def logits(weights, tokens_BT, heads=HEADS):
    """Float64 logits (batch, seq, vocab) of the earlier system's model."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["embedding.weight"][tokens_BT]
    batch, length, hidden = x.shape

    def linear(y, name):
        return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def split(y):
        return y.reshape(batch, length, heads, hidden // heads).transpose(0, 2, 1, 3)

    layers = sum(name.endswith("norm_attn.weight") for name in w)
    for i in range(layers):
        block = f"blocks.{i}."
        qkv = linear(norm(x, w[block + "norm_attn.weight"]), block + "qkv")
        q, k, v = (split(qkv[..., part * hidden : (part + 1) * hidden]) for part in range(3))
        scores = turn(q) @ turn(k).transpose(0, 1, 3, 2) / np.sqrt(hidden // heads)
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(out.transpose(0, 2, 1, 3).reshape(batch, length, hidden), block + "out_proj")
        up = linear(norm(x, w[block + "norm_mlp.weight"]), block + "mlp.up_proj")
        x = x + linear(up / (1 + np.exp(-up)), block + "mlp.down_proj")
    return norm(x, w["final_norm.weight"]) @ w["embedding.weight"].T


def write_tokenizer(path, size=259):
    """Byte-level BPE without merges, with the specials the earlier system had."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = ["<pad>", "<bos>", "<eos>"]
    extra = [f"<extra{i}>" for i in range(size - 259)]
    vocab = {token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *extra])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(specials)
    bpe.save(str(path))
    return path
