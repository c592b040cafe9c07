# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of the processes, asked for again and again."""

from collections.abc import Sequence
from typing import Final, cast

from cthelper.core.control.reports import TOO_LONG, Asker
from cthelper.core.records import Record

SUPERVISOR: Final = -1
"""The supervisor's number among those that are asked."""
ANSWER_SECONDS: Final = 3.0
"""How long an answer is waited for."""
FOLLOW_SECONDS: Final = 0.25
"""How often who follows events asks for them."""

# Of one that did not answer the last time: all others wait for it.
_SILENT_SECONDS: Final = 0.25
# A server answers so many at a time, between packets.
_EVENTS: Final = 100


class Source:
    """The events of a process, a page at a time.

    `pid` and `after` are the process that was asked last and the number of the last
    event that it has told.
    """

    def __init__(
        self, number: int, asker: Asker, pid: object = None, after: int = 0
    ) -> None:
        self._number = number
        self._asker = asker
        self.pid = pid
        self.after = after
        self._most = _EVENTS
        self._silent = False
        self.more = False

    def next(self, begin: float, *, ending: bool = False) -> list[Record]:
        """The next ones since a time; `more` is whether there are others already.

        For the last time the supervisor is waited for, which may be busy.
        """
        patient = not self._silent or (ending and self._number == SUPERVISOR)
        answer = self._asker.ask(
            "events",
            ANSWER_SECONDS if patient else _SILENT_SECONDS,
            pid=self.pid,
            since=begin,
            after=self.after,
            most=self._most,
        )
        self.more = False
        self._silent = answer is None
        if answer is None:
            return []
        if TOO_LONG in answer:
            # One that is too long by itself is left out.
            self.after += self._most == 1
            self._most = max(1, self._most // 2)
            self.more = True
            return []
        events = cast(list[Record], answer["events"])
        first, last = cast(int, answer["first"]), cast(int, answer["last"])
        missed = first - self.after - 1
        if answer["pid"] != self.pid:
            # What a process before it has told nobody knows any more.
            self.pid, missed = answer["pid"], cast(int, answer["cut"])
        self.after = first - 1 + len(events)
        self._most = min(_EVENTS, self._most * 2)
        self.more = self.after < last
        if missed > 0:
            time = events[0]["time"] if events else ""
            events.insert(0, {"time": time, "event": "events-missed", "count": missed})
        where = "supervisor" if self._number == SUPERVISOR else self._number
        return [{"worker": where, **each} for each in events]


def next_page(
    sources: Sequence[Source], begin: float, *, ending: bool = False
) -> list[Record]:
    """The next ones of all processes, in the order of their times."""
    found = [each for source in sources for each in source.next(begin, ending=ending)]
    return sorted(found, key=lambda each: str(each["time"]))
