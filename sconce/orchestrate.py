"""From text to a trained model in one folder: corpus, tokenizer, shards, config, training."""

import json
import math
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sconce.backend import Hardware
from sconce.config import WITHOUT_MIN_LR, RunConfig, config_from, dump_toml, load_config, preset_table
from sconce.data.corpus import Corpus, train_documents
from sconce.data.prepare import is_current
from sconce.data.reference import python_reference
from sconce.data.shards import MANIFEST
from sconce.data.sources import list_sources
from sconce.errors import ConfigError, DataError
from sconce.files import sha256_file, write_atomic, write_json
from sconce.hub_address import SCHEME, absolute, is_hub, spelled
from sconce.tokenizer.bpe import Tokenizer, VocabularyError, load_tokenizer, train_tokenizer
from sconce.training.job import start
from sconce.training.loop import Outcome, train
from sconce.training.metrics import Reporter
from sconce.training.recipe import attention_kind
from sconce.training.run import RunFolder
from sconce.training.tokens import corpus_of, shards_folder

CLAIM = "orchestrate.json"  # which job the folder belongs to, and the config as this program wrote it
DEFAULT_PROFILE = "local_smoke"
TOKENIZER_BYTES = 2**29  # of text is plenty for a vocabulary, and bounds the time on a large corpus
STREAM_TOKENIZER_BYTES = 2**27  # of text that has to come over the network first

# What a flag says, from which more follows than the key: what is read, made and kept where.
_BY_FLAG = {
    "tokenizer.tokenizer_json": "--tokenizer-json",
    "data.train_shards": "--input",
    "data.validation_shards": "--validation",
}
_RUN_FOLDER = ("runtime.run_dir", "runtime.checkpoint.directory")

