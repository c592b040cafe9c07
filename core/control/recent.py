# SPDX-License-Identifier: GPL-2.0-or-later
"""The latest events of a process, for who asks later.

They are kept as they come and made into records only for who asks: an event costs a
packet next to nothing.
"""

import os
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Final, cast

from cthelper.core.records import Record, expects_record, flow_record, time_text
from cthelper.core.tuples import Expectation, Tuple

KEPT: Final = 2048
"""Events that a process keeps."""

# Errors of helpers may be as long as a message.
_LONGEST: Final = 1024


class Recent:
    """The last KEPT events, numbered from 1 on; `last` is the number of the last one.

    Times are seconds since 1970.
    """

    def __init__(self) -> None:
        self.last = 0
        self._kept: deque[tuple[float, str, str, Mapping[str, object]]] = deque(
            maxlen=KEPT
        )

    def add(
        self, time: float, event: str, level: str, fields: Mapping[str, object]
    ) -> None:
        """Keep an event; what its fields hold must not change."""
        self.last += 1
        self._kept.append((time, event, level, fields))

    def answer(self, question: Record) -> Record:
        """What a question for events is answered (reports.py).

        They are those after the number `after` of this process; a new asker, or one
        that another process has answered before, has those since a time. `cut` are
        those, at most, that came since then and are not kept any more.
        """
        own, after, most = os.getpid(), question["after"], question["most"]
        forgotten = self.last - len(self._kept)
        cut = 0
        if question["pid"] != own:
            after = self.since(cast(float, question["since"]))
            # All that is kept came since: so may have what is forgotten.
            cut = forgotten if after == forgotten else 0
        first, events = self.after(cast(int, after), cast(int, most))
        return {
            **{"pid": own, "first": first, "last": self.last, "cut": cut},
            "events": events,
        }

    def after(self, number: int, most: int) -> tuple[int, list[Record]]:
        """Records of at most so many events after one, and the number of the first.

        A first number of more than one above the given one says that others came
        between, which are not kept any more.
        """
        first = max(number, self.last - len(self._kept)) + 1
        begin = first - (self.last - len(self._kept)) - 1
        return first, [
            _record(*each) for each in islice(self._kept, begin, begin + most)
        ]

    def since(self, time: float) -> int:
        """The number of the last event before a time."""
        number = self.last
        for then, *_ in reversed(self._kept):
            if then < time:
                break
            number -= 1
        return number


def _record(
    time: float, event: str, level: str, fields: Mapping[str, object]
) -> Record:
    return {
        "time": time_text(time),
        "level": level,
        "event": event,
        **{key: _told(value) for key, value in fields.items()},
    }


def _told(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Tuple):
        return flow_record(value)
    if isinstance(value, Expectation):
        return expects_record(value)
    return str(value)[:_LONGEST]
