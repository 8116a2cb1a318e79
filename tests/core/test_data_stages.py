"""Batch size and row length that change on the way: closed forms against counting, and no token lost or doubled."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sconce.config import config_from, config_from_resolved, micro_batch_at, ramp, to_json
from sconce.config.resolve import differences
from sconce.data.batches import NO_ROWS, chain_rows, rows_sha256
from sconce.data.corpus import Corpus
from sconce.data.order import block_counts, make_order, permute, rank_share
from sconce.data.prefetch import Prefetcher
from sconce.data.prepare import prepare
from sconce.data.rows import open_train_rows, read_in_parts
from sconce.errors import ConfigError
from sconce.ramp import Ramp, Stage
from sconce.training.recipe import make_schedule, train_order


@dataclass
class Bytes:
    """A tokenizer whose tokens are the UTF-8 bytes."""

    sha256: str = "bytes"
    vocab_size: int = 257
    eos_id: int = 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


RAMP = Ramp((Stage(0, 8, 4), Stage(6, 4, 16), Stage(11, 16, 8), Stage(21, 6, 8), Stage(25, 3, 16)))


@st.composite
def ramps(draw):
    """Stages that each use up whole long rows."""
    longest, step, stages = 8, 0, []
    for _ in range(draw(st.integers(1, 4))):
        seq_len, batch = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 9))
        stages.append(Stage(step, batch, seq_len))
        step += draw(st.integers(1, 2)) * longest
    return Ramp((*stages, Stage(step, draw(st.integers(1, 9)), longest)))


@given(ramps(), st.integers(0, 80))
def test_closed_forms_are_what_counting_comes_to(found, step):
    rows = places = 0
    for done in range(step):
        stage = max((stage for stage in found.stages if stage.first_step <= done), key=lambda stage: stage.first_step)
        assert found.at(done) == stage
        assert found.steps(places) == done
        assert found.steps(places + stage.batch_size * stage.seq_len - 1) == done
        rows += stage.batch_size
        places += stage.batch_size * stage.seq_len
    assert (found.rows(step), found.places(step)) == (rows, places)


@settings(deadline=None, max_examples=25)
@given(ramps(), st.integers(1, 60), st.integers(0, 3))
def test_each_part_of_a_row_comes_once_an_epoch_across_every_change(found, num_rows, seed):
    order = make_order((num_rows,), (), found, seed)
    last = found.stages[-1].first_step + 2 * num_rows // found.stages[-1].batch_size + 1
    seen: list[tuple[int, int, int]] = []  # row, and which predictions of it
    for step in range(last):
        length, parts = found.at(step).seq_len, order.parts(step)
        rows, epochs = order.rows(step), order.row_epochs(step)
        assert len(rows) == found.at(step).batch_size
        for row, epoch in zip(rows.tolist(), epochs.tolist(), strict=True):
            start = row % parts * length
            seen += [(row // parts, place, epoch) for place in range(start, start + length)]
    assert max(Counter(seen).values()) == 1
    per_epoch = Counter(epoch for _, _, epoch in seen)
    for epoch in range(len(seen) // (num_rows * found.longest)):
        assert per_epoch[epoch] == num_rows * found.longest


def test_a_stage_takes_whole_rows_of_the_order_and_shuffles_their_parts():
    order = make_order((10_000,), (), RAMP, 7)
    plain = permute(np.arange(10_000), 10_000, 7, 0).tolist()
    first = np.concatenate([order.rows(step) for step in range(6)])
    assert len(first) == 48
    assert sorted(first.tolist()) == sorted(4 * row + part for row in plain[:12] for part in range(4))
    assert np.mean(np.diff(first // 4) == 0) < 0.2  # parts of a row are not neighbours
    assert np.concatenate([order.rows(step) for step in range(6, 11)]).tolist() == plain[12:32]


def test_without_stages_the_order_is_what_it_was():
    sizes, weights = (50, 70), [(0, block_counts((1, 2))), (40, block_counts((2, 1)))]
    for mix in ((), weights):
        plain = make_order(sizes, mix, Ramp((Stage(0, 6, 1),)), 3)
        for stages in (((0, 6, 32),), ((0, 6, 32), (40, 6, 32))):
            other = make_order(sizes, mix, Ramp(tuple(Stage(*stage) for stage in stages)), 3)
            assert all(plain.rows(step).tolist() == other.rows(step).tolist() for step in (0, 1, 39, 40, 41, 99))


def test_a_mixture_keeps_its_shares_across_changes():
    """Up to a change each long row that was begun has been used whole, and each source has had its share of a block."""
    sizes, found = (
        (300, 20_000, 500),
        Ramp((Stage(0, 32, 4), Stage(512, 8, 16), Stage(1024, 64, 8), Stage(1088, 8, 16))),
    )
    weights = [(0, block_counts((1, 2, 0))), (768, block_counts((1, 1, 1)))]
    order = make_order(sizes, weights, found, 5)
    used = np.zeros(3)
    counts = Counter[tuple[int, int]]()
    for step in range(1100):
        rows, parts, length = order.rows(step), order.parts(step), found.at(step).seq_len
        used += np.bincount(np.searchsorted(np.cumsum(sizes), rows // parts, side="right"), minlength=3) / parts
        counts.update((row // parts, row % parts * length + place) for row in rows.tolist() for place in range(length))
        if step + 1 in (512, 768, 1024, 1088):
            np.testing.assert_allclose(used, np.array(order.source_epochs(step + 1)) * sizes)
            uses: dict[int, set[int]] = {}
            for (row, _), count in counts.items():
                uses.setdefault(row, set()).add(count)
            assert all(len(each) == 1 for each in uses.values())
            assert sum(next(iter(each)) for each in uses.values()) * 16 == found.places(step + 1)
    assert order.source_epochs(512) == tuple(count / size for count, size in zip(weights[0][1], sizes, strict=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    for name in "ab":
        lines = [f"{name} {number} " + "x" * (number * 7 % 61) for number in range(400)]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    corpus = Corpus(paths=(folder / "a.txt", folder / "b.txt"), rule="line", validation_fraction=0.1)
    return prepare(corpus, Bytes(), folder / "tokens", shard_tokens=3000)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_parts_are_the_columns_of_their_row(data, packing, mixed):
    rows = open_train_rows(data, 32, packing, mixed)
    numbers = np.random.default_rng(0).permutation(rows.num_rows)[:40]
    whole = rows.batch(numbers)
    for parts in (2, 8):
        size = 32 // parts
        for part in range(parts):
            batch, columns = rows.batch(numbers * parts + part, parts), slice(part * size, (part + 1) * size)
            np.testing.assert_array_equal(batch.inputs, whole.inputs[:, columns])
            np.testing.assert_array_equal(batch.targets, whole.targets[:, columns])
            if whole.segments is not None:  # numbered anew, and the same tokens together
                for one, other in zip(batch.segments, whole.segments[:, columns], strict=True):
                    np.testing.assert_array_equal(np.diff(one) != 0, np.diff(other) != 0)


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_no_token_is_lost_or_doubled_where_rows_grow(data, packing):
    """Targets are counted token by token over an epoch that begins with rows of 8 and ends with rows of 32."""
    rows = open_train_rows(data, 32, packing, mixed=False)
    found = Ramp((Stage(0, 16, 8), Stage(10, 4, 32), Stage(20, 8, 16), Stage(30, 1, 32)))
    order = make_order(rows.sizes, (), found, 1)
    counts = np.zeros(data.train.num_tokens, int)
    for step in range(found.steps(rows.num_rows * 32)):
        parts = order.parts(step)
        batch = rows.batch(order.rows(step), parts)
        for place, row in enumerate(order.rows(step).tolist()):
            spans = rows.spans(row, parts)
            first = 1 if packing == "concat" else 0  # there the first token is the row before's target
            tokens = [token for start, end in spans for token in range(start + first, end)]
            np.testing.assert_array_equal(
                batch.targets[place][batch.targets[place] >= 0], [data.train.read(token, 1)[0] for token in tokens]
            )
            np.add.at(counts, tokens, 1)
    targets = counts[1 : rows.num_rows * 32 + 1] if packing == "concat" else counts
    assert (targets == 1).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_ranks_micro_batches_and_threads_only_slice_the_step(data, mixed):
    """One chain for every world size, micro-batch and depth of prefetching: the same rows, each exactly once."""
    rows = open_train_rows(data, 32, "bestfit", mixed)
    weights = [(0, block_counts((1, 3)))] if mixed else ()
    order = make_order(rows.sizes, weights, Ramp((Stage(0, 20, 16), Stage(4, 10, 32), Stage(7, 13, 32))), 3)
    expected = NO_ROWS
    for step in range(10):
        expected = chain_rows(
            expected, rows_sha256(order.rows(step), [rows.batch(order.rows(step), order.parts(step))])
        )

    def read(step, world_size, micro):
        numbers, parts = order.rows(step), order.parts(step)
        shares = [rank_share(numbers, rank, world_size) for rank in range(world_size)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        batches = [batch for share in shares for batch in read_in_parts(rows, share, parts, micro)]
        return rows_sha256(np.concatenate(shares), batches)

    for world_size in (1, 2, 3, 4, 8):
        for micro in (1, 3, 20):
            for ahead in (1, 4):
                chain = NO_ROWS
                with Prefetcher(lambda step, w=world_size, m=micro: read(step, w, m), 0, ahead) as steps:
                    for _ in range(10):
                        chain = chain_rows(chain, steps.next())
                assert chain == expected, (world_size, micro, ahead)


def config(stages=(), scheduler=None, overrides=(), **data):
    table = {
        "model": {"max_position_embeddings": 64},
        "tokenizer": {"tokenizer_json": "/t.json"},
        "data": {"train_shards": ["/a", "/b"], "sequence_length": 16, "stages": list(stages), **data},
        "scheduler": scheduler or {"total_steps": 90},
    }
    return config_from(table, "a.toml", overrides)


def test_a_stage_keeps_what_it_does_not_say():
    stages = [{"from_step": 10, "batch_size": 16}, {"from_step": 20, "sequence_length": 64}]
    expected = Ramp((Stage(0, 8, 16), Stage(10, 16, 16), Stage(20, 16, 64)))
    assert ramp(config(stages)) == expected
    given = 'data.stages=[{"from_step": 10, "batch_size": 16}, {"from_step": 20, "sequence_length": 64}]'
    assert ramp(config(overrides=[given])) == expected
    resolved = config_from_resolved(to_json(config(stages)), "run.json")
    assert ramp(resolved) == expected


def test_a_run_from_before_there_were_stages_goes_on():
    old = to_json(config())
    del old["data"]["stages"], old["data"]["weights"]
    assert differences(old, to_json(config())) == []
    (changed,) = differences(old, to_json(config([{"from_step": 10, "batch_size": 16}])))
    assert (changed.key, changed.allowed) == ("data.stages", False)


def test_a_micro_batch_holds_no_more_tokens_where_rows_are_shorter():
    stages = [{"from_step": 12, "batch_size": 24}, {"from_step": 20, "batch_size": 12, "sequence_length": 64}]
    with_micro = config(stages, micro_batch_size=2)
    assert [micro_batch_at(with_micro, step) for step in (0, 11, 12, 20)] == [8, 8, 8, 2]
    assert micro_batch_at(config(stages), 0) == 8  # the whole batch


@pytest.mark.parametrize(
    ("stages", "data", "message"),
    [
        ([{"batch_size": 4}], {}, r"data.stages\[0\].from_step: missing, expected an integer > 0"),
        ([{"from_step": 0, "batch_size": 4}], {}, r"data.stages\[0\].from_step: found 0, expected an integer > 0"),
        ([{"from_step": 4, "batch": 4}], {}, r"data.stages\[0\].batch: unknown key; expected a list of tables with"),
        ([4], {}, r"data.stages\[0\]: found 4, expected a list of tables with from_step"),
        ([{"from_step": 4}], {}, r"data.stages: found only from_step in \[0\], expected batch_size"),
        (
            [{"from_step": 8, "batch_size": 4}, {"from_step": 4, "batch_size": 2}],
            {},
            "data.stages: found from_step 8, 4, expected steps that rise",
        ),
        (
            [{"from_step": 4, "sequence_length": 128}],
            {},
            "data.stages: found sequence_length 128, expected at most model.max_position_embeddings 64",
        ),
        (
            [{"from_step": 4, "sequence_length": 24}],
            {},
            "sequence_length 16, expected a divisor of the longest, 24",
        ),
        (
            [{"from_step": 5, "sequence_length": 64}],
            {"batch_size": 2},
            "data.stages: found a change at step 5, where the rows of 16 .* write instead: 6",
        ),
        (
            [{"from_step": 8, "sequence_length": 64}],
            {"batch_size": 2, "weights": [[1, 1], [1, 2]], "weight_steps": [3]},
            "data.weight_steps: found a change at step 3, where .* write instead: 4",
        ),
        (
            [{"from_step": 4, "batch_size": 16}],
            {"gradient_accumulation_steps": 2},
            "data.gradient_accumulation_steps: means nothing with data.stages",
        ),
        (
            [{"from_step": 4, "batch_size": 16}],
            {"micro_batch_size": 5},
            r"write instead:\n  micro_batch_size = 4\n  gradient_accumulation_steps = 4",
        ),
    ],
)
def test_config_faults(stages, data, message):
    with pytest.raises(ConfigError, match=message):
        config(stages, **data)


def test_epochs_come_out_in_steps():
    stages = [{"from_step": 8, "batch_size": 16}, {"from_step": 12, "sequence_length": 64}]
    for epochs in (0.1, 1, 2.5):
        found = config(stages, {"total_epochs": epochs})
        order = train_order(found, (100,))
        steps = make_schedule(found, order).total_steps
        assert order.epoch(steps) <= epochs < order.epoch(steps + 1)


def test_epochs_of_a_mixture_are_those_of_its_slowest_source():
    found = config((), {"total_epochs": 3}, weights=[[1, 1], [3, 1]], weight_steps=[50])
    order = train_order(found, (100, 900))
    steps = make_schedule(found, order).total_steps
    assert min(order.source_epochs(steps - 1)) < 3 <= min(order.source_epochs(steps))
    alone = config((), {"total_epochs": 2}, weights=[[1, 0]])  # one that is never drawn from does not count
    order = train_order(alone, (100, 900))
    assert make_schedule(alone, order).total_steps == 25
    ends = config((), {"total_epochs": 3}, weights=[[1, 1], [0, 1]], weight_steps=[5])
    with pytest.raises(ConfigError, match=r"found 3, and a is passed over 0\.\d+ times before"):
        make_schedule(ends, train_order(ends, (100, 900)))
