"""Integer hashes that every backend and machine computes alike."""

import numpy as np
from numpy.typing import NDArray


def splitmix64(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea and Flood 2014: uint64 to uint64, every input bit reaches every output bit."""
    mixed = value + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


# Chris Wellons' lowbias32 (2018): shift, multiply, shift, multiply, shift. The backends compute it as well.
MIX32_SHIFTS = (16, 15, 16)
MIX32_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)


def mix32(value: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A bijection of uint32 in which every input bit changes about half of the output bits."""
    first, second, third = (np.uint32(shift) for shift in MIX32_SHIFTS)
    mixed = (value ^ (value >> first)) * np.uint32(MIX32_MULTIPLIERS[0])
    mixed = (mixed ^ (mixed >> second)) * np.uint32(MIX32_MULTIPLIERS[1])
    return mixed ^ (mixed >> third)
