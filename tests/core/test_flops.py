"""FLOPs against counts by hand."""

import pytest
from tiny import make_spec

from sconce.flops import count_flops, keys_seen


def test_matrix_products_and_the_causal_half_of_attention():
    spec, seq = make_spec(tie_word_embeddings=False), 16
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 48) + 97 * 32
    keys = sum(range(1, seq + 1))
    attention = 2 * 4 * 8 * keys * 2 * 2  # layers x heads x head_dim x (q.k and p.v) x multiply-add
    flops = count_flops(spec, seq)
    assert flops.forward * seq == 2 * weights * seq + attention
    assert flops.training == 3 * flops.forward
    assert count_flops(make_spec(), seq) == flops  # a tied head multiplies all the same


@pytest.mark.parametrize("window", [None, 1, 3, 7, 16, 40])
def test_a_window_limits_what_a_query_sees(window):
    seen = sum(1 for query in range(16) for key in range(16) if 0 <= query - key < (window or 99))
    assert keys_seen(16, window) == seen


@pytest.mark.parametrize("window", [None, 3])
def test_documents_that_share_a_row_do_not_see_each_other(window):
    """Against every pair of a query and a key, one by one."""
    spec, pieces = make_spec(sliding_window=window), [5, 1, 9, 16]
    document = [number for number, length in enumerate(pieces) for _ in range(length)]
    places = range(len(document))
    seen = sum(document[q] == document[k] and 0 <= q - k < (window or 99) for q in places for k in places)
    flops = count_flops(spec, 16, pieces=pieces)
    assert flops.attention == spec.num_layers * 4 * 32 * seen // len(document)
    assert flops.attention < count_flops(spec, 16).attention
    assert count_flops(spec, 16, pieces=[16]) == count_flops(spec, 16)


def test_recomputing_repeats_the_forward_pass_of_its_blocks():
    spec = make_spec(num_layers=6)
    every, none = count_flops(spec, 16, recompute_every=1), count_flops(spec, 16)
    assert none.recomputed == 0
    assert every.recomputed == every.projections + every.attention
    assert count_flops(spec, 16, recompute_every=4).recomputed == every.recomputed // 3  # blocks 0 and 4
    assert every.training == none.training, "recomputing is no progress"
