"""What a person reads when a run has stopped: how good, where, and what to type next."""

from sconce.training.loop import Outcome
from sconce.training.metrics import Reporter
from sconce.training.run import RunFolder


def describe_outcome(outcome: Outcome, folder: RunFolder, again: str, reporter: Reporter) -> None:
    """Say it through `reporter`; `again` is the command that goes on with this run."""
    if outcome.evaluation is None:
        reporter.say(
            f"stopped at step {outcome.step} of {outcome.total_steps} by {outcome.stopped_by}; saved. Go on with:\n"
            f"  {again}"
        )
        return
    latest = folder.checkpoints / f"step-{outcome.step:08d}"
    evaluation = outcome.evaluation
    lines = [
        "",
        f"finished: {outcome.total_steps} steps" + ("" if outcome.trained else " (nothing left to do)"),
        f"  held-out loss  {evaluation.loss:.4f} nats per token",
        f"  perplexity     {evaluation.perplexity:.2f}",
        f"  bits per byte  {evaluation.bits_per_byte:.4f}",
        "",
        f"  model          {latest}  (a Hugging Face folder)",
        f"  loss curve     {folder.plot}",
        f"  figures        {folder.metrics}",
        f"  samples        {folder.samples}",
        "",
        "next:",
        f'  sconce generate {folder.root} --prompt "Once"',
        f"  tensorboard --logdir {folder.tensorboard}",
        f"  {again} --override scheduler.total_steps={2 * outcome.total_steps}",
    ]
    reporter.say("\n".join(lines))
