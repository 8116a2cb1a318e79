"""A checkpoint, its weights alone, or a tokenizer, to the Hugging Face hub: in one commit, or not at all."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sconce.checkpoint.evaluations import results_file, results_of
from sconce.checkpoint.load import LoadedCheckpoint, check_hashes, open_checkpoint, open_model
from sconce.checkpoint.record import MANIFEST
from sconce.checkpoint.stream import RUN
from sconce.config.read import flat
from sconce.errors import CheckpointError, ConfigError, DataError
from sconce.hub.connection import Content, Hub, RemoteState
from sconce.hub.layout import (
    EVALUATIONS,
    METRICS,
    MODEL_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    goes_with_the_model,
)
from sconce.hub_address import is_hub
from sconce.interop.hf import json_bytes, loads_in_transformers, spec_from_config, tokenizer_config
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer
from sconce.training.export import OURS
from sconce.training.imported import TEXT_IS_ELSEWHERE
from sconce.training.model_card import (
    README,
    CardOptions,
    check_license,
    front_matter,
    model_card,
    run_records,
    usage_with_transformers,
)

MAIN = "main"
_TEXTS = ("data.train_shards", "data.validation_shards")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushJob:
    """What the user asked for.

    `place` is a run, whose latest checkpoint it means, or a checkpoint; with `tokenizer_only` also a tokenizer.json or
    its folder. `repo` is ORG/NAME, `revision` a branch, made if it is not there.
    """

    place: Path
    repo: str
    revision: str = MAIN
    public: bool = False
    weights_only: bool = False
    tokenizer_only: bool = False
    license: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """What the repository is to hold. `files` are contents, or where they lie, by name; `title` names the commit.

    `sha256` are hashes of some of them, by name: those that were just compared.
    """

    source: Path
    title: str
    files: Mapping[str, Content]
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by name."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What became of it: the commit, and the names of files that it brought and that it took away."""

    commit: str
    url: str
    private: bool
    created: bool
    sent: tuple[str, ...]
    removed: tuple[str, ...]


def pack(job: PushJob) -> Package:
    """Everything that would be sent, of the checkpoint's files each with its hash compared; asks the hub nothing.

    Raises CheckpointError for a damaged checkpoint, DataError for a tokenizer that is none.
    """
    check_license(job.license)
    if job.tokenizer_only:
        return _pack_tokenizer(job)
    checkpoint = open_model(job.place) if job.weights_only else open_checkpoint(job.place)
    names = [name for name in checkpoint.record.files if not (job.weights_only and name in OURS)]
    files: dict[str, Content] = {name: checkpoint.path / name for name in names}
    if not job.weights_only:
        files[MANIFEST] = checkpoint.path / MANIFEST
    if records := run_records(checkpoint):
        files[METRICS] = "".join(json.dumps(record) + "\n" for record in records).encode()
    if (evaluations := results_file(checkpoint.path)) is not None and results_of(checkpoint):
        files[EVALUATIONS] = evaluations.read_bytes()
    files |= model_card(checkpoint, _card_options(job, checkpoint))
    what = "weights of step" if job.weights_only else "step"
    known = {name: file.sha256 for name, file in checkpoint.record.files.items() if name in files}
    return Package(checkpoint.path, f"{what} {checkpoint.record.step:,}", files, known)


def push(job: PushJob, package: Package, hub: Hub) -> Pushed:
    """Send what the repository does not have yet, and remove what belongs to another push, in one commit.

    The repository is made private unless `public` says otherwise; one that is there keeps its visibility, and has to
    have the one that was asked for. Raises SconceError, with the repository's files as they were, when it cannot be
    done.
    """
    hub.need_token()
    there = hub.look_if_there()
    _check_visibility(job, there, hub)
    if there is None:
        hub.attempt(lambda: hub.api.create_repo(job.repo, private=not job.public, exist_ok=True))
    elif job.tokenizer_only and MODEL_CONFIG in there.files:
        raise ConfigError(f"{job.repo}: holds a model, which has its own tokenizer: push this one to another --repo")
    if job.revision != MAIN and hub.look_if_there(job.revision) is None:
        hub.attempt(lambda: hub.api.create_branch(job.repo, branch=job.revision, exist_ok=True))
    return hub.attempt(lambda: _commit(job, package, hub, created=there is None))


