"""Mixtures: any step's rows, against drawing them one after the other; shares, epochs, stages."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from sconce.config import config_from
from sconce.data.corpus import Corpus
from sconce.data.encode import Engine
from sconce.data.order import BLOCK, block_counts, make_order, permute, shuffled_order
from sconce.data.prepare import prepare
from sconce.data.rows import open_rows, open_train_rows
from sconce.errors import ConfigError, DataError
from sconce.ramp import constant


@dataclass
class Bytes:
    """A tokenizer whose tokens are the UTF-8 bytes."""

    sha256: str = "bytes"
    vocab_size: int = 257
    eos_id: int = 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


SIZES, BATCH, SEED = (700, 33, 5000), 48, 3
WEIGHTS = ((3.0, 1.0, 0.0), (1.0, 1.0, 2.0), (0.0, 0.0, 1.0))
STAGES = [(step, block_counts(weights)) for step, weights in zip((0, 130, 300), WEIGHTS, strict=True)]
ORDER = make_order(SIZES, STAGES, constant(BATCH), SEED)


def one_by_one(steps):
    """The rows of every step, drawn in order with nothing but a counter for each source."""
    used, offsets = [0] * len(SIZES), np.cumsum([0, *SIZES])
    blocks: dict[tuple[int, int], list[int]] = {}
    orders: dict[tuple[int, int], list[int]] = {}
    for step in range(steps):
        number = max(index for index, (first_step, _) in enumerate(STAGES) if first_step <= step)
        first_step, shares = STAGES[number]
        rows, epochs = [], []
        for place in range((step - first_step) * BATCH, (step + 1 - first_step) * BATCH):
            block, inside = divmod(place, BLOCK)
            if (number, block) not in blocks:
                blocks[number, block] = permute(np.arange(BLOCK), BLOCK, SEED, block, 2**32 + number).tolist()
            slot = blocks[number, block][inside]
            source = int(np.searchsorted(np.cumsum(shares), slot, side="right"))
            epoch, position = divmod(used[source], SIZES[source])
            if (source, epoch) not in orders:
                orders[source, epoch] = permute(np.arange(SIZES[source]), SIZES[source], SEED, epoch, source).tolist()
            rows.append(int(offsets[source]) + orders[source, epoch][position])
            epochs.append(epoch)
            used[source] += 1
        yield rows, epochs, [n / size for n, size in zip(used, SIZES, strict=True)]


def test_any_step_is_what_drawing_in_order_comes_to():
    for step, (rows, epochs, passes) in enumerate(one_by_one(400)):
        if step % 7 == 0 or 125 < step < 135:
            assert ORDER.rows(step).tolist() == rows
            assert ORDER.row_epochs(step).tolist() == epochs
            assert ORDER.source_epochs(step + 1) == pytest.approx(passes)
            assert ORDER.epoch(step + 1) == pytest.approx(max(passes))


def test_every_row_of_a_source_comes_once_an_epoch():
    rows = Counter(row for step in range(130) for row in ORDER.rows(step).tolist())
    first = [rows[row] for row in range(SIZES[0])]
    assert max(first) - min(first) <= 1
    assert not any(row >= SIZES[0] + SIZES[1] for row in rows)  # no weight, no row


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.7, 0.2, 0.1), (3, 0, 1000), (1,), (2e9, 1e6)])
def test_shares_of_a_block(weights):
    counts = block_counts(weights)
    assert sum(counts) == BLOCK
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - BLOCK * weight / sum(weights)) < 1


def test_one_source_is_shuffled_as_if_alone():
    alone, mixed = shuffled_order(97, 10, 5), make_order((97,), [(0, (BLOCK,))], constant(10), 5)
    for step in (0, 9, 10, 1000):
        assert alone.rows(step).tolist() == mixed.rows(step).tolist()
        assert alone.row_epochs(step).tolist() == mixed.row_epochs(step).tolist()


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr("sconce.data.reader.BATCH_BYTES", 700)
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        for part in range(3):
            lines = [f"{name}{part} " + "x" * (number % 23) for number in range(100)]
            (folder / f"{part}.txt").write_text("\n".join(lines))
    corpus = Corpus(paths=(tmp_path / "a", tmp_path / "b" / "*.txt"), rule="line", validation_fraction=0.2)
    return prepare(corpus, Bytes(), tmp_path / "tokens", shard_tokens=900, engine=partial(Engine, 1))


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_rows_of_a_source_hold_its_text_alone(data, packing):
    rows = open_train_rows(data, 32, packing, mixed=True)
    assert len(rows.sizes) == 2
    assert sum(data.manifest.path_tokens) == data.train.num_tokens
    seen = np.zeros(data.train.num_tokens, int)
    for row in range(rows.num_rows):
        source, batch = int(row >= rows.sizes[0]), rows.batch(np.array([row]))
        text = bytes(token for token in batch.targets[0].tolist() if 0 <= token < 256)
        assert text.count(b"ab"[1 - source : 2 - source]) == 0
        assert text.strip(b"x 0123") != b""
        spans = rows.spans(row)
        tokens = np.concatenate([data.train.read(start, end - start) for start, end in spans])
        targets = batch.targets[0][batch.targets[0] >= 0]
        np.testing.assert_array_equal(targets, tokens[1:] if packing == "concat" else tokens)
        for start, end in spans:
            seen[start:end] += 1
    if packing == "bestfit":
        assert (seen == 1).all()
    mixed = rows.batch(np.array([rows.num_rows - 1, 0, rows.sizes[0]]))
    for place, row in enumerate((rows.num_rows - 1, 0, rows.sizes[0])):
        np.testing.assert_array_equal(mixed.inputs[place], rows.batch(np.array([row])).inputs[0])


def held_out_bytes(data):
    """The text of what is held out, by the counts that the manifest has of each path."""
    ends = np.cumsum(data.manifest.held_out_tokens).tolist()
    assert ends[-1] == data.validation.num_tokens
    parts = zip([0, *ends[:-1]], ends, strict=True)
    return [bytes(t for t in data.validation.read(a, b - a).tolist() if t < 256) for a, b in parts]


def test_held_out_tokens_are_counted_by_path(data, tmp_path):
    """Files begin with their path's letter."""
    first, second = held_out_bytes(data)
    assert (first.count(b"b"), second.count(b"a")) == (0, 0)
    assert first.count(b"a") > 20 < second.count(b"b")
    paths = {"paths": (tmp_path / "a",), "validation_paths": (tmp_path / "b", tmp_path / "a" / "0.txt")}
    own = prepare(Corpus(**paths, rule="line"), Bytes(), tmp_path / "own", engine=partial(Engine, 1))
    first, second = held_out_bytes(own)
    assert (first.count(b"b"), second.count(b"a0")) == (300, 100)
    assert (first.count(b"a"), second.count(b"b")) == (0, 0)


