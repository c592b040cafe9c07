# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugins are examined where they can do no harm, and known by what they declare.

Each file and each entry point is imported, checked and asked in a process of its own,
so that one is not taken for another. What comes back is of a process in which somebody
else's code has run: any bytes, out of which a helper's stand-in is made, or an error
that names the file.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cthelper.core import docstrings
from cthelper.core.contract import check
from cthelper.core.declaration import Declaration, declare, stand_in
from cthelper.core.errors import CthelperError, RegistryError
from cthelper.core.registry import (
    IMPORTING,
    Found,
    Point,
    Refuse,
    error_at,
    module_name,
    source_of,
)
from cthelper.core.tables import printable

# Characters that are shown of an error.
_SHOWN = 1000


class Ended(CthelperError):
    """A process gave no answer; `line` is the last that it was at, if one is known."""

    def __init__(self, why: str, line: int | None = None) -> None:
        super().__init__(why)
        self.line = line


class Ask(Protocol):
    """Does work in a process that may do nothing else, and gives what it returns.

    `module` is the name of the one whose lines are followed, `readable` are folders
    that the process may read besides. Raises Ended.
    """

    def __call__(
        self, work: Callable[[], bytes], module: str, /, *readable: Path
    ) -> bytes:
        """What `work` returns; the process may have put anything in its place."""


@dataclass(frozen=True, slots=True)
class Examining:
    """Has helpers examined, for a configuration with this text; a `Taking`."""

    ask: Ask
    text: str

    def of_file(self, file: Path, data: bytes, refuse: Refuse) -> list[Found]:
        """Stand-ins of the helpers that a file defines; the wrong ones are refused.

        Raises RegistryError.
        """

        def examined() -> bytes:
            refused: list[RegistryError] = []
            found: list[Found] = []
            try:
                found = IMPORTING.of_file(file, data, refused.append)
            except RegistryError as error:
                refused.append(error)
            return answer(found, refused, self.text)

        name = str(file)
        try:
            answered = self.ask(examined, module_name(file), file.parent)
        except Ended as error:
            at = name if error.line is None else f"{name}:{error.line}"
            raise RegistryError(f"{at}: {error}") from None
        result = []
        for each in understood(answered, name):
            if isinstance(each, RegistryError):
                refuse(each)
            else:
                result.append(_found(each, name, None))
        return result

    def of_point(self, point: Point) -> Found:
        """A stand-in of what an entry point leads to. Raises RegistryError."""

        def examined() -> bytes:
            try:
                return answer([IMPORTING.of_point(point)], [], self.text)
            except RegistryError as error:
                return answer([], [error], self.text)

        module = point.value.partition(":")[0]
        name = point.distribution
        try:
            answered = self.ask(examined, module)
        except Ended as error:
            at = "" if error.line is None else f" at line {error.line} of {module}"
            raise RegistryError(
                f"{name}: entry point {point.name} = {point.value!r}: {error}{at}"
            ) from None
        found = understood(answered, name)
        if len(found) != 1:
            raise RegistryError(f"{name}: declares {len(found)} helpers, not one")
        (one,) = found
        if isinstance(one, RegistryError):
            raise one
        return _found(one, source_of(point), name)


def refused(why: str) -> bytes:
    """The answer of a process that cannot do its work."""
    return json.dumps([{"error": why}]).encode()


def answer(found: list[Found], refused: list[RegistryError], text: str) -> bytes:
    """What is said of helpers: each one's declaration, or what is wrong with it.

    `text` is the configuration's.
    """
    entries: list[object] = [{"error": str(each)} for each in refused]
    for each in found:
        try:
            entries.append(_declared(each, text).packed())
        except RegistryError as error:
            entries.append({"error": str(error)})
    return json.dumps(entries).encode()


def _declared(found: Found, text: str) -> Declaration:
    """What one declares. Raises RegistryError, also for what its code raises."""
    helper = found.helper
    check(helper)
    try:
        return declare(helper, docstrings.of_module(helper), _table(text, helper.name))
    except RegistryError:
        raise
    except (Exception, SystemExit) as error:
        raise error_at(error, helper.__module__, found.source) from None


def _table(text: str, name: str) -> object:
    """A helper's table of the configuration, whatever is there."""
    try:
        helpers = tomllib.loads(text).get("helpers")
    except (ValueError, RecursionError):
        return None  # whoever reads the file finds that
    return helpers.get(name) if isinstance(helpers, dict) else None


def understood(answered: bytes, source: str) -> list[Declaration | RegistryError]:
    """What bytes say of the helpers of a source. Raises RegistryError.

    Nobody knows who has written them; errors name the source in any case.
    """
    try:
        entries = json.loads(answered)
        if not isinstance(entries, list) or not entries:
            raise ValueError("is no list of helpers")
        return [_understood(each, source) for each in entries]
    except (ValueError, RecursionError) as error:
        raise _refusal(f"what it declares {error}", source) from None


def _understood(entry: object, source: str) -> Declaration | RegistryError:
    match entry:
        case {"error": str() as text}:
            return _refusal(text, source)
    return Declaration.unpacked(entry)


def _refusal(text: str, source: str) -> RegistryError:
    shown = printable(" ".join(text.split()))[:_SHOWN]
    return RegistryError(shown if shown.startswith(source) else f"{source}: {shown}")


def _found(declared: Declaration, source: str, distribution: str | None) -> Found:
    """Raises RegistryError."""
    try:
        helper = stand_in(declared)
    except RegistryError as error:
        raise _refusal(str(error), source) from None
    about, name_at = declared.about, declared.name_at
    return Found(helper, source, distribution, about, name_at, checked=True)
