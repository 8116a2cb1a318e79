"""From text to a trained model in one folder: corpus, tokenizer, shards, config, training."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sconce.backend import Hardware
from sconce.config import RunConfig, config_from, dump_toml, load_config
from sconce.data.corpus import Corpus, train_documents
from sconce.data.reference import python_reference
from sconce.data.sources import list_sources
from sconce.errors import ConfigError
from sconce.files import sha256_file, write_atomic, write_json
from sconce.tokenizer.bpe import Tokenizer, VocabularyError, train_tokenizer
from sconce.training.job import start
from sconce.training.loop import Outcome, train
from sconce.training.metrics import Reporter
from sconce.training.run import RunFolder
from sconce.training.tokens import corpus_of

CLAIM = "orchestrate.json"  # which job the folder belongs to, and the config as this program wrote it
LOCAL_VOCAB_SIZE = 1024
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
    if job.inputs:
        list_sources(job.inputs)  # what is not there must not leave a run folder behind
    with folder.locked():
        config_path = folder.root / "training.toml"
        if _is_to_begin(job, folder, config_path):
            config = _begin(job, folder, config_path, reporter)
        else:
            config = load_config(config_path, job.overrides)
        return train(start(config, folder, hardware=hardware, resume=True, reporter=reporter))


def _is_to_begin(job: LocalJob, folder: RunFolder, config_path: Path) -> bool:
    """Whether the folder's tokenizer and config are still to be made, or made anew.

    What nobody trained with or edited may be made anew. Raises ConfigError when the folder holds what this job did
    not make.
    """
    claim_path = folder.root / CLAIM
    if not claim_path.exists():
        foreign = [name for name in ("training.toml", "tokenizer", "checkpoints") if (folder.root / name).exists()]
        if foreign:
            raise ConfigError(
                f"{folder.root}: holds {', '.join(foreign)}, not made by `sconce orchestrate`: choose another --run-dir"
            )
        return True
    claim = json.loads(claim_path.read_text(encoding="utf-8"))
    edited = config_path.exists() and sha256_file(config_path) != claim["training_toml"]
    if not edited and not any(folder.checkpoints.glob("*step-*")):
        return True
    differing = [
        f"{key} {value!r} now, {claim[key]!r} when it was made"
        for key, value in _request(job).items()
        if value not in ([], None) and value != claim[key]
    ]
    if differing:
        raise ConfigError(f"{folder.root}: made for another job ({'; '.join(differing)}): choose another --run-dir")
    return False


def _request(job: LocalJob) -> dict[str, object]:
    return {"inputs": [str(path.resolve()) for path in job.inputs], "vocab_size": job.vocab_size}


def _begin(job: LocalJob, folder: RunFolder, config_path: Path, reporter: Reporter) -> RunConfig:
    """Settle the config, train the tokenizer, write both down."""
    paths = job.inputs or (_write_reference(folder, reporter),)
    tokenizer_json = folder.root.resolve() / "tokenizer" / "tokenizer.json"
    preset = local_preset(paths, tokenizer_json, folder.root.resolve(), job.overrides)
    config = config_from(preset, "the local preset", job.overrides)
    write_json(folder.root / CLAIM, {**_request(job), "training_toml": None})
    if config.tokenizer.tokenizer_json == tokenizer_json:
        _train_tokenizer(job, corpus_of(config), tokenizer_json.parent, reporter)
    text = dump_toml(config, HEADER.format(path=shlex.quote(str(config_path))), folder.root)
    write_atomic(config_path, text)
    write_json(folder.root / CLAIM, {**_request(job), "training_toml": sha256_file(config_path)})
    return config


def local_preset(
    paths: Sequence[Path], tokenizer_json: Path, run_dir: Path, overrides: Sequence[str]
) -> dict[str, dict[str, object]]:
    """About a million parameters: readable text within a minute or two on two cores.

    What depends on an overridden key follows it: the warm-up the horizon, the last rate the first.
    """
    asked = dict(text.split("=", 1) for text in overrides if "=" in text)
    steps = asked.get("scheduler.total_steps", "600")
    shaped = "scheduler.strategy" in asked or "optimizer.learning_rate" in asked
    scheduler: dict[str, object] = {} if shaped else {"min_lr": 1e-4}
    if "scheduler.total_epochs" not in asked:
        scheduler |= {"total_steps": 600, "warmup_steps": min(30, int(steps) // 20) if steps.isdecimal() else 30}
    return {
        "model": {
            "hidden_size": 160,
            "num_layers": 3,
            "num_attention_heads": 5,
            "max_position_embeddings": 256,
        },
        "tokenizer": {"tokenizer_json": str(tokenizer_json)},
        "data": {"train_shards": [str(path.absolute()) for path in paths], "batch_size": 4},
        "optimizer": {"learning_rate": 2e-3},
        "scheduler": scheduler,
        "runtime": {
            "run_dir": str(run_dir),
            "checkpoint": {"every_n_steps": 150, "max_keep": 2},
            "evaluation": {"every_n_steps": 150},
            "sample": {"every_n_steps": 300},
        },
    }


def _write_reference(folder: RunFolder, reporter: Reporter) -> Path:
    """The default corpus as a file of the run's own."""
    path = folder.root / "corpus" / "python-language-reference.txt"
    if not path.exists():
        text = python_reference()
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, text)
        reporter.say(f"corpus: no --input given, so Python's own language reference, {len(text):,} characters")
    return path


def _train_tokenizer(job: LocalJob, corpus: Corpus, home: Path, reporter: Reporter) -> None:
    """The run's tokenizer, of the size asked for; without a wish, as near to the preset's as the text allows."""
    try:
        tokenizer = train_on_corpus(corpus, job.vocab_size or LOCAL_VOCAB_SIZE, home, TOKENIZER_BYTES)
    except VocabularyError as error:
        if job.vocab_size is not None:
            raise
        tokenizer = train_on_corpus(corpus, error.supported, home, TOKENIZER_BYTES)
    reporter.say(f"tokenizer: {tokenizer.vocab_size} tokens of byte-level BPE, trained on this text")


def train_on_corpus(corpus: Corpus, vocab_size: int, folder: Path, max_bytes: int) -> Tokenizer:
    """Train a tokenizer on what of the corpus is not held out, up to `max_bytes` of text."""
    sources: list[dict[str, object]] = [
        {"name": source.path.name, "bytes": source.size, "sha256": sha256_file(source.path)}
        for source in corpus.sources()
    ]
    return train_tokenizer(train_documents(corpus, max_bytes), vocab_size, folder, sources)
