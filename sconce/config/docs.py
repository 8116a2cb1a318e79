"""The reference page of every key, made from the schema."""

import json
from typing import cast

from pydantic_core import PydanticUndefined

from sconce.config.fields import expected, fields
from sconce.config.schema import RunConfig, Section

PREAMBLE = """\
# Configuration

Made by `sconce config docs` from the schema. TOML, YAML and JSON mean the same; a key left out takes its default;
an unknown key is an error. Paths are relative to the config file. `--override key=value` changes one key of one
run, for example `--override scheduler.total_steps=500` or `--override data.train_shards[0]=more.txt`.
"""


def reference() -> str:
    """Markdown: a table per section, with key, default, check and meaning."""
    parts = [PREAMBLE]
    table = ""
    for key, field in fields().items():
        section, _, name = key.rpartition(".")
        if section != table:
            table = section
            parts.append(
                f"\n## {section}\n\n{_title(section)}\n\n| key | default | expected | meaning |\n|---|---|---|---|\n"
            )
        parts.append(f"| `{name}` | {_default(field.get_default())} | {expected(field)} | {field.description} |\n")
    return "".join(parts)


def _title(section: str) -> str:
    model: object = RunConfig
    for name in section.split("."):
        model = cast(type[Section], model).model_fields[name].annotation
    return str(model.__doc__)


def _default(value: object) -> str:
    if value is None or value is PydanticUndefined:
        return ""
    return f"`{json.dumps(value, default=str)}`"
