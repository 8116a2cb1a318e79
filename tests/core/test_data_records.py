"""Records to documents: JSON lines, Parquet, data sets saved to disk, compressed text, and what is wrong with them."""

import csv
import gzip
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sconce.data import records, sources
from sconce.data.kinds import Kind, kind_of
from sconce.data.sources import list_sources
from sconce.errors import DataError

TEXTS = ["one\ntwo", "naïve café", "  ", "", "日本語 👩‍👩‍👧", "last"]
KEPT = [text for text in TEXTS if text.strip()]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()


def read(path, field="text", on_error="stop"):
    sources = list_sources([path], field, on_error)
    found = [document.decode() for source in sources for document in source.documents("passage")]
    return found, sum(source.skipped for source in sources), next((s.first_fault for s in sources if s.skipped), "")


def zstd(content):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


def parquet(path, columns, **options):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.json.gz", "A.JSONL.ZST"])
def test_json_lines_are_documents(tmp_path, name):
    content = {"gz": gzip.compress, "zst": zstd}.get(name.rsplit(".", 1)[1].lower(), bytes)(b"\xef\xbb\xbf" + LINES)
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == (KEPT, 0, "")


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.text().map(lambda text: {"id": 1.5, "text": text + "!"}) | st.none() | st.integers()),
    indent=st.sampled_from([None, 1]),
    block=st.integers(1, 9),
    ascii=st.booleans(),
)
def test_an_array_of_objects_is_read_like_lines(tmp_path_factory, values, indent, block, ascii):
    """Against the json module, with block ends anywhere; `text` is the only field that counts."""
    try:
        raw = b" \n" + json.dumps(values, indent=indent, ensure_ascii=ascii).encode() + b"\n"
    except UnicodeEncodeError:
        return
    path = tmp_path_factory.mktemp("array") / "a.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BLOCK_BYTES", block)
        for content, cut in ((raw, 0), (raw.rstrip()[:-1], 1), (raw + b",", 1)):
            path.write_bytes(content)
            found, skipped, _ = read(path, on_error="skip")
            good = [value["text"] for value in values if isinstance(value, dict) and usable(value["text"])]
            assert found == good
            # Nothing at all is a fault too.
            assert skipped == max(1 - len(good), len(values) - len(good) + cut, 0)
            (source,) = list_sources([path], on_error="skip")
            list(source.documents("line"))
            assert source.sha256 == hashlib.sha256(content).hexdigest()


def usable(text):
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"}, {"text": }]', r"record 1 \(from 0\): not JSON: Expecting value"),
        (b'[{"text": "a"} {"text": "b"}]', r"record 1 \(from 0\): no comma before it"),
        (b'[{"text": "a"}', r"record 1 \(from 0\): the array ends too early"),
        (b'[{"text": "a"}] {"text": "b"}', r"record 1 \(from 0\): something comes after the array"),
        (b'[{"text": "a"}, {"text": "caf\xe9"}]', r"record \d \(from 0\): not UTF-8"),
        (b'[{"text": "a"}, {"text": "' + b"b" * 900 + b'"}]', r"record 1 \(from 0\): longer than"),
        (b'[{"text": "a"}, {"body": "b"}]', r"record 1 \(from 0\): no field 'text'; it has body"),
        (b'{\n  "text": "one object over several lines"\n}', "line 1: not JSON: "),
    ],
)
def test_a_broken_array_is_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(records, "RECORD_MAX_BYTES", 100)
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 16)
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read(tmp_path / "a.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv.gz", "\t")])
def test_rows_of_csv_are_documents(tmp_path, name, delimiter):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *([number, text] for number, text in enumerate(TEXTS)), [7, 'a "quote", b\tc']])
    raw = b"\xef\xbb\xbf" + out.getvalue().encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert read(tmp_path / name) == ([*KEPT, 'a "quote", b\tc'], 0, "")
    with pytest.raises(DataError, match=r"no column 'body'; its columns are id, text: set data"):
        read(tmp_path / name, "body")
    (source,) = list_sources([tmp_path / name], on_error="skip")
    assert len(list(source.documents("line"))) == len(KEPT) + 1
    assert source.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"1,2,3\n", "line 3: 3 fields, expected 2"),
        (b'1,"cut" off\n', "line 3: not CSV: ',' expected after '\"'"),
        (b"1,caf\xe9\n", "line 3: not UTF-8 at character 3 of 'text'"),
        (b"1,a\0b\n", "line 3: NUL at character 1 of 'text'"),
    ],
)
def test_a_broken_row_of_csv_is_named_or_counted(tmp_path, row, message):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n0,one\n" + row + b'2,"two\nlines"\n\n\xe9,three\n')
    with pytest.raises(DataError, match=rf"a\.csv: {message}"):
        read(path)
    found, skipped, first = read(path, on_error="skip")
    assert (found, skipped) == (["one", "two\nlines", "three"], 1)
    assert "line 3" in first