HEADER = """\
# Written by `sconce orchestrate`. Go on with this run, or change what may change, with
#   sconce train --config {path} --resume
# Every key is explained in docs/configuration.md (`sconce config docs`). Paths are relative to this file.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalJob:
    """What the user asked for. No inputs: the preset's stream, or the language reference inside CPython.
    No validation: documents held out by their hash. No vocab_size: the preset's, or less where the text supports less.

    `tokenizer` and `shards` say what becomes of those in the run folder: train and build says make them, anew where
    nobody trained with them, reuse insists on them, and remake replaces them. `shared_tokenizer` is a tokenizer.json
    outside the run folder: taken where the run has none to keep, and written when one is trained; it learns from
    `tokenizer_bytes` of the text, less from a stream unless said, and from whole documents up to `tokenizer_lines`
    lines. `cache_dir` is data.cache_dir. `folder_flag` is how the user names the run folder.
    """

    inputs: tuple[Path, ...] = ()
    validation: tuple[Path, ...] = ()
    profile: str | None = None
    vocab_size: int | None = None
    tokenizer_json: Path | None = None
    tokenizer: Literal["train", "reuse", "remake"] = "train"
    tokenizer_bytes: int | None = None
    tokenizer_lines: int | None = None
    shared_tokenizer: Path | None = None
    shards: Literal["build", "reuse", "remake"] = "build"
    cache_dir: Path | None = None
    resume: bool = True
    overrides: tuple[str, ...] = ()
    folder_flag: Literal["--run-dir", "--experiment"] = "--run-dir"


def orchestrate_local(job: LocalJob, folder: RunFolder, *, hardware: Hardware, reporter: Reporter) -> Outcome:
    """Do whatever of the job is not done yet; a second call goes on, or finds it finished.

    Raises ConfigError when the folder belongs to another job, or there is something that the job must not replace,
    and DataError when what it is to reuse is not there.
    """
    resolve_job(job, folder)  # what is wrong with it must not leave a run folder behind
    with folder.locked():
        return run_job(job, folder, hardware=hardware, reporter=reporter)


def run_job(job: LocalJob, folder: RunFolder, *, hardware: Hardware, reporter: Reporter) -> Outcome:
    """`orchestrate_local` in a folder that is locked, of a job that `resolve_job` has found nothing wrong with."""
    config_path = folder.root / "training.toml"
    if _is_to_begin(job, folder, config_path):
        config = _begin(job, folder, config_path, reporter)
    else:
        config = load_config(config_path, job.overrides)
    if job.shards != "build":
        _settle_shards(job, config, folder)
    return train(start(config, folder, hardware=hardware, resume=job.resume, reporter=reporter))


def resolve_job(job: LocalJob, folder: RunFolder) -> RunConfig:
    """The config that the job comes to, with nothing written. Raises as `orchestrate_local` does."""
    _check_overrides(job)
    _check_tokenizer(job, folder)
    config_path = folder.root / "training.toml"
    if folder.has_begun and job.tokenizer == "remake":
        raise ConfigError(
            f"{folder.root}: its checkpoints were trained with its tokenizer, which can therefore not be made anew: "
            f"choose another {job.folder_flag}"
        )
    if folder.has_begun and not job.resume:
        raise ConfigError(
            f"{folder.root}: already holds a run: leave out --no-resume, or choose another {job.folder_flag}"
        )
    if not _is_to_begin(job, folder, config_path):
        return _checked(job, load_config(config_path, job.overrides))
    if job.tokenizer == "reuse" and not _own_tokenizer(folder).is_file() and _shared_tokenizer(job) is None:
        raise DataError(
            f"--skip-tokenizer: {_own_tokenizer(folder)} is not there: leave the flag out to train one, or give "
            "--tokenizer-json"
        )
    source = f"the preset {job.profile or DEFAULT_PROFILE}"
    config = _checked(job, config_from(_tables(job, folder), source, job.overrides))
    list_sources((*job.inputs, *job.validation))  # last: what is on the hub takes a while
    return config


def _check_overrides(job: LocalJob) -> None:
    """Raise ConfigError for a key that a flag is for, and that may contradict what else the flag does."""
    for text in job.overrides:
        key = text.partition("=")[0].partition("[")[0].strip()
        flag = job.folder_flag if key in _RUN_FOLDER else _BY_FLAG.get(key)
        if flag is not None:
            raise ConfigError(f"--override: {key}: give it to `sconce orchestrate` as {flag}")


def _check_tokenizer(job: LocalJob, folder: RunFolder) -> None:
    """Raise ConfigError for what is said of training a tokenizer beside one that is given or kept."""
    if job.tokenizer_json is not None:
        if job.tokenizer != "train" or job.vocab_size is not None:
            raise ConfigError("--tokenizer-json: a tokenizer that is given is neither trained nor of another size")
        load_tokenizer(job.tokenizer_json)
    elif job.tokenizer != "reuse":
        return
    instead = "--skip-tokenizer" if job.tokenizer_json is None else "--tokenizer-json"
    for flag, value in (("--tokenizer-max-bytes", job.tokenizer_bytes), ("--tokenizer-max-lines", job.tokenizer_lines)):
        if value is not None:
            raise ConfigError(f"{flag}: would do nothing with {instead}, which trains no tokenizer: leave one out")
    own = _own_tokenizer(folder)
    if job.tokenizer == "reuse" and job.vocab_size is not None and own.is_file():
        _check_size(job.vocab_size, own, "leave out --skip-tokenizer to train another")


def _check_size(asked: int | None, path: Path, remedy: str) -> None:
    size = load_tokenizer(path).vocab_size
    if asked not in (None, size):
        raise ConfigError(f"--vocab-size: found {asked}, and {path} has {size} tokens: leave the flag out, or {remedy}")


def _checked(job: LocalJob, config: RunConfig) -> RunConfig:
    """The config, unless there is nothing of it that the job's flags for token shards are about, or the environment
    contradicts it."""
    attention_kind(config)
    if config.data.streaming and job.shards != "build":
        flag = "--reuse-shards" if job.shards == "reuse" else "--force-reshard"
        raise ConfigError(
            f"{flag}: a stream's windows are reused where they are intact, and never all here: leave it out"
        )
    return config


def _own_tokenizer(folder: RunFolder) -> Path:
    return folder.root.resolve() / "tokenizer" / "tokenizer.json"


def _shared_tokenizer(job: LocalJob) -> Path | None:
    """The tokenizer that other runs share with this one, if there is one and it is not to be made anew.

    Raises ConfigError when it is of another size than the one asked for.
    """
    shared = job.shared_tokenizer
    if shared is None or not shared.is_file() or job.tokenizer == "remake":
        return None
    _check_size(job.vocab_size, shared, "give --force-retrain-tokenizer")
    return shared


def _settle_shards(job: LocalJob, config: RunConfig, folder: RunFolder) -> None:
    """Insist on the token shards that are there, or have them made anew."""
    assert config.tokenizer.tokenizer_json is not None, "load_config asks for it"
    tokenizer, corpus = load_tokenizer(config.tokenizer.tokenizer_json), corpus_of(config)
    place = shards_folder(config, folder.root, tokenizer)
    current = is_current(corpus, tokenizer, place)
    if job.shards == "reuse" and not current:
        raise DataError(
            f"--reuse-shards: {place}: no token shards of this text and tokenizer: leave the flag out to build them"
        )
    if job.shards == "remake":
        corpus.check()
        if not current and folder.has_begun:
            raise DataError(f"--force-reshard: {place}: holds what this run was trained on, and the text has changed")
        (place / MANIFEST).unlink(missing_ok=True)  # without it they are of no corpus


def _is_to_begin(job: LocalJob, folder: RunFolder, config_path: Path) -> bool:
    """Whether the folder's tokenizer and config are still to be made, or made anew.

    What nobody trained with or edited may be made anew. Raises ConfigError when the folder holds what this job did
    not make.
    """
    claim_path = folder.root / CLAIM
    if not claim_path.exists():
        kept = () if job.tokenizer == "reuse" else ("tokenizer",)
        foreign = [name for name in ("training.toml", *kept, "checkpoints") if (folder.root / name).exists()]
        if foreign:
            may_keep = foreign == ["tokenizer"] and job.tokenizer == "train" and job.tokenizer_json is None
            keep = "give --skip-tokenizer to keep it, or " if may_keep else ""
            raise ConfigError(
                f"{folder.root}: holds {', '.join(foreign)}, not made by `sconce orchestrate`: {keep}choose another "
                f"{job.folder_flag}"
            )
        return True
    claim = json.loads(claim_path.read_text(encoding="utf-8"))
    edited = config_path.exists() and sha256_file(config_path) != claim["training_toml"]
    if not edited and not folder.has_begun:
        return True
    differing = [
        f"{key} {value!r} now, {claim.get(key)!r} when it was made"
        for key, value in _request(job).items()
        if value not in ([], None) and value != claim.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{folder.root}: made for another job ({'; '.join(differing)}): choose another {job.folder_flag}"
        )
    return False


def _request(job: LocalJob) -> dict[str, object]:
    return {
        "inputs": [spelled(path if is_hub(path) else path.resolve()) for path in job.inputs],
        "validation": [spelled(path if is_hub(path) else path.resolve()) for path in job.validation],
        "profile": job.profile,
        "vocab_size": job.vocab_size,
        "tokenizer_json": None if job.tokenizer_json is None else str(job.tokenizer_json.resolve()),
    }


def _begin(job: LocalJob, folder: RunFolder, config_path: Path, reporter: Reporter) -> RunConfig:
    """Settle the config, make the tokenizer, write both down."""
    if _is_of_reference(job):
        _write_reference(folder, reporter)
    config = resolve_job(job, folder)
    write_json(folder.root / CLAIM, {**_request(job), "training_toml": None})
    own = _own_tokenizer(folder)
    if config.tokenizer.tokenizer_json == own:
        _settle_tokenizer(job, corpus_of(config), own, reporter)
    text = dump_toml(config, HEADER.format(path=shlex.quote(str(config_path))), folder.root)
    write_atomic(config_path, text)
    write_json(folder.root / CLAIM, {**_request(job), "training_toml": sha256_file(config_path)})
    return config


def _tables(job: LocalJob, folder: RunFolder) -> dict[str, Any]:
    """The preset with the job's paths. Its vocab_size is that of a tokenizer to train, not of the embedding."""
    table = preset_table(job.profile or DEFAULT_PROFILE)
    paths = (_reference_path(folder),) if _is_of_reference(job) else job.inputs
    table["model"].pop("vocab_size", None)
    table["tokenizer"]["tokenizer_json"] = str(_own_tokenizer(folder))
    if paths:
        table["data"]["train_shards"] = [spelled(absolute(path)) for path in paths]
    table["data"]["validation_shards"] = [spelled(absolute(path)) for path in job.validation]
    table["runtime"]["run_dir"] = str(folder.root.resolve())
    if job.cache_dir is not None:
        table["data"]["cache_dir"] = str(job.cache_dir.absolute())
    _follow(table, dict(text.split("=", 1) for text in job.overrides if "=" in text))
    return table


