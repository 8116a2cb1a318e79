"""What crosses from data to a backend: one micro-batch of token rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Batch(NamedTuple):
    """Rows of tokens and, one position later, what they should predict. A target of -1 is not scored."""

    inputs: NDArray[np.int32]  # (batch, seq)
    targets: NDArray[np.int32]  # (batch, seq)
