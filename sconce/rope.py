"""Rotary embedding's frequencies (Su et al. 2021), and their scaling to more positions than a model was trained on.

Dimensions i and i + head_dim / 2 of a head turn together, at position p by the angle p * f_i with
f_i = theta ** (-2 i / head_dim). With L the original number of positions, n_i = L * f_i / (2 pi) is how often a pair
turns around in it, and a scaling replaces f_i by a frequency between f_i / factor and f_i:

    linear  f_i / factor for every pair (Chen et al. 2023, "Extending context window of large language models via
            positional interpolation")
    llama3  f_i / factor below low_freq_factor turns, f_i above high_freq_factor turns, between them a mixture with the
            weight (n_i - low_freq_factor) / (high_freq_factor - low_freq_factor) (Llama 3.1's published code)
    yarn    f_i / factor below beta_slow turns, f_i above beta_fast turns, between them a mixture whose weight falls
            linearly with i, over the whole pairs around both bounds; what is turned is also multiplied by
            attention_factor, by default 0.1 ln(factor) + 1 (Peng et al. 2024, "YaRN", sections 3.2 to 3.4)

There is no "dynamic": its frequencies depend on how long the sequence is so far, so every key in a cache would have to
be turned again with each token, which no implementation does; what they compute depends on how the text was fed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

RopeType = Literal["linear", "llama3", "yarn"]
Given = Mapping[str, float | None]

# What each kind is described by; the values are what a key left out means, None where it has to be given.
_KEYS: Mapping[str, Mapping[str, float | None]] = {
    "default": {},
    "linear": {"factor": None},
    "llama3": {
        "factor": None,
        "original_max_position_embeddings": None,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "yarn": {
        "factor": None,
        "original_max_position_embeddings": None,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": math.nan,  # follows from the factor
    },
}
ROPE_TYPES = tuple(_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """A scaling with every value it uses; the others are None."""

    rope_type: RopeType
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None


def scaling_faults(rope_type: str, given: Given) -> Iterator[tuple[str, str]]:
    """What is wrong with a scaling of a known type: key and message. Values that are None count as not given."""
    keys = _KEYS[rope_type]
    for key, value in given.items():
        if value is not None and key not in keys:
            users = ", ".join(name for name, used in _KEYS.items() if key in used)
            yield key, f"would do nothing with rope_type {rope_type}; it is for {users}"
    for key, default in keys.items():
        if default is None and given.get(key) is None:
            yield key, f"missing; rope_type {rope_type} needs it"
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        least, most = (keys.get(key) if given.get(key) is None else given.get(key) for key in (low, high))
        if low in keys and high in keys and least is not None and most is not None and least >= most:
            yield high, f"found {most:g}, expected more than {low} {least:g}"


def make_scaling(rope_type: str, given: Given) -> RopeScaling | None:
    """The scaling, with defaults for what is not given; None for rope_type "default". Without faults, please."""
    assert not list(scaling_faults(rope_type, given)), "the caller looks for faults first"
    if rope_type not in ("linear", "llama3", "yarn"):
        return None
    values = {key: default if given.get(key) is None else given[key] for key, default in _KEYS[rope_type].items()}
    factor, original, attention = (
        values.pop(key, None) for key in ("factor", "original_max_position_embeddings", "attention_factor")
    )
    assert factor is not None
    if rope_type == "yarn" and (attention is None or math.isnan(attention)):
        attention = default_attention_factor(factor)
    return RopeScaling(
        rope_type=rope_type,
        factor=float(factor),
        original_max_position_embeddings=None if original is None else int(original),
        attention_factor=attention,
        **values,
    )


def default_attention_factor(factor: float, multiplier: float = 1.0) -> float:
    """YaRN's, section 3.4; DeepSeek's configs multiply the logarithm ("mscale")."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> list[float]:
    """Radians by which each pair turns from one position to the next, head_dim / 2 of them."""
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if scaling is None:
        return plain
    kept = _shares_kept(head_dim, theta, plain, scaling)
    return [own * share + own / scaling.factor * (1 - share) for own, share in zip(plain, kept, strict=True)]


def magnitude(scaling: RopeScaling | None) -> float:
    """What rotated queries and keys are multiplied by."""
    return 1.0 if scaling is None or scaling.attention_factor is None else scaling.attention_factor


def _shares_kept(head_dim: int, theta: float, plain: list[float], scaling: RopeScaling) -> list[float]:
    """How much of each pair's own frequency stays, from 0 to 1."""
    if scaling.rope_type == "linear":
        return [0.0] * len(plain)
    assert scaling.original_max_position_embeddings is not None
    length = scaling.original_max_position_embeddings
    if scaling.rope_type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        assert low is not None
        assert high is not None
        return [_clip((length * own / (2 * math.pi) - low) / (high - low)) for own in plain]
    assert scaling.beta_fast is not None
    assert scaling.beta_slow is not None

    def pair(turns: float) -> float:
        """The pair, as a real number, that turns so often in the original length."""
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair(scaling.beta_fast)), 0)
    last = min(math.ceil(pair(scaling.beta_slow)), head_dim - 1)
    width = last - first if last != first else 0.001  # as every implementation has it
    return [1.0 - _clip((i - first) / width) for i in range(head_dim // 2)]


def _clip(share: float) -> float:
    return min(1.0, max(0.0, share))
