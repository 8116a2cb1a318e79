"""Best-fit packing: against the textbook algorithm, and token by token; nothing dropped, hardly a place empty."""

import json
import shutil
from dataclasses import dataclass
from pydoc_data import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sconce.data import packing
from sconce.data.batches import rows_sha256
from sconce.data.corpus import Corpus
from sconce.data.examine import faults
from sconce.data.packing import best_fit, open_plan, pour
from sconce.data.prepare import prepare
from sconce.data.rows import open_rows
from sconce.errors import DataError


@dataclass
class Bytes:
    """A tokenizer whose tokens are the UTF-8 bytes."""

    sha256: str = "bytes"
    vocab_size: int = 257
    eos_id: int = 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


def textbook(lengths, room):
    """Best-fit decreasing, one piece at a time; the room each row has left, sorted."""
    left = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, space in enumerate(left) if space >= length]
        if fitting:
            left[min(fitting, key=left.__getitem__)] -= length
        else:
            left.append(room - length)
    return sorted(left)


@given(room=st.integers(1, 40), data=st.data())
def test_it_is_best_fit_decreasing(room, data):
    lengths = np.array(data.draw(st.lists(st.integers(1, room), max_size=80)), np.int64)
    rows = best_fit(lengths, room)
    used = np.bincount(rows, lengths).astype(int).tolist() if len(rows) else []
    assert sorted(room - space for space in used) == textbook(lengths.tolist(), room)


LINES = [f"{number} " + "word " * (number * 7919 % 41) + "é" for number in range(400)]
SEQ = 64


@pytest.fixture(params=[2**20, 90], ids=["one block", "blocks"])
def data(tmp_path, monkeypatch, request):
    monkeypatch.setattr(packing, "_BLOCK_DOCUMENTS", request.param)
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    corpus = Corpus(paths=(tmp_path / "text.txt",), rule="line", validation_fraction=0.2)
    return prepare(corpus, Bytes(), tmp_path / "tokens", shard_tokens=3000)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_token_is_a_target_once_after_its_own_document(data, split):
    store = data.train if split == "train" else data.validation
    stream = store.read(0, store.num_tokens).tolist()
    rows = open_rows(data, split, SEQ, "bestfit")
    batch = rows.batch(np.arange(rows.num_rows))
    assert {part.shape for part in batch} == {(rows.num_rows, SEQ)}
    assert {part.dtype for part in batch} == {np.dtype(np.int32)}
    seen = np.zeros(len(stream), int)
    begun = ends_before = 0
    for row in range(rows.num_rows):
        at = 0
        for number, (start, end) in enumerate(rows.spans(row)):
            seen[start:end] += 1
            place = slice(at, at + end - start)
            assert batch.targets[row, place].tolist() == stream[start:end]
            before = stream[start - 1] if start else 256
            assert batch.inputs[row, place].tolist() == [before, *stream[start : end - 1]]
            assert 256 not in stream[start : end - 1]  # one document
            assert set(batch.segments[row, place].tolist()) == {number}
            begun += 1
            ends_before += before == 256
            at = place.stop
        assert (batch.targets[row, at:] == -1).all()
        assert not set(batch.segments[row, at:]) & set(batch.segments[row, :at])
    assert (seen == 1).all()
    assert ends_before == store.num_documents  # each document is begun from an end, as in sampling
    assert begun > ends_before  # and some had to be cut
    firsts = [rows.spans(row)[0][0] for row in range(min(rows.num_rows, 5))]
    assert firsts == sorted(firsts)
    assert firsts[0] == 0


def test_validation_batches_are_all_rows_filled_up(data):
    rows = open_rows(data, "validation", SEQ, "bestfit")
    size = 7
    assert rows.num_rows % size
    batches = list(rows.in_order(size))
    assert {part.shape for batch in batches for part in batch} == {(size, SEQ)}
    whole = rows.batch(np.arange(rows.num_rows))
    for part in range(3):
        joined = np.concatenate([batch[part] for batch in batches])
        np.testing.assert_array_equal(joined[: rows.num_rows], whole[part])
    targets = np.concatenate([batch.targets for batch in batches])
    assert (targets >= 0).sum() == data.validation.num_tokens
    assert len(list(rows.in_order(size, max_batches=2))) == 2


