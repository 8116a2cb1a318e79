"""Documents: the rules, the checks, the split."""

import gzip
import hashlib
import re
import tracemalloc
from pydoc_data import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sconce.data import sources
from sconce.data.corpus import Corpus, document_hash, train_documents
from sconce.data.prepare import prepare
from sconce.data.sources import list_sources
from sconce.errors import DataError

TEXT = "\n\n".join(text for _, text in sorted(topics.topics.items())[:40])
SMALL = st.text(st.sampled_from("ab \n\r\té€"), min_size=1).map(lambda text: text + "x")


def documents(path, rule):
    (source,) = list_sources([path])
    return [document.decode() for document in source.documents(rule)]


def lines_of(text):
    return re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)


def write(folder, content, name="text.txt"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """Block ends fall inside characters, line ends and byte order marks."""
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 3)


@given(text=SMALL)
def test_rules_against_a_plain_reading(tmp_path_factory, text):
    path = write(tmp_path_factory.mktemp("rules"), text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BLOCK_BYTES", 3)
        assert documents(path, "file") == [text]
        assert "".join(documents(path, "passage")) == text
        full = [line for line in lines_of(text) if line.strip()]
        assert documents(path, "line") == [line.rstrip("\r\n") for line in full]
        marked = "".join("\0" if not line.strip() else line for line in lines_of(text))
        assert documents(path, "blank-line") == [run.rstrip("\r\n") for run in marked.split("\0") if run]


def test_passages_are_whole_lines_of_fitting_size(tmp_path):
    passages = documents(write(tmp_path, TEXT), "passage")
    assert "".join(passages) == TEXT
    assert len(passages) > 10
    for passage in passages[:-1]:
        assert passage.endswith("\n")
        assert 4096 <= len(passage.encode()) <= 16384
        assert passage.endswith("\n\n") or len(passage) > 16384 - 200


def test_long_lines_are_cut_between_characters(tmp_path):
    text = "a" + "é" * 2**20 + "\nend"
    pieces = documents(write(tmp_path, text), "line")
    assert "".join(pieces) == text.replace("\n", "")
    assert [len(piece.encode()) for piece in pieces] == [2**20 - 1, 2**20, 2, 3]


def test_a_long_line_of_broken_characters_is_skipped(tmp_path):
    path = write(tmp_path, b"good\n" + b"\xc3" + b"\x80" * 2**21 + b"\nalso good\n", "text.txt")
    (source,) = list_sources([path], on_error="skip")
    assert [document.decode() for document in source.documents("line")] == ["good", "also good"]


@pytest.mark.parametrize("block", [3, 2**20])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"x" * 30 + b"\nok\n\xff\n", "line 3: not UTF-8 at byte 0 of the line"),
        (b"x" * 30 + b"\r\nok\n\n\0\n", "line 4: NUL at byte 0 of the line"),
        (b"x" * 7 + b"\r\nok\ra\0\n", "line 3: NUL at byte 1 of the line"),  # cut between CR and LF, if anywhere
        (b"ok\n" + b"y" * 29 + b"\xff\nok\n", "line 2: not UTF-8 at byte 29 of the line"),
        (b"ok\n" + b"y" * 29 + b"\0y\nok\n", "line 2: NUL at byte 29 of the line"),
    ],
)
def test_a_fault_is_in_the_line_that_an_editor_shows(tmp_path, monkeypatch, content, fault, block):
    monkeypatch.setattr(sources, "LINE_MAX_BYTES", 8)
    monkeypatch.setattr(sources, "_BLOCK_BYTES", block)
    (source,) = list_sources([write(tmp_path, content)], on_error="skip")
    list(source.documents("line"))
    assert source.first_fault == f"{tmp_path / 'text.txt'}: {fault}"


def test_a_long_block_is_placed_behind_long_and_bad_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LINE_MAX_BYTES", 8)
    monkeypatch.setattr(sources, "RECORD_MAX_BYTES", 20)
    content = b"a" * 15 + b"\n\xff\n\n" + b"b" * 12 + b"\n" + b"c" * 12 + b"\n\nd\n"
    (source,) = list_sources([write(tmp_path, content)], on_error="skip")
    faults = []
    monkeypatch.setattr(sources.Source, "_fault", lambda self, what: faults.append(what))
    assert list(source.documents("blank-line")) == [b"a" * 15, b"d"]
    assert [fault[:7] for fault in faults] == ["line 2:", "line 4:"]


