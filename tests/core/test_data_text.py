"""Text shards and cleaning: what is written reads back, and every document that is dropped is counted."""

import errno
import gzip
import hashlib
import io
import json
import os
import random
import sys

import pytest

from sconce.data import reader, records, text_shards, text_writer
from sconce.data.clean import Cleaner, CleanOptions, clean_corpus, clean_text
from sconce.data.corpus import Corpus
from sconce.data.progress import Announcer
from sconce.data.text_shards import shard_text
from sconce.data.text_writer import TextOptions
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


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def held(line, fraction=0.2):
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big") <= int(fraction * 2**64)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def small(monkeypatch):
    """Batches of a dozen documents, and commits of some batches."""
    monkeypatch.setattr(reader, "BATCH_BYTES", 500)
    monkeypatch.setattr(text_shards, "COMMIT_BYTES", 1500)


@pytest.fixture
def dying(monkeypatch):
    """Makes the next call die when it writes its n-th document."""
    add, left = text_writer.TextWriter.add, [0]

    def add_or_die(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(text_writer.TextWriter, "add", add_or_die)
    return lambda calls: left.__setitem__(0, calls)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("duplicates", [None, "exact", "near"])
def test_a_killed_call_goes_on_to_the_same_bytes(corpus, tmp_path, small, dying, duplicates, compress):
    if duplicates == "near":
        pytest.importorskip("datasketch")
    for name in "bc":  # of which c.txt has no line that is new
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{line}  " if name == "b" else line for line in LINES[::-1]))
    paths = (*corpus.paths, tmp_path / "b.txt", tmp_path / "c.txt")
    corpus = Corpus(paths=paths, rule="line")
    options = TextOptions(lines=70, gzip=compress, validation_fraction=0.2)

    def write(folder, say=None):
        if duplicates is None:
            return shard_text(corpus, folder, options, "refuse", say=say)
        cleaning = CleanOptions(duplicates=duplicates, min_chars=20)
        return clean_corpus(corpus, folder, cleaning, options, "refuse", say=say)

    manifest, _ = write(tmp_path / "whole")
    written = sum(shard["documents"] for shard in manifest["shards"])
    said = []
    for calls in (written // 3, 90, 2, 110):
        dying(calls)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "killed", said.append)
        assert not (tmp_path / "killed").exists()
    write(tmp_path / "killed", said.append)
    assert len(said) == 4
    assert all("going on where a call stopped, after " in line for line in said)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert left_in(tmp_path) == ["b.txt", "c.txt", "killed", "text.txt", "whole"]


@pytest.mark.parametrize("commit", [1, 2, 5])
def test_a_kill_between_what_was_learned_and_the_journal(corpus, tmp_path, small, monkeypatch, commit):
    write, calls = reader.write_json, []

    def write_or_die(path, value):
        calls.append(path)
        if len(calls) == commit:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "write_json", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            clean_corpus(corpus, tmp_path / "out", CleanOptions(), TextOptions(), "refuse")
    clean_corpus(corpus, tmp_path / "out", CleanOptions(), TextOptions(), "refuse")
    assert read(tmp_path / "out" / "train") == LINES


@pytest.mark.parametrize("duplicates", ["exact", "near"])
def test_a_cleaner_that_was_restored_knows_what_was_kept(duplicates):
    if duplicates == "near":
        pytest.importorskip("datasketch")
    texts = [" ".join(f"w{number * word % 997}" for word in range(1, 60)).encode() for number in range(1, 41)]
    again = [text + (b" and more" if duplicates == "near" else b"  ") for text in texts]
    options = CleanOptions(duplicates=duplicates, similarity=0.7)
    first, second = Cleaner(options), Cleaner(options)
    kept = list(first(texts[:30]))
    second.restore(first.counts, io.BytesIO(first.learned()))
    rest = texts[30:] + again
    assert list(first(rest)) == list(second(rest)) == texts[30:]
    assert len(kept) == 30
    assert first.counts == second.counts
    assert first.learned() == second.learned()


def test_finished_shards_are_not_written_again(corpus, tmp_path, small, dying):
    dying(400)
    with pytest.raises(KeyboardInterrupt):
        shard_text(corpus, tmp_path / "out", TextOptions(lines=50), "refuse")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.tmp-new" / "train").iterdir()}
    shard_text(corpus, tmp_path / "out", TextOptions(lines=50), "refuse")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").iterdir()}
    assert sum(after[name] == before[name] for name in before) >= 6


@pytest.mark.parametrize("change", ["text", "options", "shard", "open shard", "learned", "journal", "other journal"])
def test_what_a_killed_call_left_is_not_trusted_blindly(corpus, tmp_path, small, dying, change):
    dying(400)
    with pytest.raises(KeyboardInterrupt):
        clean_corpus(corpus, tmp_path / "out", CleanOptions(), TextOptions(lines=50), "refuse")
    left, options = tmp_path / ".out.tmp-new", TextOptions(lines=40 if change == "options" else 50)
    if change == "text":
        corpus.paths[0].write_text("another text\nof two lines")
    elif change == "journal":
        (left / "journal.json").write_text('{"request": 1')
    elif change == "other journal":  # whose position is told in other terms
        path = left / "journal.json"
        path.write_text(path.read_text().replace('"number": ', '"documents": '))
    elif change == "learned":
        (left / "learned.bin").unlink()
    elif change != "options":
        shards = sorted((left / "train").iterdir())
        shards[0 if change == "shard" else -1].write_bytes(b"")
    said = []
    clean_corpus(corpus, tmp_path / "out", CleanOptions(), options, "refuse", say=said.append)
    clean_corpus(corpus, tmp_path / "anew", CleanOptions(), options, "refuse")
    assert said == []
    assert content(tmp_path / "out") == content(tmp_path / "anew")


def test_a_bad_record_far_on_does_not_cost_what_is_done(tmp_path, small):
    lines = [json.dumps({"text": line}) for line in LINES]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:400], "{", *lines[400:]]))
    said, options = [], TextOptions(format="txt", lines=50)
    with pytest.raises(DataError, match=r"a\.jsonl: line 401: not JSON"):
        shard_text(Corpus(paths=(tmp_path / "a.jsonl",)), tmp_path / "out", options, "refuse")
    skipping = Corpus(paths=(tmp_path / "a.jsonl",), on_error="skip")
    manifest, _ = shard_text(skipping, tmp_path / "out", options, "refuse", say=said.append)
    assert "going on" in said[0]
    assert read(tmp_path / "out" / "train") == LINES
    assert manifest["sources"][0]["skipped"] == 1


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_what_was_read_of_a_table_is_not_read_again(tmp_path, small, dying, monkeypatch, on_error):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    bad = {} if on_error == "stop" else {120: "nul \0", 490: "nul \0"}
    texts = [bad.get(row, "" if row % 7 == 3 else line) for row, line in enumerate(LINES)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=50)
    corpus, options, rows = Corpus(paths=(tmp_path / "a.parquet",), on_error=on_error), TextOptions(lines=50), []
    whole, _ = shard_text(corpus, tmp_path / "whole", options, "refuse")
    assert whole["sources"][0]["skipped"] == len(bad)
    assert read(tmp_path / "whole" / "train") == [text for text in texts if text and "\0" not in text]
    for calls in (190, 90, 110):
        dying(calls)
        with pytest.raises(KeyboardInterrupt):
            shard_text(corpus, tmp_path / "killed", options, "refuse")
    check = records._checked
    monkeypatch.setattr(records, "_checked", lambda value, *more: [rows.append(value), *check(value, *more)][1:])
    resumed, _ = shard_text(corpus, tmp_path / "killed", options, "refuse")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert resumed == whole
    assert len(rows) < 250 if on_error == "stop" else len(rows) == 500  # what is skipped is counted anew


