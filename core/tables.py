# SPDX-License-Identifier: GPL-2.0-or-later
"""TOML tables, read with errors that name file, key, value and what is allowed.

What the keys mean is config.py's business.
"""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from cthelper.core.api import Option, OptionValue
from cthelper.core.errors import ConfigError

_T = TypeVar("_T")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def read_document(text: str, path: Path) -> "Table":
    """The table that holds all others, of a document that came from `path`.

    Raises ConfigError.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError is a ValueError; plain ones are of numbers without end.
        raise _syntax_error(path, text, error) from None
    return Table(path, "", values)


def _syntax_error(path: Path, text: str, error: Exception) -> ConfigError:
    found = re.search(r"at line (\d+)", str(error))
    lines = text.splitlines()
    number = int(found[1]) if found else len(lines)
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return ConfigError(path, f"line {number}", line, f"not TOML: {error}")


class Table:
    """One TOML table: hands out its keys once and refuses those nobody asked for.

    A key that is not there has its default. All methods raise ConfigError.
    """

    def __init__(self, path: Path, name: str, values: dict[str, object]) -> None:
        self._path = path
        self.name = name
        self._values = dict(values)
        self._known: list[str] = []

    def error(self, key: str, value: object, allowed: str) -> ConfigError:
        """The error that refuses `value` for `key`."""
        return ConfigError(self._path, self._full(key), value, allowed)

    def table(self, key: str) -> "Table":
        """The table below this one; an empty one where it is not there."""
        value = self._pop(key, {})
        if not isinstance(value, dict):
            raise self.error(key, value, f"must be a table [{self._full(key)}]")
        return Table(self._path, self._full(key), value)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        value = self._pop(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, value, f"must be a number from {low} to {high}")
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._pop(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "must be true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._pop(key, default)
        if not isinstance(value, str):
            raise self.error(key, value, "must be a string")
        return value

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """One of some strings."""
        value = self._pop(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, value, "must be one of " + ", ".join(choices))
        return value

    def option(self, option: Option[Any]) -> OptionValue:
        """What an option of a helper is set to."""
        if isinstance(option.default, tuple):
            read = option.element or one_of(option.choices)
            return self.list_of(option.name, read, option.default)
        value = self._pop(option.name, option.default)
        kind = type(option.default)
        if type(value) is not kind:
            names = {bool: "true or false", int: "a number", str: "a string"}
            raise self.error(option.name, value, f"must be {names[kind]}")
        assert isinstance(value, bool | int | str)  # noqa: S101 - kind is one of them
        if option.choices and value not in option.choices:
            allowed = ", ".join(str(each) for each in option.choices)
            raise self.error(option.name, value, f"must be one of {allowed}")
        return value

    def list_of(
        self, key: str, read: Callable[[object], _T], default: tuple[_T, ...]
    ) -> tuple[_T, ...]:
        """A list whose elements `read` takes.

        `read` raises ValueError with what is allowed. No element may stand twice.
        """
        if key not in self._values:
            self._known.append(key)
            return default
        values = self._pop(key, [])
        if not isinstance(values, list):
            raise self.error(key, values, "must be a list")
        result: list[_T] = []
        for value in values:
            try:
                element = read(value)
            except ValueError as error:
                raise self.error(key, value, str(error)) from None
            if element in result:
                raise self.error(key, value, "stands there twice")
            result.append(element)
        return tuple(result)

    def close(self) -> None:
        """Raise ConfigError where a key is left that nothing has read."""
        for key, value in self._values.items():
            allowed = ", ".join(self._known) or "none"
            raise self.error(key, value, f"unknown key, known are {allowed}")

    def _pop(self, key: str, default: object) -> object:
        self._known.append(key)
        return self._values.pop(key, default)

    def _full(self, key: str) -> str:
        # A quoted key may hold anything, such as a dot or the end of a line.
        shown = key if _BARE_KEY.fullmatch(key) else repr(key)
        return f"{self.name}.{shown}" if self.name else shown


def one_of(choices: tuple[_T, ...]) -> Callable[[object], _T]:
    """What `Table.list_of` reads elements with that are one of `choices`."""

    def read(value: object) -> _T:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise ValueError(f"must be one of {', '.join(map(str, choices))}")

    return read
