"""Tasks of EleutherAI's lm-evaluation-harness (Gao et al. 2021), on a model of ours through either backend."""

import logging
import os
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import yaml

from sconce.checkpoint.evaluations import Result
from sconce.errors import ConfigError, DataError, SconceError
from sconce.evaluation.requests import UNSCORABLE, Pair, log_likelihoods, prefix_id, text_ids, write_continuations
from sconce.generation.model import TextModel

RESAMPLES = 1000  # of the bootstrap, where a metric's standard error has no formula


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Names of tasks, groups or tags, or paths of YAML files; `include` is a folder of more of them.

    `num_fewshot` and `limit` None leave examples before a question, and how many are asked, to the task.
    """

    tasks: Sequence[str]
    include: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    seed: int = 1234  # the harness's own


class _Manager(Protocol):
    """What is used of the harness's task manager."""

    task_index: Mapping[str, object]
    all_subtasks: Sequence[str]

    def load(self, task_list: list[str]) -> Mapping[str, Mapping[str, Any]]: ...


class _Task(Protocol):
    """What is used of a task of the harness."""

    def get_config(self, key: str) -> int | None: ...
    def set_config(self, *, key: str, value: int) -> None: ...
    def set_fewshot_seed(self, *, seed: int) -> None: ...


def run_tasks(model: TextModel, options: TaskOptions) -> list[Result]:
    """Results of all tasks and groups.

    Raises SconceError when the harness is not installed, ConfigError for a task that is unknown or asks for what
    cannot be had here, DataError when its data cannot be loaded.
    """
    library = _library()
    random.seed(options.seed)  # tasks draw from Python's and numpy's global generators
    np.random.seed(options.seed)
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would fork where threads are running
    with redirect_stdout(sys.stderr):
        loaded = _load(library, options)
        found: Mapping[str, Any] = library.evaluate(
            lm=_adapter(model, options),
            task_dict=loaded,
            limit=options.limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
        )
    return [_result(name, figures, found, options) for name, figures in found["results"].items()]


def _library() -> ModuleType:
    try:
        library = import_module("lm_eval.evaluator")
    except ImportError as error:
        raise SconceError(f"--tasks needs lm-evaluation-harness ({error}): pip install 'sconce-lm[eval]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default
    return library


def _load(library: ModuleType, options: TaskOptions) -> Mapping[str, Mapping[str, Any]]:
    """The tasks with their data."""
    if not options.tasks:
        raise ConfigError("--tasks: found no name, expected some, parted by commas")
    manager = _manager(library, options)
    unknown = [name for name in options.tasks if name not in manager.task_index and not Path(name).is_file()]
    if unknown:
        raise ConfigError(
            f"--tasks {', '.join(unknown)}: no task, group or tag of lm-evaluation-harness "
            f"{metadata.version('lm_eval')}, and no file; --task-path names a folder of your own"
        )
    try:
        loaded = manager.load(list(options.tasks))
    except (OSError, ValueError, LookupError, TypeError, ImportError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:300]
        raise DataError(f"--tasks {', '.join(options.tasks)}: could not be loaded: {why}") from error
    for name, task in loaded["tasks"].items():
        _prepare(name, task, options)
    return loaded


def _manager(library: ModuleType, options: TaskOptions) -> _Manager:
    """Knows the tasks of the user's folder and, unless those are all that is asked for, the harness's thousands."""
    if options.include is None:
        return library.TaskManager()
    if not options.include.is_dir():
        raise ConfigError(f"--task-path {options.include}: no such folder")
    own: _Manager = library.TaskManager(include_path=str(options.include), include_defaults=False)
    if {*options.tasks} <= {*own.all_subtasks}:
        return own
    return library.TaskManager(include_path=str(options.include))


def _prepare(name: str, task: _Task, options: TaskOptions) -> None:
    """Set a task's examples, or refuse it."""
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"--tasks {name}: runs code that a model wrote, or needs more than text: not done here")
    own = task.get_config("num_fewshot")
    if options.num_fewshot is not None and own == 0:
        raise ConfigError(f"--num-fewshot {options.num_fewshot}: the task {name} insists on 0 examples: leave it out")
    task.set_config(key="num_fewshot", value=own or 0 if options.num_fewshot is None else options.num_fewshot)
    task.set_fewshot_seed(seed=options.seed)


def _adapter(model: TextModel, options: TaskOptions) -> object:
    """The model as the harness knows models. The class is made here, as its base comes with the harness."""
    base: Any = import_module("lm_eval.api.model").TemplateLM

    class SconceModel(base):
        eot_token_id = model.tokenizer.eos_id
        prefix_token_id = prefix_id(model)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
            return text_ids(model, string, add_special_tokens)

        def loglikelihood(self, requests: Sequence[Any], **options: object) -> list[tuple[float, bool]]:
            if not all("".join(request.args) for request in requests):
                raise DataError(f"{UNSCORABLE}: neither its context nor its continuation has any text")
            return base.loglikelihood(self, requests, **options)

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
        ) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            return log_likelihoods(model, pairs, options.batch_size)

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: object) -> list[float]:
            return _rolling(model, [request.args[0] for request in requests], options.batch_size)

        def generate_until(self, requests: Sequence[Any], **_: object) -> list[str]:
            asked = [request.args for request in requests]
            return write_continuations(model, asked, options.batch_size, options.seed)

    return SconceModel()


def _rolling(model: TextModel, texts: Sequence[str], batch_size: int) -> list[float]:
    """Log-probability of whole texts, in windows as the harness cuts them."""
    cut: Any = import_module("lm_eval.utils")
    pairs: list[Pair] = []
    owners: list[int] = []
    for owner, text in enumerate(texts):
        windows = cut.get_rolling_token_windows(
            token_list=text_ids(model, text),
            prefix_token=prefix_id(model),
            max_seq_len=model.spec.max_position_embeddings,
            context_len=1,
        )
        pairs += map(cut.make_disjoint_window, windows)
        owners += [owner] * (len(pairs) - len(owners))
    totals = np.zeros(len(texts))
    np.add.at(totals, owners, [logprob for logprob, _ in log_likelihoods(model, pairs, batch_size)])
    return totals.tolist()


def _result(name: str, figures: Mapping[str, object], found: Mapping[str, Any], options: TaskOptions) -> Result:
    """A task's or a group's figures, but for those that are no numbers."""
    numbers = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    version: object = found.get("versions", {}).get(name)
    counts = found.get("n-samples", {}).get(name, {})
    return {
        "kind": "task",
        "name": name,
        "figures": {key: value for key, value in numbers.items() if key not in ("sample_len", "sample_count")}
        | ({"questions": counts["effective"]} if "effective" in counts else {}),
        "settings": {
            "num_fewshot": found.get("n-shot", {}).get(name),
            "limit": options.limit,
            "seed": options.seed,
            "version": version if isinstance(version, int | float) else None,
            "harness": metadata.version("lm_eval"),
        },
    }
