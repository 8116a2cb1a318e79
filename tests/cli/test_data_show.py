"""`sconce data show` as a user types it: before a run, after it, and from its folder alone."""

import json
import shutil

import pytest
import tokenizers
from commands import overrides, sconce_here, write_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("show")
    corpus = write_corpus(root / "corpus.txt", lines=300)
    options = ["--run-dir", root / "run", "--vocab-size", 300, "--backend", "cpu"]
    done = sconce_here("orchestrate", "--input", corpus, *options, *overrides("scheduler.total_steps=5"))
    assert done.returncode == 0, done.stderr
    return root / "run"


def answer(*arguments):
    done = sconce_here("data", "show", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def without_place(shown):
    return {key: value for key, value in shown.items() if key != "shards"}


def test_before_a_run_and_from_its_folder_it_is_the_same(run, tmp_path):
    config = [run / "training.toml", "--run-dir", tmp_path / "new"]
    before = answer(*config, "--step", 400)  # far beyond the end, of a run that has not begun
    assert before["shards"] == str(tmp_path / "new" / "data")
    assert not (tmp_path / "new" / "checkpoints").exists()
    alone = shutil.copytree(run, tmp_path / "alone", ignore=shutil.ignore_patterns("corpus*", "training.toml"))
    after = answer(alone, "--step", 400)
    assert without_place(after) == without_place(before)
    bpe = tokenizers.Tokenizer.from_file(str(run / "tokenizer/tokenizer.json"))
    corpus = (run.parent / "corpus.txt").read_text()
    for row in after["rows"]:
        tokens = [token for piece in row["pieces"] for token in piece["tokens"]]
        assert len(tokens) == after["sequence_length"] + 1
        for piece in row["pieces"]:
            assert piece["text"] == bpe.decode(piece["tokens"])  # without the EOS
            assert piece["text"] in corpus


def test_an_override_holds_as_in_train(run, tmp_path):
    config = [run / "training.toml", "--run-dir", tmp_path / "new", "--step", 1]
    other = answer(*config, "--override", "runtime.seed=5", "--override", "data.batch_size=2")
    assert len(other["row_ids"]) == 2
    assert other["row_ids"] != answer(*config)["row_ids"][:2]


def test_for_people(run):
    shown = answer(run, "--step", 3)
    done = sconce_here("data", "show", run, "--step", 3, "--tokens")
    assert done.returncode == 0, done.stderr
    assert f"row ids: {', '.join(map(str, shown['row_ids']))}" in done.stdout
    for row in shown["rows"]:
        assert f"[{row['position']}] row {row['row']}, epoch 0\n" in done.stdout
        for piece in row["pieces"]:
            end = piece["start"] + len(piece["tokens"]) - 1
            assert f"document {piece['document']:,} from " in done.stdout
            assert f": tokens {piece['start']:,} to {end:,}\n" in done.stdout
            assert "".join(f"    | {line}\n" for line in piece["text"].split("\n") if piece["text"]) in done.stdout
            assert "    ids " + " ".join(map(str, piece["tokens"])) in done.stdout
    ends = sum(piece["ends"] for row in shown["rows"] for piece in row["pieces"])
    assert done.stdout.count("= end of document") == ends
    one = sconce_here("data", "show", run, "--step", 3, "--row", 2)
    assert "[2] row" in one.stdout
    assert "[1] row" not in one.stdout
    assert "ids 0" not in one.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "0"], "--step 0: expected 1 or more"),
        (["--step", "1", "--row", "4"], "--row 4: expected 0 to 3"),
        (["--step", "1", "--override", "runtime.seed=1"], "go with a config file"),
    ],
)
def test_a_mistake_is_one_line(run, options, message):
    done = sconce_here("data", "show", run, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_shards_is_one_line(run, tmp_path):
    bare = shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("data"))
    for place in (bare, tmp_path):
        done = sconce_here("data", "show", place, "--step", 1)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


def test_control_characters_do_not_reach_the_terminal(tmp_path, run):
    text = "".join(f"colour \x1b[31m number {number}\n\n" for number in range(200))
    (tmp_path / "text.txt").write_text(text)
    place = ["--run-dir", tmp_path / "run", "--override", f"data.train_shards={tmp_path / 'text.txt'}"]
    options = ["--override", "data.document=line", "--step", 1]
    done = sconce_here("data", "show", run / "training.toml", *place, *options)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\\x1b[31m" in done.stdout
