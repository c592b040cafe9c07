# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``cthelper replay`` prints of the events, as they come."""

import sys
from pathlib import Path
from typing import Protocol

from cthelper.core.offline.events import (
    Begin,
    Event,
    FaultEvent,
    Notice,
    Summary,
    added,
    record,
)
from cthelper.core.offline.report import (
    differences,
    heading,
    json_line,
    line,
    read_records,
    summary,
)
from cthelper.core.records import Record


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

    def event(self, capture: str, event: Event) -> bool:
        """One of them; whether it is printed, and more than how the capture begins."""

    def end(self) -> bool:
        """That was all; whether the command has failed."""


class _Json:
    """Records as they come."""

    def __init__(self, *, only_events: bool) -> None:
        self._only_events = only_events
        self._begin: Begin | None = None
        self._told = False

    def begin(self, capture: str) -> None:
        """Nothing: each record names its capture."""
        self._told = False

    def event(self, capture: str, event: Event) -> bool:
        """Print its record, if it has one."""
        if isinstance(event, Begin):
            self._begin = event
        found = record(event, capture, self._begin)
        if found is None or _unwanted(event, self._told, self._only_events):
            return False
        print(json_line(found))
        self._told = True
        return True

    def end(self) -> bool:
        """Nothing."""
        return False


class _Table:
    """A table for each capture, and a total of several."""

    def __init__(self, *, utc: bool, only_events: bool) -> None:
        self._utc = utc
        self._only_events = only_events
        self._begin: Begin | None = None
        self._title = ""
        self._first = True
        self._captures = 0
        self._total = Summary()

    def begin(self, capture: str) -> None:
        """Print the capture's name and the columns', unless events may be missing."""
        self._title = f"{capture}\n{heading(utc=self._utc)}"
        if not self._only_events:
            self._print_title()

    def event(self, capture: str, event: Event) -> bool:
        """Print its line, if it has one."""
        if isinstance(event, Begin) and self._utc:
            self._begin = event
        if isinstance(event, Summary):
            self._captures += 1
            self._total = added(self._total, event)
        text = line(event, self._begin)
        if text is None or _unwanted(event, not self._title, self._only_events):
            return False
        self._print_title()
        print(text)
        return True

    def end(self) -> bool:
        """Print the total."""
        if self._captures > 1:
            print(f"total of {self._captures} captures: {summary(self._total)}")
        return False

    def _print_title(self) -> None:
        if self._title:
            print(f"{'' if self._first else chr(10)}{self._title}")
            self._first = False
            self._title = ""


class _Diff:
    """What differs from an earlier replay's records."""

    def __init__(self, old: Path) -> None:
        self._old = read_records(old)
        self._new: list[Record] = []

    def begin(self, capture: str) -> None:
        """Nothing: each record names its capture."""

    def event(self, capture: str, event: Event) -> bool:
        """Keep its record."""
        found = record(event, capture)
        if found is not None:
            self._new.append(found)
        return False

    def end(self) -> bool:
        """Print the differences; whether there are any."""
        different = False
        for text in differences(self._old, self._new):
            print(text)
            different = True
        return different


def _unwanted(event: Event, told: bool, only_events: bool) -> bool:
    """Whether this is the summary of a capture without events, which is left out."""
    return only_events and not told and isinstance(event, Summary)


def of(
    *,
    as_json: bool = False,
    diff: Path | None = None,
    utc: bool = False,
    only_events: bool = False,
) -> Output:
    """Records, or what differs from those in the file `diff`, or a table.

    `utc` is for the table: absolute times. With `only_events` captures without any are
    left out, but for the total.
    """
    if as_json:
        return _Json(only_events=only_events)
    if diff is not None:
        return _Diff(diff)
    return _Table(utc=utc, only_events=only_events)