@pytest.mark.parametrize("footer", [False, True])
def test_arrow_with_and_without_footer(tmp_path, footer):
    pa = pytest.importorskip("pyarrow")
    path, table = tmp_path / "a.arrow", pa.table({"id": [1, 2, 3] * 400, "text": ["one", "zwei", "trois"] * 400})
    with (pa.ipc.new_file if footer else pa.ipc.new_stream)(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=500)
    assert read(path)[0] == ["one", "zwei", "trois"] * 400
    (source,), seen = list_sources([path]), []
    assert [text for _, text in source.numbered("line", 1199, seen.append)] == [b"trois"]
    assert len(seen) >= 3
    assert 0.9 * source.size <= sum(seen) <= source.size
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(DataError, match=r"a\.arrow: damaged Arrow file"):
        read(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ("text", "", True)),
        ("b/A.MD.GZ", ("text", "gzip", True)),
        ("c4-train.00000-of-01024.json.gz", ("json", "gzip", True)),
        ("x.v1.2.jsonl.zst", ("json", "zstd", True)),
        ("a.tsv", ("tsv", "", True)),
        ("hf:/org/name@0123/data/train-00000.parquet", ("parquet", "", True)),
        ("corpus.gz", ("text", "gzip", True)),
        ("wiki.train.tokens", ("text", "", False)),
        ("LICENSE", ("text", "", False)),
    ],
)
def test_what_a_file_is_by_its_name(name, expected):
    assert kind_of(name) == kind_of(Path(name)) == Kind(*expected)


def test_packed_tables_are_refused(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.parquet\.gz: \.parquet inside \.gz is not read: unpack it with gunzip"):
        read(tmp_path)


def test_compressed_text(tmp_path, monkeypatch):
    monkeypatch.setattr("sconce.data.sources._ZSTD_BYTES", 5)
    text = "some text, some more text\n" * 1000
    (tmp_path / "a.txt.zst").write_bytes(zstd(text[:9999].encode()) + zstd(text[9999:].encode()))
    found, *_ = read(tmp_path / "a.txt.zst")
    assert "".join(found) == text
    for damaged in (zstd(text.encode())[:-7], b"plain text, not zstd"):
        (tmp_path / "a.txt.zst").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.txt\.zst: damaged zstd file"):
            read(tmp_path / "a.txt.zst")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"line 4: not JSON: Unterminated string .* at column 10"),
        (b'["text"]', "line 4: expected an object, found list"),
        (b'{"body": "x", "id": 1}', r"line 4: no field 'text'; it has body, id: set data\.text_field"),
        (b'{"text": null}', "line 4: 'text' is null, expected a string"),
        (b'{"text": 5}', "line 4: 'text' is a number, expected a string"),
        (b'{"text": "a\\u0000b"}', "line 4: NUL at character 1"),
        (b'{"text": "a\\ud800"}', "line 4: half a surrogate pair at character 1"),
        (b'{"text": "caf\xe9"}', "line 4: not UTF-8 at byte 13 of the line"),
        (b"[" * 200_000, "line 4: not usable JSON: nested too deeply"),
    ],
)
def test_a_broken_line_is_named_or_counted(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*LINES.splitlines()[:2], b"", line, *LINES.splitlines()[5:]]))
    with pytest.raises(DataError, match=rf"a\.jsonl: {message}") as raised:
        read(path)
    assert "\n" not in str(raised.value)
    found, skipped, first = read(path, on_error="skip")
    assert (found, skipped) == ([TEXTS[0], TEXTS[1], TEXTS[5]], 1)
    assert "line 4" in first


