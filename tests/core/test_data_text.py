"""Text shards and cleaning: what is written reads back, and every document that is dropped is counted."""

import gzip
import hashlib
import json
import random
import sys

import pytest

from sconce.data.clean import Cleaner, CleanOptions, clean_corpus, clean_text
from sconce.data.corpus import Corpus
from sconce.data.text_shards import TextOptions, shard_text
from sconce.errors import DataError

LINES = [f"line {number} of a téxt" + "!" * (number % 50) for number in range(500)]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(LINES) + "\n")
    return Corpus(paths=(tmp_path / "text.txt",), rule="line")


def read(*paths):
    return [
        document.decode() for one in Corpus(paths=paths, rule="line").sources() for document in one.documents("line")
    ]


def held(line, fraction=0.2):
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big") <= int(fraction * 2**64)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_shards_read_back(corpus, tmp_path, kind, compress):
    options = TextOptions(format=kind, lines=70, gzip=compress, validation_fraction=0.2)
    manifest, reused = shard_text(corpus, tmp_path / "out", options, "refuse")
    assert not reused
    assert read(tmp_path / "out" / "train") == [line for line in LINES if not held(line)]
    assert read(tmp_path / "out" / "validation") == [line for line in LINES if held(line)]
    assert {shard["documents"] for shard in manifest["shards"] if shard["split"] == "train"} >= {70}
    assert max(shard["documents"] for shard in manifest["shards"]) == 70
    for shard in manifest["shards"]:
        raw = (tmp_path / "out" / shard["path"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == shard["sha256"]
        assert len(gzip.decompress(raw) if compress else raw) == shard["bytes"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    again, _ = shard_text(corpus, tmp_path / "again", options, "refuse")
    assert again["shards"] == manifest["shards"]


def test_bytes_a_shard(corpus, tmp_path):
    manifest, _ = shard_text(corpus, tmp_path / "out", TextOptions(format="txt", size=1000), "refuse")
    sizes = [shard["bytes"] for shard in manifest["shards"]]
    assert max(sizes) <= 1000
    assert min(sizes[:-1]) > 900
    one_each, _ = shard_text(corpus, tmp_path / "each", TextOptions(format="txt", size=1), "refuse")
    assert len(one_each["shards"]) == len(LINES)  # a document is never cut
    assert read(tmp_path / "out") == read(tmp_path / "each") == LINES


def test_documents_of_several_lines_need_json(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one\ntwo"}) + "\n")
    corpus = Corpus(paths=(tmp_path / "a.jsonl",))
    with pytest.raises(DataError, match=r"document 0 .* several lines.*--format jsonl"):
        shard_text(corpus, tmp_path / "out", TextOptions(format="txt"), "refuse")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    shard_text(corpus, tmp_path / "out", TextOptions(format="jsonl"), "refuse")
    assert read(tmp_path / "out") == ["one\ntwo"]


def test_reuse_and_force(corpus, tmp_path):
    out, options = tmp_path / "out", TextOptions(format="txt", lines=100)
    shard_text(corpus, out, options, "refuse")
    before = (out / "manifest.json").stat().st_mtime_ns
    with pytest.raises(DataError, match="is there: --reuse takes it as it is, --force replaces it"):
        shard_text(corpus, out, options, "refuse")
    corpus.paths[0].touch()
    assert shard_text(corpus, out, options, "reuse")[1]
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="not what is asked for now, --force"):
        shard_text(corpus, out, TextOptions(format="txt", lines=90), "reuse")
    (out / "train" / "train-00001.txt").write_text("changed")
    with pytest.raises(DataError, match="not what is asked for now, --force"):
        shard_text(corpus, out, options, "reuse")
    shard_text(corpus, out, options, "force")
    assert read(out) == LINES
    corpus.paths[0].write_bytes(b"bad\0")
    with pytest.raises(DataError, match="NUL"):
        shard_text(corpus, out, options, "force")
    assert read(out) == LINES
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("years of work")
    with pytest.raises(DataError, match="something other than text shards"):
        shard_text(corpus, tmp_path / "thesis", options, "force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt", "thesis"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\x00b\x1b[0m\x7f\x85c\ufeff", "ab[0mc"),
        ("\ufeff  indented\u00a0 \t\nnext  \n", "  indented\nnext"),
        ("\n\n \na\n \n\t\n\n\nb\n\n", "a\n\nb"),
        ("user\u202etxt.exe", "usertxt.exe"),
        ("\t👩‍👩‍👧 नि\u200dष", "\t👩‍👩‍👧 नि\u200dष"),  # joiners are part of the text
    ],
)
def test_cleaning_a_text(text, expected):
    assert clean_text(text) == expected
    assert clean_text(expected) == expected


def test_collapsing_spaces():
    assert clean_text("  a \t\u3000b\n\n  c", collapse_spaces=True) == " a b\n\n c"


def test_what_is_dropped_is_counted():
    documents = ["one text", "one\x07 text  ", "two texts", "x", " \x07", "two texts", "three texts "]
    cleaner = Cleaner(CleanOptions(min_chars=3))
    kept = [document.decode() for document in cleaner.clean(text.encode() for text in documents)]
    assert kept == ["one text", "two texts", "three texts"]
    assert dict(cleaner.counts) == {
        "read": 7,
        "kept": 3,
        "changed": 1,
        "too_short": 2,
        "duplicate": 2,
        "near_duplicate": 0,
    }
    keeping = Cleaner(CleanOptions(duplicates="keep"))
    assert len(list(keeping.clean(text.encode() for text in documents))) == 6


def similarity(a, b):
    first, second = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (a.split(), b.split()))
    return len(first & second) / len(first | second)


def test_near_duplicates_against_their_true_similarity():
    pytest.importorskip("datasketch")
    chance = random.Random(0)
    texts = []
    for _ in range(40):
        words = [f"w{chance.randrange(5000)}" for _ in range(200)]
        changed = words.copy()
        for place in chance.sample(range(200), chance.choice([1, 2, 12, 30])):
            changed[place] = "other"
        texts += [" ".join(words), " ".join(changed)]
    cleaner = Cleaner(CleanOptions(duplicates="near", similarity=0.8))
    kept = set(cleaner.clean(text.encode() for text in texts))
    for first, second in zip(texts[::2], texts[1::2], strict=True):
        true = similarity(first, second)
        assert first.encode() in kept
        if abs(true - 0.8) > 0.12:
            assert (second.encode() in kept) == (true < 0.8), true
    assert 10 < cleaner.counts["near_duplicate"] < 30


def test_without_datasketch(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(DataError, match=r"need datasketch: pip install 'sconce-lm\[dedup\]'"):
        Cleaner(CleanOptions(duplicates="near"))


def test_a_cleaned_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("one  \nblock\n\nanother\n\none\nblock\n\n!\n")
    corpus = Corpus(paths=(tmp_path / "a.txt",), rule="blank-line")
    cleaning = CleanOptions(min_chars=4)
    manifest, _ = clean_corpus(corpus, tmp_path / "out", cleaning, TextOptions(), "refuse")
    assert read(tmp_path / "out" / "train") == ["one\nblock", "another"]
    assert (manifest["counts"]["duplicate"], manifest["counts"]["too_short"]) == (1, 1)
    kept, reused = clean_corpus(corpus, tmp_path / "out", cleaning, TextOptions(), "reuse")
    assert (kept, reused) == (manifest, True)
    with pytest.raises(DataError, match="no document is left to write"):
        clean_corpus(corpus, tmp_path / "none", CleanOptions(min_chars=99), TextOptions(), "refuse")
    assert not (tmp_path / "none").exists()
