"""Show how surprised a model is by each token of a text: bits, straight from the logits.

python examples/surprise.py runs/local "The quick brown fox"
"""

import sys

import numpy as np

import sconce


def main(run: str, text: str) -> None:
    """Print every token after the first with its bits, and their mean."""
    model = sconce.load(run)
    ids = model.encode(text)
    logits = model.logits(ids)[:-1].astype(np.float64)  # those after the last token predict what is not there
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    bits = (log_z - logits[np.arange(len(ids) - 1), ids[1:]]) / np.log(2)
    for token, surprise in zip(ids[1:], bits, strict=True):
        print(f"{surprise:6.2f}  {model.tokenizer.decode([token])!r}")
    print(f"{bits.mean():6.2f}  bits a token")


if __name__ == "__main__":
    main(*sys.argv[1:])
