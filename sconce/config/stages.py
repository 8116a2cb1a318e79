"""Batch size and sequence length over a run, as its config says."""

from sconce.config.schema import RunConfig
from sconce.ramp import Ramp, Stage


def sequence_length(config: RunConfig) -> int:
    """Predictions a row, before the first of data.stages."""
    return config.data.sequence_length or config.model.max_position_embeddings


def ramp(config: RunConfig) -> Ramp:
    """Batch size and row length at every step."""
    stages = [Stage(0, config.data.batch_size, sequence_length(config))]
    for given in config.data.stages:
        last = stages[-1]
        stages.append(
            Stage(given.from_step, given.batch_size or last.batch_size, given.sequence_length or last.seq_len)
        )
    return Ramp(tuple(stages))
