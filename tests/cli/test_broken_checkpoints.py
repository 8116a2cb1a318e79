"""Checkpoints whose JSON files were edited, and their hashes made to agree: every command says so in one line."""

import json
import shutil

import pytest
from commands import checkpoints, edit, overrides, records, sign, write_corpus
from commands import sconce_here as sconce

STEPS = ("step-00000005", "step-00000010")
HUGE = 10**400


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of SGD with dropout, and two checkpoints."""
    home = tmp_path_factory.mktemp("broken")
    text = write_corpus(home / "corpus.txt", 300)
    assert (
        sconce("tokenizer", "train", "--input", text, "--out", home / "tokenizer", "--vocab-size", 300).returncode == 0
    )
    (home / "run.toml").write_text(
        'tokenizer.tokenizer_json = "tokenizer/tokenizer.json"\ndata.train_shards = ["corpus.txt"]\n'
        'optimizer.algorithm = "sgd"\nmodel.attn_dropout = 0.25\nmodel.residual_dropout = 0.125\n'
    )
    done = train(home)
    assert done.returncode == 0, done.stderr
    assert tuple(checkpoints(home / "run")) == STEPS
    return home


def train(place, *more):
    small = ("scheduler.total_steps=10", "runtime.checkpoint.every_n_steps=5", "runtime.checkpoint.max_keep=2")
    options = ("--run-dir", place / "run", "--backend", "cpu", *more)
    return sconce(
        "train", "-c", place / "run.toml", *options, *overrides(*small, "runtime.evaluation.every_n_steps=10")
    )


@pytest.fixture
def place(home, tmp_path):
    return shutil.copytree(home, tmp_path / "home")


def newest(place):
    return place / "run" / "checkpoints" / STEPS[-1]


def one_line(done):
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("sconce: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


BROKEN = {
    "cut short": '{"model": {',
    "a list": "[1, 2]",
    "a string": '"model"',
    "a number too long to read": '{"step": 1' + "0" * 5000 + "}",
    "half a character": '{"model": {"norm": "\\ud800"}}',
    "nested too deeply": '{"a":' * 3000 + "1" + "}" * 3000,
}
READERS = {
    "run.json": (
        ["checkpoint", "diff"],
        ["checkpoint", "inspect"],
        ["checkpoint", "verify", "--deep"],
        ["data", "show"],
    ),
    "config.json": (["checkpoint", "inspect"], ["checkpoint", "verify"], ["export"], ["generate"]),
    "manifest.json": (["checkpoint", "inspect"], ["checkpoint", "verify"], ["checkpoint", "diff"]),
}


def run(words, folder, place):
    more = {
        "diff": (place / "run" / "checkpoints" / STEPS[0],),
        "show": ("--step", 1),
        "export": ("--out", place / "out"),
        "generate": ("--max-tokens", 2, "--backend", "cpu"),
    }
    where = place / "run" if words[-1] == "show" else folder
    return sconce(*words, where, *more.get(words[-1], ()))


@pytest.mark.parametrize("way", BROKEN)
@pytest.mark.parametrize("name", READERS)
def test_broken_json_is_one_line(place, name, way):
    folder = newest(place)
    (folder / name).write_text(BROKEN[way])
    if name != "manifest.json":
        sign(folder)
    for words in READERS[name]:
        assert name in one_line(run(words, folder, place)), words
    assert not (place / "out").exists()
    if name == "run.json":
        assert name in one_line(train(place, "--resume"))


TYPES = {
    "step": HUGE,
    "tokens": "many",
    "best": [1, 2],
    "cursor": "here",
    "certificate": {"rows": [HUGE], "tokens_sha256": "", "loss": 1.0},
    "loss_scale": {"scale": 0, "clean_updates": 0},
    "precision": "fp64",
    "versions": [],
    "files": {"../../run.toml": {"bytes": 1, "sha256": "0" * 64}},
    "format": HUGE,
}


@pytest.mark.parametrize("key", TYPES)
def test_a_manifest_of_other_types_is_one_line(place, key):
    folder = newest(place)
    sign(folder, {key: TYPES[key]})
    for words in READERS["manifest.json"]:
        one_line(run(words, folder, place))
    listed = json.loads(sconce("checkpoint", "list", place / "run", "--json").stdout)
    assert [entry["fault"] is None for entry in listed] == [False, True]


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", HUGE), ("num_attention_heads", 0), ("num_hidden_layers", 2**31), ("rope_theta", HUGE)],
)
def test_absurd_sizes_in_config_json_are_one_line(place, key, value):
    folder = newest(place)
    edit(folder / "config.json", lambda fields: fields.update({key: value, "rope_parameters": None}))
    sign(folder)
    for words in (["checkpoint", "verify"], ["export"], ["generate"]):
        said = one_line(run(words, folder, place))
        assert f"config.json: {key} is" in said
        assert len(said) < 300
    assert key in sconce("checkpoint", "inspect", folder).stdout


def test_inspect_shows_the_dropout_of_the_run(home):
    model = json.loads(sconce("checkpoint", "inspect", home / "run", "--json").stdout)["model"]
    assert (model["attn_dropout"], model["residual_dropout"]) == (0.25, 0.125)


def test_a_plain_file_named_like_a_checkpoint_is_none(place):
    (place / "run" / "checkpoints" / "step-00000099").write_text("")
    listed = json.loads(sconce("checkpoint", "list", place / "run", "--json").stdout)
    assert [entry["step"] for entry in listed] == [10, 5]


def test_a_run_that_is_no_adam_is_verified_deeply(home):
    done = sconce("checkpoint", "verify", home / "run", "--deep", "--backend", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("certificate the next micro-batch has the loss it had") == 2
    assert "sgd_m" in done.stdout


def test_verify_deep_goes_on_after_a_fault(place):
    (newest(place) / "tokenizer.json").write_text("[]")
    sign(newest(place))
    done = sconce("checkpoint", "verify", place / "run", "--deep", "--backend", "cpu", "--json")
    assert "1 of 2 checkpoints not intact: step-00000010" in one_line(done)
    damaged, intact = map(json.loads, done.stdout.splitlines())
    assert (damaged["intact"], intact["intact"]) == (False, True)


def test_verify_deep_reads_the_token_shards(place):
    path = place / "run" / "data" / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = sconce("checkpoint", "verify", newest(place), "--deep", "--backend", "cpu")
    assert "train-00000.bin: damaged, its content does not match its sha256" in one_line(done)
    assert "taken at their sizes" in sconce("data", "show", place / "run", "--step", 1).stdout


def test_verify_deep_does_not_call_intact_what_it_did_not_compare(place):
    sign(newest(place), {"certificate": None})
    assert sconce("checkpoint", "verify", newest(place)).returncode == 0
    done = sconce("checkpoint", "verify", newest(place), "--deep", "--backend", "cpu")
    assert "certificate not compared" in one_line(done)
    assert done.stdout.splitlines()[-1] == "  files intact, NOT COMPARED with the run that wrote them"


def test_data_show_says_where_the_run_ends(home):
    assert "ends at step" not in sconce("data", "show", home / "run", "--step", 10).stdout
    assert "note: the run ends at step 10:" in sconce("data", "show", home / "run", "--step", 11).stdout
    assert "expected at most" in one_line(sconce("data", "show", home / "run", "--step", 10**30))


def test_nothing_of_a_damaged_checkpoint_trains_on(place):
    sign(newest(place), {"tokens": "many"})
    done = train(place, "--resume")
    assert done.returncode == 0, done.stderr
    assert "damaged checkpoint set aside" in done.stdout
    assert "resuming from step-00000005" in done.stdout
    assert max(record["step"] for record in records(place / "run")) == 10
