"""The rotary embedding in a config.json: `rope_parameters` for transformers 5, `rope_scaling` for 4 and mlx-lm."""

from dataclasses import asdict, dataclass

from sconce.errors import CheckpointError, in_short
from sconce.interop.config_reader import ConfigReader
from sconce.rope import (
    ROPE_TYPES,
    RopeScaling,
    default_attention_factor,
    make_scaling,
    scaling_faults,
)

Table = dict[str, object]

ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
_DEFAULT_THETA = 10000.0
_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")
_ORIGINAL = "original_max_position_embeddings"
_SMALLEST, _LARGEST = 1e-6, 1e9  # of any of these numbers
_DEEPSEEK = ("mscale", "mscale_all_dim")  # another way to say attention_factor
_KNOWN = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "truncate", _ORIGINAL, *_NUMBERS, *_DEEPSEEK}


@dataclass(frozen=True, slots=True)
class Rope:
    """What a config.json says of the rotary embedding."""

    theta: float
    scaling: RopeScaling | None


def rope_tables(theta: float, scaling: RopeScaling | None) -> tuple[Table, Table | None]:
    """`rope_parameters` and `rope_scaling`; the latter only where there is a scaling."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}, None
    said: Table = {key: value for key, value in asdict(scaling).items() if value is not None}
    if has_default_attention(scaling):
        said.pop("attention_factor", None)
    return {**said, "rope_theta": theta}, said


def has_default_attention(scaling: RopeScaling) -> bool:
    """Whether rotated queries and keys are multiplied by what follows from the factor."""
    return scaling.attention_factor in (None, default_attention_factor(scaling.factor))


def read_rope(reader: ConfigReader, partial_rotary: float) -> Rope:
    """Theta and scaling, where a silent config turns `partial_rotary` of each head.

    Raises CheckpointError, naming the key, for a rotary embedding that Sconce's models do not have.
    """
    key = "rope_scaling" if reader.values.get("rope_scaling") else "rope_parameters"
    table = reader.section(key)
    theta = table.number("rope_theta", reader.number("rope_theta", _DEFAULT_THETA))
    rope_type = table.text("rope_type", table.text("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise CheckpointError(
            f"config.json: {key}: rope type {in_short(rope_type)}; Sconce's models have {', '.join(ROPE_TYPES)}"
        )
    rotary = table.number("partial_rotary_factor", reader.number("partial_rotary_factor", partial_rotary))
    if rotary != 1.0:
        raise CheckpointError(
            f"config.json: partial_rotary_factor: rotary embedding over {rotary:g} of each head; Sconce's models have "
            "it over all of it"
        )
    unknown = sorted(name for name, value in table.values.items() if name not in _KNOWN and value is not None)
    if rope_type != "default" and (unknown or not table.flag("truncate", True)):
        raise CheckpointError(
            f"config.json: {key}: {', '.join(unknown) or 'truncate = false'}: Sconce's rotary embedding has no such "
            "thing"
        )
    if theta <= 0 or (rope_type == "yarn" and theta <= 1):
        raise CheckpointError(f"config.json: rope_theta is {theta:g}; expected more than {int(rope_type == 'yarn')}")
    return Rope(theta, _scaling(reader, table, key, rope_type))


def _scaling(reader: ConfigReader, table: ConfigReader, key: str, rope_type: str) -> RopeScaling | None:
    if rope_type == "default":
        return None
    given: dict[str, float | None] = {
        name: table.number(name) for name in _NUMBERS if table.values.get(name) is not None
    }
    if rope_type != "linear":  # a config may have it there too, to no effect
        positions = table.integer(_ORIGINAL, reader.integer("max_position_embeddings"))
        given[_ORIGINAL] = reader.integer(_ORIGINAL, positions)
    if rope_type == "yarn" and "attention_factor" not in given:
        multipliers = [table.number(name, 0.0) for name in _DEEPSEEK]
        if all(multipliers) and given.get("factor") is not None:
            above, below = (default_attention_factor(table.number("factor"), value) for value in multipliers)
            given["attention_factor"] = above / below
    faults = [f"{key}.{name}: {message}" for name, message in scaling_faults(rope_type, given)]
    faults += [
        f"{key}.{name}: found {value:g}, expected from {_SMALLEST:g} to {_LARGEST:g}"
        for name, value in given.items()
        if value is not None and not _SMALLEST <= value <= _LARGEST
    ]
    if faults:
        raise CheckpointError(f"config.json: {'; '.join(faults)}")
    return make_scaling(rope_type, given)
