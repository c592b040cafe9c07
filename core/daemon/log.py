# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's log and its counters: one line a decision, key=value or JSON."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

from cthelper.core.control.recent import Recent
from cthelper.core.daemon.standard_error import StandardError, priority

_LEVELS: Final = ("debug", "info", "warning", "error")
# Lines of one event and reason: so many at once, then so many a second.
_BURST: Final = 50.0
_PER_SECOND: Final = 5.0
# Counters, so that all of them are told in one answer; and one for all others.
_NAMES: Final = 800
_LONGEST_NAME: Final = 100
_OTHERS: Final = "others"

Value = str | int | float | bool | None


class Output(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object:
        """Write a line. Raises OSError."""


class Log:
    """Writes lines and counts events; lines beyond the rate are counted, not written.

    The rate is per event and reason, so that a flood of one never hides another. The
    first line that is written again says how many were left out (``suppressed``).
    Lines that cannot be written are counted, too: an event of its own (``log-lost``)
    tells of them before the next line that can be. The latest events are in `recent`,
    whatever their level. `common` are fields that all lines have. Lines go to `output`,
    by default standard error; where that is the journal each begins with its priority.
    """

    def __init__(
        self,
        level: str = "info",
        form: str = "text",
        *,
        clock: Callable[[], float],
        output: Output | None = None,
        common: Mapping[str, Value] = {},
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.recent = Recent()
        self._clock = clock
        self._marks = dict.fromkeys(_LEVELS, "")
        if output is None:
            self._marks = {level: priority(level) for level in _LEVELS}
        self._output = StandardError() if output is None else output
        self._lost = 0
        self._common = dict(common)
        self._buckets: dict[str, _Bucket] = {}
        self.configure(level, form)

    def configure(self, level: str, form: str) -> None:
        """Set the lowest level that is written, and the format: text or json."""
        self._lowest = _LEVELS.index(level)
        self._json = form == "json"

    def event(self, event: str, level: str = "info", /, **fields: object) -> None:
        """Count an event, by its ``reason`` where it has one, and write its line.

        What is no string, number, boolean or None is written as its string, which is
        made only then: most lines are of a flood and left out.
        """
        reason = fields.get("reason")
        name = event if reason is None else f"{event}.{reason}"
        if name not in self.counters:
            name = self._first(name)
        self.counters[name] += 1
        self.recent.add(time.time(), event, level, fields)
        if _LEVELS.index(level) < self._lowest:
            return
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(now)
        if not bucket.take(now):
            return
        more = {"suppressed": bucket.suppressed} if bucket.suppressed else {}
        try:
            if self._lost:
                self._write("log-lost", "warning", {"lines": self._lost})
                self._lost = 0
            self._write(event, level, fields, more)
            bucket.suppressed = 0
        except OSError:
            self._lost += 1
            self.counters["log-lost"] += 1

    def several(
        self, event: str, times: int, level: str = "info", /, **fields: object
    ) -> None:
        """As `event`, of what has happened so many times: one line tells of all."""
        reason = fields.get("reason")
        name = event if reason is None else f"{event}.{reason}"
        if name not in self.counters:
            name = self._first(name)
        self.counters[name] += times - 1
        self.event(event, level, **fields)

    def _first(self, name: str) -> str:
        """What is counted for the first time: reasons of plugins have no number."""
        name = name[:_LONGEST_NAME]
        if name in self.counters or len(self.counters) < _NAMES:
            return name
        return _OTHERS

    def _write(
        self,
        event: str,
        level: str,
        fields: Mapping[str, object],
        more: Mapping[str, Value] = {},
    ) -> None:
        """Write a line, `more` at its end. Raises OSError."""
        record: dict[str, Value] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "event": event,
            **{
                key: value if isinstance(value, Value) else str(value)
                for key, value in fields.items()
            },
            **self._common,
            **more,
        }
        line = json.dumps(record) if self._json else _text(record)
        self._output.write(f"{self._marks[level]}{line}\n")


class _Bucket:
    """A token bucket."""

    def __init__(self, now: float) -> None:
        self.suppressed = 0
        self._tokens = _BURST
        self._then = now

    def take(self, now: float) -> bool:
        self._tokens = min(_BURST, self._tokens + (now - self._then) * _PER_SECOND)
        self._then = now
        if self._tokens < 1:
            self.suppressed += 1
            return False
        self._tokens -= 1
        return True


def _text(record: dict[str, Value]) -> str:
    return " ".join(f"{key}={quoted(value)}" for key, value in record.items())


def quoted(value: object) -> str:
    """A value as it stands, or as a JSON string where it would not be one word."""
    if isinstance(value, str):
        plain = value and not any(
            each in ' "=\\' or not each.isprintable() for each in value
        )
        return value if plain else json.dumps(value)
    return json.dumps(value)
