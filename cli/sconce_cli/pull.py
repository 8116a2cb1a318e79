"""`sconce pull`: a run, a model or a tokenizer from the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer


def pull(
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository of the hub.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to make; a tokenizer's, if that is all there is.")],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit. Default: the main branch.")
    ] = None,
    tokenizer_only: Annotated[bool, typer.Option("--tokenizer-only", help="Only the tokenizer.")] = False,
) -> None:
    """Make a run folder of a repository: what `sconce push` sent goes on, another's model is imported."""
    from sconce.files import readable_size
    from sconce.hub.connection import Hub
    from sconce.hub.pull import PullJob
    from sconce.hub.pull import pull as pull_repo
    from sconce_cli.summary import next_commands

    done = pull_repo(PullJob(repo=repo, out=out, revision=revision, tokenizer_only=tokenizer_only), Hub(repo))
    typer.echo(f"pulled {repo} at commit {done.commit}")
    typer.echo(f"  {done.files} files, {readable_size(done.bytes)}, each with the hash it was pushed with")
    if done.kind == "model":
        typer.echo("  no state to train on from: imported as a model, at step 0, with moments from zero")
    typer.echo(f"  to {done.place}" + (f", step {done.step:,}" if done.kind == "checkpoint" else ""))
    for note in done.notes:
        typer.echo(f"note: {note}")
    if done.kind != "tokenizer":
        typer.echo("\n".join(next_commands(out, done.step, done.total_steps, done.text_is_here)))
