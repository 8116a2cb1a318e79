"""Checkpoints: what is on disk, what is found again, what is refused, and what is kept."""

import contextlib
import json
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from tiny import make_spec

from sconce.backend import check_names, state_names
from sconce.checkpoint.load import open_checkpoint
from sconce.checkpoint.record import Checkpoint
from sconce.checkpoint.store import CheckpointStore
from sconce.errors import CheckpointError
from sconce.optim import OptimSpec

SPEC = make_spec(num_layers=1)
SIDE_FILES = {"config.json": b"{}", "tokenizer.json": b"[1]", "run.json": b'{"model": {"layers": 1}}'}


def value(name, shape, step):
    rng = np.random.default_rng([step, len(name), *name.encode()])
    return rng.standard_normal(shape).astype(np.float32)


def state(step, spec=SPEC):
    return ((name, value(name, shape, step)) for name, shape in state_names(spec, OptimSpec()))


def facts(step, best=None):
    return Checkpoint(
        step=step,
        tokens=step * 64,
        cursor={"fingerprint": "abc", "seed": 1, "rows_consumed": step * 4},
        best=best,
        backend="torch",
        precision="fp32",
        versions={"sconce": "0"},
        hardware={"kind": "cpu"},
    )


def save(store, step, best=None, is_best=False):
    return store.save(state(step), state_names(SPEC, OptimSpec()), facts(step, best), files=SIDE_FILES, is_best=is_best)


def no_word(line):
    raise AssertionError(line)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_a_run_without_checkpoints_has_no_latest(store):
    assert store.latest(no_word) is None


def test_a_checkpoint_comes_back_as_it_was_written(store):
    folder = save(store, 12000, best=(11000, 2.5))
    loaded = store.latest(no_word)
    assert folder.name == "step-00012000"
    assert loaded.path == folder
    assert (loaded.record.step, loaded.record.tokens, loaded.record.best) == (12000, 768000, (11000, 2.5))
    assert loaded.record.cursor == facts(12000).cursor
    assert loaded.read("tokenizer.json") == b"[1]"
    assert loaded.run_config == {"model": {"layers": 1}}
    check_names(state_names(SPEC, OptimSpec()), loaded.tensors)
    for name, shape in state_names(SPEC, OptimSpec()):
        assert np.array_equal(loaded.tensors[name], value(name, shape, 12000))


def test_weights_are_the_model_by_parameter_name(store):
    save(store, 1)
    loaded = store.latest(no_word)
    assert list(loaded.weights) == sorted(param.name for param in SPEC.params())
    assert np.array_equal(loaded.weights["model.norm.weight"], loaded.tensors["model/model.norm.weight"])


def test_a_file_that_is_not_there_is_refused(store):
    save(store, 1)
    with pytest.raises(CheckpointError, match=r"no other\.json"):
        store.latest(no_word).read("other.json")


def test_the_files_are_safetensors_to_their_own_library(store):
    folder = save(store, 3)
    model = safetensors.numpy.load_file(folder / "model.safetensors")
    moments = safetensors.numpy.load_file(folder / "optimizer.safetensors")
    assert {f"model/{name}" for name in model} | set(moments) == {name for name, _ in state_names(SPEC, OptimSpec())}
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert (8 + header) % 8 == 0


