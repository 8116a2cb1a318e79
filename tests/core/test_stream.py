"""Streams: windows made behind training's back hold the rows that a count by hand gives, whatever happens meanwhile."""

import errno
import hashlib
import os
import random
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hub import Faults, serving, write_toy

from sconce.data import journal as journal_module
from sconce.data import stream as stream_module
from sconce.data import windows as windows_module
from sconce.data.encode import ALONE, DocumentEncoder, Engine
from sconce.data.hub import HubError, list_files
from sconce.data.order import Order, Streamed
from sconce.data.shards import FORMAT, Manifest, open_tokens
from sconce.data.sources import list_sources
from sconce.data.stream import Stream, StreamPlan, StreamRows
from sconce.data.windows import BEGIN, Cut, WriteHead
from sconce.errors import DataError
from sconce.ramp import Ramp, Stage, constant

SEQ, ROWS, BATCH, SEED = 24, 20, 7, 5  # of windows, and rows a step: no multiple of each other
FRACTION = 0.1
THRESHOLD = int(FRACTION * 2**64)


class Bytes:
    sha256, vocab_size, eos_id = "bytes", 257, 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    texts = write_toy(tmp_path / "repos", files=3, rows=100)
    monkeypatch.setattr(windows_module, "_BATCH_BYTES", 2000)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of them, and no power is cut here
    with serving(tmp_path / "repos", monkeypatch) as hub:
        yield hub, texts


