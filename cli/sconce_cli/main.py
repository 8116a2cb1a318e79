"""The `sconce` command: its subcommands, and what becomes of errors."""

import io
import sys

import typer

from sconce.errors import SconceError
from sconce.log import set_up_log
from sconce_cli import (
    bench,
    chat,
    checkpoint,
    config,
    data,
    doctor,
    eval,
    export,
    generate,
    import_,
    orchestrate,
    plan,
    pull,
    push,
    report,
    serve,
    tokenizer,
    train,
)
from sconce_cli.earlier_flags import refuse_retired

app = typer.Typer(
    help="Pretrain decoder-only language models from scratch: on a Mac with MLX, on a GPU with PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(orchestrate.orchestrate)
app.command()(train.train)
app.command()(plan.plan)
app.command()(bench.bench)
app.command()(generate.generate)
app.command("eval")(eval.eval_)
app.command()(chat.chat)
app.command()(serve.serve)
app.command()(report.report)
app.command()(doctor.doctor)
app.command("import")(import_.import_)
app.command()(export.export)
app.command()(push.push)
app.command()(pull.pull)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(config.app, name="config")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command line; a fault of the input or the machine is one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 must not end a run
    try:
        set_up_log()
        refuse_retired(sys.argv[1:])
        app()
    except SconceError as error:
        sys.exit(_complain(str(error), error.exit_code))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_complain(f"{where}{error.strerror or error}", 2))


def _complain(message: str, exit_code: int) -> int:
    print(f"sconce: {message}", file=sys.stderr)
    return exit_code