def _commit(job: PushJob, package: Package, hub: Hub, *, created: bool) -> Pushed:
    """Look, and commit the difference to what was seen: done again after a fault, it never does anything twice."""
    state = hub.look_once(job.revision)
    there = state.files
    sent = [
        name
        for name, content in package.files.items()
        if name not in there or not there[name].holds(content, package.sha256.get(name))
    ]
    removed = [] if job.tokenizer_only else [name for name in there if goes_with_the_model(name)]
    removed = [name for name in removed if name not in package.files]
    commit = state.commit
    if sent or removed:
        library: Any = hub.library
        done = hub.api.create_commit(
            job.repo,
            operations=[
                *(library.CommitOperationAdd(name, _as_given(package.files[name])) for name in sent),
                *(library.CommitOperationDelete(name) for name in removed),
            ],
            commit_message=job.message or package.title,
            revision=job.revision,
            parent_commit=state.commit,
        )
        commit = str(done.oid)
    return Pushed(
        commit=commit,
        url=hub.url,
        private=state.private,
        created=created,
        sent=tuple(sent),
        removed=tuple(removed),
    )


def _check_visibility(job: PushJob, there: RemoteState | None, hub: Hub) -> None:
    if there is None or there.private != job.public:
        return
    if job.public:
        raise ConfigError(f"{job.repo}: is there already, and private: leave --public out, or change it at {hub.url}")
    raise ConfigError(f"{job.repo}: is there already, and public: add --public if all may see what is pushed")


def _as_given(content: Content) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _card_options(job: PushJob, checkpoint: LoadedCheckpoint) -> CardOptions:
    name = job.repo.split("/")[1]
    in_transformers = loads_in_transformers(spec_from_config(checkpoint.table(MODEL_CONFIG)))
    parts = [usage_with_transformers(job.repo)] if in_transformers else []
    pulled = f"sconce pull {job.repo} --out runs/{name}"
    parts.append(f'```\n{pulled}\nsconce generate runs/{name} --prompt "Once"\n```')
    if not job.weights_only:
        parts.append(
            "The optimizer's state is here too: the run goes on where it stood, on either backend, with the text that "
            f"it was trained on:\n\n```\nsconce train --config runs/{name}/training.toml --run-dir runs/{name} "
            f"--resume{_naming_text(checkpoint)}\n```"
        )
    library = "transformers" if in_transformers else "sconce"
    return CardOptions(name=name, usage="\n\n".join(parts), library=library, license=job.license)


def _naming_text(checkpoint: LoadedCheckpoint) -> str:
    """The option that names the run's text on another machine; none where all of it is on the hub."""
    given = dict(flat(checkpoint.run_config)) if RUN in checkpoint.record.files else {}
    paths = [path for key in _TEXTS for path in cast(list[str], given.get(key) or [])]
    return "" if paths and all(map(is_hub, paths)) else f" --override {shlex.quote(TEXT_IS_ELSEWHERE)}"


def _pack_tokenizer(job: PushJob) -> Package:
    tokenizer = load_tokenizer(_tokenizer_path(job.place))
    beside = {name: tokenizer.path.with_name(name) for name in TOKENIZER_FILES}
    files: dict[str, Content] = {name: path for name, path in beside.items() if path.is_file()}
    files[TOKENIZER] = tokenizer.content
    if TOKENIZER_CONFIG not in files:
        files[TOKENIZER_CONFIG] = json_bytes(tokenizer_config(tokenizer))
    files[README] = _tokenizer_card(job, tokenizer).encode()
    return Package(tokenizer.path, f"tokenizer of {tokenizer.vocab_size:,} tokens", files)


def _tokenizer_path(place: Path) -> Path:
    """The tokenizer.json that a file, a tokenizer's folder, a checkpoint or a run means."""
    if place.is_file():
        return place
    if (place / TOKENIZER).is_file() and not (place / MANIFEST).is_file():
        return place / TOKENIZER
    try:
        checkpoint = open_checkpoint(place, verify=False)
        others = [name for name in checkpoint.record.files if name not in TOKENIZER_FILES]
        check_hashes(checkpoint.path, checkpoint.record, unread=others)
        return checkpoint.path / TOKENIZER
    except CheckpointError:
        for path in (place / TOKENIZER, place / "tokenizer" / TOKENIZER):
            if path.is_file():
                return path
    raise DataError(f"{place}: no tokenizer here; expected a tokenizer.json, its folder, a checkpoint or a run")


def _tokenizer_card(job: PushJob, tokenizer: Tokenizer) -> str:
    name = job.repo.split("/")[1]
    return f"""{front_matter("transformers", job.license)}

# {name}

A byte-level BPE tokenizer of {tokenizer.vocab_size:,} tokens, lossless for any text. Its SHA-256 is {tokenizer.sha256}.

## Use

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{job.repo}")
```

```
sconce pull {job.repo} --out tokenizer
```
"""
