# SPDX-License-Identifier: GPL-2.0-or-later
"""The latest events: numbered, bounded, and made into records for who asks."""

import os

from cthelper.core.control.recent import KEPT, Recent
from cthelper.core.records import Record
from tests.core.builders import flow_tuple


def filled(count: int) -> Recent:
    recent = Recent()
    for number in range(1, count + 1):
        recent.add(1000.0 + number, "refused", "info", {"number": number})
    return recent


def test_they_come_once_each_and_in_order() -> None:
    recent = filled(5)
    first, some = recent.after(0, 3)
    assert (first, [each["number"] for each in some]) == (1, [1, 2, 3])
    first, rest = recent.after(3, 10)
    assert (first, [each["number"] for each in rest]) == (4, [4, 5])
    assert recent.after(5, 10) == (6, [])


def test_those_that_are_forgotten_leave_a_gap() -> None:
    recent = filled(KEPT + 10)
    first, some = recent.after(4, 2)
    assert (first, [each["number"] for each in some]) == (11, [11, 12])


def test_they_are_found_by_their_time() -> None:
    recent = filled(5)
    assert recent.since(1003.0) == 2
    assert recent.since(0.0) == 0
    assert recent.since(2000.0) == 5


def test_question_of_another_process_is_answered_by_time() -> None:
    recent = filled(5)
    question: Record = {"pid": None, "since": 1004.0, "after": 77, "most": 10}
    answer = recent.answer(question)
    assert (answer["pid"], answer["first"], answer["last"]) == (os.getpid(), 4, 5)
    again = recent.answer({**question, "pid": os.getpid(), "after": 4})
    assert (again["first"], again["last"]) == (5, 5)


def test_record_has_flows_as_replay_has_them_and_texts_that_end() -> None:
    recent = Recent()
    fields = {"flow": flow_tuple(), "error": OSError("x" * 9999), "count": 3}
    recent.add(0.0, "helper-fault", "error", fields)
    _, (record,) = recent.after(0, 1)
    assert record["time"] == "1970-01-01T00:00:00.000+00:00"
    assert record["flow"] == {
        "transport": "tcp",
        "source": "192.0.2.1:40000",
        "destination": "198.51.100.2:7000",
    }
    assert record["error"] == "x" * 1024
    assert record["count"] == 3