def _follow(table: dict[str, Any], asked: dict[str, str]) -> None:
    """Let what depends on an overridden key go with it.

    The warm-up goes with the horizon, the last rate with the first, of which it stays the same share. Key and value
    heads, the decay of a schedule, and the last rate where a strategy has none, are left to their defaults.
    """
    model, scheduler = table["model"], table["scheduler"]
    if "model.num_attention_heads" in asked:
        model.pop("num_key_value_heads", None)
    if asked.get("scheduler.strategy", "").strip() in WITHOUT_MIN_LR:
        scheduler.pop("min_lr", None)
    peak = _rate(asked.get("optimizer.learning_rate", ""))
    if peak is not None and "min_lr" in scheduler:
        share = scheduler["min_lr"] / table["optimizer"]["learning_rate"]
        scheduler["min_lr"] = float(f"{peak * share:.6g}")  # 5e-05, where the product is 5.0000000000000004e-05
    if "scheduler.total_epochs" in asked:
        scheduler.pop("total_steps", None)
        scheduler.pop("warmup_steps", None)
    if {"scheduler.strategy", "scheduler.total_steps", "scheduler.total_epochs", "scheduler.warmup_steps"} & {*asked}:
        scheduler.pop("decay_steps", None)
    steps = asked.get("scheduler.total_steps", "")
    if steps.isdecimal() and "warmup_steps" in scheduler:
        scheduler["warmup_steps"] = min(scheduler["warmup_steps"], int(steps) // 20)


def _rate(text: str) -> float | None:
    """The rate that an override's value is; None where it cannot be one, which is reported elsewhere."""
    try:
        rate = float(text)
    except ValueError:
        return None
    return rate if 0 < rate < math.inf else None


def _is_of_reference(job: LocalJob) -> bool:
    """Whether nobody says what to learn from, not even a preset that streams."""
    return not job.inputs and not is_streamed(job)


def is_streamed(job: LocalJob) -> bool:
    """Whether the job asks for data.streaming, by an override or by its preset."""
    asked = [text.partition("=")[2] for text in job.overrides if text.partition("=")[0].strip() == "data.streaming"]
    if asked:
        return asked[-1].strip().lower() == "true"
    return bool(preset_table(job.profile or DEFAULT_PROFILE)["data"].get("streaming", False))


def _reference_path(folder: RunFolder) -> Path:
    return folder.root / "corpus" / "python-language-reference.txt"


def _write_reference(folder: RunFolder, reporter: Reporter) -> None:
    """The default corpus as a file of the run's own."""
    path = _reference_path(folder)
    if not path.exists():
        text = python_reference()
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, text)
        reporter.say(f"corpus: no --input given, so Python's own language reference, {len(text):,} characters")


