"""The order of rows: a permutation, a good one, and the same from any starting step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sconce.data.order import permute, shuffled_order


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 2**40), source=st.integers(0, 9))
def test_every_row_once(size, seed, epoch, source):
    image = permute(np.arange(size), size, seed, epoch, source)
    assert image.dtype == np.int64
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


@given(st.integers(2, 2**40), st.integers(0, 2**32))
def test_each_index_stands_for_itself(size, seed):
    index = np.random.default_rng(seed).integers(0, size, 8)
    together = permute(index, size, seed, 3)
    assert [int(permute(np.array([i]), size, seed, 3)[0]) for i in index] == together.tolist()
    assert together.max() < size


def chi_square(values, bins):
    """Over its degrees of freedom; about 1 when uniform, with standard deviation sqrt(2 / (bins - 1))."""
    counts = np.bincount(values, minlength=bins)
    expected = len(values) / bins
    return float(((counts - expected) ** 2).sum() / expected / (bins - 1))


@pytest.mark.parametrize("size", [2**24, 10_000_019, 3 * 10**9])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_looks_random(size, seed):
    image = permute(np.arange(2**16), size, seed, 0)
    spread = 6 * np.sqrt(2 / 255)
    assert abs(chi_square(image % 256, 256) - 1) < spread  # low bits
    assert abs(chi_square(image * 256 // size, 256) - 1) < spread  # high bits
    steps = np.diff(image) % size
    assert abs(chi_square(steps % 256, 256) - 1) < spread
    assert abs(chi_square(steps * 256 // size, 256) - 1) < spread
    pairs = (image[:-1] * 16 // size) * 16 + image[1:] * 16 // size
    assert abs(chi_square(pairs, 256) - 1) < spread


def test_small_permutations_are_spread_evenly():
    seen = np.stack([permute(np.arange(5), 5, seed, 0) for seed in range(4000)])
    for position in range(5):
        assert abs(chi_square(seen[:, position], 5) - 1) < 6 * np.sqrt(2 / 4)
    assert len({tuple(row) for row in seen}) == 120


def test_keys_matter():
    index = np.arange(1000)
    images = [permute(index, 1000, *key) for key in ((0, 0), (1, 0), (0, 1), (0, 0, 1))]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert np.mean(one == other) < 0.02


def test_the_order_never_changes():
    """Frozen: a change here makes every resumed run train on other rows than it would have."""
    assert permute(np.arange(10), 10, 0, 0).tolist() == [6, 8, 2, 4, 3, 0, 7, 1, 9, 5]
    assert permute(np.arange(3), 3 * 10**9, 7, 2).tolist() == [2172208291, 2195726961, 2296896943]


@given(num_rows=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
def test_batches_run_through_epochs_without_loss(num_rows, batch_size, seed):
    order = shuffled_order(num_rows, batch_size, seed)
    steps = 3 * num_rows // batch_size + 1
    rows = np.concatenate([order.rows(step) for step in range(steps)])
    for epoch in range(3):
        expected = permute(np.arange(num_rows), num_rows, seed, epoch)
        np.testing.assert_array_equal(rows[epoch * num_rows : (epoch + 1) * num_rows], expected)


def test_epoch_counts_passes():
    assert shuffled_order(num_rows=10, batch_size=4, seed=0).epoch(5) == 2.0
