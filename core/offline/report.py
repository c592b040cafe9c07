# SPDX-License-Identifier: GPL-2.0-or-later
"""A replay's events for people, a line each, and how two replays differ."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cthelper.core.errors import CthelperError
from cthelper.core.grants import How
from cthelper.core.offline.events import (
    Begin,
    Event,
    ExpectationEvent,
    FinishedEvent,
    MalformedEvent,
    RefusedEvent,
    RelatedEvent,
    Summary,
    Told,
    WithdrawnEvent,
)
from cthelper.core.records import Record

# `json.dumps` would make one for each record.
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
_UTC: Final = len("2026-01-01T00:00:00.000000+00:00")


def heading(*, utc: bool = False) -> str:
    """The names of a table's columns; `utc` as for `line`."""
    time = f"{'time (UTC)':<{_UTC}}" if utc else f"{'time':>12}"
    return f"{'frame':>7}  {time}  {'event':<11}  {'helper':<15}  what"


def line(event: Event, begin: Begin | None = None) -> str | None:
    """The line of an event in a capture's table; None for one that has none.

    With `begin` times are in UTC, else seconds since then.
    """
    match event:
        case ExpectationEvent():
            wanted = event.expectation
            how = "" if event.how is How.CREATED else f", {event.how.value}"
            what = (
                f"{wanted} ({wanted.policy}, {event.admits}, {wanted.timeout} s{how})"
            )
            return _row("expectation", event, begin, what)
        case RelatedEvent():
            what = f"{event.flow}, announced in frame {event.expectation_frame}"
            return _row("related", event, begin, what)
        case WithdrawnEvent():
            return _row("withdrawn", event, begin, event.what)
        case RefusedEvent():
            return _row("refused", event, begin, f"{event.reason}: {event.detail}")
        case MalformedEvent():
            return _row("malformed", event, begin, event.reason)
        case FinishedEvent():
            what = f"{event.flow}, read no longer: {event.why}"
            return _row("finished", event, begin, what)
        case Summary():
            return summary(event)
        case _:
            return None


def summary(event: Summary) -> str:
    """The line below a capture's table."""
    return (
        f"{event.packets} packets, {event.flows} flows, "
        f"{event.expectations} expectations, {event.related} related, "
        f"{event.refused} refused, {event.malformed} malformed, "
        f"{event.finished} finished"
    )


def _row(name: str, event: Told, begin: Begin | None, what: str) -> str:
    time = f"{event.time:>12.6f}"
    if begin is not None:
        time = f"{begin.utc(event.time) or time:<{_UTC}}"
    return f"{event.frame:>7}  {time}  {name:<11}  {event.helper:<15}  {what}"


def json_line(record: Record) -> str:
    """A record as one line."""
    return _ENCODER.encode(record)


def read_records(path: Path) -> list[Record]:
    """The records that ``cthelper replay --json`` once wrote. Raises CthelperError.

    Without the time in UTC, which says nothing that frame and time do not.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise CthelperError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        lines = [""]
    return [_read_record(path, number, text) for number, text in enumerate(lines, 1)]


def _read_record(path: Path, number: int, text: str) -> Record:
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict) or "event" not in record:
        raise CthelperError(f"{path}:{number}: not a line of `cthelper replay --json`")
    record.pop("utc", None)
    return record


def differences(old: Iterable[Record], new: Iterable[Record]) -> Iterator[str]:
    """The records that only one of two replays has: ``- record``, ``+ record``.

    In the order of captures and frames, as the new replay has the captures.
    """
    before, after = list(map(json_line, old)), list(map(json_line, new))
    gone, come = Counter(before), Counter(after)
    gone, come = gone - come, come - gone
    marked = [("-", text) for text in before if _take(gone, text)]
    marked += [("+", text) for text in after if _take(come, text)]
    captures: dict[str, int] = {}
    for text in (*after, *before):
        captures.setdefault(json.loads(text).get("capture", ""), len(captures))

    def place(item: tuple[str, str]) -> tuple[int, float, bool]:
        record = json.loads(item[1])
        frame = record.get("frame", float("inf"))
        return captures[record.get("capture", "")], frame, item[0] == "+"

    for mark, text in sorted(marked, key=place):
        yield f"{mark} {text}"


def _take(counts: Counter[str], text: str) -> bool:
    if counts[text] <= 0:
        return False
    counts[text] -= 1
    return True
