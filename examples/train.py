"""Train a small model on a text file from Python, then let it write.

python examples/train.py shakespeare.txt runs/example
"""

import sys
from pathlib import Path

import sconce
from sconce.tokenizer.bpe import train_tokenizer


def main(text: str, run: str, steps: str = "300") -> None:
    """Make a tokenizer and a model of `text` in the folder `run`."""
    content = Path(text).read_text(encoding="utf-8")
    tokenizer = train_tokenizer([content], vocab_size=300, folder=Path(run) / "tokenizer", sources=[])
    outcome = sconce.train(
        {
            "model": {"hidden_size": 64, "num_layers": 2, "max_position_embeddings": 64},
            "tokenizer": {"tokenizer_json": str(tokenizer.path)},
            "data": {"train_shards": [text], "batch_size": 8},
            "optimizer": {"learning_rate": 3e-3},
            "scheduler": {"total_steps": int(steps), "warmup_steps": int(steps) // 10},
        },
        run_dir=run,
    )
    assert outcome.evaluation is not None, "a run that went all the way was evaluated"
    print(f"held-out loss {outcome.evaluation.loss:.3f} nats a token after {outcome.step} steps")
    print(sconce.load(run).generate(max_tokens=80, seed=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
