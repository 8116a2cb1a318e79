"""Ways in which what a run goes on from may be other than what was saved: each stops the run, in one line."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from commands import checkpoints, edit, overrides, records, sign, write_corpus
from commands import sconce_here as sconce
from safetensors.numpy import load_file, save_file

STEP = "step-00000040"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run with one checkpoint, and a second run of other text and seed to take things from."""
    home = tmp_path_factory.mktemp("tampering")
    for name, seed, lines in (("one", 1, 600), ("two", 2, 700)):
        folder = home / name
        folder.mkdir()
        text = write_corpus(folder / "corpus.txt", lines)
        words = ("tokenizer", "train", "--input", text, "--out", folder / "tokenizer", "--vocab-size", 300)
        assert sconce(*words).returncode == 0
        (folder / "run.toml").write_text(
            f'tokenizer.tokenizer_json = "tokenizer/tokenizer.json"\ndata.train_shards = ["corpus.txt"]\n'
            f"runtime.seed = {seed}\n"
        )
        other = ("tokenizer", "train", "--input", text, "--out", folder / "other", "--vocab-size", 310)
        assert sconce(*other).returncode == 0
        done = train(folder, "--stop-at", 40)
        assert done.returncode == 0, done.stderr
        assert checkpoints(folder / "run") == [STEP]
    return home


@pytest.fixture
def place(home, tmp_path):
    """A copy to tamper with."""
    shutil.copytree(home / "one", tmp_path / "one")
    shutil.copytree(home / "two", tmp_path / "two")
    return tmp_path / "one"


def train(folder, *more):
    return sconce("train", "-c", folder / "run.toml", "--run-dir", folder / "run", "--backend", "cpu", *more, *small())


def small():
    """Trained enough for attention to matter: at first it is uniform, whatever q and k are."""
    return overrides(
        "model.num_layers=2",
        "optimizer.learning_rate=2e-2",
        "scheduler.total_steps=44",
        "runtime.log_every_n_steps=1",
        "runtime.checkpoint.every_n_steps=40",
        "runtime.checkpoint.save_best=false",
        "runtime.evaluation.every_n_steps=100",
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    sign(folder)


def swap(tensors, a, b):
    tensors[a], tensors[b] = tensors[b], tensors[a]


def other_shards(place):
    """The other run's tokens in place of these, text included, so that they cannot be made again."""
    shutil.rmtree(place / "run" / "data")
    shutil.copytree(place.parent / "two" / "run" / "data", place / "run" / "data")
    shutil.copy(place.parent / "two" / "corpus.txt", place / "corpus.txt")


def shards_rewritten_and_vouched_for(place):
    """One token changed, the shard's hash and the checkpoint's fingerprint made to agree."""
    folder = place / "run" / "data"
    tokens = np.fromfile(folder / "train-00000.bin", "<u2")
    tokens[:] = np.roll(tokens, 1)
    tokens.tofile(folder / "train-00000.bin")
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        shard["bin_sha256"] = hashlib.sha256((folder / f"{shard['name']}.bin").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    facts = [manifest["dtype"], manifest["tokenizer_sha256"]]
    facts += [f"{shard['split']} {shard['bin_sha256']} {shard['idx_sha256']}" for shard in manifest["shards"]]
    fingerprint = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    checkpoint = place / "run" / "checkpoints" / STEP
    edit(checkpoint / "manifest.json", lambda fields: fields["cursor"].update(fingerprint=fingerprint))
    sign(checkpoint)


def shard_and_text_edited(place):
    flip(place / "run" / "data" / "train-00000.bin")
    (place / "corpus.txt").write_text((place / "corpus.txt").read_text().replace("fox", "cat"))


def setting_changed_on_both_sides(place):
    """model.rope_theta in the config, the checkpoint's record of it, and its Hugging Face config."""
    checkpoint = place / "run" / "checkpoints" / STEP
    edit(checkpoint / "run.json", lambda fields: fields["model"].update(rope_theta=50.0))
    sign(checkpoint)
    with (place / "run.toml").open("a") as file:
        file.write("model.rope_theta = 50.0\n")


def seed_changed_on_both_sides(place):
    checkpoint = place / "run" / "checkpoints" / STEP
    edit(checkpoint / "run.json", lambda fields: fields["runtime"].update(seed=9))
    sign(checkpoint)
    config = place / "run.toml"
    config.write_text(config.read_text().replace("seed = 1", "seed = 9"))


def renamed(place):
    (place / "run" / "checkpoints" / STEP).rename(place / "run" / "checkpoints" / "step-00000050")


def in_checkpoint(action):
    return lambda place: action(place / "run" / "checkpoints" / STEP)


Q, OUT = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qo")
UP, OTHER_UP = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))

