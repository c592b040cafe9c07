# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``cthelper replay`` prints of the events, as they come."""

import sys
from pathlib import Path
from typing import Protocol

from cthelper.core.offline.events import (
    Event,
    FaultEvent,
    Notice,
    Record,
    record,
)
from cthelper.core.offline.report import (
    HEADING,
    differences,
    json_line,
    line,
    read_records,
)


def warn(capture: str, event: Event) -> bool:
    """Tell the user of what has no place in the output; whether it is a failure."""
    match event:
        case Notice():
            print(f"cthelper: {event.text}", file=sys.stderr)
            return event.failed
        case FaultEvent():
            print(
                f"cthelper: {capture}: frame {event.frame}: helper {event.helper} has "
                f"a bug at {event.where}: {event.error}",
                file=sys.stderr,
            )
            return True
    return False


class Output(Protocol):
    """What is printed of the events."""

    def begin(self, capture: str) -> None:
        """The events of a capture follow."""

    def event(self, capture: str, event: Event) -> None:
        """One of them."""

    def end(self) -> bool:
        """That was all; whether the command has failed."""


class _Json:
    """Records as they come."""

    def begin(self, capture: str) -> None:
        """Nothing: each record names its capture."""

    def event(self, capture: str, event: Event) -> None:
        """Print its record, if it has one."""
        found = record(event, capture)
        if found is not None:
            print(json_line(found))

    def end(self) -> bool:
        """Nothing."""
        return False


class _Table:
    """A table for each capture."""

    def __init__(self) -> None:
        self._first = True

    def begin(self, capture: str) -> None:
        """Print the capture's name and the columns'."""
        print(f"{'' if self._first else chr(10)}{capture}\n{HEADING}")
        self._first = False

    def event(self, capture: str, event: Event) -> None:
        """Print its line, if it has one."""
        text = line(event)
        if text is not None:
            print(text)

    def end(self) -> bool:
        """Nothing."""
        return False


class _Diff:
    """What differs from an earlier replay's records."""

    def __init__(self, old: Path) -> None:
        self._old = read_records(old)
        self._new: list[Record] = []

    def begin(self, capture: str) -> None:
        """Nothing: each record names its capture."""

    def event(self, capture: str, event: Event) -> None:
        """Keep its record."""
        found = record(event, capture)
        if found is not None:
            self._new.append(found)

    def end(self) -> bool:
        """Print the differences; whether there are any."""
        different = False
        for text in differences(self._old, self._new):
            print(text)
            different = True
        return different


def of(*, as_json: bool, diff: Path | None) -> Output:
    """Records, or what differs from those in the file `diff`, or a table."""
    if as_json:
        return _Json()
    if diff is not None:
        return _Diff(diff)
    return _Table()
