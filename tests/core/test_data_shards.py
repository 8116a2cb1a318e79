"""Shards: what is in them, when they are reused, how damage is met."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sconce.data.batches import num_rows, read_batch, validation_batches
from sconce.data.corpus import Corpus
from sconce.data.prepare import prepare
from sconce.data.shards import open_tokens
from sconce.data.sources import list_sources
from sconce.errors import DataError


@dataclass
class Bytes:
    """A tokenizer whose tokens are the UTF-8 bytes, and which counts its calls."""

    sha256: str = "bytes"
    vocab_size: int = 257
    eos_id: int = 256
    calls: int = 0

    def encode_batch(self, texts):
        self.calls += 1
        return [list(text.encode()) for text in texts]


LINES = [f"this is line {number} é" for number in range(300)]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    return Corpus(paths=(tmp_path / "text.txt",), rule="line", validation_fraction=0.1)


def ids(lines):
    return [token for line in lines for token in (*line.encode(), 256)]


def held(line):
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big") <= int(0.1 * 2**64)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_the_files_hold_the_documents(corpus, tmp_path, vocab_size, dtype):
    data = prepare(corpus, Bytes(vocab_size=vocab_size), tmp_path / "tokens", shard_tokens=1000)
    for split, store, lines in (
        ("train", data.train, [line for line in LINES if not held(line)]),
        ("validation", data.validation, [line for line in LINES if held(line)]),
    ):
        shards = [shard for shard in data.manifest.shards if shard.split == split]
        raw = [np.fromfile(data.folder / f"{shard.name}.bin", dtype) for shard in shards]
        assert [shard.name for shard in shards] == [f"{split}-{i:05d}" for i in range(len(shards))]
        assert np.concatenate(raw).tolist() == ids(lines) == store.read(0, store.num_tokens).tolist()
        assert all(len(tokens) <= 1000 and tokens[-1] == 256 for tokens in raw)
        for shard, tokens in zip(shards, raw, strict=True):
            starts = np.fromfile(data.folder / f"{shard.name}.idx", "<u8")
            assert starts.tolist() == [0, *(np.flatnonzero(tokens == 256)[:-1] + 1)]
        assert (store.num_documents, store.utf8_bytes) == (len(lines), len("".join(lines).encode()))
    assert len(data.manifest.shards) > 5


def test_reads_may_straddle_shards(corpus, tmp_path):
    store = prepare(corpus, Bytes(), tmp_path / "tokens", shard_tokens=50).train
    whole = ids(line for line in LINES if not held(line))
    rng = np.random.default_rng(0)
    for start, count in rng.integers(0, [store.num_tokens - 500, 500], (50, 2)):
        piece = store.read(int(start), int(count))
        assert piece.dtype == np.int32
        assert piece.tolist() == whole[start : start + count]


def test_pieces_are_read_from_any_shards(corpus, tmp_path):
    store = prepare(corpus, Bytes(), tmp_path / "tokens", shard_tokens=50).train
    whole = np.array(ids(line for line in LINES if not held(line)))
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, 60)  # of one shard or several
    starts = rng.integers(0, store.num_tokens - 200, 60)
    rows = store.read_rows(starts, 77)
    assert rows.tolist() == [whole[start : start + 77].tolist() for start in starts]
    starts[:2] = 0, store.num_tokens - lengths[1]
    expected = [whole[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    assert store.read_pieces(starts, lengths).tolist() == np.concatenate(expected).tolist()
    assert len(store.read(store.num_tokens, 0)) == 0


def test_a_document_longer_than_a_shard_has_one_of_its_own(corpus, tmp_path):
    data = prepare(corpus, Bytes(), tmp_path / "tokens", shard_tokens=1)
    assert all(shard.documents == 1 for shard in data.manifest.shards)


def test_the_fingerprint_is_of_the_content(corpus, tmp_path):
    first = prepare(corpus, Bytes(), tmp_path / "a").fingerprint
    (tmp_path / "other").mkdir()
    moved = shutil.copy(corpus.paths[0], tmp_path / "other" / "name.txt")
    same = Corpus(paths=(Path(moved),), rule="line", validation_fraction=0.1)
    assert prepare(same, Bytes(), tmp_path / "b").fingerprint == first
    assert prepare(corpus, Bytes(sha256="another"), tmp_path / "c").fingerprint != first
    Path(moved).write_text("\n".join(LINES[:-1]))
    assert prepare(same, Bytes(), tmp_path / "b").fingerprint != first


def test_a_fitting_build_is_reused(corpus, tmp_path):
    prepare(corpus, Bytes(), tmp_path / "tokens")
    before = (tmp_path / "tokens" / "manifest.json").stat()
    tokenizer = Bytes()
    prepare(corpus, tokenizer, tmp_path / "tokens")
    corpus.paths[0].touch()
    prepare(corpus, tokenizer, tmp_path / "tokens")
    corpus.paths[0].unlink()
    prepare(corpus, tokenizer, tmp_path / "tokens")
    assert tokenizer.calls == 0
    assert (tmp_path / "tokens" / "manifest.json").stat().st_mtime_ns == before.st_mtime_ns


def test_an_outdated_build_is_replaced(corpus, tmp_path):
    folder = tmp_path / "tokens"
    prepare(corpus, Bytes(), folder)
    for other in (
        Corpus(paths=corpus.paths, rule="file", validation_fraction=0.1),
        Corpus(paths=corpus.paths, rule="line", validation_fraction=0.2),
        Corpus(paths=corpus.paths, rule="line", validation_paths=corpus.paths),
    ):
        tokenizer = Bytes()
        prepare(other, tokenizer, folder)
        assert tokenizer.calls > 0
        assert open_tokens(folder).manifest.rule == other.rule
    text = corpus.paths[0].read_text()
    corpus.paths[0].write_text(text[::-1])  # same size
    assert prepare(corpus, tokenizer, folder).train.read(0, 5).tolist() == ids(text[::-1].splitlines())[:5]


def test_killed_builds_are_cleaned_up_and_errors_leave_nothing(corpus, tmp_path):
    (tmp_path / ".tokens.tmp-new").mkdir()
    (tmp_path / ".tokens.tmp-new" / "train-00000.bin").write_bytes(b"half")
    data = prepare(corpus, Bytes(), tmp_path / "tokens")
    first = data.fingerprint
    corpus.paths[0].write_bytes(b"bad\0")
    with pytest.raises(DataError, match="NUL"):
        prepare(corpus, Bytes(), tmp_path / "tokens")
    assert open_tokens(tmp_path / "tokens").fingerprint == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "tokens"]


def test_somebody_elses_folder_is_left_alone(corpus, tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="choose another folder"):
        prepare(corpus, Bytes(), tmp_path / "tokens")
    assert (tmp_path / "tokens" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["train-00000.bin", "validation-00000.idx"])
@pytest.mark.parametrize("damage", ["flip", "short", "gone"])
def test_damage_is_named_and_a_new_build_repairs_it(corpus, tmp_path, name, damage):
    prepare(corpus, Bytes(), tmp_path / "tokens")
    path = tmp_path / "tokens" / name
    raw = path.read_bytes()
    path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:] if damage == "flip" else raw[:-1])
    if damage == "gone":
        path.unlink()
    with pytest.raises(DataError, match=rf"{name}: (damaged|missing).*delete the folder and prepare"):
        open_tokens(tmp_path / "tokens")
    if damage == "flip":
        open_tokens(tmp_path / "tokens", verify=False)
    prepare(corpus, Bytes(), tmp_path / "tokens")
    assert path.read_bytes() == raw


def test_a_folder_that_is_no_build(corpus, tmp_path):
    with pytest.raises(DataError, match="no complete build"):
        open_tokens(tmp_path / "absent")
    prepare(corpus, Bytes(), tmp_path / "tokens")
    manifest = tmp_path / "tokens" / "manifest.json"
    content = json.loads(manifest.read_text())
    for broken in ("{", "[]", "{}", json.dumps(content | {"surprise": 1}), json.dumps(content | {"format": "old"})):
        manifest.write_text(broken)
        with pytest.raises(DataError, match=r"manifest\.json: .*prepare the data again"):
            open_tokens(tmp_path / "tokens")


def test_sources_and_progress(corpus, tmp_path):
    seen = []
    data = prepare(corpus, Bytes(), tmp_path / "tokens", progress=lambda done, total, _: seen.append((done, total)))
    raw = corpus.paths[0].read_bytes()
    assert seen[-1] == (len(raw), len(raw))
    (record,) = data.manifest.sources
    assert (record.path, record.size, record.sha256) == (
        str(corpus.paths[0]),
        len(raw),
        hashlib.sha256(raw).hexdigest(),
    )
    assert list_sources(corpus.paths)[0].mtime_ns == record.mtime_ns


def test_rows_and_batches(corpus, tmp_path):
    store = prepare(corpus, Bytes(), tmp_path / "tokens", shard_tokens=64).train
    whole = np.array(ids(line for line in LINES if not held(line)))
    assert num_rows(store, 16) == (len(whole) - 1) // 16
    rows = np.array([3, 0, num_rows(store, 16) - 1])
    batch = read_batch(store, rows, 16)
    np.testing.assert_array_equal(batch.inputs, [whole[j * 16 : j * 16 + 16] for j in rows])
    np.testing.assert_array_equal(batch.targets, [whole[j * 16 + 1 : j * 16 + 17] for j in rows])
    assert all(part.dtype == np.int32 and part.flags.c_contiguous for part in batch[:2])
    assert num_rows(store, len(whole) - 1) == 1
    with pytest.raises(DataError, match=rf"shorter than one row: {len(whole)} tokens.* needs {len(whole) + 1}"):
        num_rows(store, len(whole))


@pytest.mark.parametrize(("seq_len", "batch_size"), [(16, 4), (7, 3), (1, 1), (100_000, 2)])
def test_validation_scores_every_token_once(corpus, tmp_path, seq_len, batch_size):
    store = prepare(corpus, Bytes(), tmp_path / "tokens", shard_tokens=64).validation
    whole = store.read(0, store.num_tokens)
    batches = list(validation_batches(store, seq_len, batch_size))
    assert {part.shape for batch in batches for part in batch[:2]} == {(batch_size, seq_len)}
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    inputs = np.concatenate([batch.inputs.ravel() for batch in batches])
    np.testing.assert_array_equal(targets[targets >= 0], whole[1:])
    np.testing.assert_array_equal(inputs[targets >= 0], whole[:-1])
    assert len(targets) - len(whole) < batch_size * seq_len
    assert len(list(validation_batches(store, seq_len, batch_size, max_batches=1))) == 1


def test_no_validation_is_no_batches(tmp_path):
    (tmp_path / "text.txt").write_text("one line")
    data = prepare(Corpus(paths=(tmp_path / "text.txt",)), Bytes(), tmp_path / "tokens")
    assert (data.validation.num_tokens, list(validation_batches(data.validation, 1, 1))) == (0, [])