def test_builds_that_cannot_be_mixed(data):
    with pytest.raises(DataError, match=r"a: \d+ training tokens, less than one row of data.sequence_length 9999"):
        open_train_rows(data, 9999, "concat", mixed=True)
    data.manifest.path_tokens.clear()
    with pytest.raises(DataError, match=r"which data\.weights needs"):
        open_train_rows(data, 32, "concat", mixed=True)
    open_rows(data, "train", 32, "concat")


def config(data, **scheduler):
    table = {
        "tokenizer": {"tokenizer_json": "/t.json"},
        "data": {"train_shards": ["/a", "/b"], **data},
        "scheduler": scheduler or {"total_steps": 9},
    }
    return config_from(table, "a.toml")


@pytest.mark.parametrize(
    ("data", "scheduler", "message"),
    [
        ({"weights": [[1, 2, 3]]}, {}, "data.weights: found 3 weights, expected one for each of the 2 paths"),
        ({"weights": [[1, 2], [2, 1]]}, {}, "data.weight_steps: found 0 steps, expected one less than the 2 lists"),
        ({"weight_steps": [5]}, {}, "data.weight_steps: found 1 steps, expected one less than the 0 lists"),
        ({"weights": [[1, 2]] * 3, "weight_steps": [9, 5]}, {}, "data.weight_steps: found .9, 5., expected steps that"),
        ({"weights": [[0, 0]]}, {}, "data.weights: found .0.0, 0.0., expected each to be 0 or at least 0.05%"),
        ({"weights": [[1, 1e-6]]}, {}, "expected each to be 0 or at least 0.05%"),
        ({"weights": [[1, -1]]}, {}, "data.weights.*expected a list of lists of numbers >= 0"),
        ({"weights": [1, 1]}, {}, "data.weights.*expected a list of lists of numbers >= 0"),
    ],
)
def test_config_faults(data, scheduler, message):
    with pytest.raises(ConfigError, match=message):
        config(data, **scheduler)


def test_weights_from_the_command_line():
    given = config_from(
        {
            "tokenizer": {"tokenizer_json": "/t"},
            "data": {"train_shards": ["/a", "/b"]},
            "scheduler": {"total_steps": 9},
        },
        "a.toml",
        ["data.weights=[[3, 1], [1, 1]]", "data.weight_steps=[5]"],
    )
    assert (given.data.weights, given.data.weight_steps) == (((3, 1), (1, 1)), (5,))
