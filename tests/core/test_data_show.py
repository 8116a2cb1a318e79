"""What `data show` says a step trains on, against the corpus tokenised by hand and what the loop feeds a learner."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers

from sconce.backend import DeviceInfo, StepMetrics, state_names
from sconce.config import config_from, to_json
from sconce.data.corpus import Corpus
from sconce.data.order import make_order
from sconce.data.prepare import prepare
from sconce.data.rows import open_rows
from sconce.data.show import StepReader
from sconce.errors import CheckpointError, DataError
from sconce.files import write_json
from sconce.optim import OptimSpec
from sconce.ramp import constant
from sconce.tokenizer.bpe import load_tokenizer, train_tokenizer
from sconce.training import run as run_module
from sconce.training.loop import train
from sconce.training.run import RunFolder, open_run
from sconce.training.show import reader_of_config, reader_of_run

LINES = [f"Line {number} of the text, naïve or not, is {number * number} long." for number in range(400)]
HELD_OUT = 0.1
SEQ, BATCH = 16, 6


def is_held_out(line):
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big") <= int(HELD_OUT * 2**64)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("show")
    (root / "text.txt").write_text("\n".join(LINES), encoding="utf-8")
    train_tokenizer(LINES, 300, root / "tokenizer", [])
    return root


@pytest.fixture(scope="module")
def by_hand(home):
    """Documents of the training split as ids, with the EOS after each; nothing of Sconce is used."""
    bpe = tokenizers.Tokenizer.from_file(str(home / "tokenizer/tokenizer.json"))
    eos = bpe.token_to_id("<|eos|>")
    return [[*bpe.encode(line).ids, eos] for line in LINES if not is_held_out(line)]


def config_of(home, run_dir, **data):
    table = {
        "model": {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "max_position_embeddings": SEQ},
        "tokenizer": {"tokenizer_json": str(home / "tokenizer/tokenizer.json")},
        "data": {
            "train_shards": [str(home / "text.txt")],
            "document": "line",
            "validation_fraction": HELD_OUT,
            "batch_size": BATCH,
            "micro_batch_size": 2,
            **data,
        },
        "scheduler": {"total_steps": 500, "warmup_steps": 0, "strategy": "constant"},
        "runtime": {"run_dir": str(run_dir), "sample": {"prompt": ""}},
    }
    return config_from(table, "test")


@pytest.fixture(scope="module")
def reader(home):
    corpus = Corpus(paths=(home / "text.txt",), rule="line", validation_fraction=HELD_OUT)
    tokenizer = load_tokenizer(home / "tokenizer/tokenizer.json")
    data = prepare(corpus, tokenizer, home / "shards", shard_tokens=700)
    assert len(data.manifest.shards) > 5  # rows and documents then lie across shard borders
    rows = open_rows(data, "train", SEQ, "concat")
    order = make_order(rows.sizes, (), constant(BATCH, SEQ), seed=7)
    return StepReader(data=data, tokenizer=tokenizer, rows=rows, order=order, total_steps=100)


def tokens_of(row):
    return [token for piece in row.pieces for token in piece.tokens]


def test_every_row_of_an_epoch_is_the_corpus_tokenised_by_hand(reader, by_hand, home):
    bpe = tokenizers.Tokenizer.from_file(str(home / "tokenizer/tokenizer.json"))
    stream = [token for document in by_hand for token in document]
    starts = np.cumsum([0, *map(len, by_hand)])
    num_rows = (len(stream) - 1) // SEQ
    seen = []
    for step in range(1, -(-num_rows // BATCH) + 1):
        shown = reader.show(step)
        assert shown.row_ids == [row.row for row in shown.rows]
        for row in shown.rows:
            at = row.row * SEQ
            assert row.padding == 0
            assert tokens_of(row) == stream[at : at + SEQ + 1]
            for piece in row.pieces:
                document = by_hand[piece.document]
                assert piece.start == at == starts[piece.document] + piece.offset
                assert piece.tokens == document[piece.offset : piece.offset + len(piece.tokens)]
                assert piece.ends == (piece.offset + len(piece.tokens) == len(document))
                shown_ids = piece.tokens[:-1] if piece.ends else piece.tokens
                assert piece.text == bpe.decode(shown_ids, skip_special_tokens=False)
                at += len(piece.tokens)
        seen += [row.row for row in shown.rows if row.epoch == 0]
    assert sorted(seen) == list(range(num_rows))  # each once


def test_a_row_by_its_position(reader):
    whole = reader.show(9)
    assert [reader.show(9, position).rows for position in range(BATCH)] == [[row] for row in whole.rows]


def test_epochs_count_rows(reader):
    num_rows = reader.show(1).num_rows
    step = num_rows // BATCH + 1
    assert num_rows % BATCH, "the step in question must lie across the border"
    assert [row.epoch for row in reader.show(step).rows] == [
        ((step - 1) * BATCH + position) // num_rows for position in range(BATCH)
    ]


@pytest.mark.parametrize(
    ("step", "row", "message"), [(0, None, "--step 0"), (-3, None, "--step -3"), (1, BATCH, "0 to 5"), (1, -1, "--row")]
)
def test_what_is_not_there_is_refused(reader, step, row, message):
    with pytest.raises(DataError, match=message):
        reader.show(step, row)


def test_only_the_rows_asked_for_are_read(reader, monkeypatch):
    read = []
    original = type(reader.data.train).read
    monkeypatch.setattr(
        type(reader.data.train),
        "read",
        lambda self, start, count: read.append((start, count)) or original(self, start, count),
    )
    (row,) = reader.show(10**9, 3).rows
    assert read == [(row.row * SEQ, SEQ + 1)]


class Recorder:
    """A backend, its learner and its pending update in one, which only remembers what it is fed."""

    name = "recorder"

    def __init__(self):
        self.steps = {}

    def device(self):
        return DeviceInfo("recorder", "0", "cpu", "none", 2**34)

    def memory(self):
        return 0

    def matmul_seconds(self, precision, size, repeats):
        return 1.0

    def learner(self, spec, optim, compute, weights):
        self.spec = spec
        return self

    def load(self, tensors, step, loss_scale=None): ...

    def loss_scale(self):
        return None

    def tensors(self):
        return ((name, np.zeros(shape, np.float32)) for name, shape in state_names(self.spec, OptimSpec()))

    def nats(self, batch):
        return np.zeros(batch.targets.shape, np.float32)

    def step(self, batches, scalars):
        assert len(batches) == 3
        rows = [
            [*([] if batch.segments is not None else [int(first)]), *map(int, targets[targets >= 0])]
            for batch in batches
            for (first, *_), targets in zip(batch.inputs, batch.targets, strict=True)
        ]
        self.steps[scalars.step + 1] = rows
        return SimpleNamespace(ready=lambda: True, read=lambda: StepMetrics(1.0, 1.0, 1))


class Silent:
    def __getattr__(self, _):
        return lambda *_: None


def train_recorded(config, folder, monkeypatch, stop_at, resume=False):
    recorder = Recorder()
    monkeypatch.setattr(run_module, "load_backend", lambda hardware: recorder)
    with folder.locked():
        run = open_run(config, folder, hardware="cpu", resume=resume, reporter=Silent())
        write_json(folder.config, to_json(config))
        train(run, stop_at)
    return recorder.steps


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_it_is_what_the_loop_feeds_a_learner_before_and_after(home, tmp_path, monkeypatch, packing, mixed):
    folder = RunFolder(tmp_path / "run")
    more: dict[str, object] = {}
    if mixed:
        (tmp_path / "more.txt").write_text("\n".join(f"more {line}" for line in LINES[:200]), encoding="utf-8")
        paths = [str(home / "text.txt"), str(tmp_path / "more.txt")]
        more = {"train_shards": paths, "weights": [[3, 1], [1, 1]], "weight_steps": [25]}
    config = config_of(home, folder.root, packing=packing, **more)
    foreseen = {step: reader_of_config(config, folder).show(step) for step in range(1, 41)}
    fed = train_recorded(config, folder, monkeypatch, 30)
    fed |= train_recorded(config, folder, monkeypatch, 40, resume=True)
    assert sorted(fed) == list(range(1, 41))
    for step, rows in fed.items():
        assert [tokens_of(row) for row in foreseen[step].rows] == rows
        assert reader_of_run(folder).show(step) == foreseen[step]


def test_a_run_without_its_text_tokenizer_or_checkpoints(home, tmp_path, monkeypatch):
    shutil.copytree(home / "tokenizer", tmp_path / "run" / "tokenizer")
    shutil.copy(home / "text.txt", tmp_path / "text.txt")
    folder = RunFolder(tmp_path / "run")
    config = config_of(tmp_path / "run", folder.root, train_shards=[str(tmp_path / "text.txt")])
    fed = train_recorded(config, folder, monkeypatch, 3)
    moved = RunFolder((tmp_path / "run").rename(tmp_path / "moved"))
    (tmp_path / "text.txt").unlink()
    assert [tokens_of(row) for row in reader_of_run(moved).show(2).rows] == fed[2]
    shutil.rmtree(moved.checkpoints)
    assert json.loads(moved.config.read_text())["data"]["sequence_length"] == SEQ
    assert [tokens_of(row) for row in reader_of_run(moved).show(2).rows] == fed[2]
    shutil.rmtree(moved.root / "data")
    with pytest.raises(DataError, match="token shards"):
        reader_of_run(moved)
    moved.config.unlink()
    with pytest.raises(CheckpointError, match="no run here"):
        reader_of_run(moved)


def test_a_shared_cache_and_a_damaged_newest_checkpoint(home, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    config = config_of(home, folder.root, cache_dir=str(tmp_path / "cache"))
    fed = train_recorded(config, folder, monkeypatch, 3)
    fed |= train_recorded(config, folder, monkeypatch, 5, resume=True)
    (folder.checkpoints / "step-00000005" / "model.safetensors").write_bytes(b"")
    assert not (folder.root / "data").exists()
    assert [tokens_of(row) for row in reader_of_run(folder).show(4).rows] == fed[4]
    assert (folder.checkpoints / "step-00000005").exists()  # looking changes nothing


def test_other_tokens_than_the_runs_are_refused(home, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    text = tmp_path / "text.txt"
    shutil.copy(home / "text.txt", text)
    config = config_of(home, folder.root, train_shards=[str(text)])
    train_recorded(config, folder, monkeypatch, 2)
    before = reader_of_config(config, folder).show(1)
    text.write_text("\n".join(f"other {line}" for line in LINES), encoding="utf-8")
    assert reader_of_config(config, folder).show(1) == before  # the run goes on with what it began with
    shutil.rmtree(folder.root / "data")
    with pytest.raises(CheckpointError, match="not the tokens this run was trained on"):
        reader_of_config(config, folder)
    with pytest.raises(DataError, match="not the token shards"):
        reader_of_run(folder)


def test_padding_is_said(home, tmp_path):
    folder = RunFolder(tmp_path / "run")
    reader = reader_of_config(config_of(home, folder.root, packing="bestfit"), folder)
    shown = [row for step in range(1, 60) for row in reader.show(step).rows]
    assert {SEQ - len(tokens_of(row)) for row in shown} == {row.padding for row in shown} != {0}


def test_a_config_that_is_not_the_runs_is_refused(home, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    train_recorded(config_of(home, folder.root), folder, monkeypatch, 2)
    with pytest.raises(CheckpointError, match=r"data\.batch_size"):
        reader_of_config(config_of(home, folder.root, batch_size=8), folder)
    with pytest.raises(CheckpointError, match=r"data\.packing: 'concat' in the checkpoint, 'bestfit' now"):
        reader_of_config(config_of(home, folder.root, packing="bestfit"), folder)


def test_rows_of_a_mixture_name_their_source(home, tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("\n".join(f"{path.stem} {line}" for line in LINES), encoding="utf-8")
    folder = RunFolder(tmp_path / "run")
    stages = [{"from_step": 8, "sequence_length": SEQ}]
    data = {"train_shards": [str(path) for path in paths], "weights": [[1, 3]], "sequence_length": 8, "stages": stages}
    reader = reader_of_config(config_of(home, folder.root, **data), folder)
    ends = np.cumsum(reader.data.manifest.path_tokens)
    for step in (1, 8, 9):
        shown = reader.show(step)
        assert shown.sequence_length == (SEQ if step > 8 else 8)
        for row in shown.rows:
            assert len(tokens_of(row)) == shown.sequence_length + 1
            assert row.source == str(paths[int(row.pieces[0].start >= ends[0])])