def is_held_out(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") <= THRESHOLD


def tokens_of(texts):
    return [token for text in texts for token in (*text.encode(), 256)]


def rows_of(texts):
    """Every row of the stream, by hand."""
    tokens = tokens_of([text for text in texts if not is_held_out(text)])
    return [tokens[i * SEQ : i * SEQ + SEQ + 1] for i in range((len(tokens) - 1) // SEQ)]


def make_cut(**changes):
    options = {"sources": list_sources([Path("hf://org/toy")]), "rule": "line", "threshold": THRESHOLD} | {
        "max_samples": None, "seq_len": SEQ, "rows": ROWS, "batch_documents": 16, **changes
    }  # fmt: skip
    return Cut(**options)


def open_stream(folder, *, cache_bytes=10**9, steps=10**6, engine=ALONE, say=lambda _: None, **changes):
    template = Manifest(
        format=FORMAT, tokenizer_sha256="bytes", dtype="uint16", vocab_size=257, eos_id=256, rule="line",
        paths=["hf://org/toy"], validation_paths=[], validation_fraction=FRACTION, threshold=THRESHOLD, shards=[],
        sources=[],
    )  # fmt: skip
    plan = StreamPlan(
        cut=make_cut(**changes), fingerprint=f"toy {changes}", template=template, needed_rows=steps * BATCH,
        open_at_once=3, cache_bytes=cache_bytes,
    )  # fmt: skip
    return Stream(plan, Bytes(), engine, folder, say)


def order_of(stream):
    return Order(Streamed(ROWS, SEED, stream.total_rows), constant(BATCH, SEQ))


def read_step(stream, step):
    """Row numbers and rows of the update after `step` updates."""
    ids = order_of(stream).rows(step)
    batch = StreamRows(stream.window, ROWS, SEQ).batch(ids)
    return ids.tolist(), [
        [*row, int(last)] for row, last in zip(batch.inputs.tolist(), batch.targets[:, -1], strict=True)
    ]


def test_every_row_once_an_epoch_each_shuffled_within_its_window(toy, tmp_path):
    _, texts = toy
    expected = rows_of(texts)
    with open_stream(tmp_path / "cache") as stream:
        steps = [read_step(stream, step) for step in range(2 * len(expected) // BATCH)]
        assert stream.total_rows(0) == len(expected)
    ids = [row for step, _ in steps for row in step]
    assert all(tokens == expected[row] for step, rows in steps for row, tokens in zip(step, rows, strict=True))
    assert sorted(ids[: len(expected)]) == list(range(len(expected)))
    assert [row // ROWS for row in ids[: len(expected)]] == sorted(row // ROWS for row in ids[: len(expected)])
    first, second = ids[:ROWS], ids[len(expected) : len(expected) + ROWS]
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    assert first != sorted(first)


def test_stages_cut_and_batch_the_same_rows_and_stop_anywhere(toy, tmp_path):
    """Halves, then quarters, then whole rows, 3 epochs: each token as a target once an epoch, window by window."""
    _, texts = toy
    expected = [token for row in rows_of(texts) for token in row[1:]]
    rows, ramp = len(expected) // SEQ, Ramp((Stage(0, 6, 12), Stage(20, 8, 6), Stage(80, BATCH, SEQ)))
    seen: list[tuple[int, int]] = []  # where a target stands in the stream, and the target
    parts: list[list[int]] = []
    place = tmp_path / "cache"
    step = 0
    while ramp.places(step) < 3 * len(expected):
        with open_stream(place) as stream:
            order = Order(Streamed(ROWS, SEED, stream.total_rows), ramp)
            for step in range(step, step + 100):  # noqa: B020 - goes on where the stream before was left
                ids, size = order.rows(step), ramp.at(step).seq_len
                batch = StreamRows(stream.window, ROWS, SEQ).batch(ids, order.parts(step))
                assert batch.targets.shape == (ramp.at(step).batch_size, size)
                targets = zip(ids.tolist(), batch.targets.tolist(), strict=True)
                seen += [(row * size + at, token) for row, some in targets for at, token in enumerate(some)]
                parts.append(ids.tolist())
        step, place = step + 1, tmp_path / f"cache-{step}"
    assert all(token == expected[at] for at, token in seen)
    for epoch in range(3):
        some = [at for at, _ in seen[epoch * len(expected) : (epoch + 1) * len(expected)]]
        assert sorted(some) == list(range(len(expected)))
        assert [at // (ROWS * SEQ) for at in some] == sorted(at // (ROWS * SEQ) for at in some)
    first = [row for some in parts[:20] for row in some][: 2 * ROWS]
    assert sorted(first) == list(range(2 * ROWS)) != first
    known = Order(Streamed(ROWS, SEED, lambda _: rows), ramp)
    assert [known.rows(step).tolist() for step in range(len(parts))] == parts


def test_what_is_held_out_is_of_the_first_window_and_never_trained_on(toy, tmp_path):
    _, texts = toy
    with open_stream(tmp_path / "cache") as stream:
        store = stream.held_out().validation
        held_out = store.read(0, store.num_tokens).astype(np.uint8).tobytes().decode("utf-8").split("\0")[:-1]
    before = tokens_of([text for text in texts if not is_held_out(text)])[: ROWS * SEQ + 1]
    begun = before.count(256) + 1  # training documents that have a token in the first window
    last = [number for number, text in enumerate(texts) if not is_held_out(text)][begun - 1]
    assert held_out == [text for text in texts[:last] if is_held_out(text)]
    assert held_out


def test_a_window_is_the_same_from_its_position_as_in_order(toy):
    """Positions in the middle of documents, batches, row groups and files; windows smaller than a document too."""
    for rows, batch in ((1, 1), (3, 64), (20, 16), (5000, 7)):
        cut = make_cut(rows=rows, batch_documents=batch)

        def encode(batches):
            encoder = DocumentEncoder(Bytes())
            return ((one, encoder(one.documents, one.threshold)) for one in batches)

        head, made, starts = WriteHead(cut, encode, BEGIN, lambda _: None), [], [BEGIN]
        while starts[-1] is not None:
            made.append(head.next())
            starts.append(made[-1].after)
        chosen = random.Random(1).sample(range(len(made)), min(6, len(made)))
        for index in chosen:
            again = WriteHead(cut, encode, starts[index], lambda _: None).next()
            assert again.tokens.ids.tolist() == made[index].tokens.ids.tolist()
            assert again.tokens.lengths.tolist() == made[index].tokens.lengths.tolist()
            assert (again.rows, again.after) == (made[index].rows, made[index].after)


def test_a_hundred_interruptions_lose_and_double_nothing(toy, tmp_path):
    """Faults in the network, streams dropped anywhere, taken up in the same folder or on another machine."""
    hub, texts = toy
    expected = rows_of(texts)
    chance = random.Random(7)
    hub.faults = Faults(rate=0.25, seed=2)
    seen, step, facts, machines, place = [], 0, None, 1, tmp_path / "machine-1"
    for _ in range(100):
        with open_stream(place, cache_bytes=50_000) as stream:
            if facts is not None:
                stream.resume(facts)
            for _ in range(chance.randrange(1, 5)):
                seen += zip(*read_step(stream, step), strict=True)
                step += 1
                windows = {row // ROWS for row, _ in seen[-BATCH:]}
                facts = stream.journal.facts(sorted({*windows, max(windows) + 1}))
        if chance.random() < 0.3:
            machines += 1
            place = tmp_path / f"machine-{machines}"
    uninterrupted = Order(Streamed(ROWS, SEED, lambda _: len(expected)), constant(BATCH, SEQ))
    assert [row for row, _ in seen] == [row for one in range(step) for row in uninterrupted.rows(one).tolist()]
    assert all(tokens == expected[row] for row, tokens in seen)
    assert len(seen) > len(expected) * 1.2  # into the second epoch
    assert sorted(row for row, _ in seen[: len(expected)]) == list(range(len(expected)))
    assert machines > 20
    assert set(hub.faults.happened) == {"reset", "error", "truncated", "slow"}


def test_the_disk_it_takes_is_bounded(toy, tmp_path):
    _, texts = toy
    total, most = len(rows_of(texts)), 0
    limit = 60_000
    with open_stream(tmp_path / "cache", cache_bytes=limit) as stream:
        for step in range(total // BATCH + 9):
            read_step(stream, step)
            most = max(most, disk(tmp_path / "cache"))
    assert 20_000 < most <= limit
    with open_stream(tmp_path / "all") as stream:
        for step in range(total // BATCH + 1):
            read_step(stream, step)
        assert disk(tmp_path / "all") > 1.5 * limit


def disk(folder):
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # deleted meanwhile
                found += (Path(place) / name).stat().st_size
    return found


def test_what_is_all_here_is_not_read_again(toy, tmp_path):
    hub, texts = toy
    total = len(rows_of(texts))
    with open_stream(tmp_path / "cache") as stream:
        for step in range(total // BATCH + 2):
            read_step(stream, step)
        asked = len(hub.requests)
        for step in range(total // BATCH + 2, 2 * total // BATCH):
            read_step(stream, step)
    hub.faults.down = True
    with open_stream(tmp_path / "cache") as stream:
        assert stream.held_out().validation.num_tokens > 2
        read_step(stream, 3)
    assert len(hub.requests) == asked


def test_no_window_is_made_beyond_the_end_of_the_run(toy, tmp_path):
    with open_stream(tmp_path / "cache", steps=3) as stream:
        for step in range(3):
            read_step(stream, step)
    assert sorted(path.name for path in (tmp_path / "cache").glob("window-*")) == ["window-00000000", "window-00000001"]


def test_too_little_room_is_refused_before_anything_is_read(toy, tmp_path):
    hub, _ = toy
    list_files.cache_clear()
    list_sources([Path("hf://org/toy")])
    asked = len(hub.requests)
    with pytest.raises(DataError, match=r"data.cache_limit_gb: found 2e-05, expected at least 2.8e-05"):
        open_stream(tmp_path / "cache", cache_bytes=20_000)
    assert len(hub.requests) == asked


def test_a_damaged_window_is_made_again(toy, tmp_path):
    _, texts = toy
    expected, said = rows_of(texts), []
    with open_stream(tmp_path / "cache") as stream:
        read_step(stream, 8)
    path = tmp_path / "cache/window-00000003/train-00000.bin"
    path.write_bytes(b"\1" * path.stat().st_size)
    with open_stream(tmp_path / "cache", say=said.append) as stream:
        ids, rows = read_step(stream, 9)
        assert rows == [expected[row] for row in ids]
    assert any("WARNING" in line and "making it anew" in line for line in said)
    assert open_tokens(tmp_path / "cache/window-00000003").train.num_tokens == ROWS * SEQ + 1


def test_other_tokens_than_before_stop_it(toy, tmp_path):
    """As when the program that tokenises has changed between the checkpoint and now."""
    with open_stream(tmp_path / "one") as stream:
        read_step(stream, 8)
        facts = stream.journal.facts([2, 3])
    facts["windows"][0][-1] = "0" * 64
    with open_stream(tmp_path / "two") as stream:
        stream.resume(facts)
        with pytest.raises(DataError, match="window 2 of the stream has other tokens than when the run was trained"):
            read_step(stream, 6)


def test_a_hub_that_goes_away_stops_it_and_what_is_here_stays(toy, tmp_path, monkeypatch):
    hub, texts = toy
    expected = rows_of(texts)
    with open_stream(tmp_path / "cache", steps=3) as stream:
        read_step(stream, 0)
    hub.faults.down = True
    monkeypatch.setenv("SCONCE_HUB_PATIENCE", "0.02")
    with open_stream(tmp_path / "cache") as stream:
        ids, rows = read_step(stream, 1)
        assert rows == [expected[row] for row in ids]
        with pytest.raises(HubError, match="the Hugging Face hub cannot be read"):
            read_step(stream, 40)
    hub.faults.down = False
    with open_stream(tmp_path / "cache") as stream:
        ids, rows = read_step(stream, 40)
        assert rows == [expected[row] for row in ids]


def test_max_samples_ends_the_stream(toy, tmp_path):
    _, texts = toy
    with open_stream(tmp_path / "cache", max_samples=50) as stream:
        for step in range(10):
            ids, rows = read_step(stream, step)
            assert rows == [rows_of(texts[:50])[row] for row in ids]
        assert stream.total_rows(10**6) == len(rows_of(texts[:50]))


def test_lines_that_are_too_long_for_a_document_are_said_once(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("sconce.data.sources.LINE_MAX_BYTES", 64)
    (tmp_path / "a.txt").write_text("a line\n" * 200 + "x" * 65 + "\n" + "y" * 64 + "\n" + "z" * 200 + "\n")
    said = []
    with open_stream(
        tmp_path / "cache", say=said.append, sources=list_sources([tmp_path / "a.txt"]), batch_documents=50
    ) as stream:
        stream.window((stream.total_rows(10**6) - 1) // ROWS)  # reads the file once more
    (line,) = [line for line in said if "longer" in line]
    assert line.endswith(f"each cut into several documents: 2, in {tmp_path / 'a.txt'}")


def test_less_than_a_row_is_said(toy, tmp_path):
    with open_stream(tmp_path / "cache", max_samples=1, seq_len=500) as stream:
        with pytest.raises(DataError, match=r"less than one row of data\.sequence_length 500"):
            stream.total_rows(0)
        with pytest.raises(DataError, match="nothing is held out"):
            stream.held_out()


def test_two_processes_do_not_share_a_folder(toy, tmp_path):
    with open_stream(tmp_path / "cache"), pytest.raises(DataError, match="another process streams into this folder"):
        open_stream(tmp_path / "cache")
    open_stream(tmp_path / "cache").close()


def test_another_stream_in_the_folder_is_replaced(toy, tmp_path):
    _, texts = toy
    with open_stream(tmp_path / "cache", max_samples=50) as stream:
        read_step(stream, 9)
    with open_stream(tmp_path / "cache") as stream:
        ids, rows = read_step(stream, 9)
        assert rows == [rows_of(texts)[row] for row in ids]


class WrongBytes:
    name = "quick 1.0"

    def encode_flat(self, documents):
        parts = [[*text.replace(b"7", b"8"), 256] for text in documents]
        return np.array([token for part in parts for token in part], np.uint32), np.array([len(part) for part in parts])


def test_a_wrong_fast_encoder_is_dropped(toy, tmp_path):
    _, texts = toy
    said: list[str] = []
    with open_stream(tmp_path / "cache", engine=Engine(1, WrongBytes()), say=said.append) as stream:
        ids, rows = read_step(stream, 3)
        assert rows == [rows_of(texts)[row] for row in ids]
    assert said == ["note: quick 1.0 gives other ids than tokenizers: going on without it"]


def test_several_threads_give_the_same(toy, tmp_path):
    _, texts = toy
    with open_stream(tmp_path / "cache", engine=Engine(2)) as stream:
        ids, rows = read_step(stream, 20)
    assert rows == [rows_of(texts)[row] for row in ids]


def test_a_hub_that_comes_back_before_anybody_waits_for_it_is_no_end(toy, tmp_path, monkeypatch):
    hub, texts = toy
    said: list[str] = []
    monkeypatch.setenv("SCONCE_HUB_PATIENCE", "0.02")
    monkeypatch.setattr(stream_module, "_BIDE_SECONDS", 0.05)
    monkeypatch.setattr(stream_module, "AHEAD", 2)
    monkeypatch.setattr("sconce.data.hub.BLOCK_BYTES", 512)
    with open_stream(tmp_path / "cache", batch_documents=4, say=said.append) as stream:
        read_step(stream, 0)
        hub.faults.down = True
        deadline = time.monotonic() + 20
        while not any("training goes on with the windows that are here" in line for line in said):
            stream.window(max(stream._cached))  # and so those after it are made ahead
            assert time.monotonic() < deadline
            time.sleep(0.01)
        hub.faults.down = False
        ids, rows = read_step(stream, 30)
    assert rows == [rows_of(texts)[row] for row in ids]


def test_a_stream_that_cannot_begin_gives_its_folder_back(toy, tmp_path):
    (tmp_path / "stream/journal.jsonl").mkdir(parents=True)
    with pytest.raises(OSError, match=r"journal\.jsonl"):
        open_stream(tmp_path / "stream")
    (tmp_path / "stream/journal.jsonl").rmdir()
    with open_stream(tmp_path / "stream") as stream:
        assert read_step(stream, 0)


def test_a_journal_that_cannot_be_written_is_one_line_and_its_window_is_known_again(toy, tmp_path, monkeypatch):
    """The journal's line is the last that is written of a window: a window without one is not lost."""
    with open_stream(tmp_path / "whole") as stream:
        whole = [read_step(stream, step) for step in range(12)]
    fsync = journal_module.fsync_file

    def fsync_until_full(fd):
        if len((tmp_path / "stream/journal.jsonl").read_text().splitlines()) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    with monkeypatch.context() as patch, open_stream(tmp_path / "stream") as stream:
        patch.setattr(journal_module, "fsync_file", fsync_until_full)
        with pytest.raises(DataError, match=r"journal\.jsonl: cannot be written: No space left on device"):
            list(map(partial(read_step, stream), range(12)))
    with open_stream(tmp_path / "stream") as stream:
        assert [read_step(stream, step) for step in range(12)] == whole
