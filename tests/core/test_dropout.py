"""Dropout's masks: the hash as written, its statistics, and what it depends on."""

import numpy as np
import pytest

from sconce.dropout import SITES, keep_mask, row_keys

M32, M64 = 2**32 - 1, 2**64 - 1


def lowbias32(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & M32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & M32
    return x ^ (x >> 16)


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


def test_the_hash_in_python_integers():
    seed, step, layer, rate = 42, 1000, 5, 0.1
    keys = row_keys(seed, step, first_row=3, count=2)
    mask = keep_mask(keys, layer, "mlp_output", 200, rate)
    for row in range(2):
        row_key = splitmix64(splitmix64(splitmix64(seed) ^ step) ^ (3 + row)) >> 32
        assert keys[row] == row_key
        site_key = lowbias32(row_key ^ lowbias32(3 * layer + 2))
        for index in range(200):
            draw = lowbias32(lowbias32(index) ^ site_key) >> 8
            assert mask[row, index] == (draw >= round(rate * 2**24)), index


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9])
def test_the_fraction_dropped_is_the_rate(rate):
    mask = keep_mask(row_keys(1, 2, 0, 16), 0, "attention", 100_000, rate)
    deviation = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs((~mask).mean() - rate) < 5 * deviation
    per_row = (~mask).mean(axis=1)  # a row's own fraction scatters as independent draws would
    assert abs(per_row - rate).max() < 5 * np.sqrt(rate * (1 - rate) / 100_000)


def test_masks_of_other_places_are_independent():
    """Correlations between neighbours in every direction stay within what chance gives."""
    size, rate = 100_000, 0.5
    base = dict(seed=7, step=100, row=0, layer=2, site="mlp_output")
    others = [{"seed": 8}, {"step": 101}, {"row": 1}, {"layer": 3}, *({"site": site} for site in SITES[:2])]

    def signs(seed, step, row, layer, site):
        return 2.0 * keep_mask(row_keys(seed, step, row, 1), layer, site, size, rate)[0] - 1

    mask = signs(**base)
    limit = 5 / np.sqrt(size)
    for other in others:
        assert abs((mask * signs(**{**base, **other})).mean()) < limit, other
    for lag in (1, 2, 3, 8, 64, 768, 1024, 4096):
        assert abs((mask[lag:] * mask[:-lag]).mean()) < limit * 1.1, lag


def test_rows_are_numbered_through_the_step():
    np.testing.assert_array_equal(row_keys(1, 2, 0, 8)[5:], row_keys(1, 2, 5, 3))
