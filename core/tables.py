# SPDX-License-Identifier: GPL-2.0-or-later
"""TOML tables, read with problems that name key, value and what is allowed.

What the keys mean is config.py's business.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from datetime import date, time
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from cthelper.core.api import Option, OptionValue
from cthelper.core.errors import ConfigError

_T = TypeVar("_T")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_PLACE: Final = re.compile(r" \(at line (\d+), column (\d+)\)")
# Characters that are shown of a value or a line.
_SHOWN: Final = 120
_WORDS: Final = {
    **dict.fromkeys(("true", "yes", "on"), "true"),
    **dict.fromkeys(("false", "no", "off"), "false"),
}


def read_document(text: str, path: Path) -> "Table":
    """The table that holds all others, of a document that came from `path`.

    Raises ConfigError.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError is a ValueError; plain ones are of numbers without end.
        raise ConfigError(path, _syntax_error(text, str(error))) from None
    return Table("", values, [])


def _syntax_error(text: str, error: str) -> str:
    """The line, and what is wrong there."""
    lines = text.rstrip().split("\n")  # as tomllib counts them
    found = _PLACE.search(error)
    number, column = (int(found[1]), int(found[2])) if found else (len(lines), 1)
    why = shortened(error.replace(found[0], "") if found else error)
    line = lines[number - 1] if number <= len(lines) else ""
    quoted = repr(shortened(line.strip()))
    return f"line {number}, {quoted}: not TOML: {why}{_hint(error, line[column - 1 :])}"


def _hint(error: str, rest: str) -> str:
    """How TOML spells the value that `rest` of a line begins with."""
    word = re.match(r"[A-Za-z][\w-]*", rest)
    if not error.startswith("Invalid value") or word is None:
        return ""
    spelled = _WORDS.get(word[0].lower(), as_toml(word[0]))
    return f"; in TOML it is {spelled}"


def as_toml(value: object) -> str:
    """A value as TOML has it, in one line."""
    match value:
        case str():
            return printable(json.dumps(value, ensure_ascii=False))
        case bool():
            return "true" if value else "false"
        case list() | tuple():
            return f"[{', '.join(map(as_toml, value))}]"
        case dict():
            pairs = (f"{_key(key)} = {as_toml(each)}" for key, each in value.items())
            return f"{{{', '.join(pairs)}}}"
        case int() | float() | date() | time():
            return str(value)
    return as_toml(str(value))


def shown(value: object) -> str:
    """A value as TOML has it, cut where it is long."""
    return shortened(as_toml(value))