def test_the_manifest_lists_every_other_file(store):
    folder = save(store, 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted([*manifest["files"], "manifest.json"]) == names(folder)
    assert manifest["files"]["config.json"]["bytes"] == 2


def test_a_large_model_is_sharded_and_read_as_one(tmp_path):
    folder = save(CheckpointStore(tmp_path, keep=1, max_shard_bytes=20_000), 5)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert set(index["weight_map"]) == {param.name for param in SPEC.params()}
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert index["metadata"]["total_size"] == 4 * SPEC.num_params
    assert all(shard.stat().st_size < 22_000 for shard in shards)
    loaded = open_checkpoint(folder)
    check_names(state_names(SPEC, OptimSpec()), loaded.tensors)
    assert all(np.array_equal(loaded.tensors[name], array) for name, array in state(5))


def test_saving_holds_one_tensor_at_a_time(tmp_path):
    spec = make_spec(num_layers=4, hidden_size=256, intermediate_size=1024)
    largest = 4 * 256 * 1024
    zeros = ((name, np.zeros(shape, np.float32)) for name, shape in state_names(spec, OptimSpec()))
    tracemalloc.start()
    CheckpointStore(tmp_path, keep=1).save(zeros, state_names(spec, OptimSpec()), facts(1), files={}, is_best=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * largest


def test_a_state_of_another_order_is_our_mistake(store):
    save(store, 1)
    with pytest.raises(AssertionError, match="where model/"):
        store.save(
            iter(list(state(2))[::-1]), state_names(SPEC, OptimSpec()), facts(2), files=SIDE_FILES, is_best=False
        )
    assert names(store.folder) == ["LATEST", "step-00000001"]


def test_a_state_that_is_too_long_is_our_mistake(store):
    longer = iter([*state(2), ("adam_v/extra", np.zeros(1, np.float32))])
    with pytest.raises(AssertionError, match="adam_v/extra"):
        store.save(longer, state_names(SPEC, OptimSpec()), facts(2), files=SIDE_FILES, is_best=False)
    assert names(store.folder) == []


DAMAGE = {
    "truncated": lambda folder: (folder / "model.safetensors").write_bytes(b"12"),
    "bit flip": lambda folder: flip(folder / "optimizer.safetensors", -9),
    "missing file": lambda folder: (folder / "tokenizer.json").unlink(),
    "missing manifest": lambda folder: (folder / "manifest.json").unlink(),
    "truncated manifest": lambda folder: (folder / "manifest.json").write_bytes(b'{"format": 1, "st'),
    "empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "manifest of another kind": lambda folder: (folder / "manifest.json").write_bytes(b"[]"),
    "binary manifest": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(store, damage):
    save(store, 1)
    damage(save(store, 2))
    said = []
    assert store.latest(said.append).record.step == 1
    assert len(said) == 1
    assert ".bad-step-00000002" in said[0]
    assert names(store.folder) == [".bad-step-00000002", "LATEST", "step-00000001"]


def test_every_flipped_bit_of_the_manifest_is_seen_or_harmless(store):
    folder = save(store, 7, best=(3, 1.25))
    intact = open_checkpoint(folder).record
    raw = (folder / "manifest.json").read_bytes()
    for position in range(len(raw)):
        flip(folder / "manifest.json", position)
        with contextlib.suppress(CheckpointError):
            assert open_checkpoint(folder, verify=False).record == intact
        (folder / "manifest.json").write_bytes(raw)


def test_damage_never_means_starting_from_scratch(store):
    DAMAGE["bit flip"](save(store, 1))
    for _ in range(2):  # the second time only the set-aside folder is there
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            store.latest(lambda line: None)


def test_the_same_step_damaged_twice_keeps_both(store):
    save(store, 1)
    for _ in range(2):
        DAMAGE["truncated"](save(store, 2))
        assert store.latest(lambda line: None).record.step == 1
    assert names(store.folder)[:2] == [".bad-step-00000002", ".bad-step-00000002-2"]


def test_a_newer_format_is_refused_but_never_set_aside(store, monkeypatch):
    monkeypatch.setattr("sconce.checkpoint.record.FORMAT", 99)
    save(store, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        store.latest(no_word)
    assert "step-00000001" in names(store.folder)


def test_without_verify_only_sizes_are_checked(store):
    folder = save(store, 1)
    DAMAGE["bit flip"](folder)
    assert open_checkpoint(folder, verify=False).record.step == 1
    with pytest.raises(CheckpointError, match="content changed"):
        open_checkpoint(folder)


def test_the_newest_and_the_best_are_kept(store):
    save(store, 1, best=(1, 3.0), is_best=True)
    save(store, 2, best=(2, 2.0), is_best=True)
    for step in (3, 4, 5):
        save(store, step, best=(2, 2.0))
    assert names(store.folder) == ["BEST", "LATEST", "step-00000002", "step-00000004", "step-00000005"]
    assert (store.folder / "LATEST").read_text() == "step-00000005\n"
    assert (store.folder / "BEST").read_text() == "step-00000002\n"


def test_a_best_pointer_that_was_never_written_is_made_good(store):
    save(store, 1, best=(1, 3.0), is_best=True)
    (store.folder / "BEST").unlink()  # its writer was killed after the commit
    for step in (2, 3, 4):
        save(store, step, best=(1, 3.0))
    assert open_checkpoint(store.folder / "BEST").record.step == 1


def test_nothing_is_deleted_when_the_newest_reads_back_wrong(store, monkeypatch):
    save(store, 1)
    save(store, 2)
    monkeypatch.setattr("sconce.checkpoint.load.sha256_file", lambda path: "wrong")
    with pytest.raises(CheckpointError, match="content changed"):
        save(store, 3)
    assert names(store.folder) == ["LATEST", "step-00000001", "step-00000002", "step-00000003"]


def test_folders_set_aside_do_not_count(store):
    save(store, 1)
    save(store, 2)
    DAMAGE["truncated"](save(store, 3))
    store.latest(lambda line: None)
    save(store, 3)
    assert names(store.folder) == [".bad-step-00000003", "LATEST", "step-00000002", "step-00000003"]


def test_the_same_step_is_replaced(store):
    save(store, 1)
    store.save(state(99), state_names(SPEC, OptimSpec()), facts(1), files=SIDE_FILES, is_best=False)
    assert names(store.folder) == ["LATEST", "step-00000001"]
    tensors = store.latest(no_word).tensors
    assert all(np.array_equal(tensors[name], array) for name, array in state(99))


def test_leftovers_of_killed_writers_are_removed(store):
    save(store, 1)
    (store.folder / ".tmp-step-00000002-77").mkdir()
    (store.folder / ".tmp-step-00000002-77" / "model.safetensors").write_bytes(b"half")
    (store.folder / ".LATEST.tmp-77").write_bytes(b"")
    save(store, 3)
    assert names(store.folder) == ["LATEST", "step-00000001", "step-00000003"]


def test_a_replacement_killed_between_its_renames_is_undone(store):
    save(store, 1).rename(store.folder / ".old-step-00000001")
    assert store.latest(no_word).record.step == 1


def test_a_checkpoint_is_found_from_the_run_its_folder_or_a_pointer(store):
    save(store, 1, best=(1, 1.0), is_best=True)
    newest = save(store, 2, best=(1, 1.0))
    run = store.folder.parent
    places = {run: 2, store.folder: 2, newest: 2, store.folder / "LATEST": 2, store.folder / "BEST": 1}
    assert {place: open_checkpoint(place).record.step for place in places} == places


def test_a_copied_checkpoint_opens_under_any_name(store, tmp_path):
    shutil.copytree(save(store, 4), tmp_path / "my-model")
    assert open_checkpoint(tmp_path / "my-model").record.step == 4


def test_a_place_without_a_checkpoint_says_what_was_expected(tmp_path):
    (tmp_path / "LATEST").write_text("../../etc\n")
    for place in (tmp_path, tmp_path / "gone", tmp_path / "LATEST"):
        with pytest.raises(CheckpointError, match=r"expected a run folder|names no checkpoint"):
            open_checkpoint(place)


def test_too_little_space_is_said_before_anything_is_written(store, monkeypatch):
    save(store, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(CheckpointError, match=r"disk full: a checkpoint takes 1\.\d MiB and 1\.0 MiB are free"):
        save(store, 2)
    assert names(store.folder) == ["LATEST", "step-00000001"]
