"""The ATTN_* variables of the environment: one chooses how attention is computed, all others are refused."""

import os
from collections.abc import Mapping
from typing import get_args

from sconce.backend import AttentionKind
from sconce.errors import ConfigError

# Variables of the system before Sconce, each with what to do instead.
_RETIRED = {
    "ATTN_PRECISION": "attention computes in runtime.precision or --dtype, its softmax in float32",
    "ATTN_USE_PADDING_MASK": "rows have no padding, and attention is always causal",
    "ATTN_ROPE_MODE": "positions are always rotated; model.rope_theta sets how",
    "ATTN_KV_ENABLED": "generation always uses a key/value cache",
    "ATTN_KV_PAGE_SIZE": "the cache has pages of a fixed size",
    "ATTN_DROPOUT_P": "give --override model.attn_dropout=P",
}


def wanted_attention(environment: Mapping[str, str] = os.environ) -> AttentionKind:
    """What ATTN_BACKEND asks for, "auto" unless set. Raises ConfigError for an ATTN_* variable that does nothing."""
    for variable in environment:
        if variable.startswith("ATTN_") and variable != "ATTN_BACKEND":
            reason = _RETIRED.get(variable, "no such variable; there is ATTN_BACKEND")
            raise ConfigError(f"{variable}: has no effect: {reason}: unset it")
    wanted = environment.get("ATTN_BACKEND", "auto")
    for kind in get_args(AttentionKind):
        if wanted == kind:
            return kind
    raise ConfigError(f"ATTN_BACKEND: found {wanted!r}, expected one of {', '.join(get_args(AttentionKind))}")


def check_decoding(environment: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError where `wanted_attention` asks for what decoding token by token, which is fused, has not."""
    if wanted_attention(environment) == "reference":
        raise ConfigError(
            "ATTN_BACKEND: has no effect: it chooses the attention of training and scoring, and decoding is always "
            "fused: unset it"
        )
