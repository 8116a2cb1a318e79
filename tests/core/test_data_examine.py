"""Statistics of token shards against a plain count, and every fault that verifying names."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from sconce.data.corpus import Corpus, document_hash
from sconce.data.examine import QUANTILES, faults, split_stats
from sconce.data.plot import plot_stats
from sconce.data.prepare import prepare


@dataclass
class Bytes:
    """A tokenizer whose tokens are the UTF-8 bytes."""

    sha256: str = "bytes"
    vocab_size: int = 257
    eos_id: int = 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


LINES = ["x" * (number % 37 + 1) + f"{number}é" for number in range(500)]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    corpus = Corpus(paths=(tmp_path / "text.txt",), rule="line", validation_fraction=0.2)
    return prepare(corpus, Bytes(), tmp_path / "tokens", shard_tokens=1500)


def test_statistics_against_a_plain_count(data, monkeypatch):
    monkeypatch.setattr("sconce.data.examine._PIECE", 7)
    for split in ("train", "validation"):
        held = [document_hash(line.encode()) <= data.manifest.threshold for line in LINES]
        mine = [line.encode() for line, out in zip(LINES, held, strict=True) if out == (split == "validation")]
        stats = split_stats(data.folder, data.manifest, split)
        lengths = [len(line) for line in mine]
        assert (stats.documents, stats.tokens) == (len(mine), sum(lengths) + len(mine))
        assert stats.length_counts == dict(sorted(Counter(lengths).items()))
        assert stats.quantiles == [int(np.quantile(lengths, q, method="inverted_cdf")) for q in QUANTILES]
        counts = Counter(b"".join(mine)) | Counter({256: len(mine)})
        assert {i: int(n) for i, n in enumerate(stats.token_counts) if n} == counts
        assert stats.top_tokens(3) == sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
        assert stats.tokens_per_byte == pytest.approx(1)
        assert stats.mean_length == pytest.approx(np.mean(lengths))


def test_the_picture_is_written(data, tmp_path):
    plot_stats(
        [split_stats(data.folder, data.manifest, split) for split in ("train", "validation")], tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".a.png*"))


def test_a_whole_build_has_no_faults(data):
    assert list(faults(data.folder)) == []


def rewrite(data, name, change):
    """Change a shard's content, and the manifest's hash of it: only what it means is wrong."""
    path = data.folder / name
    array = np.fromfile(path, "<u2" if name.endswith("bin") else "<u8")
    change(array)
    array.tofile(path)
    manifest = json.loads((data.folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        if shard["name"] == path.stem:
            shard[f"{path.suffix[1:]}_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (data.folder / "manifest.json").write_text(json.dumps(manifest))


def set_at(position, value):
    def change(array):
        array[position] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-00001.bin", set_at(5, 257), "token 5 is 257, beyond the vocabulary of 257"),
        ("train-00000.bin", set_at(-1, 7), r"document \d+ does not end with token 256"),
        ("train-00000.idx", set_at(0, 1), "the first document starts at token 1, not at 0"),
        ("train-00001.idx", set_at(3, 0), "document 3 does not start after the one before, inside the shard"),
        ("validation-00000.idx", set_at(-1, 10**6), r"document \d+ does not start after the one before"),
    ],
)
def test_content_that_makes_no_sense(data, name, change, message):
    rewrite(data, name, change)
    (fault,) = faults(data.folder)
    assert name in fault
    assert re.search(message, fault)


def test_files_that_are_wrong(data):
    folder = data.folder
    (folder / "train-00000.bin").write_bytes(b"\0" * (folder / "train-00000.bin").stat().st_size)
    (folder / "train-00001.idx").unlink()
    (folder / "train-00002.bin").write_bytes(b"")
    (folder / "stray.txt").write_text("")
    found = list(faults(folder))
    for part in ("stray.txt: no part of this build", "00000.bin: its content", "00001.idx: missing", "00002.bin: 0 by"):
        assert any(part in fault for fault in found)
    assert len(found) == 4
