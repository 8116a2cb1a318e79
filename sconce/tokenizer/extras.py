"""What Hugging Face keeps beside a tokenizer.json: which tokens are special for what, and how a conversation is put."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from sconce.errors import DataError, in_short

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
SPECIAL = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True, slots=True)
class TokenizerExtras:
    """Special tokens by what they are for, as far as something is said of them, and the chat template, if any."""

    special: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    chat_template: str | None = None


def read_extras(folder: Path) -> TokenizerExtras:
    """What tokenizer_config.json and chat_template.jinja in the folder say; nothing where they are not.

    Raises DataError when they are not what they should be.
    """
    path = folder / CONFIG
    content = _read(path)
    if content is None:
        return TokenizerExtras(chat_template=_read(folder / TEMPLATE))
    try:
        parsed: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise DataError(f"{path}: expected an object, found {type(parsed).__name__}")
    config = cast(dict[str, object], parsed)
    special = {name: _text(path, name, config[name]) for name in SPECIAL if name in config}
    return TokenizerExtras(special, _read(folder / TEMPLATE) or _template(path, config.get("chat_template")))


def _text(path: Path, name: str, value: object) -> str | None:
    """A token's text, which may stand in a table with how it is matched."""
    if isinstance(value, dict):
        value = cast(dict[str, object], value).get("content")
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{path}: {name} is {in_short(value)}; expected the text of a token")


def _template(path: Path, value: object) -> str | None:
    """The template, or of several the one called default."""
    if value is None or isinstance(value, str):
        return value
    found = in_short(value)
    if isinstance(value, list):
        named = [cast(dict[str, object], item) for item in cast(list[object], value) if isinstance(item, dict)]
        default = next((item.get("template") for item in named if item.get("name") == "default"), None)
        if default is None or isinstance(default, str):
            return default
    raise DataError(f"{path}: chat_template is {found}; expected a text")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise DataError(f"{path}: damaged, not UTF-8") from None
