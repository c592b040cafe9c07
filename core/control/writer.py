# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that writes events to a file.

It waits for the disk, so that nobody else does. What has been written it tells the
supervisor before each time that it writes, and after it, so that its successor, in
another file or after a crash, leaves nothing out and writes nothing twice.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Self

from cthelper.core.control.event_file import EventFile
from cthelper.core.control.following import FOLLOW_SECONDS, Source, next_page
from cthelper.core.control.reports import Asker

# What has happened until it is told to end is written, but not for ever.
_ENDING_SECONDS: Final = 1.0


@dataclass(slots=True)
class Position:
    """What has been written: of each process its pid and the last event's number.

    `unsure` are those up to there of which nobody knows, since whoever was to write
    them has died, and `unwritten` those for which there was no room.
    """

    places: dict[str, tuple[object, int]] = field(default_factory=dict)
    unsure: int = 0
    unwritten: int = 0

    def packed(self) -> bytes:
        """As one message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Of a message that this program has made."""
        return cls(**json.loads(data))


class Writer:
    """Writes all events since a time, from a position on, until it is told to end.

    `tell` is told each position. `ends` waits for so many seconds, and says whether
    this is to end.
    """

    def __init__(
        self,
        file: EventFile,
        asked: Mapping[int, Asker],
        begin: float,
        position: Position,
        tell: Callable[[bytes], object],
        ends: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._sources = {
            str(number): Source(
                number, each, *position.places.get(str(number), (None, 0))
            )
            for number, each in asked.items()
        }
        self._begin = begin
        self._unsure = position.unsure
        self._tell = tell
        self._ends = ends
        self._clock = clock

    def run(self) -> None:
        """Write. Raises OSError where nobody is there who would be told."""
        wait = 0.0
        until = None
        while True:
            if until is None and self._ends(wait):
                until = self._clock() + _ENDING_SECONDS
            self._write(ending=until is not None)
            more = any(each.more for each in self._sources.values())
            if until is not None and (not more or self._clock() > until):
                return
            wait = 0.0 if more else FOLLOW_SECONDS

    def _write(self, *, ending: bool) -> None:
        """What is new."""
        found = next_page([*self._sources.values()], self._begin, ending=ending)
        if not found:
            return
        count = len(found)
        if self._unsure:
            missed = {"event": "events-missed", "count": self._unsure}
            found.insert(0, {"time": found[0]["time"], **missed})
        self._told(self._unsure + count)
        self._file.write(found)
        self._unsure = 0
        self._told(0)

    def _told(self, unsure: int) -> None:
        places = {
            number: (each.pid, each.after) for number, each in self._sources.items()
        }
        self._tell(Position(places, unsure, self._file.unwritten).packed())