def test_a_record_that_is_too_long_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORD_MAX_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "' + "b" * 200 + '"}\n{"text": "c"}')
    with pytest.raises(DataError, match="line 2: longer than"):
        read(path)
    assert read(path, on_error="skip")[:2] == (["a", "c"], 1)


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_rows_are_documents(tmp_path, dictionary):
    pa = pytest.importorskip("pyarrow")
    texts = [f"{text}{number}" for number in range(200) for text in KEPT]
    column = pa.array(texts)
    path = parquet(
        tmp_path / "a.parquet",
        {"id": list(range(len(texts))), "body": column.dictionary_encode() if dictionary else column},
        row_group_size=70,
    )
    assert read(path, "body")[0] == texts
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text'; its columns are body, id: set data"):
        read(path)
    with pytest.raises(DataError, match=r"column 'id' is of type int64, expected strings"):
        read(path, "id")


def test_damaged_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": ["one", None, "two"]})
    with pytest.raises(DataError, match="row 1: 'text' is null"):
        read(path)
    assert read(path, on_error="skip")[:2] == (["one", "two"], 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: damaged Parquet file"):
        read(path)
    assert read(path, on_error="skip")[:2] == ([], 1)


def test_progress_of_records_adds_up_to_the_file(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": [f"row {number}" for number in range(1000)]})
    (source,) = list_sources([path])
    seen = []
    assert len(list(source.documents("line", seen.append))) == 1000
    assert (sum(seen), len(seen) > 2) == (source.size, True)


SAVE = """
from datasets import Dataset, DatasetDict
one = Dataset.from_dict({"text": [f"text {n}" for n in range(1200)], "n": list(range(1200))})
one.save_to_disk("one", num_shards=3)
DatasetDict({"test": one.select(range(5)), "train": one}).save_to_disk("dict")
DatasetDict({"a": one, "b": one}).save_to_disk("other")
"""


def test_a_data_set_saved_to_disk(tmp_path):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("needs datasets")
    # In a process of its own: the library wants torch, which core tests hide.
    subprocess.run([sys.executable, "-c", SAVE], cwd=tmp_path, check=True, capture_output=True)
    texts = [f"text {number}" for number in range(1200)]
    assert read(tmp_path / "one")[0] == texts
    assert read(tmp_path / "dict")[0] == texts
    with pytest.raises(DataError, match="without a split named train: name one, of a, b"):
        read(tmp_path / "other")
    assert read(tmp_path / "other" / "a")[0] == texts
    with pytest.raises(DataError, match="no column 'body'"):
        read(tmp_path / "one", "body")


def test_a_data_set_repository_gives_its_training_split(tmp_path):
    for split in ("train", "validation", "test"):
        parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", {"text": [split]})
    (tmp_path / "README.md").write_text("about the data")
    assert read(tmp_path)[0] == ["train"]
    parquet(tmp_path / "plain" / "a.parquet", {"text": ["a"]})
    parquet(tmp_path / "plain" / "test.parquet", {"text": ["test"]})
    assert read(tmp_path / "plain")[0] == ["a", "test"]  # without a training split every file is meant


def test_patterns_and_kinds_mix(tmp_path):
    for name, text in (("b/1.txt", "text 1"), ("b/2.txt", "text 2"), ("b/c/3.md", "text 3"), ("b/x.jsonl", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text or '{"text": "record"}')
    assert read(tmp_path / "b" / "*.txt")[0] == ["text 1", "text 2"]
    assert read(tmp_path / "**" / "*.[mj]*")[0] == ["text 3", "record"]
    (tmp_path / "b" / "y.json").write_text('[{"text": "of an array"}]')
    (tmp_path / "b" / "dataset_info.json").write_text("{}")  # about the data
    assert read(tmp_path / "b")[0] == ["text 1", "text 2", "text 3", "record", "of an array"]
    (tmp_path / "odd[1].txt").write_text("its name is no pattern")
    assert read(tmp_path / "odd[1].txt")[0] == ["its name is no pattern"]
    with pytest.raises(DataError, match="no file matches this pattern"):
        read(tmp_path / "*.csv")


def test_lines_that_are_not_text_are_skipped_and_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"gut\n" + "größe\n".encode("latin1") + b"nul\0\n" + "größe\n".encode())
    found, skipped, first = read(path, on_error="skip")
    assert (found, skipped) == (["gut\ngröße\n"], 2)
    assert first == f"{path}: line 2: not UTF-8 at byte 2 of the line"
    (tmp_path / "empty.txt").write_bytes(b"")
    assert read(tmp_path / "empty.txt", on_error="skip")[:2] == ([], 1)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"whatever")
    for on_error in ("stop", "skip"):
        with pytest.raises(DataError, match=r"needs pyarrow: pip install 'sconce-lm\[data\]'"):
            read(tmp_path / "a.parquet", on_error=on_error)
