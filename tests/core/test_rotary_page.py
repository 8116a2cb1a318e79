"""docs/rotary.md: its example runs, and its config is one."""

import re
import tomllib
from pathlib import Path

from sconce.config.schema import ModelConfig
from sconce.rope import ROPE_TYPES

PAGE = (Path(__file__).parents[2] / "docs/rotary.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_runs_as_it_stands():
    (code,) = blocks("python")
    assert "assert" in code
    exec(compile(code, "docs/rotary.md", "exec"), {})


def test_the_config_is_one():
    (text,) = blocks("toml")
    scaling = ModelConfig.model_validate(tomllib.loads(text)["model"]).rope_scaling
    assert (scaling.rope_type, scaling.factor) == ("yarn", 4.0)


def test_every_type_has_its_row():
    assert all(f"| `{name}` |" in PAGE for name in ROPE_TYPES if name != "default")
