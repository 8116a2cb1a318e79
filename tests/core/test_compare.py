"""Looking at checkpoints: the list, figures of tensors, faults that verifying finds, and how two differ."""

import json
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from tiny import make_spec

from sconce.backend import state_names
from sconce.checkpoint.compare import compare, distance
from sconce.checkpoint.contents import CHUNK, state_parts, tensor_facts
from sconce.checkpoint.listing import list_checkpoints
from sconce.checkpoint.load import newest_intact, open_checkpoint
from sconce.checkpoint.record import Checkpoint, FileRecord, manifest_bytes, read_manifest
from sconce.checkpoint.store import CheckpointStore
from sconce.checkpoint.verify import folders_to_verify, verify
from sconce.errors import CheckpointError
from sconce.files import sha256_file
from sconce.interop.hf import hf_config, spec_from_config
from sconce.optim import OptimSpec

SPEC = make_spec(num_layers=1)
CONFIG = json.dumps(hf_config(SPEC, bos_id=0, eos_id=1, pad_id=2)).encode()


def save(folder, step, seed=0, best=None, learning_rate=1e-3, is_best=False):
    rng = np.random.default_rng(seed)
    state = ((name, rng.standard_normal(shape).astype(np.float32)) for name, shape in state_names(SPEC, OptimSpec()))
    facts = Checkpoint(
        step=step,
        tokens=step * 64,
        cursor={"fingerprint": "abc", "rows_consumed": step * 4},
        best=best,
        backend="torch",
        precision="fp32",
        versions={},
        hardware={},
    )
    run = json.dumps({"optimizer": {"learning_rate": learning_rate}}).encode()
    files = {"config.json": CONFIG, "tokenizer.json": b"[1]", "run.json": run}
    return CheckpointStore(folder, keep=9).save(
        state, state_names(SPEC, OptimSpec()), facts, files=files, is_best=is_best
    )


def rewrite(folder, name, change):
    """Change a file's tensors and commit that, as a faulty writer would have."""
    tensors = safetensors.numpy.load_file(folder / name)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / name)
    record = read_manifest(folder)
    file = FileRecord((folder / name).stat().st_size, sha256_file(folder / name))
    (folder / "manifest.json").write_bytes(manifest_bytes(replace(record, files={**record.files, name: file})))


@pytest.fixture
def home(tmp_path):
    return tmp_path / "run" / "checkpoints"


def test_the_list_is_newest_first_with_damage_and_what_was_set_aside(home):
    save(home, 5, best=(5, 2.0), is_best=True)
    save(home, 10, best=(5, 2.0))
    damaged = save(home, 15, best=(5, 2.0))
    torn = save(home, 20)
    shutil.copytree(home / "step-00000010", home / ".bad-step-00000010-2")
    (damaged / "model.safetensors").write_bytes(b"short")
    (torn / "manifest.json").unlink()
    entries = list_checkpoints(home.parent)
    assert [(entry.step, entry.set_aside) for entry in entries] == [
        (20, False),
        (15, False),
        (10, False),
        (5, False),
        (10, True),
    ]
    assert [entry.is_best for entry in entries] == [False, False, False, True, False]
    assert [entry.is_latest for entry in entries] == [True, False, False, False, False]
    assert entries[0].record is None
    assert "never finished" in entries[0].fault
    assert "5 bytes, expected" in entries[1].fault
    assert [entry.fault for entry in entries[2:]] == [None] * 3
    assert entries[2].bytes == sum(path.stat().st_size for path in (home / "step-00000010").iterdir())
    assert newest_intact(home).record.step == 10
    assert list_checkpoints(home) == entries


def test_nothing_to_list_is_an_error(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="no "):
            list_checkpoints(place)


def test_figures_of_tensors_are_numpys(home):
    folder = save(home, 1)

    def spoil(tensors):
        tensors["model.norm.weight"][:3] = [np.nan, np.inf, -np.inf]
        tensors["model.embed_tokens.weight"][:] = np.nan

    rewrite(folder, "model.safetensors", spoil)
    model = safetensors.numpy.load_file(folder / "model.safetensors")
    moments = safetensors.numpy.load_file(folder / "optimizer.safetensors")
    expected = {**{f"model/{name}": tensor for name, tensor in model.items()}, **moments}
    facts = {fact.name: fact for fact in tensor_facts(open_checkpoint(folder))}
    assert facts.keys() == expected.keys()
    for name, tensor in expected.items():
        fact, finite = facts[name], tensor[np.isfinite(tensor)].astype(np.float64)
        assert fact.shape == tensor.shape
        assert fact.non_finite == tensor.size - finite.size
        if finite.size:
            assert (fact.minimum, fact.maximum) == (finite.min(), finite.max())
            assert fact.rms == pytest.approx(np.sqrt(np.mean(finite**2)))
    assert facts["model/model.embed_tokens.weight"].rms is None


