"""Building token shards: any number of threads, kills, the fast encoder, a full disk. The bytes are the same."""

import errno
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pydoc_data import topics

import numpy as np
import pytest

from sconce.data import prepare as building
from sconce.data import reader, writer
from sconce.data.corpus import Corpus
from sconce.data.encode import DocumentEncoder, EncodersDiffer, Engine
from sconce.data.prepare import prepare
from sconce.data.shards import open_tokens
from sconce.data.sources import Source
from sconce.data.staging import locked
from sconce.data.text_shards import shard_text
from sconce.data.text_writer import TextOptions
from sconce.errors import DataError
from sconce.tokenizer.bpe import load_tokenizer, train_tokenizer
from sconce.tokenizer.fast import FastUnavailableError, fast_encoder
from sconce.training import stream
from sconce.training.tokens import fastest_engine


@dataclass
class Bytes:
    """A tokenizer whose tokens are the UTF-8 bytes, and which can be told to die at a call."""

    sha256: str = "bytes"
    vocab_size: int = 257
    eos_id: int = 256
    calls: int = 0
    dies_at: int = 0

    def encode_batch(self, texts):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return [list(text.encode()) for text in texts]


@dataclass(frozen=True)
class FastBytes:
    """A faster program for `Bytes`, which may be wrong about a letter."""

    wrong: bytes = b""
    name: str = "quick 1.0"

    def encode_flat(self, documents):
        parts = [[*(text.replace(self.wrong, b"?") if self.wrong else text), 256] for text in documents]
        return np.array([token for part in parts for token in part], np.uint32), np.array([len(part) for part in parts])


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Three files that make dozens of batches, shards and commits."""
    monkeypatch.setattr(reader, "BATCH_BYTES", 1000)
    monkeypatch.setattr(building, "_COMMIT_BYTES", 4000)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}: line {n}, héllo {n * n}\n" for n in range(700)))
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": f"record {n}\n" * 5}) + "\n" for n in range(200)))
    return Corpus(paths=tuple(tmp_path / name for name in ("a.txt", "b.txt", "c.txt", "d.jsonl")), rule="line")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build(corpus, folder, tokenizer=None, **options):
    return prepare(corpus, tokenizer or Bytes(), folder, shard_tokens=5000, **options)


def test_any_number_of_threads_gives_the_same_bytes(corpus, tmp_path):
    build(corpus, tmp_path / "one")
    for workers, fast in ((2, None), (3, FastBytes())):
        build(corpus, tmp_path / str(workers), engine=partial(Engine, workers, fast))
        assert content(tmp_path / "one") == content(tmp_path / str(workers))
    assert len(content(tmp_path / "one")) > 20


@dataclass
class Failing(Bytes):
    """A tokenizer that fails at a certain text."""

    def encode_batch(self, texts):
        if any("c: line 300" in text for text in texts):
            raise MemoryError("at line 300")
        return super().encode_batch(texts)


def test_a_thread_that_fails_ends_the_build_which_can_be_gone_on_from(corpus, tmp_path):
    before = threading.active_count()
    with pytest.raises(MemoryError, match="at line 300"):
        build(corpus, tmp_path / "tokens", Failing(), engine=partial(Engine, 2))
    assert threading.active_count() == before
    said = []
    build(corpus, tmp_path / "tokens", Bytes(), engine=partial(Engine, 2), say=said.append)
    assert "going on" in said[0]
    build(corpus, tmp_path / "whole")
    assert content(tmp_path / "tokens") == content(tmp_path / "whole")


@pytest.mark.parametrize("dies_at", [2, 3, 20, 41, 60, 75])
def test_a_killed_build_goes_on(corpus, tmp_path, dies_at):
    whole = Bytes()
    build(corpus, tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        build(corpus, tmp_path / "killed", Bytes(dies_at=dies_at))
    assert not (tmp_path / "killed").exists()
    (left := tmp_path / ".killed.tmp-new").mkdir(exist_ok=True)
    (left / ".journal.json.tmp-7").write_bytes(b"{")  # as if killed while writing it
    again, said = Bytes(), []
    build(corpus, tmp_path / "killed", again, say=said.append)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    if dies_at > 10:
        assert "going on where a build stopped" in said[0]
        assert again.calls <= whole.calls - dies_at + 12  # at most what one commit holds is done twice


def test_finished_shards_are_not_written_again(corpus, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(corpus, tmp_path / "tokens", Bytes(dies_at=60))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".tokens.tmp-new").glob("*.bin")}
    finished = sorted(before)[:3]
    build(corpus, tmp_path / "tokens")
    assert {name: (tmp_path / "tokens" / name).stat().st_mtime_ns for name in finished} == {
        name: before[name] for name in finished
    }


@pytest.mark.parametrize("change", ["text", "tokenizer", "shard", "journal", "other journal"])
def test_what_a_killed_build_left_is_not_trusted_blindly(corpus, tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        build(corpus, tmp_path / "tokens", Bytes(dies_at=60))
    left = tmp_path / ".tokens.tmp-new"
    tokenizer = Bytes(sha256="other" if change == "tokenizer" else "bytes")
    if change == "text":
        corpus.paths[0].write_text("everything is different now\nquite different\n" * 50)
    elif change == "shard":
        (left / "train-00000.bin").write_bytes(b"")
    elif change == "journal":
        (left / "journal.json").write_text('{"request": 1')
    elif change == "other journal":  # whose position is told in other terms
        path = left / "journal.json"
        path.write_text(path.read_text().replace('"number": ', '"documents": '))
    said = []
    build(corpus, tmp_path / "tokens", tokenizer, say=said.append)
    build(corpus, tmp_path / "anew", tokenizer)
    assert content(tmp_path / "tokens") == content(tmp_path / "anew")
    assert said == []


def test_a_bad_record_far_on_does_not_cost_what_is_done(corpus, tmp_path):
    bad = corpus.paths[-1]
    good = bad.read_text()
    lines = good.splitlines()
    bad.write_text("\n".join([*lines[:190], "{", *lines[190:]]))
    with pytest.raises(DataError, match=r"d\.jsonl: line 191: not JSON"):
        build(corpus, tmp_path / "tokens")
    said = []
    skipping = Corpus(paths=corpus.paths, rule="line", on_error="skip")
    data = build(skipping, tmp_path / "tokens", say=said.append)
    assert "going on" in said[0]
    assert said[1].startswith("WARNING: skipped 1 in 1 files; the first: ")
    assert "line 191" in said[1]
    assert [source.skipped for source in data.manifest.sources] == [0, 0, 0, 1]
    bad.write_text(good)
    build(corpus, tmp_path / "good")
    for path in (tmp_path / "good").glob("*.bin"):
        assert (tmp_path / "tokens" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("rule", "cut"), [("line", 3), ("passage", 3), ("blank-line", 0), ("file", 0)])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_lines_that_are_too_long_for_a_document_are_counted(tmp_path, monkeypatch, rule, cut, on_error):
    monkeypatch.setattr("sconce.data.sources.LINE_MAX_BYTES", 8)
    monkeypatch.setattr("sconce.data.sources._BLOCK_BYTES", 32)
    text = "12345678\n" + "ab " * 40 + "\n\nshort\n" + "é" * 9 + "\n" + "seven 7\n" * 20 + "no end " * 3
    (tmp_path / "a.txt").write_text(text)
    said: list[str] = []
    corpus = Corpus(paths=(tmp_path / "a.txt",), rule=rule, on_error=on_error)
    build(corpus, tmp_path / "tokens", say=said.append)
    # The first is as long as may be: its end, a byte more, is no document.
    assert len(said) == (cut > 0)
    assert all(line.endswith(f"each cut into several documents: {cut}") for line in said)


@pytest.mark.parametrize("letter", [b"q", b"H"])  # of this corpus alone, and of the first texts that are compared
def test_a_fast_encoder_that_differs_is_left_with_one_line(corpus, tmp_path, letter):
    corpus.paths[1].write_text("a line without\n" * 300 + "quite a line, quite\n" * 300)
    for workers in (1, 2):
        said = []
        folder = tmp_path / f"tokens-{workers}"
        data = build(corpus, folder, engine=partial(Engine, workers, FastBytes(wrong=letter)), say=said.append)
        assert said == ["note: quick 1.0 gives other ids than tokenizers: beginning again without it"]
        build(corpus, tmp_path / "plain")
        assert data.fingerprint == open_tokens(tmp_path / "plain").fingerprint


class JoinsWrongly(FastBytes):
    """Right of one document, wrong where two meet."""

    def encode_flat(self, documents):
        ids, lengths = super().encode_flat(documents)
        ids[lengths[0] : lengths[0] + 1] += len(documents) > 1
        return ids, lengths


def test_the_border_between_documents_is_compared():
    documents = [b"one", b"two", b"three", b"four", b"five"]
    DocumentEncoder(Bytes(), FastBytes())(documents, -1)
    with pytest.raises(EncodersDiffer):
        DocumentEncoder(Bytes(), JoinsWrongly())(documents, -1)


def test_a_full_disk_is_one_line_and_loses_nothing(corpus, tmp_path, monkeypatch):
    build(corpus, tmp_path / "tokens")
    before = content(tmp_path / "tokens")
    corpus.paths[0].write_text("new text\n" * 900)
    calls = []

    def full(fd):
        calls.append(fd)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(writer, "fsync_file", full)
        with pytest.raises(DataError, match="tokens: cannot be written: No space left on device"):
            build(corpus, tmp_path / "tokens")
    assert content(tmp_path / "tokens") == before
    said = []
    build(corpus, tmp_path / "tokens", say=said.append)
    assert "are of other text or another tokenizer: they will be replaced" in said[0]
    assert "going on" in said[1]
    build(corpus, tmp_path / "anew")
    assert content(tmp_path / "tokens") == content(tmp_path / "anew")


def test_fastokens_gives_the_same_ids(tmp_path):
    pytest.importorskip("fastokens")
    text = "\n\n".join(text for _, text in sorted(topics.topics.items()))
    tokenizer = train_tokenizer([text[:200_000]], 1000, tmp_path, [])
    fast = fast_encoder(tokenizer)
    texts = [text[start : start + 3000] for start in range(0, len(text), 3000)]
    texts += [
        "",
        "",
        " leading",
        "trailing \n",
        "\n",
        "<|eos|>",
        "a<|bos|>b",
        "\u2019tis",
        "\u0301",
        *text.splitlines()[:500],
    ]
    flat, lengths = fast.encode_flat([text.encode() for text in texts])
    parts = [[*part, tokenizer.eos_id] for part in tokenizer.encode_batch(texts)]
    assert lengths.tolist() == [len(part) for part in parts]
    assert flat.tolist() == [token for part in parts for token in part]
    (tmp_path / "text.txt").write_text(text)
    corpus = Corpus(paths=(tmp_path / "text.txt",))
    said = []
    data = prepare(corpus, tokenizer, tmp_path / "fast", engine=partial(Engine, 1, fast), say=said.append)
    assert said == []
    assert data.fingerprint == prepare(corpus, tokenizer, tmp_path / "plain").fingerprint


def test_without_fastokens(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    tokenizer = train_tokenizer(["some text, some text"], 262, tmp_path, [])
    with pytest.raises(FastUnavailableError, match=r"not installed \(pip install 'sconce-lm\[fast\]'\)"):
        fast_encoder(load_tokenizer(tokenizer.path))
    small, large = (Source(tmp_path / "a.txt", size, 0) for size in (10**6, 10**8))
    for engine in (fastest_engine, lambda sources, tokenizer, workers, say: stream._engine(sources, tokenizer, say)):
        said = []
        assert engine([small], tokenizer, 1, said.append).fast is None
        assert said == []
        assert engine([small, large], tokenizer, 1, said.append).fast is None
        assert len(said) == 1
        assert "tens of times slower than with fastokens: fastokens is not installed" in said[0]


@pytest.mark.parametrize(
    ("name", "made_anew"), [("a.txt", False), ("a.jsonl", False), ("a.json", True), ("a.csv", True)]
)
def test_a_build_from_before_some_files_were_records(tmp_path, name, made_anew):
    """What the first format read as running text is read again; any other build of it stays as it is."""
    content = "text\nthe one\n" if name == "a.csv" else '{"text": "the one"}\n'
    (tmp_path / name).write_text(content)
    corpus = Corpus(paths=(tmp_path / name,))
    build(corpus, tmp_path / "tokens")
    path = tmp_path / "tokens" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": "sconce-tokens-1"}))
    open_tokens(tmp_path / "tokens")
    build(corpus, tmp_path / "tokens")
    assert (json.loads(path.read_text())["format"] == "sconce-tokens-2") == made_anew
    shard_text(corpus, tmp_path / "text", TextOptions(), "refuse")
    path = tmp_path / "text" / "manifest.json"
    path.write_text(path.read_text().replace("sconce-text-2", "sconce-text-1"))
    if made_anew:
        with pytest.raises(DataError, match="is not what is asked for now, --force replaces it"):
            shard_text(corpus, tmp_path / "text", TextOptions(), "reuse")
    assert shard_text(corpus, tmp_path / "text", TextOptions(), "force" if made_anew else "reuse")[1] != made_anew


def test_a_lock_is_held_by_one_at_a_time_and_leaves_nothing(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(40):
            with locked(tmp_path / "tokens"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0002)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (240, 1)
    assert list(tmp_path.iterdir()) == []
