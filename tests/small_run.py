"""A run folder with a checkpoint of random weights, as training leaves it."""

import numpy as np
from tiny import make_spec, random_weights

from sconce.backend import state_names
from sconce.checkpoint.record import Checkpoint
from sconce.checkpoint.store import CheckpointStore
from sconce.interop.hf import model_files
from sconce.optim import OptimSpec
from sconce.tokenizer.bpe import train_tokenizer

TEXT = "a lamp on the wall, a wall on the hill, a hill in the night; naïve 🙂 "


def save_model(store, spec, weights, tokenizer):
    """A checkpoint at step 1 of these weights, its moments zero; its folder."""
    names = state_names(spec, OptimSpec())
    state = (
        (name, weights[name[6:]] if name.startswith("model/") else np.zeros(shape, np.float32)) for name, shape in names
    )
    files = model_files(spec, tokenizer)
    facts = Checkpoint(
        step=1, tokens=0, cursor={}, best=None, backend="torch", precision="fp32", versions={}, hardware={}
    )
    return store.save(state, names, facts, files=files, is_best=False)


def write_run(folder, scale=1.0, **changes):
    """The run at `folder`, with a model of `changes` to the smallest spec; weights far apart make sharp choices."""
    tokenizer = train_tokenizer([TEXT * 20], 280, folder / "tokenizer", [])
    spec = make_spec(**{"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 128, **changes})
    weights = random_weights(spec, scale=scale)
    save_model(CheckpointStore(folder / "checkpoints", keep=1), spec, weights, tokenizer)
    return folder
