"""From text to a trained model in one folder: corpus, tokenizer, shards, config, training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sconce.backend import Hardware
from sconce.config import RunConfig, dump_toml, load_config
from sconce.data.corpus import Corpus, train_documents
from sconce.data.reference import python_reference
from sconce.data.sources import list_sources
from sconce.errors import ConfigError
from sconce.files import sha256_file, write_atomic, write_json
from sconce.tokenizer.bpe import Tokenizer, VocabularyError, train_tokenizer
from sconce.training.loop import Outcome, train
from sconce.training.metrics import Reporter
from sconce.training.run import RunFolder, open_run

CLAIM = "orchestrate.json"  # which job the folder belongs to, from when its training begins
LOCAL_VOCAB_SIZE = 1024
VALIDATION_FRACTION = 0.05
TOKENIZER_BYTES = 2**29  # of text is plenty for a vocabulary, and bounds the time on a large corpus

HEADER = """\
# Written by `sconce orchestrate`. Go on with this run, or change what may change, with
#   sconce train --config {path} --resume
# Every key is explained in docs/configuration.md (`sconce config docs`). Paths are relative to this file.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalJob:
    """What the user asked for. No inputs: the language reference inside CPython. No vocab_size: 1024, or less
    where the text supports less."""

    inputs: tuple[Path, ...] = ()
    vocab_size: int | None = None
    overrides: tuple[str, ...] = ()


def orchestrate_local(job: LocalJob, folder: RunFolder, *, hardware: Hardware, reporter: Reporter) -> Outcome:
    """Do whatever of the job is not done yet; a second call goes on, or finds it finished.

    Raises ConfigError when the folder belongs to another job.
    """
    with folder.locked():
        begun = _has_begun(job, folder)
        paths = job.inputs or (_write_reference(folder, reporter),)
        config_path = folder.root / "training.toml"
        if not begun:
            tokenizer = _train_tokenizer(job, paths, folder, reporter)
            _write_config(config_path, local_config(paths, tokenizer), folder)
        config = load_config(config_path, job.overrides)
        run = open_run(config, folder, hardware=hardware, resume=True, reporter=reporter)
        write_json(folder.root / CLAIM, _claim(job))
        return train(run)


def local_config(paths: Sequence[Path], tokenizer: Tokenizer) -> RunConfig:
    """The local preset: about a million parameters, readable text within a minute or two on two cores."""
    return RunConfig.model_validate(
        {
            "model": {
                "hidden_size": 160,
                "num_layers": 3,
                "num_attention_heads": 5,
                "num_key_value_heads": 5,
                "max_position_embeddings": 256,
            },
            "tokenizer": {"tokenizer_json": tokenizer.path},
            "data": {
                "train_shards": tuple(path.resolve() for path in paths),
                "validation_fraction": VALIDATION_FRACTION,
                "batch_size": 4,
            },
            "optimizer": {"learning_rate": 2e-3},
            "scheduler": {"total_steps": 600, "warmup_steps": 30, "min_lr": 1e-4},
            "runtime": {
                "checkpoint": {"every_n_steps": 150, "max_keep": 2},
                "evaluation": {"every_n_steps": 150},
                "sample": {"every_n_steps": 300},
            },
        }
    )


def _claim(job: LocalJob) -> dict[str, object]:
    return {"inputs": [str(path.resolve()) for path in job.inputs], "vocab_size": job.vocab_size}


def _has_begun(job: LocalJob, folder: RunFolder) -> bool:
    """Whether this job reached its training in this folder before. ConfigError if another one did."""
    path = folder.root / CLAIM
    if not path.exists():
        return False
    made_for = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        f"{key} {value!r} now, {made_for.get(key)!r} when it was made"
        for key, value in _claim(job).items()
        if value not in ([], None) and value != made_for.get(key)
    ]
    if differing:
        raise ConfigError(f"{folder.root}: made for another job ({'; '.join(differing)}): choose another --run-dir")
    return True


def _write_config(path: Path, config: RunConfig, folder: RunFolder) -> None:
    """Write training.toml, but never over one that a person wrote."""
    header = HEADER.format(path=path)
    if path.exists() and not path.read_text(encoding="utf-8").startswith(HEADER.partition("\n")[0]):
        raise ConfigError(f"{path}: already there, and not from `sconce orchestrate`: choose another --run-dir")
    write_atomic(path, dump_toml(config, header, folder.root))


def _write_reference(folder: RunFolder, reporter: Reporter) -> Path:
    """The default corpus as a file of the run's own."""
    path = folder.root / "corpus" / "python-language-reference.txt"
    if not path.exists():
        text = python_reference()
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, text)
        reporter.say(f"corpus: no --input given, so Python's own language reference, {len(text):,} characters")
    return path


def _train_tokenizer(job: LocalJob, paths: Sequence[Path], folder: RunFolder, reporter: Reporter) -> Tokenizer:
    """The run's tokenizer, of the size asked for; without a wish, as near to the preset's as the text allows."""
    home = folder.root / "tokenizer"
    try:
        tokenizer = train_on_files(paths, job.vocab_size or LOCAL_VOCAB_SIZE, home, TOKENIZER_BYTES)
    except VocabularyError as error:
        if job.vocab_size is not None:
            raise
        tokenizer = train_on_files(paths, error.supported, home, TOKENIZER_BYTES)
    reporter.say(f"tokenizer: {tokenizer.vocab_size} tokens of byte-level BPE, trained on this text")
    return tokenizer


def train_on_files(paths: Sequence[Path], vocab_size: int, folder: Path, max_bytes: int) -> Tokenizer:
    """Train a tokenizer on what of these files is not held out, up to `max_bytes` of text."""
    corpus = Corpus(paths=tuple(paths), validation_fraction=VALIDATION_FRACTION)
    sources: list[dict[str, object]] = [
        {"name": source.path.name, "bytes": source.size, "sha256": sha256_file(source.path)}
        for source in list_sources(paths)
    ]
    return train_tokenizer(train_documents(corpus, max_bytes), vocab_size, folder, sources)
