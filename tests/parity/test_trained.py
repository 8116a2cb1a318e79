"""A model that was trained here, and not one of random weights, writes what transformers writes from its export."""

import math

import pytest
from commands import TEXT, write_corpus
from tiny import INSTALLED

import sconce
from sconce.generation.model import Prompt
from sconce.generation.sampling import Sampling
from sconce.tokenizer.bpe import train_tokenizer
from sconce.training.export import ExportJob, export_checkpoint

pytest.importorskip("torch", reason="transformers' models run in torch")
transformers = pytest.importorskip("transformers", reason="the reference")

NEW = 24
# Beginnings of the corpus' sentence, of another number each, from a word to most of it.
PROMPTS = [TEXT.format(37 * n, 1369 * n * n)[: 5 + 3 * n].rstrip() for n in range(20)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Some seconds of training: enough to write like the corpus, numbers aside."""
    home = tmp_path_factory.mktemp("trained")
    corpus = write_corpus(home / "corpus.txt")
    tokenizer = train_tokenizer([corpus.read_text()], 300, home / "tokenizer", [])
    config = {
        "model": {
            "hidden_size": 48,
            "num_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        },
        "tokenizer": {"tokenizer_json": str(tokenizer.path)},
        "data": {"train_shards": [str(corpus)], "batch_size": 8, "sequence_length": 64},
        "optimizer": {"learning_rate": 0.01},
        "scheduler": {"total_steps": 150, "warmup_steps": 10},
    }
    outcome = sconce.train(config, run_dir=home / "run", backend="cpu")
    assert outcome.evaluation.loss < math.log(tokenizer.vocab_size) / 3
    return home / "run"


@pytest.fixture(scope="module")
def expected(run):
    """Token ids that transformers writes after each prompt, by its own generate() and tokenizer."""
    folder = run.parent / "exported"
    export_checkpoint(ExportJob(place=run, out=folder))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    written = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs.input_ids.shape[1] :].tolist()
        written.append([token for token in ids if token != tokenizer.eos_token_id])
    return written


@pytest.mark.parametrize("backend", INSTALLED)
def test_greedy_tokens_are_transformers(run, expected, backend):
    model = sconce.load(run, backend=backend)
    done = model.complete([Prompt(text=text, max_tokens=NEW, sampling=Sampling(temperature=0)) for text in PROMPTS])
    assert [[token.id for token in one.tokens] for one in done] == expected
    assert len({one.text for one in done}) > 10
    assert any("dog" in one.text for one in done)
