"""What is read, hashed or asked for once where it is needed several times."""

import os
from collections import Counter

import numpy as np
import pytest

from sconce.config import config_from_tables
from sconce.data.corpus import Corpus
from sconce.data.encode import Encoded
from sconce.data.prepare import prepare
from sconce.data.shards import FORMAT, Manifest
from sconce.data.stream import StreamRows
from sconce.data.window_cache import WindowCache
from sconce.errors import DataError
from sconce.files import sha256_file
from sconce.orchestrate import train_on_corpus
from sconce.tokenizer.bpe import VocabularyError, load_tokenizer, train_tokenizer
from sconce.training.tokens import run_tokens

SEQ, ROWS = 6, 5


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {number} of the text, {number * number}.\n" for number in range(400)))
    return path


@pytest.fixture
def hashed(monkeypatch):
    """How often each file was hashed, by name."""
    found = Counter()

    def counting(path):
        found[path.name] += 1
        return sha256_file(path)

    for module in ("sconce.data.shards", "sconce.orchestrate"):
        monkeypatch.setattr(f"{module}.sha256_file", counting)
    return found


def test_text_that_may_have_changed_is_looked_at_once(text, tmp_path, hashed):
    train_tokenizer([text.read_text()], 300, tmp_path / "tokenizer", [])
    tokenizer = load_tokenizer(tmp_path / "tokenizer/tokenizer.json")
    config = config_from_tables(
        {
            "data": {"train_shards": [str(text)], "document": "line"},
            "tokenizer": {"tokenizer_json": str(tokenizer.path)},
            "scheduler": {"total_steps": 1},
        }
    )
    first = run_tokens(config, tmp_path / "run", tokenizer, None, lambda _: None)
    assert hashed["text.txt"] == 0
    os.utime(text, (1, 1))  # touched, or copied: only its content can tell
    again = run_tokens(config, tmp_path / "run", tokenizer, None, lambda _: None)
    assert again.fingerprint == first.fingerprint
    assert hashed["text.txt"] == 1
    text.write_text(text.read_text().replace("Line", "line"))  # of the same size
    run_tokens(config, tmp_path / "run", tokenizer, None, lambda _: None)
    assert hashed["text.txt"] == 2


def test_text_that_is_not_there_leaves_nothing_behind(tmp_path, text):
    train_tokenizer([text.read_text()], 300, tmp_path / "tokenizer", [])
    tokenizer = load_tokenizer(tmp_path / "tokenizer/tokenizer.json")
    said = []
    with pytest.raises(DataError, match=r"gone\.txt: no such file"):
        prepare(Corpus(paths=(text, tmp_path / "gone.txt")), tokenizer, tmp_path / "out/shards", say=said.append)
    assert not (tmp_path / "out").exists()
    prepare(Corpus(paths=(text,)), tokenizer, tmp_path / "out/shards")
    with pytest.raises(DataError, match=r"gone\.txt: no such file"):
        prepare(Corpus(paths=(text, tmp_path / "gone.txt")), tokenizer, tmp_path / "out/shards", say=said.append)
    assert said == []  # least of all that what is there will be replaced


def test_text_that_supports_fewer_tokens_is_hashed_once(text, tmp_path, hashed):
    corpus = Corpus(paths=(text,))
    with pytest.raises(VocabularyError) as raised:
        train_on_corpus(corpus, 50_000, tmp_path / "refused", 10**6)
    assert not (tmp_path / "refused/tokenizer.json").exists()
    hashed.clear()
    tokenizer = train_on_corpus(corpus, 50_000, tmp_path / "tokenizer", 10**6, or_fewer=True)
    assert tokenizer.vocab_size == raised.value.supported < 50_000
    assert hashed["text.txt"] == 1


@pytest.fixture
def windows(tmp_path):
    """Two windows of a stream whose tokens count on."""
    template = Manifest(
        format=FORMAT, tokenizer_sha256="", dtype="uint16", vocab_size=300, eos_id=0, rule="line", paths=[],
        validation_paths=[], validation_fraction=0.1, threshold=0, shards=[], sources=[],
    )  # fmt: skip
    cache = WindowCache(tmp_path / "windows")
    for window in range(2):
        ids = np.arange(window * ROWS * SEQ, (window + 1) * ROWS * SEQ + 1, dtype=np.uint32)
        cache.write(window, Encoded(ids, np.array([len(ids)]), np.array([len(ids)])), template)
    return cache


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_batch_asks_for_each_window_once_in_the_order_of_its_rows(windows, parts):
    asked = []

    def window(number):
        asked.append(number)
        return windows.open(number).train

    rows = StreamRows(window, ROWS, SEQ)
    size = SEQ // parts
    numbers = np.array([7, 9, 0, 6, 4, 8, 0]) * parts + parts - 1
    batch = rows.batch(numbers, parts)
    assert asked == [1, 0]
    assert batch.inputs.tolist() == [list(range(row * size, row * size + size)) for row in numbers.tolist()]
    assert batch.targets.tolist() == [list(range(row * size + 1, row * size + size + 1)) for row in numbers.tolist()]
    assert batch.inputs.flags.c_contiguous
    assert batch.targets.flags.c_contiguous


def test_a_window_that_is_not_there_is_said(windows):
    rows = StreamRows(lambda number: windows.open(number).train, ROWS, SEQ)
    with pytest.raises(DataError):
        rows.batch(np.array([0, 2 * ROWS]))
