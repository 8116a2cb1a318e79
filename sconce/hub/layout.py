"""What a repository of ours holds, all at its root, so that `from_pretrained` and the hub find the model.

config.json generation_config.json tokenizer.json tokenizer_config.json model.safetensors    the model
optimizer.safetensors run.json manifest.json                                                 what goes on from it
metrics.jsonl evaluations.json                                                               of its run, up to its step
README.md loss.png                                                                           the card

The first two lines are a checkpoint's folder, byte for byte; manifest.json has their hashes.
"""

import re

from sconce.checkpoint.record import MANIFEST
from sconce.checkpoint.stream import MODEL_INDEX, OPTIMIZER, RUN
from sconce.tokenizer.extras import CONFIG as TOKENIZER_CONFIG
from sconce.tokenizer.extras import TEMPLATE
from sconce.training.model_card import CURVE

TOKENIZER = "tokenizer.json"
MODEL_CONFIG = "config.json"
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.json"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE)

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_OURS = (MODEL_INDEX, OPTIMIZER, RUN, MANIFEST, METRICS, EVALUATIONS, CURVE, TEMPLATE)


def goes_with_the_model(name: str) -> bool:
    """Whether a file that is left over from another push would belie the model that is pushed now."""
    return name in _OURS or _WEIGHTS.fullmatch(name) is not None
