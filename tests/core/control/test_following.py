# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of several processes: who is silent holds up nobody, what is lost is said."""

from typing import Any, cast

from cthelper.core.control.following import SUPERVISOR, Source, next_page
from cthelper.core.control.recent import KEPT
from cthelper.core.control.reports import Asker
from cthelper.core.records import Record
from tests.core.control.controlled import Process


class Asked:
    """Notes how long each answer would be waited for."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.waited: list[float] = []

    def ask(self, what: str, seconds: float, **details: object) -> Record | None:
        self.waited.append(seconds)
        return self._process.ask(what, seconds, **details)


def process(events: int = 0, **fields: object) -> Process:
    made = Process({})
    for number in range(events):
        made.recent.add(1000.0 + number, "refused", "info", fields)
    return made


def source(asked: object, number: int = 0) -> Source:
    return Source(number, cast(Asker, asked))


def test_who_is_silent_is_waited_for_once() -> None:
    silent = process(1)
    silent.state = None
    asked = Asked(silent)
    one = source(asked)
    for _ in range(3):
        assert one.next(0.0) == []
    assert asked.waited[0] > 1
    assert max(asked.waited[1:]) < 0.5
    silent.state = {}
    assert len(one.next(0.0)) == 1
    one.next(0.0)
    assert asked.waited[-1] == asked.waited[0]


def test_what_nobody_keeps_any_more_is_said_of_a_new_process_too() -> None:
    (first, *rest) = source(process(KEPT + 7)).next(0.0)
    assert (first["event"], first["count"]) == ("events-missed", 7)
    assert len(rest) == 100
    # Where it reaches back far enough nothing was missed.
    (first, *_) = source(process(KEPT + 7)).next(1000.0 + KEPT)
    assert first["event"] == "refused"


def test_worker_that_an_event_is_of_is_not_who_tells_of_it() -> None:
    told = process(1, worker=3)
    (record,) = source(told, SUPERVISOR).next(0.0)
    assert record["worker"] == 3
    found: list[Any] = next_page([source(process(1)), source(told, SUPERVISOR)], 0.0)
    assert [each["worker"] for each in found] == [0, 3]
    (record,) = source(process(1), SUPERVISOR).next(0.0)
    assert record["worker"] == "supervisor"


def test_supervisor_is_waited_for_when_it_is_the_last_time() -> None:
    """It logs a reload when it has done all else, and answers then."""
    for number, waits in ((SUPERVISOR, True), (0, False)):
        silent = process(1)
        silent.state = None
        asked = Asked(silent)
        one = source(asked, number)
        one.next(0.0)
        one.next(0.0, ending=True)
        assert (asked.waited[1] == asked.waited[0]) is waits
