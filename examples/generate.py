"""Let a trained model continue a prompt, and look at how it chose.

python examples/generate.py runs/local "Once upon a time"
"""

import math
import sys

import sconce
from sconce.generation.model import Prompt
from sconce.generation.sampling import Sampling


def main(run: str, prompt: str) -> None:
    """Print a continuation, then the likeliest first tokens with their probabilities."""
    model = sconce.load(run)
    print(prompt + model.generate(prompt, max_tokens=60, temperature=0.7, seed=1))

    asked = Prompt(text=prompt, max_tokens=1, sampling=Sampling(temperature=0), alternatives=5)
    (completion,) = model.complete([asked])
    for token in completion.tokens:
        for other in token.alternatives:
            print(f"{math.exp(other.logprob):7.1%}  {other.text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