def planned_vocab_size(job: LocalJob, folder: RunFolder) -> int:
    """Tokens of the job's tokenizer: of the one that is there or given, else of the one to train, at the most."""
    given = job.tokenizer_json or _shared_tokenizer(job)
    if given is not None or (job.tokenizer == "reuse" and _own_tokenizer(folder).is_file()):
        return load_tokenizer(given or _own_tokenizer(folder)).vocab_size
    if job.vocab_size is not None:
        return job.vocab_size
    return int(preset_table(job.profile or DEFAULT_PROFILE)["model"]["vocab_size"])


def _settle_tokenizer(job: LocalJob, corpus: Corpus, path: Path, reporter: Reporter) -> None:
    """The run's tokenizer at `path`: the one given, the one there, the shared one, or one that is trained."""
    keeps_own = job.tokenizer == "reuse" and path.is_file()
    given = job.tokenizer_json or (None if keeps_own else _shared_tokenizer(job))
    if given is not None:
        reporter.say(f"tokenizer: {_copy_tokenizer(given, path).vocab_size} tokens, copied from {given}")
    elif keeps_own:
        reporter.say(f"tokenizer: {load_tokenizer(path).vocab_size} tokens, as it was in {path.parent}")
    else:
        tokenizer = _train_tokenizer(job, corpus, path)
        reporter.say(f"tokenizer: {tokenizer.vocab_size} tokens of byte-level BPE, trained on this text")
    if job.shared_tokenizer is not None and given != job.shared_tokenizer:
        _copy_tokenizer(path, job.shared_tokenizer)


