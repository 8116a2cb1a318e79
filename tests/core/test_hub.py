"""Data sets of the hub: what an address means, which files it is, and reading them over a network that fails."""

import gzip
import json
import random
import shutil
from pathlib import Path

import pytest
from hub import Faults, serving, write_toy

from sconce.data import hub as hub_module
from sconce.data import reader, text_shards
from sconce.data.corpus import Corpus
from sconce.data.hub import HubError, list_files, resolve
from sconce.data.prepare import prepare
from sconce.data.sources import list_sources
from sconce.data.text_shards import shard_text
from sconce.data.text_writer import TextOptions, TextWriter
from sconce.errors import DataError
from sconce.hub_address import HubAddress, parse_address, spelled


class Bytes:
    sha256, vocab_size, eos_id = "bytes", 257, 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The hub, and the documents of org/toy."""
    texts = write_toy(tmp_path / "repos")
    with serving(tmp_path / "repos", monkeypatch) as hub:
        yield hub, texts


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://org/name", HubAddress(repo="org/name")),
        ("hf://datasets/org/name", HubAddress(repo="org/name")),
        ("hf://squad", HubAddress(repo="squad")),
        ("hf://a/b@refs/convert/parquet", HubAddress(repo="a/b", revision="refs/convert/parquet")),
        (
            "hf://a/b@v1?config=en.news&split=x%26y",
            HubAddress(repo="a/b", revision="v1", config="en.news", split="x&y"),
        ),
    ],
)
def test_an_address_survives_being_a_path(text, address):
    assert parse_address(Path(text)) == parse_address(text) == address
    assert parse_address(Path(str(address))) == address
    assert spelled(Path(text)) == text


@pytest.mark.parametrize(
    "text", ["hf://", "hf://a/b/c", "hf://a/b@", "hf://a/b?config", "hf://a/b?split=", "hf://a/b?x=1", "hf://a b/c"]
)
def test_what_is_no_address_says_what_one_is(text):
    with pytest.raises(DataError, match="expected hf://org/name, with @REVISION"):
        parse_address(text)


def test_a_split_is_read_in_order_at_its_commit(toy):
    hub, texts = toy
    sources = list_sources([Path("hf://org/toy")])
    assert [text.decode() for source in sources for text in source.documents("line")] == texts
    commit = hub.commit(hub.root / "org/toy")
    assert {source.name.partition("/data/")[0] for source in sources} == {f"hf://org/toy@{commit}"}
    assert [
        len(list_sources([Path(f"hf://org/toy{query}")])) for query in ("@main", "?split=test", "?split=train")
    ] == [
        3,
        1,
        3,
    ]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://org/none", "no such data set"),
        ("hf://org/toy@v9", "no revision 'v9'"),
        ("hf://org/toy?split=dev", "no split 'dev'; it has test, train"),
        ("hf://org/toy?config=en", "en"),
        ("hf://org/xml", "found a file that is none of .*; .* hf://org/xml@refs/convert/parquet"),
    ],
)
def test_what_is_not_there_is_one_line(toy, address, says):
    hub, _ = toy
    (hub.root / "org/xml").mkdir()
    (hub.root / "org/xml/train.xml").write_text("<a/>")
    with pytest.raises(DataError, match=says) as error:
        list_sources([Path(address)])
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, HubError)


def test_other_kinds_of_files(toy):
    hub, _ = toy
    folder = hub.root / "org/lines"
    folder.mkdir()
    records = "".join(json.dumps({"text": f"record {number}"}) + "\n" for number in range(50))
    (folder / "train-1.json.gz").write_bytes(gzip.compress(records.encode(), mtime=0))
    (source,) = list_sources([Path("hf://org/lines")])
    assert list(source.documents("line")) == [f"record {number}".encode() for number in range(50)]
    assert list(source.numbered("line", 48)) == [(48, b"record 48"), (49, b"record 49")]
    pa = pytest.importorskip("pyarrow")
    for name in ("array", "rows", "arrow"):
        (hub.root / f"org/{name}").mkdir()
    (hub.root / "org/array/train.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=1))
    (hub.root / "org/rows/train.csv").write_text('id,text\n1,one\n2,"two"\n')
    table = pa.table({"text": ["one", "two"]})
    with pa.ipc.new_stream(str(hub.root / "org/arrow/train.arrow"), table.schema) as out:
        out.write_table(table)
    for name in ("array", "rows", "arrow"):
        (source,) = list_sources([Path(f"hf://org/{name}")])
        assert list(source.numbered("line", 0)) == [(0, b"one"), (1, b"two")], name
        assert source.sha256 != ""


def test_a_table_is_read_from_the_middle(toy):
    _, texts = toy
    (first, *_) = list_sources([Path("hf://org/toy")])
    for start in (0, 1, 59, 60, 61, 199, 200):
        assert [(n, text.decode()) for n, text in first.numbered("line", start)] == [
            (n, texts[n]) for n in range(start, 200)
        ]


def test_prepare_and_shard_over_a_network_that_fails(toy, tmp_path):
    """As many faults as answers, of every kind; the tokens are those of the same files on disk."""
    hub, _ = toy
    hub.faults = Faults(rate=0.5, seed=1)
    corpus = Corpus(paths=(Path("hf://org/toy"),), validation_fraction=0.1)
    built = prepare(corpus, Bytes(), tmp_path / "remote")
    assert set(hub.faults.happened) == {"reset", "error", "truncated", "slow"}
    commit = hub.commit(hub.root / "org/toy")
    names = [f"hf://org/toy@{commit}/data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    assert [source.path for source in built.manifest.sources] == names
    local = Corpus(paths=tuple(sorted((hub.root / "org/toy/data").glob("train-*"))), validation_fraction=0.1)
    assert built.fingerprint == prepare(local, Bytes(), tmp_path / "local").fingerprint
    assert built.manifest.sources[0].sha256 == prepare(local, Bytes(), tmp_path / "local").manifest.sources[0].sha256
    one, _ = shard_text(corpus, tmp_path / "shards", TextOptions(lines=100), "refuse")
    other, _ = shard_text(local, tmp_path / "local-shards", TextOptions(lines=100), "refuse")
    assert one["shards"] == other["shards"]


def test_a_build_needs_no_network_once_it_is_there(toy, tmp_path, monkeypatch):
    hub, _ = toy
    corpus = Corpus(paths=(Path("hf://org/toy"),), validation_fraction=0.1)
    built = prepare(corpus, Bytes(), tmp_path / "shards")
    hub.faults.down = True
    list_files.cache_clear()
    resolve.cache_clear()
    asked = len(hub.requests)
    assert prepare(corpus, Bytes(), tmp_path / "shards").fingerprint == built.fingerprint
    assert len(hub.requests) == asked


def test_a_hub_that_stays_away_ends_it_with_one_line(toy, monkeypatch):
    hub, _ = toy
    hub.faults.down = True
    monkeypatch.setenv("SCONCE_HUB_PATIENCE", "0.05")
    with pytest.raises(HubError, match=r"cannot be read, after \d+ tries in 0 s: HTTP 503; check the network") as error:
        list_sources([Path("hf://org/toy")])
    assert "\n" not in str(error.value)


def test_patience_that_is_no_number_is_said_at_once(toy, monkeypatch):
    monkeypatch.setenv("SCONCE_HUB_PATIENCE", "long")
    with pytest.raises(DataError, match="SCONCE_HUB_PATIENCE: found 'long', expected seconds"):
        list_sources([Path("hf://org/toy")])


def test_waits_double_and_obey_the_server(monkeypatch):
    waits, failures = [], [hub_module._Passing("busy"), hub_module._Passing("busy", 7.0), ConnectionResetError("gone")]
    monkeypatch.setattr(hub_module, "FIRST_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(hub_module.time, "sleep", waits.append)

    def action():
        if failures:
            raise failures.pop(0)
        return "done"

    assert hub_module.retried("it", action) == "done"
    assert waits == [0.5, 7.0, 2.0]
    with pytest.raises(ZeroDivisionError):
        hub_module.retried("it", lambda: 1 // 0)


def test_a_build_that_stopped_late_in_a_table_fetches_the_rest_of_it(toy, tmp_path, monkeypatch):
    hub, _ = toy
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [random.Random(row).randbytes(2000).hex() for row in range(200)]
    (hub.root / "org/big").mkdir()
    pq.write_table(pa.table({"text": texts}), hub.root / "org/big/train.parquet", row_group_size=10)
    size = (hub.root / "org/big/train.parquet").stat().st_size
    monkeypatch.setattr(hub_module, "BLOCK_BYTES", 2**15)
    monkeypatch.setattr(reader, "BATCH_BYTES", 2**14)
    monkeypatch.setattr(text_shards, "COMMIT_BYTES", 2**16)
    corpus, options, add = Corpus(paths=(Path("hf://org/big"),)), TextOptions(format="txt"), TextWriter.add

    def die_late(self, document, number):
        add(self, document, number)
        if number == 175:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TextWriter, "add", die_late)
        with pytest.raises(KeyboardInterrupt):
            shard_text(corpus, tmp_path / "out", options, "refuse")
    assert hub.bytes_sent > size * 0.8
    before = hub.bytes_sent
    shard_text(corpus, tmp_path / "out", options, "refuse")
    assert hub.bytes_sent - before < size * 0.5  # the footer is read again
    assert (tmp_path / "out/train/train-00000.txt").read_text().splitlines() == texts


def test_a_branch_that_moves_does_not_move_a_commit(toy):
    hub, texts = toy
    commit = hub.commit(hub.root / "org/toy")
    shutil.copytree(hub.root / "org/toy", hub.root / "org/toy@old")
    (hub.root / "org/toy/data/train-00000-of-00003.parquet").unlink()
    sources = list_sources([Path(f"hf://org/toy@{commit}")])
    assert len(sources) == 3
    assert len(list_sources([Path("hf://org/toy")])) == 2
    assert next(iter(sources[0].documents("line"))).decode() == texts[0]
