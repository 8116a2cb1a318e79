"""A conversation as a model with a chat template was taught to read it.

The template is Jinja, as Hugging Face keeps it with a tokenizer; it comes with the model, so it runs in a sandbox. As
there, the text of a message may spell special tokens out: whoever serves strangers should know that.
"""

import json
from collections.abc import Sequence
from datetime import datetime

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sconce.errors import DataError
from sconce.tokenizer.bpe import Tokenizer

Messages = Sequence[dict[str, str]]
"""Turns in order, each with `role` (system, user, assistant, ...) and `content`."""


def chat_ids(tokenizer: Tokenizer, messages: Messages) -> tuple[int, ...]:
    """Token ids of the conversation, up to where the assistant's next answer begins.

    Raises DataError when the tokenizer's template cannot be used, or refuses the conversation.
    """
    assert tokenizer.chat_template is not None, "the caller knows that there is one"
    special = {name: text for name, text in tokenizer.special_texts.items() if text is not None}
    return tuple(tokenizer.encode_markup(render_chat(tokenizer.chat_template, messages, special)))


def render_chat(template: str, messages: Messages, special: dict[str, str]) -> str:
    """The conversation as text; `special` are further names the template may use. Raises DataError as `chat_ids`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    try:
        compiled = environment.from_string(template)
        return compiled.render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=True,
            raise_exception=_refuse,
            strftime_now=_now,
            **special,
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise DataError(f"the model's chat template: {error}") from None


def _to_json(value: object, indent: int | None = None) -> str:
    """Jinja's own would escape what HTML gives a meaning."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> str:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
