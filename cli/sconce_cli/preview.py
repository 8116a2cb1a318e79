"""What `sconce orchestrate --dry-run` prints: the plan on this machine, and the resolved config."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sconce.backend import Hardware
from sconce.config import RunConfig, dump_toml, to_json
from sconce.orchestrate import LocalJob, planned_vocab_size, resolve_job
from sconce.training.plan import Plan
from sconce.training.run import RunFolder
from sconce_cli.plan import as_text, plan_here


@dataclass(frozen=True, slots=True)
class Preview:
    """A job that is not begun. `checks` are lines on whether this machine can do it."""

    checks: Sequence[str]
    plan: Plan
    config: RunConfig
    folder: RunFolder

    def as_toml(self) -> str:
        """The config as TOML that may be trained, below all else as comments."""
        lines = [f"# {line}".rstrip() for line in (*self.checks, *as_text(self.plan))]
        return dump_toml(self.config, "\n".join([*lines, ""]), self.folder.root)

    def as_json(self) -> str:
        """One object and a line end: `checks`; `plan`, as of `sconce plan --json`; `config`, as in run.json."""
        parts = {"checks": list(self.checks), "plan": self.plan.as_object(), "config": to_json(self.config)}
        return json.dumps(parts, ensure_ascii=False) + "\n"


def make_preview(job: LocalJob, folder: RunFolder, hardware: Hardware, checks: Sequence[str] = ()) -> Preview:
    """The job resolved and planned, with nothing written. Raises as `resolve_job` does."""
    config = resolve_job(job, folder)
    rows = config.model.vocab_size or planned_vocab_size(job, folder)
    planned = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": rows})})
    return Preview(checks, plan_here(planned, hardware), config, folder)