def test_parts_come_from_the_file(home):
    folder = save(home, 1)

    def other_optimizer(tensors):
        tensors["muon_m/model.norm.weight"] = tensors.pop("adam_m/model.norm.weight")

    rewrite(folder, "optimizer.safetensors", other_optimizer)
    parts = {part.name: (part.tensors, part.values) for part in state_parts(open_checkpoint(folder))}
    count = len(list(SPEC.params()))
    hidden = SPEC.hidden_size
    assert parts == {
        "model": (count, SPEC.num_params),
        "adam_m": (count - 1, SPEC.num_params - hidden),
        "adam_v": (count, SPEC.num_params),
        "muon_m": (1, hidden),
    }
    assert [check.name for check in verify(folder, spec_from_config)][-1] == "values"


def test_an_intact_checkpoint_passes_every_check(home):
    folder = save(home, 3)
    checks = {check.name: check.found for check in verify(folder, spec_from_config)}
    assert list(checks) == ["manifest", "sizes", "hashes", "tensors", "values"]
    assert checks["tensors"].startswith(f"{3 * len(list(SPEC.params()))} ")
    assert checks["values"] == f"{3 * SPEC.num_params:,}, all finite"


def set_nan(tensors):
    tensors["adam_v/model.norm.weight"][4] = np.nan


def rename(tensors):
    tensors["adam_m/model.other.weight"] = tensors.pop("adam_m/model.norm.weight")


def reshape(tensors):
    tensors["adam_m/model.norm.weight"] = tensors["adam_m/model.norm.weight"][:-1].copy()


def halve(tensors):
    tensors["adam_m/model.norm.weight"] = tensors["adam_m/model.norm.weight"].astype(np.float16)


@pytest.mark.parametrize(
    ("change", "message", "passed"),
    [
        (set_nan, r"adam_v/model\.norm\.weight: 1 of 32 not finite", 4),
        (rename, r"adam_m/model\.other\.weight: .*has no 'model\.other\.weight'", 3),
        (reshape, r"adam_m/model\.norm\.weight is F32 \[31\], expected F32 \[32\]", 3),
        (halve, r"adam_m/model\.norm\.weight is F16 \[32\], expected F32 \[32\]", 3),
    ],
)
def test_a_state_that_is_not_the_models_is_found(home, change, message, passed):
    folder = save(home, 3)
    rewrite(folder, "optimizer.safetensors", change)
    checks = verify(folder, spec_from_config)
    for _ in range(passed):
        next(checks)
    with pytest.raises(CheckpointError, match=message):
        next(checks)


def test_a_missing_parameter_is_found(home):
    folder = save(home, 3)
    rewrite(folder, "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"no tensor model\.norm\.weight"):
        list(verify(folder, spec_from_config))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "run.json", "manifest.json"])
def test_any_flipped_bit_is_found(home, name):
    folder = save(home, 3)
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=name):
        list(verify(folder, spec_from_config))


def test_what_is_verified(home):
    one, two = save(home, 3), save(home, 6)
    assert folders_to_verify(home.parent) == folders_to_verify(home) == [two, one]
    assert folders_to_verify(one) == [one]
    assert folders_to_verify(home / "LATEST") == [two]
    (one / "manifest.json").unlink()
    assert folders_to_verify(one) == [one]
    with pytest.raises(CheckpointError, match="never finished"):
        list(verify(one, spec_from_config))