# What is done to the folder, and what the command must say.
HASHED = {
    "a bit of the weights": (in_checkpoint(lambda at: flip(at / "model.safetensors")), "every checkpoint is damaged"),
    "a bit of the moments": (in_checkpoint(lambda at: flip(at / "optimizer.safetensors")), "content changed"),
    "weights cut short": (
        in_checkpoint(lambda at: (at / "model.safetensors").write_bytes(b"x" * 99)),
        "99 bytes, expected",
    ),
    "moments gone": (in_checkpoint(lambda at: (at / "optimizer.safetensors").unlink()), "missing"),
    "moments of another run": (
        lambda place: shutil.copy(
            place.parent / "two" / "run" / "checkpoints" / STEP / "optimizer.safetensors",
            place / "run" / "checkpoints" / STEP,
        ),
        "content changed",
    ),
    "a checkpoint's tokenizer edited": (
        in_checkpoint(lambda at: (at / "tokenizer.json").write_text((at / "tokenizer.json").read_text() + " ")),
        "bytes, expected",
    ),
    "a checkpoint's config edited": (
        in_checkpoint(lambda at: edit(at / "run.json", lambda fields: fields["optimizer"].update(beta1=0.8))),
        "run.json",
    ),
    "a checkpoint's step edited": (
        in_checkpoint(lambda at: edit(at / "manifest.json", lambda fields: fields.update(step=41))),
        "its checksum does not match",
    ),
    "a checkpoint renamed": (renamed, "is of step 40"),
    "the run's tokenizer swapped": (
        lambda place: shutil.copytree(place / "other", place / "tokenizer", dirs_exist_ok=True),
        "not the tokenizer this run was trained with",
    ),
    "tokens of another run": (other_shards, "not the tokens this run was trained on"),
    "a shard and its text edited": (shard_and_text_edited, "not the tokens this run was trained on"),
    "another checkpoint in its place": (
        lambda place: (
            shutil.rmtree(place / "run" / "checkpoints"),
            shutil.copytree(place.parent / "two" / "run" / "checkpoints", place / "run" / "checkpoints"),
        ),
        "runtime.seed: 2 in the checkpoint, 1 now",
    ),
}
CERTIFIED = {
    "weights of another run": (
        lambda place: (
            shutil.copy(
                place.parent / "two" / "run" / "checkpoints" / STEP / "model.safetensors",
                place / "run" / "checkpoints" / STEP,
            ),
            sign(place / "run" / "checkpoints" / STEP),
        ),
        "the weights, or what model.* makes of them",
    ),
    "two matrices swapped": (in_checkpoint(lambda at: change_tensors(at, lambda t: swap(t, Q, OUT))), "the weights"),
    "two layers swapped": (
        in_checkpoint(lambda at: change_tensors(at, lambda t: swap(t, UP, OTHER_UP))),
        "the weights",
    ),
    "one row of the embedding zeroed": (
        in_checkpoint(lambda at: change_tensors(at, lambda t: t["model.embed_tokens.weight"].__setitem__(104, 0))),
        "the weights",
    ),
    "a norm off by a thousandth": (
        in_checkpoint(lambda at: change_tensors(at, lambda t: t["model.norm.weight"].__imul__(np.float32(1.001)))),
        "the weights",
    ),
    "a setting changed on both sides": (setting_changed_on_both_sides, "model.* makes of them"),
    "the seed changed on both sides": (seed_changed_on_both_sides, "the next rows are others"),
    "tokens shifted and vouched for": (shards_rewritten_and_vouched_for, "hold other tokens"),
}


