"""`sconce chat`: write with a model, turn by turn."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sconce_cli.options import BackendOption, Dtype, DtypeOption, Hardware, ModelArgument

if TYPE_CHECKING:
    from sconce.generation.session import Session

HELP = """\
Type text and the model continues it; an empty line lets it go on.
Alt-Enter starts a new line, the up arrow recalls lines, Tab completes commands.
  /again, /regenerate  write the last continuation anew
  /undo                take the last turn back
  /clear               start over
  /show                the whole document
  /save FILE           write the document to a file
  /set                 every setting; /set temperature 0.5 changes one
  /temperature 0.5     short for that; so with top_k, top_p, min_p,
                       repetition_penalty, max_tokens, seed
  /help, /quit         this; the end (so is Ctrl-D)
Ctrl-C stops the model, and keeps what it wrote."""


def chat(
    checkpoint: ModelArgument,
    dialogue: Annotated[
        bool | None,
        typer.Option(
            "--dialogue/--no-dialogue",
            help="Frame turns by the model's chat template, else as User: and Assistant:, for a model that has read "
            "dialogues. Default: if it has a template.",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0)] = 0.8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens a turn.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    dtype: DtypeOption = Dtype.fp32,
    backend: BackendOption = Hardware.auto,
) -> None:
    """Write a text with a trained checkpoint in turns, or talk with it."""
    from sconce.attention import check_decoding
    from sconce.generation.model import load_model
    from sconce.generation.sampling import Sampling
    from sconce.generation.session import Session

    sampling = Sampling(temperature=temperature)
    check_decoding()
    model, device = load_model(checkpoint, hardware=backend.value, precision=dtype.value)
    place = f"{device.kind} through {device.backend}, {dtype.value}"
    typer.echo(
        f"{model.path.name}: {model.spec.num_params:,} parameters, {place}; /help for what can be done", err=True
    )
    talks = model.has_chat_template if dialogue is None else dialogue
    session = Session(model, talks, sampling, max_tokens, seed)
    for line in _terminal_lines(talks) if sys.stdin.isatty() else _piped_lines():
        if not _take(session, line):
            return


def _terminal_lines(dialogue: bool) -> Iterator[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _submit(event: KeyPressEvent) -> None:  # pyright: ignore[reportUnusedFunction] (the decorator keeps it)
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:  # pyright: ignore[reportUnusedFunction] (the decorator keeps it)
        event.current_buffer.insert_text("\n")

    prompts: PromptSession[str] = PromptSession(
        multiline=True,
        key_bindings=keys,
        completer=WordCompleter(_command_names(), sentence=True),
        complete_while_typing=False,
    )
    mark = "you> " if dialogue else "> "
    while True:
        try:
            yield prompts.prompt(FormattedText([("bold", mark)]), prompt_continuation=" " * len(mark))
        except KeyboardInterrupt:
            continue  # clears what was typed
        except EOFError:
            return


def _command_names() -> list[str]:
    from sconce.generation.session import SETTINGS

    return sorted([*_COMMANDS, *_ENDS, *(f"/{name}" for name in SETTINGS)])


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.removesuffix("\n")


def _take(session: "Session", line: str) -> bool:
    """Do what a line asks; False to end."""
    from sconce.errors import SconceError

    word, _, rest = line.strip().partition(" ")
    if word in _ENDS:
        return False
    try:
        if word in _COMMANDS:
            _COMMANDS[word](session, rest.strip())
        elif word.startswith("/") and word[1:] in session.settings():
            _set(session, f"{word[1:]} {rest}")
        elif word.startswith("/"):
            typer.echo(f"{word}: no such command; /help lists them", err=True)
        else:
            _print(session, session.write(line))
    except (SconceError, OSError) as error:
        typer.echo(str(error), err=True)
    return True


def _print(session: "Session", pieces: Iterator[str]) -> None:
    try:
        for piece in pieces:
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        typer.echo()
        typer.echo("stopped", err=True)
        return
    typer.echo()
    if session.finish == "length" and session.figures.new_tokens < session.max_tokens:
        positions = session.model.spec.max_position_embeddings
        typer.echo(
            f"ended before max_tokens {session.max_tokens}: the model's {positions:,} positions are full", err=True
        )
    if sys.stderr.isatty():
        forgotten = f"; the first {session.forgotten:,} tokens no longer fit" if session.forgotten else ""
        told = ", ".join(filter(None, (session.figures.speed(), session.finish)))
        typer.secho(f"{told}{forgotten}", err=True, dim=True)


def _again(session: "Session", _: str) -> None:
    _print(session, session.again())


def _undo(session: "Session", _: str) -> None:
    typer.echo(f"took back: {session.undo().given!r}", err=True)


def _clear(session: "Session", _: str) -> None:
    session.turns.clear()
    typer.echo("starting over", err=True)


def _show(session: "Session", _: str) -> None:
    typer.echo(session.text)


def _save(session: "Session", path: str) -> None:
    from sconce.errors import ConfigError
    from sconce.files import write_atomic

    if not path:
        raise ConfigError("/save: name a file")
    if Path(path).exists():
        raise ConfigError(f"{path}: is there already; name another file")
    write_atomic(Path(path), session.text)
    typer.echo(f"saved {path}", err=True)


def _set(session: "Session", rest: str) -> None:
    name, _, value = (part.strip() for part in rest.partition(" "))
    if value or name not in ("", *session.settings()):
        session.set(name, value)
    shown = {key: f"{now:g}" if isinstance(now, float) else str(now) for key, now in session.settings().items()}
    typer.echo("  ".join(f"{key} {now}" for key, now in shown.items()), err=True)


def _help(_session: "Session", _: str) -> None:
    typer.echo(HELP, err=True)


_ENDS = ("/quit", "/exit")
_COMMANDS: "dict[str, Callable[[Session, str], None]]" = {
    "/again": _again,
    "/regenerate": _again,
    "/undo": _undo,
    "/clear": _clear,
    "/show": _show,
    "/save": _save,
    "/set": _set,
    "/help": _help,
}