def test_a_table_that_was_read_to_its_last_row(tmp_path, dying, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(reader, "BATCH_BYTES", 1)
    monkeypatch.setattr(text_shards, "COMMIT_BYTES", 1)
    for name in "ab":
        pq.write_table(pa.table({"text": [f"{name}1", f"{name}2"]}), tmp_path / f"{name}.parquet")
    corpus = Corpus(paths=(tmp_path / "a.parquet", tmp_path / "b.parquet"))
    dying(3)
    with pytest.raises(KeyboardInterrupt):
        shard_text(corpus, tmp_path / "out", TextOptions(), "refuse")
    manifest, _ = shard_text(corpus, tmp_path / "out", TextOptions(), "refuse")
    assert read(tmp_path / "out" / "train") == ["a1", "a2", "b1", "b2"]
    assert all(source["sha256"] for source in manifest["sources"])


def test_a_full_disk_is_one_line_and_loses_nothing(corpus, tmp_path, small, monkeypatch):
    options = TextOptions(lines=50, gzip=True)
    shard_text(corpus, tmp_path / "out", options, "refuse")
    before = content(tmp_path / "out")
    corpus.paths[0].write_text("\n".join(LINES[::-1]))
    calls = []

    def full(fd):
        calls.append(fd)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(text_writer, "fsync_file", full)
        with pytest.raises(DataError, match="out: cannot be written: No space left on device"):
            shard_text(corpus, tmp_path / "out", options, "force")
    assert content(tmp_path / "out") == before
    said = []
    shard_text(corpus, tmp_path / "out", options, "force", say=said.append)
    assert "going on" in said[0]
    assert read(tmp_path / "out" / "train") == LINES[::-1]


@pytest.mark.parametrize("take", [1, 37, 500, 501])
def test_only_the_first_documents_are_taken(corpus, tmp_path, small, dying, take):
    corpus = Corpus(paths=(*corpus.paths, tmp_path / "second.txt"), rule="line")
    (tmp_path / "second.txt").write_text("a last line")
    options = TextOptions(format="txt", lines=10, take=take)
    manifest, _ = shard_text(corpus, tmp_path / "out", options, "refuse")
    assert read(tmp_path / "out" / "train") == [*LINES, "a last line"][:take]
    assert [source["sha256"] == "" for source in manifest["sources"]] == [take <= 37] * 2  # what was not read through
    assert shard_text(corpus, tmp_path / "out", options, "reuse")[1]
    if take > 37:
        dying(400)
        with pytest.raises(KeyboardInterrupt):
            shard_text(corpus, tmp_path / "again", options, "refuse")
        shard_text(corpus, tmp_path / "again", options, "refuse")
        assert content(tmp_path / "again") == content(tmp_path / "out")


def test_progress_says_speed_documents_and_time_left():
    said, now = [], [0.0]
    announce = Announcer(said.append, lambda: now[0])
    for seconds, done in ((0, 20_000_000), (9, 30_000_000), (10, 40_000_000), (19, 50_000_000), (30, 60_000_000)):
        now[0] = float(seconds)
        announce(done, 100_000_000, done // 1000)
    assert said == [
        "data: 40% of 100 MB read, 2.0 MB/s, 40,000 documents, 0:00:30 left",
        "data: 60% of 100 MB read, 1.3 MB/s, 60,000 documents, 0:00:30 left",
    ]
    now[0], said[:] = 0.0, []
    announce = Announcer(said.append, lambda: now[0], documents=400)
    announce(0, 10**12, 0)
    now[0] = 60.0
    announce(6_000_000, 10**12, 100)
    assert said == ["data: 25% of 400 documents, 0.1 MB/s, 100 documents, 0:03:00 left"]


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
    assert left_in(tmp_path) == ["a.jsonl"]
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
    assert left_in(tmp_path) == ["out", "text.txt", "thesis"]


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
    kept = [document.decode() for document in cleaner(text.encode() for text in documents)]
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
    assert len(list(keeping(text.encode() for text in documents))) == 6


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
    kept = set(cleaner(text.encode() for text in texts))
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
