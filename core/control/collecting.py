# SPDX-License-Identifier: GPL-2.0-or-later
"""Who makes statistics of the kernel's events."""

import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import chain
from typing import Final, NoReturn, TypeVar

from cthelper.core.control.statistics import Statistics
from cthelper.core.errors import NetlinkError
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.monitor import Happened, Monitor
from cthelper.core.tuples import Conntrack, Expectation, Kind, Status

KINDS: Final = (Kind.NEW, Kind.DESTROY, Kind.EXPECTATION_NEW)
"""What statistics are made of."""

_BUFFER: Final = 4 << 20
_WAIT_SECONDS: Final = 1.0
# The table is read once in so long where events are lost again and again.
_COMPARE_SECONDS: Final = 60.0
# After what fails, such as a socket that cannot be made.
_PAUSE_SECONDS: Final = 10.0

_Found = TypeVar("_Found")


class Collector:
    """Makes statistics in a thread of its own; `read` shows them to others.

    However many events there are, and entries, it rests for as long as it works.
    """

    def __init__(
        self,
        *,
        ctnetlink: Callable[[], Ctnetlink] = Ctnetlink,
        monitor: Callable[..., Monitor] = Monitor,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ctnetlink = ctnetlink
        self._monitor = monitor
        self._sleep = sleep
        self._lock = threading.Lock()
        self._statistics = Statistics(time.time())

    def read(self, look: Callable[[Statistics], _Found]) -> _Found:
        """What `look` makes of the statistics, which stand still meanwhile."""
        with self._lock:
            return look(self._statistics)

    def run(self) -> NoReturn:
        """Collect for ever."""
        while True:
            # Where there is no memory for a moment it goes on later.
            with suppress(NetlinkError, MemoryError):
                while True:
                    self._collect()
            self._sleep(_PAUSE_SECONDS)

    def _collect(self) -> None:
        """Collect until events were lost. Raises NetlinkError.

        What waits then in the socket has gaps, and after it comes nothing until all of
        it is read: so another one is begun with.
        """
        with closing(
            self._monitor(KINDS, status=Status.EXPECTED, buffer=_BUFFER)
        ) as monitor:
            # From now on all is told of: what is listed after that leaves no gap.
            due = time.monotonic() + _COMPARE_SECONDS
            self._compare()
            while not monitor.overruns or time.monotonic() < due:
                self._sleep(self._take_in(monitor))

    def _compare(self) -> None:
        """Hold what is counted against the kernel's table."""
        begun = time.monotonic()
        with closing(self._ctnetlink()) as ctnetlink:
            # Of others there may be very many, and whoever looks does not wait.
            found = [each for each in ctnetlink.listed() if _matters(each.entry)]
        with self._lock:
            self._statistics.compare(found)
        self._sleep(time.monotonic() - begun)

    def _take_in(self, monitor: Monitor) -> float:
        """Wait for some events and take them in; the seconds that this took."""
        events = monitor.read(_WAIT_SECONDS)
        first = next(events, None)
        if first is None:
            return 0.0
        begun = time.monotonic()
        with self._lock:
            for event in chain((first,), events):
                self._count(event)
        return time.monotonic() - begun

    def _count(self, event: Happened) -> None:
        now = time.monotonic()
        if isinstance(event.subject, Expectation):
            self._statistics.announced(event.subject, now)
        elif event.kind is Kind.DESTROY:
            self._statistics.ended(event.subject)
        else:
            self._statistics.begun(event.subject, now)


def _matters(entry: Conntrack) -> bool:
    return entry.helper is not None or entry.master is not None