def test_memory_is_bounded_without_newlines(tmp_path):
    path = write(tmp_path, gzip.compress(b"word " * (32 * 2**20 // 5), 1), "text.gz")
    (source,) = list_sources([path])
    tracemalloc.start()
    size = sum(len(document) for document in source.documents("passage"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == 32 * 2**20 // 5 * 5
    assert peak < 16 * 2**20


def test_a_block_that_is_too_long_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "RECORD_MAX_BYTES", 20)
    path = write(tmp_path, "a\n\nb\n" + "c" * 30 + "\nd\n" + "e" * 30 + "\n\nf\ng\n")
    with pytest.raises(DataError, match=r"line 3: begins more than .* without a blank line.*choose another --document"):
        documents(path, "blank-line")
    (source,) = list_sources([path], on_error="skip")
    assert list(source.documents("blank-line")) == [b"a", b"f\ng"]
    assert source.skipped == 1


def test_gzip_members_and_hash(tmp_path, small_blocks):
    raw = gzip.compress(b"one\n") + gzip.compress(TEXT[:5000].encode())
    path = write(tmp_path, raw, "text.txt.gz")
    (source,) = list_sources([path])
    assert b"".join(source.documents("file")).decode() == "one\n" + TEXT[:5000]
    assert (source.size, source.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_byte_order_mark_is_dropped(tmp_path, small_blocks):
    assert documents(write(tmp_path, "\ufeffone\ufeff"), "file") == ["one\ufeff"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((f"a{suffix}", b"", "no text in it") for suffix in (".txt", ".md", ".jsonl", ".json", ".csv")),
        ("a.txt.gz", b"", "damaged gzip file: it ends too early"),
        ("a.parquet", b"", "damaged Parquet file"),
        ("a.arrow", b"", "damaged Arrow file"),
        ("a.txt", b"\xef\xbb\xbf\n \n", "no text in it"),
        ("a.txt", b"abcdef\0g", "NUL at byte 6"),
        ("a.txt", b"abc\xc3\xa9d\xffg", r"not UTF-8 at byte 6: .*iconv"),
        ("a.txt", b"abcd\xe2\x82", "not UTF-8 at byte 4"),
        ("a.txt", b"ab\xe2\x82cd", "not UTF-8 at byte 2"),
        ("a.gz", gzip.compress(b"hello" * 99, mtime=0)[:-9], "damaged gzip"),
        ("a.gz", b"plain text", "damaged gzip"),
        ("a.gz", gzip.compress(b"", mtime=0), "no text in it"),
    ],
)
def test_what_is_not_text(tmp_path, small_blocks, name, content, message):
    if name in ("a.parquet", "a.arrow"):
        pytest.importorskip("pyarrow")
    path = write(tmp_path, content, name)
    with pytest.raises(DataError, match=message) as raised:
        documents(path, "passage")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_folders(tmp_path):
    for name in ("b.txt", "a/z.md", "a/c.txt.gz", "notes.pdf", ".hidden.txt", "c.text"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, "x", name)
    found = [str(source.path.relative_to(tmp_path)) for source in list_sources([tmp_path, tmp_path / "notes.pdf"])]
    assert found == ["a/c.txt.gz", "a/z.md", "b.txt", "c.text", "notes.pdf"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no text files .* \.txt"):
        list_sources([tmp_path / "empty"])
    with pytest.raises(DataError, match="absent: no such file or folder"):
        list_sources([tmp_path / "absent"])


class Bytes:
    sha256, vocab_size, eos_id = "bytes", 257, 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


def split_of(corpus, tmp_path):
    """The documents of both splits, read back from token shards."""
    tokens = prepare(corpus, Bytes(), tmp_path / "tokens")
    both = {"train": tokens.train, "validation": tokens.validation}
    return {name: list(documents_in(store)) for name, store in both.items()}


def documents_in(store):
    if store.num_tokens:
        for span in store.documents(0, store.num_tokens):
            yield bytes(store.read(span.start, span.end - span.start - 1).tolist()).decode()


def test_split_depends_on_each_text_alone(tmp_path):
    lines = [f"line {number}" for number in range(2000)]
    corpus = Corpus(paths=(write(tmp_path, "\n".join(lines)),), rule="line", validation_fraction=0.1)
    both = split_of(corpus, tmp_path)

    def held(line):
        return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big") <= int(0.1 * 2**64)

    assert both["validation"] == [line for line in lines if held(line)]
    assert both["train"] == [line for line in lines if not held(line)] == list(train_documents(corpus))
    assert 150 < len(both["validation"]) < 250
    reversed_corpus = Corpus(paths=(write(tmp_path, "\n".join(lines[::-1])),), rule="line", validation_fraction=0.1)
    assert split_of(reversed_corpus, tmp_path)["validation"] == both["validation"][::-1]


@pytest.mark.parametrize("fraction", [1e-9, 0.999999999])
def test_neither_split_is_empty(tmp_path, fraction):
    corpus = Corpus(paths=(write(tmp_path, "one\ntwo\nthree"),), rule="line", validation_fraction=fraction)
    both = split_of(corpus, tmp_path)
    assert both["validation"] == [min(["one", "two", "three"], key=lambda text: document_hash(text.encode()))]
    assert len(both["train"]) == 2


def test_a_single_text_is_for_training(tmp_path):
    corpus = Corpus(paths=(write(tmp_path, "one\none"),), rule="line", validation_fraction=0.999999)
    assert split_of(corpus, tmp_path) == {"train": ["one", "one"], "validation": []}


def test_validation_files_of_their_own(tmp_path):
    corpus = Corpus(
        paths=(write(tmp_path, "one\ntwo"),),
        validation_paths=(write(tmp_path, "three\nfour", "held.txt"),),
        rule="line",
        validation_fraction=0.9,
    )
    assert split_of(corpus, tmp_path) == {"train": ["one", "two"], "validation": ["three", "four"]}
    assert list(train_documents(corpus, max_bytes=1)) == ["one"]