def nearest(word: str, known: Iterable[str]) -> str:
    """A question after the one of the known words that `word` looks like, if any."""
    found = difflib.get_close_matches(word.lower(), list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def printable(text: str) -> str:
    """The text with what would not be seen, or would end a line, escaped."""
    return "".join(
        each
        if each.isprintable()
        else f"\\u{ord(each):04x}"
        if ord(each) <= 0xFFFF
        else f"\\U{ord(each):08x}"
        for each in text
    )


def shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _key(key: str) -> str:
    # A quoted key may hold anything, such as a dot or the end of a line.
    return key if _BARE_KEY.fullmatch(key) else as_toml(key)


class Table:
    """One TOML table: hands out its keys once, and notes those nobody asked for.

    A key that is not there has its default, and so has one whose value is wrong: then
    `problems`, which all tables of a document share, has a line more.
    """

    def __init__(
        self, name: str, values: dict[str, object], problems: list[str]
    ) -> None:
        self.name = name
        self.problems = problems
        self._values = dict(values)
        self._given = frozenset(values)
        self._known: list[str] = []

    def refuse(self, key: str, value: object, allowed: str) -> None:
        """Note that `value` cannot be what `key` is set to."""
        self.problems.append(f"{self._full(key)} = {shown(value)}: {allowed}")

    def table(self, key: str) -> "Table":
        """The table below this one; an empty one where it is not there."""
        value = self._pop(key, {})
        if not isinstance(value, dict):
            self.refuse(key, value, f"must be a table [{self._full(key)}]")
            value = {}
        return Table(self._full(key), value, self.problems)

    def having(self, key: str) -> list[tuple[str, "Table"]]:
        """The tables that are left and have this key, by their names."""
        names = [
            name
            for name, value in self._values.items()
            if isinstance(value, dict) and key in value
        ]
        return [(name, self.table(name)) for name in names]

    def has(self, key: str) -> bool:
        """Whether the key stands there, read already or not."""
        return key in self._given

    def tables(self, key: str, such_as: str) -> tuple["Table", ...]:
        """The tables of a list, named by their places from 0 on; none where it is not.

        `such_as` is one as TOML has it.
        """
        values = self._pop(key, [])
        if not isinstance(values, list):
            self.refuse(key, values, f"must be a list of tables such as [{such_as}]")
            return ()
        found: list[Table] = []
        for place, value in enumerate(values):
            if isinstance(value, dict):
                name = f"{self._full(key)}[{place}]"
                found.append(Table(name, value, self.problems))
            else:
                self.refuse(key, value, f"must be a table such as {such_as}")
        return tuple(found)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        value = self._pop(key, default)
        if type(value) is int and low <= value <= high:
            return value
        self.refuse(key, value, f"must be a number from {low} to {high}")
        return default

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._pop(key, default)
        if isinstance(value, bool):
            return value
        self.refuse(key, value, "must be true or false")
        return default

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._pop(key, default)
        if isinstance(value, str):
            return value
        self.refuse(key, value, "must be a string")
        return default

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """One of some strings."""
        value = self._pop(key, default)
        if isinstance(value, str) and value in choices:
            return value
        self.refuse(key, value, _must_be(choices))
        return default

    def option(self, option: Option[Any]) -> OptionValue:
        """What an option of a helper is set to."""
        default: OptionValue = option.default
        if isinstance(default, tuple):
            read = option.element or one_of(option.choices)
            return self.list_of(option.name, read, default)
        if option.element is not None:
            read = cast("Callable[[object], bool | int | str]", option.element)
            return self.value(option.name, read, default)
        value = self._pop(option.name, default)
        kind = type(default)
        if type(value) is not kind:
            names = {bool: "true or false", int: "a number", str: "a string"}
            self.refuse(option.name, value, f"must be {names[kind]}")
            return default
        assert isinstance(value, bool | int | str)  # noqa: S101 - kind is one of them
        if option.choices and value not in option.choices:
            self.refuse(option.name, value, _must_be(option.choices))
            return default
        return value

    def value(self, key: str, read: Callable[[object], _T], default: _T) -> _T:
        """What `read` makes of the value; it raises ValueError with what is allowed."""
        if key not in self._values:
            self._known.append(key)
            return default
        value = self._pop(key, None)
        try:
            return read(value)
        except ValueError as error:
            self.refuse(key, value, str(error))
            return default

    def list_of(
        self, key: str, read: Callable[[object], _T], default: tuple[_T, ...]
    ) -> tuple[_T, ...]:
        """A list whose elements `read` takes.

        `read` raises ValueError with what is allowed. No element may stand twice. Where
        one is wrong all are the default.
        """
        if key not in self._values:
            self._known.append(key)
            return default
        values = self._pop(key, [])
        if not isinstance(values, list):
            self.refuse(key, values, "must be a list")
            return default
        result: list[_T] = []
        for value in values:
            try:
                element = read(value)
            except ValueError as error:
                self.refuse(key, value, str(error))
                continue
            if element in result:
                self.refuse(key, value, "stands there twice")
            result.append(element)
        return tuple(result) if len(result) == len(values) else default

    def require(self, key: str, such_as: str) -> None:
        """Note that a key is missing that has no default; call it when it was read."""
        if key not in self._given:
            self.problems.append(f"{self._full(key)}: is missing, {such_as}")

    def close(self, kind: str = "key", hint: str = "") -> None:
        """Note each key that is left, since nothing has read it, with a hint."""
        known = ", ".join(self._known) or "none"
        known += f"; {hint}" if hint else ""
        for key, value in self._values.items():
            why = f"unknown {kind}{nearest(key, self._known)}, known are {known}"
            if isinstance(value, dict):
                self.problems.append(f"[{self._full(key)}]: {why}")
            else:
                self.refuse(key, value, why)

    def _pop(self, key: str, default: object) -> object:
        self._known.append(key)
        return self._values.pop(key, default)

    def _full(self, key: str) -> str:
        return f"{self.name}.{_key(key)}" if self.name else _key(key)


def one_of(choices: tuple[_T, ...]) -> Callable[[object], _T]:
    """What `Table.list_of` reads elements with that are one of `choices`."""

    def read(value: object) -> _T:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise ValueError(_must_be(choices))

    return read


def _must_be(choices: Iterable[object]) -> str:
    words = (each if isinstance(each, str) else as_toml(each) for each in choices)
    return f"must be one of {', '.join(words)}"
