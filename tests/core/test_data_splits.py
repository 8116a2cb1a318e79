"""Which files of a folder are trained on: what `datasets` takes for the training split, and never what is held out."""

import json
import sys
from pathlib import PurePath

import pytest

from sconce.data.discover import find_files
from sconce.data.splits import without_held_out
from sconce.errors import DataError

LAYOUTS = [
    ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
    ["default/train/0000.jsonl", "default/test/0000.jsonl", "de/train/0000.jsonl", "de/partial-test/0000.jsonl"],
    ["train.jsonl", "validation.jsonl", "test.jsonl"],
    ["my_training_set.jsonl", "my_eval_set.jsonl", "x-testing 2.jsonl", "evaluation.jsonl"],
    ["train/0.jsonl", "dev/0.jsonl", "val.1/0.jsonl", "test_2/deep/0.jsonl"],
    ["train/dev-1.jsonl", "test/train-1.jsonl"],  # the folder decides
    ["train1.jsonl", "test1.jsonl"],
    ["contest.jsonl", "devices.jsonl", "trainer.jsonl"],  # words of no split
]
CARD = """---
license: mit
configs:
- config_name: en
  data_files:
  - {split: train, path: text/a*}
  - {split: test, path: text/z.jsonl}
- config_name: de
  data_files: german/**
- config_name: absent
  data_files: [elsewhere/*]
---
Of two languages.
"""


def write(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) + "\n")


def found(folder):
    return sorted(path.relative_to(folder).as_posix() for path in find_files([folder]))


@pytest.fixture
def by_datasets(monkeypatch, tmp_path):
    """What `datasets` takes for the training files of a folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.delitem(sys.modules, "torch")  # which it imports where it seems to be imported already
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / ".cache"))

    def train(folder):
        files = datasets.load_dataset_builder(str(folder)).config.data_files["train"]
        return sorted(PurePath(file).relative_to(folder).as_posix() for file in files)

    return train


@pytest.mark.parametrize("names", LAYOUTS)
def test_the_training_split_is_what_datasets_takes_for_it(tmp_path, names, by_datasets):
    write(tmp_path, names)
    assert found(tmp_path) == by_datasets(tmp_path)


def test_the_folder_that_is_named_does_not_count(tmp_path):
    write(tmp_path, ["test/train/0.jsonl", "test/test/0.jsonl"])
    assert found(tmp_path / "test") == ["train/0.jsonl"]
    assert found(tmp_path / "test" / "test") == ["0.jsonl"]  # without a training split every file is meant


def test_records_of_no_split_are_kept(tmp_path):
    write(tmp_path, ["train/0.jsonl", "more/books.jsonl", "test/0.jsonl"])
    assert found(tmp_path) == ["more/books.jsonl", "train/0.jsonl"]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["train.txt", "test.txt", "valid.txt.gz", "notes.txt"], ["notes.txt", "train.txt"]),
        (
            ["train/train-00000.txt", "validation/validation-00000.txt"],
            ["train/train-00000.txt"],
        ),  # as data shard writes
        (["en/train.txt", "en/dev.txt", "de/train.txt", "de/dev.txt"], ["de/train.txt", "en/train.txt"]),
        (["train.txt", "sub/test.txt"], None),  # not beside each other
        (["train.txt", "eye-test.txt", "test drive.txt"], None),  # what a text is about
        (["test.txt", "other.txt"], None),
        (["trains/a.txt", "tests/b.txt"], None),
    ],
)
def test_running_text_needs_the_very_names(names, kept):
    paths = [PurePath(name) for name in sorted(names)]
    assert [path.as_posix() for path in without_held_out(paths)] == (sorted(names) if kept is None else kept)


def test_configurations_of_a_card_are_not_mixed(tmp_path):
    write(tmp_path, ["text/a.jsonl", "text/z.jsonl", "german/deep/b.jsonl", "other.jsonl"])
    (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(
        DataError, match=r"tells apart the configurations en, de: name .*, such as .*/text/a\*"
    ) as raised:
        find_files([tmp_path])
    assert "\n" not in str(raised.value)
    named = str(raised.value).split('"')[1]
    assert [path.name for path in find_files([tmp_path / named])] == ["a.jsonl"]
    assert found(tmp_path / "german") == ["deep/b.jsonl"]


@pytest.mark.parametrize("mark", ["config_name: default", "config_name: en\n  default: true"])
def test_the_default_configuration_is_taken(tmp_path, mark, by_datasets):
    write(tmp_path, ["text/a.jsonl", "text/z.jsonl", "german/deep/b.jsonl", "elsewhere/c.jsonl"])
    (tmp_path / "README.md").write_text(CARD.replace("config_name: en", mark))
    assert found(tmp_path) == by_datasets(tmp_path) == ["text/a.jsonl"]


def test_the_only_configuration_that_is_here_is_taken(tmp_path):
    write(tmp_path, ["text/abc.jsonl", "text/z.jsonl"])
    (tmp_path / "README.md").write_text(CARD)
    assert found(tmp_path) == ["text/abc.jsonl"]


def test_configurations_that_are_folders(tmp_path, by_datasets):
    write(tmp_path, ["de/train/0.jsonl", "de/test/0.jsonl", "fr/train/0.jsonl"])
    configs = "- {config_name: de, data_dir: de}\n- {config_name: fr, data_dir: fr, default: true}\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert found(tmp_path) == by_datasets(tmp_path) == ["fr/train/0.jsonl"]
    (tmp_path / "fr" / "train" / "0.jsonl").unlink()
    assert found(tmp_path) == ["de/train/0.jsonl"]


@pytest.mark.parametrize(
    "card", ["no head", "---\nconfigs: 3\n---\n", "---\n: [\n---\n", "---\nconfigs: [a, b]\n---\n", "---\n"]
)
def test_a_card_that_says_nothing(tmp_path, card):
    write(tmp_path, ["a.jsonl", "b/c.jsonl"])
    (tmp_path / "README.md").write_text(card)
    assert found(tmp_path) == ["a.jsonl", "b/c.jsonl"]