def _train_tokenizer(job: LocalJob, corpus: Corpus, path: Path) -> Tokenizer:
    """Of the size asked for; without a wish, as near to the preset's as the text allows."""
    size = planned_vocab_size(job, RunFolder(path.parents[1]))
    limit = job.tokenizer_bytes or (STREAM_TOKENIZER_BYTES if is_streamed(job) else TOKENIZER_BYTES)
    return train_on_corpus(corpus, size, path.parent, limit, job.tokenizer_lines, or_fewer=job.vocab_size is None)


def _copy_tokenizer(source: Path, target: Path) -> Tokenizer:
    """Write the tokenizer at `source` to `target` too, without a manifest that would vouch for another one."""
    tokenizer = load_tokenizer(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name("manifest.json").unlink(missing_ok=True)
    write_atomic(target, tokenizer.content)
    return tokenizer


def train_on_corpus(
    corpus: Corpus,
    vocab_size: int,
    folder: Path,
    max_bytes: int,
    max_lines: int | None = None,
    *,
    or_fewer: bool = False,
) -> Tokenizer:
    """Train a tokenizer on what of the corpus is not held out, up to `max_bytes` of text and `max_lines` of it.

    Of `vocab_size` tokens; with `or_fewer` as many as the text supports, where that is less. Raises DataError.
    """
    sources: list[dict[str, object]] = []
    for source in corpus.sources():
        if source.remote is None:
            facts: dict[str, object] = {
                "name": source.path.name,
                "bytes": source.size,
                "sha256": sha256_file(source.path),
            }
        else:
            facts = {"name": f"{SCHEME}{source.remote.repo}", "commit": source.remote.commit}
        if facts not in sources:
            sources.append(facts)

    def documents() -> Iterator[str]:
        return _first_lines(train_documents(corpus, max_bytes), max_lines)

    try:
        return train_tokenizer(documents(), vocab_size, folder, sources)
    except VocabularyError as error:
        if not or_fewer:
            raise
        return train_tokenizer(documents(), error.supported, folder, sources)


def _first_lines(documents: Iterable[str], most: int | None) -> Iterator[str]:
    """Documents until they have `most` lines together; the one that reaches that is still whole."""
    done = 0
    for document in documents:
        yield document
        done += len(document.splitlines())
        if most is not None and done >= most:
            return
