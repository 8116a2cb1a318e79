"""Both backends drop exactly what numpy's reference drops, bit for bit."""

import numpy as np
import pytest

from sconce.dropout import SITES, keep_mask, row_keys

RATE = 0.1
KEYS = row_keys(seed=2**40 + 5, step=12_345, first_row=6, count=3)


def torch_mask(shape, layer, site):
    torch = pytest.importorskip("torch", reason="needs torch")
    from sconce_torch.dropout import drop, site_key

    keys = torch.from_numpy(KEYS.view(np.int32))
    return drop(torch.ones(3, *shape), RATE, keys, site_key(layer, site)).numpy()


def mlx_mask(shape, layer, site):
    mx = pytest.importorskip("mlx.core", reason="needs mlx")
    from sconce_mlx.dropout import drop

    return np.array(drop(mx.ones((3, *shape)), RATE, mx.array(KEYS), layer, site))


@pytest.mark.parametrize("mask", [torch_mask, mlx_mask])
@pytest.mark.parametrize(("shape", "layer", "site"), [((4, 33, 33), 0, SITES[0]), ((700, 300), 31, SITES[2])])
def test_masks_are_the_references_bits(mask, shape, layer, site):
    expected = keep_mask(KEYS, layer, site, int(np.prod(shape)), RATE).reshape(3, *shape)
    dropped = mask(shape, layer, site)
    np.testing.assert_array_equal(dropped != 0, expected)
    np.testing.assert_allclose(dropped[expected], 1 / (1 - RATE), rtol=1e-7)