def test_the_difference_of_two_checkpoints_is_numpys(home):
    a, b = save(home, 5, seed=1), save(home, 10, seed=2, learning_rate=2e-3)
    found = compare(open_checkpoint(a), open_checkpoint(b))
    expected = {}
    for name in ("model.safetensors", "optimizer.safetensors"):
        prefix = "model/" if name.startswith("model") else ""
        left, right = (safetensors.numpy.load_file(folder / name) for folder in (a, b))
        expected |= {prefix + key: (left[key].astype(np.float64), right[key].astype(np.float64)) for key in left}
    assert {tensor.name for tensor in found.tensors} == expected.keys()
    for tensor in found.tensors:
        x, y = expected[tensor.name]
        assert tensor.distance.max_abs == np.abs(x - y).max()
        assert tensor.distance.relative == pytest.approx(np.abs(x - y).max() / np.abs(x).max())
        assert tensor.distance.cosine == pytest.approx(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y)))
    order = [tensor.distance.relative for tensor in found.tensors]
    assert order == sorted(order, reverse=True)
    assert not found.identical
    assert [(change.key, change.old, change.new) for change in found.config] == [
        ("optimizer.learning_rate", 1e-3, 2e-3)
    ]
    assert [part.name for part in found.parts] == ["model", "adam_m", "adam_v"]
    for part in found.parts:
        pairs = [pair for name, pair in expected.items() if name.startswith(f"{part.name}/")]
        x, y = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
        assert (part.tensors, part.changed) == (len(pairs), len(pairs))
        assert part.distance.max_abs == np.abs(x - y).max()
        assert part.distance.cosine == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)))


def test_identical_means_bit_for_bit(home, tmp_path):
    a, b = save(home, 5), save(tmp_path / "other", 5)
    assert compare(open_checkpoint(a), open_checkpoint(b)).identical

    def change(tensors):
        tensors["adam_m/model.norm.weight"][0] = np.nextafter(tensors["adam_m/model.norm.weight"][0], np.float32(9))

    rewrite(b, "optimizer.safetensors", change)
    found = compare(open_checkpoint(a), open_checkpoint(b))
    assert not found.identical
    assert [tensor.name for tensor in found.tensors if not tensor.distance.identical] == ["adam_m/model.norm.weight"]
    assert found.tensors[0].name == "adam_m/model.norm.weight"
    assert [part.changed for part in found.parts] == [0, 1, 0]


def test_names_and_shapes_of_one_side_are_named(home):
    a, b = save(home, 5), save(home, 10)

    def change(tensors):
        tensors["muon_m/model.norm.weight"] = tensors.pop("adam_m/model.norm.weight")
        tensors["adam_v/model.norm.weight"] = np.ones(7, np.float32)

    rewrite(b, "optimizer.safetensors", change)
    found = compare(open_checkpoint(a), open_checkpoint(b))
    assert found.only_a == ["adam_m/model.norm.weight"]
    assert found.only_b == ["muon_m/model.norm.weight"]
    assert [(shape.name, shape.a, shape.b) for shape in found.shapes] == [("adam_v/model.norm.weight", (32,), (7,))]
    assert not found.identical


def test_distances_at_the_edges():
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert distance(zero, one).relative is None
    assert distance(zero, one).cosine is None
    assert distance(zero, zero).relative == 0.0
    assert not distance(zero, -zero).identical  # equal, yet not the same bits
    assert distance(one, -one).cosine == -1.0
    broken = np.array([np.nan, 1, 3], np.float32)
    assert distance(broken, broken).identical
    found = distance(one, broken)
    assert (found.identical, found.non_finite, found.max_abs) == (False, 1, 2.0)


def test_a_long_tensor_is_compared_whole():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(CHUNK + 17).astype(np.float32)
    b = a.copy()
    b[-1] += 1000
    assert distance(a, b).max_abs == float(np.float64(b[-1]) - np.float64(a[-1]))


def test_memory_is_a_pair_of_tensors_not_a_checkpoint(tmp_path):
    spec = make_spec(vocab_size=2000, hidden_size=256, num_layers=6, num_heads=4)
    count = sum(int(np.prod(shape)) for _, shape in state_names(spec, OptimSpec()))
    paths = []
    for step in (1, 2):
        state = ((name, np.full(shape, step, np.float32)) for name, shape in state_names(spec, OptimSpec()))
        facts = replace(read_manifest(save(tmp_path / "facts", step)), files={})
        files = {"run.json": b"{}", "tokenizer.json": b"[]"}
        store = CheckpointStore(tmp_path / "large", keep=9)
        paths.append(store.save(state, state_names(spec, OptimSpec()), facts, files=files, is_best=False))
    one, two = map(open_checkpoint, paths)
    tracemalloc.start()
    compare(one, two)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = 4 * spec.vocab_size * spec.hidden_size
    assert peak < 2 * largest + 64 * CHUNK
    assert peak < 4 * 2 * count