@pytest.mark.parametrize("rule", ["blank-line", "passage"])
def test_hardly_a_place_is_empty(tmp_path, rule):
    text = "\n\n".join(text for _, text in sorted(topics.topics.items()))
    (tmp_path / "text.txt").write_text(text)
    data = prepare(Corpus(paths=(tmp_path / "text.txt",), rule=rule), Bytes(), tmp_path / "tokens")
    rows = open_rows(data, "train", 1024, "bestfit")
    assert 1 - data.train.num_tokens / (1024 * rows.num_rows) < 0.01
    for long in (8192, 16384):  # no more rows than there have to be
        assert open_rows(data, "train", long, "bestfit").num_rows == -(-data.train.num_tokens // long)


@pytest.mark.parametrize("room", [64, 100, 1000])
def test_rests_are_cut_again_and_nothing_else(room):
    """Documents of a row and more than half a row: best fit alone would leave a third empty."""
    chance = np.random.default_rng(room)
    lengths = np.where(
        chance.random(500) < 0.2, chance.integers(1, room, 500), chance.integers(1.55 * room, 1.7 * room, 500)
    )
    starts = np.cumsum(lengths) - lengths
    pieces = packing._cut(starts, lengths, room)
    is_rest = np.array([start not in set(starts.tolist()) for start in pieces["start"].tolist()])
    before = best_fit(pieces["length"].astype(np.int64), room)
    assert 1 - lengths.sum() / (room * (before.max() + 1)) > 0.1
    poured, rows = pour(pieces, before, is_rest & (pieces["length"] < room), room)
    used = np.bincount(rows, poured["length"])
    assert used.min() > 0
    assert used.max() <= room
    assert 1 - lengths.sum() / (room * len(used)) < 0.01
    order = np.argsort(poured["start"])
    ends = (poured["start"] + poured["length"])[order]
    assert ends[-1] == lengths.sum()
    assert (poured["start"][order][1:] == ends[:-1]).all()  # every token once
    assert (poured["length"] > 0).all()
    whole = {(int(start), int(length)) for start, length in zip(starts, lengths, strict=True) if length <= room}
    assert whole <= {(int(start), int(length)) for start, length in poured.tolist()}


def test_what_packs_well_is_not_cut():
    pieces = packing._cut(np.array([0, 150, 200]), np.array([150, 50, 100]), 100)
    rows = best_fit(pieces["length"].astype(np.int64), 100)
    poured, same = pour(pieces, rows, np.array([False, True, False, False]), 100)
    assert (poured.tolist(), same.tolist()) == (pieces.tolist(), rows.tolist())


def test_the_plan_is_kept_and_a_damaged_one_made_anew(data, monkeypatch):
    first = [open_plan(data, "train", SEQ).pieces(row) for row in range(20)]
    stem = data.folder / "packing" / f"train-bestfit-{SEQ}"
    content = stem.with_suffix(".pieces").read_bytes()
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"\1" + path.read_bytes()[1:])):
        for suffix in (".pieces", ".rows", ".json"):
            damage(stem.with_suffix(suffix))
            assert [open_plan(data, "train", SEQ).pieces(row) for row in range(20)] == first
            assert stem.with_suffix(".pieces").read_bytes() == content
    monkeypatch.setattr(packing, "_make", None)
    open_plan(data, "train", SEQ)  # what is intact is not made again
    assert sorted(path.name for path in stem.parent.iterdir()) == [
        f"train-bestfit-{SEQ}{suffix}" for suffix in (".json", ".pieces", ".rows")
    ]
    assert list(faults(data.folder)) == []


def test_a_plan_of_other_tokens_is_not_used(data, tmp_path):
    open_plan(data, "train", SEQ)
    (tmp_path / "text.txt").write_text("\n".join(LINES[::-1]))
    corpus = Corpus(paths=(tmp_path / "text.txt",), rule="line", validation_fraction=0.2)
    other = prepare(corpus, Bytes(), tmp_path / "other")
    shutil.copytree(data.folder / "packing", other.folder / "packing")
    seen = np.zeros(other.train.num_tokens, int)
    rows = open_rows(other, "train", SEQ, "bestfit")
    for row in range(rows.num_rows):
        for start, end in rows.spans(row):
            seen[start:end] += 1
    assert (seen == 1).all()
    again = prepare(corpus, Bytes(sha256="other"), other.folder)  # a plan does not keep shards from being replaced
    assert not (again.folder / "packing").exists()


def test_the_hash_of_rows_covers_segments(data):
    rows, some = open_rows(data, "train", SEQ, "bestfit"), np.arange(6)
    batch = rows.batch(some)
    split = [rows.batch(some[:2]), rows.batch(some[2:])]
    assert rows_sha256(some, [batch]) == rows_sha256(some, split)
    other = batch._replace(segments=np.zeros_like(batch.segments))
    assert rows_sha256(some, [batch]) != rows_sha256(some, [other])


def test_a_disk_that_takes_no_plan(data, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "fsync_file", full)
    with pytest.raises(DataError, match="packing: cannot be written: No space left"):
        open_plan(data, "train", SEQ)
    assert not any((data.folder / "packing").iterdir())


@pytest.mark.parametrize("records", [False, True])
def test_passages_are_cut_where_rows_would_stay_empty_and_records_are_not(tmp_path, records):
    """Documents of about two thirds of a row: two never share one, and a third of the places would be empty."""
    rng = np.random.default_rng(0)
    texts = [("x" * 79 + "\n") * (int(rng.integers(0, 8)) + 55) + "\n" for _ in range(200)]
    if records:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        path = tmp_path / "a.txt"
        path.write_text("".join(texts))
    data = prepare(Corpus(paths=(path,), validation_fraction=0.1), Bytes(), tmp_path / "tokens")
    room = 7000
    rows = open_rows(data, "train", room, "bestfit")
    seen, pieces = np.zeros(data.train.num_tokens, int), 0
    for row in range(rows.num_rows):
        pieces += len(rows.spans(row))
        for start, end in rows.spans(row):
            seen[start:end] += 1
    assert (seen == 1).all()
    if records:
        assert pieces == data.train.num_documents == rows.num_rows
    else:
        assert 1 - data.train.num_tokens / (rows.num_rows * room) < 0.01
        assert pieces < 2 * data.train.num_documents
