"""The models that the benchmarks measure, as shapes and as configs that `sconce` trains."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sconce.spec import ModelSpec


@dataclass(frozen=True)
class Shape:
    """A Llama and its rows; `rows` are those of one micro-batch, and of a whole update."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    seq: int
    rows: int
    vocab: int = 4096


# M and S are for processors, the others for a GPU: GPT-2's vocabulary, rounded up.
SHAPES = {
    "tiny": Shape(32, 96, 2, 2, 32, 2, 512),
    "S": Shape(128, 352, 2, 2, 256, 4),
    "M": Shape(384, 1024, 6, 6, 512, 6),
    "20M": Shape(256, 704, 8, 4, 1024, 32, 50304),
    "124M": Shape(768, 2048, 12, 12, 1024, 32, 50304),
    "400M": Shape(1024, 2816, 24, 16, 1024, 16, 50304),
    "1B": Shape(2048, 5632, 20, 16, 2048, 4, 50304),
}


def spec_of(shape: Shape) -> ModelSpec:
    """The Llama of that shape: no shared keys, the head tied to the embedding."""
    return ModelSpec(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=shape.seq,
    )


def write_config(shape: Shape, folder: Path, steps: int = 1000) -> Path:
    """A TOML config of that shape in `folder`, with a tokenizer and a text of random words to train on."""
    from sconce.tokenizer.bpe import train_tokenizer

    words = np.random.default_rng(0).integers(0, 5000, shape.seq * shape.rows * 50)
    (folder / "text.txt").write_text(
        "\n\n".join(" ".join(map(str, words[i : i + 200])) for i in range(0, len(words), 200))
    )
    train_tokenizer([(folder / "text.txt").read_text()], 512, folder / "tokenizer", [])
    path = folder / "config.toml"
    path.write_text(
        f"""
[model]
vocab_size = {shape.vocab}
hidden_size = {shape.hidden}
intermediate_size = {shape.intermediate}
num_layers = {shape.layers}
num_attention_heads = {shape.heads}
max_position_embeddings = {shape.seq}
[tokenizer]
tokenizer_json = "{folder}/tokenizer/tokenizer.json"
[data]
train_shards = ["{folder}/text.txt"]
batch_size = {shape.rows}
micro_batch_size = {shape.rows}
[scheduler]
total_steps = {steps}
"""
    )
    return path
