# SPDX-License-Identifier: GPL-2.0-or-later
"""The thread that makes statistics: of events, and where some are lost."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest

from cthelper.core.control import collecting as module
from cthelper.core.control.collecting import Collector
from cthelper.core.control.statistics import Statistics
from cthelper.core.errors import NetlinkError
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.listing import Listed
from cthelper.core.netlink.monitor import Happened, Monitor
from cthelper.core.tuples import Kind
from tests.core.control.controlled import Kernel, Told
from tests.core.control.test_statistics import data
from tests.core.control.test_tree import expectation, listed, tuple_of


class _Enough(BaseException):
    """Ends what goes on for ever."""


def end(seconds: float) -> None:
    """The pause after what fails is the end."""
    if seconds >= module._PAUSE_SECONDS:
        raise _Enough


def collected(kernel: Kernel, told: Told) -> Any:
    """What is counted of the helper until the events have an end."""
    collector = Collector(
        ctnetlink=lambda: cast(Ctnetlink, kernel),
        monitor=lambda *args, **more: cast(Monitor, told.opened(*args, **more)),
        sleep=end,
    )
    with pytest.raises(_Enough):
        collector.run()
    helpers: Any = collector.read(Statistics.totals)["helpers"]
    return helpers["line"]


@pytest.fixture
def kernel() -> Kernel:
    """A table."""
    return Kernel()


def test_events_are_counted(kernel: Kernel) -> None:
    told = Told(
        [
            Happened(Kind.EXPECTATION_NEW, expectation(1, 7001)),
            Happened(Kind.NEW, data(10, 1)),
        ],
        [Happened(Kind.DESTROY, data(10, 1))],
    )
    found = collected(kernel, told)
    assert told.asked == [Kind.NEW, Kind.DESTROY, Kind.EXPECTATION_NEW]
    assert (found["announced"], found["flows"], found["packets"]) == (1, 1, 5)
    assert found["setup"]["count"] == 1


def test_what_was_there_before_the_first_event_is_listed(kernel: Kernel) -> None:
    kernel.table = [listed(1, helper="line"), listed(10, master=tuple_of(1))]
    assert collected(kernel, Told([]))["live"] == 1


def test_where_events_were_lost_it_begins_anew(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits in the socket then has gaps, and is not read to its end."""
    monkeypatch.setattr(module, "_COMPARE_SECONDS", 0.0)
    kernel.table = [listed(1, helper="line"), listed(10, master=tuple_of(1))]
    tables: Iterator[list[Listed]] = iter([kernel.table, kernel.table[:1]])
    monkeypatch.setattr(kernel, "listed", lambda: iter(next(tables)))
    opened = 0

    def monitor(kinds: Iterable[Kind], **_more: object) -> Monitor:
        nonlocal opened
        opened += 1
        if opened > 2:
            raise NetlinkError.of(1, "open")
        return cast(Monitor, Told().opened(kinds))

    collector = Collector(
        ctnetlink=lambda: cast(Ctnetlink, kernel), monitor=monitor, sleep=end
    )
    with pytest.raises(_Enough):
        collector.run()
    helpers: Any = collector.read(Statistics.totals)["helpers"]
    assert (helpers["line"]["flows"], helpers["line"]["live"]) == (1, 0)
    assert opened == 3


def test_failure_is_not_the_end() -> None:
    failures: list[Exception] = [NetlinkError.of(1, "open"), MemoryError()]
    pauses: list[float] = []

    def opened(*_args: object, **_more: object) -> Monitor:
        raise failures[len(pauses)]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == len(failures):
            raise _Enough

    with pytest.raises(_Enough):
        Collector(monitor=opened, sleep=sleep).run()
    assert pauses == [module._PAUSE_SECONDS] * 2


def test_it_stands_still_while_it_is_looked_at(kernel: Kernel) -> None:
    collector = Collector(ctnetlink=lambda: cast(Ctnetlink, kernel))
    compared = threading.Event()

    def compare() -> None:
        collector._compare()
        compared.set()

    def look(_statistics: Statistics) -> bool:
        threading.Thread(target=compare).start()
        return compared.wait(0.05)

    assert collector.read(look) is False
    assert compared.wait(10)
