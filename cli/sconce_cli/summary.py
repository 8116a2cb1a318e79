"""What a person reads when a run has stopped: how good, where, and what to type next."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sconce.training.loop import Outcome
    from sconce.training.run import RunFolder
    from sconce_cli.console import Terminal


def program() -> str:
    """How to call this command from where the user stands: by its name if the PATH finds it, else as it was called."""
    called = sys.argv[0]
    found = shutil.which("sconce")
    on_path = found is not None and Path(found).resolve() == Path(called).resolve()
    return called if called.endswith("/sconce") and not on_path else "sconce"


def train_command(config: Path | str, run_dir: Path, backend: str, overrides: Sequence[str]) -> str:
    """The command that goes on with a run, ready to be typed; a `config` that is no path is a preset's name."""
    source = ["--profile", config] if isinstance(config, str) else ["--config", str(config)]
    words = [program(), "train", *source, "--run-dir", str(run_dir), "--resume"]
    words += [] if backend == "auto" else ["--backend", backend]
    last = {override.split("=", 1)[0]: override for override in overrides}  # of one key, the last counts
    words += [word for override in last.values() for word in ("--override", override)]
    return shlex.join(words)


def next_commands(run: Path, step: int, total_steps: int | None, text_is_here: bool) -> list[str]:
    """Lines with what to type next for a run that came from elsewhere: one that writes, and one that trains on."""
    from sconce.interop.earlier_config import MORE_STEPS
    from sconce.training.imported import TEXT_IS_ELSEWHERE

    overrides = [] if text_is_here else [TEXT_IS_ELSEWHERE]
    if total_steps is not None and step >= total_steps:
        overrides.append(f"scheduler.total_steps={step + MORE_STEPS}")
    return [
        "",
        "next:",
        f'  {shlex.quote(program())} generate {shlex.quote(str(run))} --prompt "Once"',
        f"  {train_command(run / 'training.toml', run, 'auto', overrides)}",
    ]


def report_outcome(outcome: "Outcome", folder: "RunFolder", again: str, longer: str, terminal: "Terminal") -> None:
    """Tell how a run ended; `again` is the command that goes on with it, `longer` the one that lets it train on."""
    fields = {**asdict(outcome), "run_dir": str(folder.root), "resume": again}
    if outcome.evaluation is None:
        stopped = f"stopped at step {outcome.step} of {outcome.total_steps} by {outcome.stopped_by}; saved. Go on with:"
        terminal.outcome("stopped", fields, f"{stopped}\n  {again}")
    else:
        fields["bits_per_byte"] = outcome.evaluation.bits_per_byte
        fields["perplexity"] = outcome.evaluation.perplexity
        terminal.outcome("finished", fields, _describe(outcome, folder, longer))


def _tensorboard(folder: "RunFolder") -> str:
    return f"  tensorboard --logdir {shlex.quote(str(folder.tensorboard))}  (pip install tensorboard)"


def _describe(outcome: "Outcome", folder: "RunFolder", longer: str) -> str:
    evaluation = outcome.evaluation
    assert evaluation is not None
    model = folder.checkpoints / f"step-{outcome.step:08d}"
    run = shlex.quote(str(folder.root))
    lines = [
        "",
        f"finished: {outcome.total_steps} steps" + ("" if outcome.trained else " (nothing left to do)"),
        f"  held-out loss  {evaluation.loss:.4f} nats per token",
        f"  perplexity     {evaluation.perplexity:.2f}",
        f"  bits per byte  {evaluation.bits_per_byte:.4f}",
        "",
        f"  model          {model}" + ("  (a Hugging Face folder)" if outcome.hugging_face else ""),
        f"  loss curve     {folder.plot}",
        f"  figures        {folder.metrics}",
        f"  samples        {folder.samples}",
        "",
        "next:",
        f'  {shlex.quote(program())} generate {run} --prompt "Once"',
        *([_tensorboard(folder)] if folder.tensorboard.is_dir() else []),
        f"  {longer}",
    ]
    return "\n".join(lines)
