"""`sconce push`: a checkpoint, its weights alone or a tokenizer to the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sconce.hub.push import Package, Pushed, PushJob


def push(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run folder (its latest checkpoint) or a checkpoint; with --tokenizer-only also a tokenizer's.",
        ),
    ],
    repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="Repository, made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="For all to see. Default: private.")] = False,
    revision: Annotated[
        str, typer.Option("--revision", metavar="BRANCH", help="Branch, made if it is not there.")
    ] = "main",
    with_optimizer: Annotated[
        bool | None,
        typer.Option(
            "--with-optimizer/--weights-only",
            help="All that training goes on from, three times as much; or what other tools load. "
            "Default: with the optimizer.",
        ),
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="For the model card, such as apache-2.0.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit. Default: the step.")] = None,
    tokenizer_only: Annotated[bool, typer.Option("--tokenizer-only", help="Only the tokenizer.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show what would be sent, and ask the hub nothing.")
    ] = False,
) -> None:
    """Send a checkpoint to the Hugging Face hub, with a model card, in one commit.

    The token is that of HF_TOKEN or of `hf auth login`.
    """
    from sconce.errors import ConfigError
    from sconce.hub.connection import Hub
    from sconce.hub.push import PushJob, pack
    from sconce.hub.push import push as push_package

    if tokenizer_only and with_optimizer is not None:
        raise ConfigError("--tokenizer-only: neither --with-optimizer nor --weights-only has a meaning with it")
    job = PushJob(
        place=place,
        repo=repo,
        revision=revision,
        public=public,
        weights_only=with_optimizer is False,
        tokenizer_only=tokenizer_only,
        license=license_,
        message=message,
    )
    hub = Hub(repo)
    if not dry_run:
        hub.need_token()
    package = pack(job)
    if dry_run:
        _show(job, package)
        return
    _report(package, push_package(job, package, hub), revision)


def _show(job: "PushJob", package: "Package") -> None:
    from sconce.files import readable_size

    sizes = package.sizes
    typer.echo(f"{package.source} would go to {job.repo}, branch {job.revision}, {_said(not job.public)}:")
    for name, size in sizes.items():
        typer.echo(f"  {name:<32} {size:>16,} bytes")
    typer.echo(f"{len(sizes)} files, {readable_size(sum(sizes.values()))}; nothing was sent")


def _report(package: "Package", done: "Pushed", revision: str) -> None:
    from sconce.files import readable_size

    size = readable_size(sum(package.sizes[name] for name in done.sent))
    made = ", which was made" if done.created else ""
    typer.echo(f"pushed {package.source} to {done.url}, {_said(done.private)}{made}")
    kept = "; the others were there as they are" if len(done.sent) < len(package.files) else ""
    if done.sent or done.removed:
        typer.echo(f"  {len(done.sent)} of {len(package.files)} files sent, {size}{kept}")
    else:
        typer.echo("  nothing to send: all of it was there as it is")
    if done.removed:
        typer.echo(f"  removed, as they were of another push: {', '.join(done.removed)}")
    typer.echo(f"  commit {done.commit} on {revision}")


def _said(private: bool) -> str:
    return "private" if private else "public"
