"""Typed values out of a config.json, which anyone may have written."""

from collections.abc import Mapping
from typing import TypeVar, cast

from sconce.errors import CheckpointError, in_short

T = TypeVar("T", bound=str)

LARGEST = 1e30  # of any number in a config.json


class ConfigReader:
    """Typed values out of a config.json; a null counts as absent."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1) -> int:
        value = self._get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise self._wrong(key, value, f"an integer from {least} to {most}")

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST:
            return float(value)
        raise self._wrong(key, value, f"a number below {LARGEST:g}")

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, default)
        if isinstance(value, bool):
            return value
        raise self._wrong(key, value, "true or false")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if isinstance(value, str):
            return value
        raise self._wrong(key, value, "a string")

    def choice(self, key: str, options: tuple[T, ...]) -> T:
        value = self._get(key, None)
        for option in options:
            if option == value:
                return option
        raise self._wrong(key, value, "one of " + ", ".join(options))

    def section(self, key: str) -> "ConfigReader":
        value = self.values.get(key)
        return ConfigReader(cast(Mapping[str, object], value) if isinstance(value, dict) else {})

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        return default if value is None else value

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        found = "missing" if value is None else in_short(value)
        return CheckpointError(f"config.json: {key} is {found}; expected {expected}")