# Why a run must not go on from there: what would be wrong with everything it makes afterwards.
WHY = {
    "a bit of the weights": "one weight is not what training made it, and the result would not be this run's",
    "a bit of the moments": "the next updates would step elsewhere, with weights that look right",
    "weights cut short": "tensors would be missing or read from beyond the file's end",
    "moments gone": "an optimizer that begins anew in the middle of a run is another run",
    "moments of another run": "names and shapes fit, so that nothing but the hash tells",
    "a checkpoint's tokenizer edited": "ids would mean other text than the model learned",
    "a checkpoint's config edited": "the check of what a run may change would compare with a lie",
    "a checkpoint's step edited": "learning rate, rows and bias correction follow from the step",
    "a checkpoint renamed": "the name promises a step, by which the newest is chosen",
    "the run's tokenizer swapped": "new text would become other ids than the model learned",
    "tokens of another run": "the rows still to come would not be of this run's text",
    "a shard and its text edited": "rows would differ from those that the order promised, with nothing to restore them",
    "another checkpoint in its place": "it is whole and true, but of another run",
    "weights of another run": "they fit and their hashes agree: only what they compute tells",
    "two matrices swapped": "same shape, same values in all, another function",
    "two layers swapped": "same shape, same values in all, another function",
    "one row of the embedding zeroed": "a token is forgotten, and the loss hides it in a mean",
    "a norm off by a thousandth": "the least that a wrong conversion would do",
    "a setting changed on both sides": "the config agrees with itself, and the model is another",
    "the seed changed on both sides": "rows would be repeated and others never seen",
    "tokens shifted and vouched for": "every hash agrees, and the text is another",
}


@pytest.mark.parametrize("way", {**HASHED, **CERTIFIED})
def test_it_is_caught(place, way):
    """What `way` names was done to the run's folder: the run stops before its first update, for the reason in WHY."""
    tamper, says = {**HASHED, **CERTIFIED}[way]
    tamper(place)
    done = train(place, "--resume")
    assert done.returncode == 2, f"{WHY[way]}\n{done.stdout}"
    said = done.stdout + done.stderr
    assert says in said
    assert len(done.stderr.splitlines()) == 1
    assert ("certificate failed" in said) == (way in CERTIFIED)
    assert max(line["step"] for line in records(place / "run")) == 40


def test_what_was_not_tampered_with_goes_on(place):
    """Else the cases above would prove nothing: a copy in another place is still the same run."""
    done = train(place, "--resume")
    assert done.returncode == 0, done.stderr
    assert "certificate: the next micro-batch has the loss it had" in done.stdout


def test_without_the_certificate_it_goes_on_and_says_so(place):
    """Two layers swapped, every hash made to agree: the certificate alone stops it, and may be given up knowingly."""
    CERTIFIED["two layers swapped"][0](place)
    done = train(place, "--resume", "--no-certificate")
    assert done.returncode == 0, done.stderr
    assert "certificate: not checked; nothing shows that this is the run that was saved" in done.stdout


def test_verify_deep_reproduces_the_certificate(place):
    """One token's embedding zeroed, every hash made to agree: a backup would be kept that is not this model."""
    path = place / "run" / "checkpoints" / STEP
    done = sconce("checkpoint", "verify", path, "--deep", "--backend", "cpu")
    assert done.returncode == 0, done.stderr
    assert "certificate the next micro-batch has the loss it had" in done.stdout
    CERTIFIED["one row of the embedding zeroed"][0](place)
    assert sconce("checkpoint", "verify", path).returncode == 0, "no hash can tell"
    done = sconce("checkpoint", "verify", path, "--deep", "--backend", "cpu")
    assert done.returncode == 2
    assert "certificate failed" in done.stderr


def test_verify_deep_without_the_tokens_says_so(place):
    """The token shards are gone: with nothing to compare on, it must not say that all is well."""
    shutil.rmtree(place / "run" / "data")
    done = sconce("checkpoint", "verify", place / "run" / "checkpoints" / STEP, "--deep", "--backend", "cpu")
    assert done.returncode == 2
    assert "not the token shards this run trains on" in done.stderr


def test_a_refused_resume_leaves_the_shards_as_they_were(place):
    """A shard is damaged, the text another: what can still be looked at must not become other tokens."""
    shard = place / "run" / "data" / "train-00000.bin"
    shard_and_text_edited(place)
    before = shard.read_bytes()
    done = train(place, "--resume")
    assert done.returncode == 2
    assert "not the tokens this run was trained on" in done.stderr
    assert shard.read_bytes() == before
    assert sorted(path.name for path in (place / "run").iterdir() if path.name.startswith("data")) == ["data"]
