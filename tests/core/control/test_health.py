# SPDX-License-Identifier: GPL-2.0-or-later
"""What `cthelper status` says is amiss."""

from typing import Any

import pytest

from cthelper.core.control.health import Fill, status
from cthelper.core.queue.binding import BoundQueue


def supervisor(**more: object) -> dict[str, Any]:
    return {
        "workers": [{"worker": 0, "pid": 7, "serving": True}],
        "helpers": {"line": {"policies": ["data"]}},
        "queues": [2077],
        "closed_queues": [],
        "ruleset": True,
        "reload": None,
        "events_error": None,
        "counters": {"expectation": 1},
        **more,
    }


def server(**more: object) -> dict[str, Any]:
    return {
        "pid": 7,
        "counters": {"expectation": 2, "packets": 9},
        "flows": {"used": 1, "most": 100},
        "memory": {"used": 1, "most": 100},
        "expectations": 3,
        "quarantined": [],
        **more,
    }


QUEUES = {2077: BoundQueue(2077, 1, 4, 9, 5)}
ROOM = Fill(10, 100)


def test_all_is_well() -> None:
    found = status(supervisor(), {0: server()}, QUEUES, ROOM, ROOM)
    assert (found["health"], found["problems"]) == ("ok", [])
    assert found["counters"] == {"expectation": 3, "packets": 9}
    # A process's own, too: they begin anew with it.
    assert found["supervisor"] == supervisor()
    assert found["servers"] == [{"worker": 0, "answers": True, **server()}]
    assert found["queues"] == [
        {"queue": 2077, "bound": True, "waiting": 4, "bypassed": 5}
    ]


@pytest.mark.parametrize(
    ("of_supervisor", "of_server", "queues", "entries", "problem"),
    [
        (
            {"workers": [{"worker": 0, "pid": None, "serving": False}]},
            {},
            QUEUES,
            ROOM,
            "worker 0 does not serve: its flows pass, uninspected",
        ),
        ({}, None, QUEUES, ROOM, "worker 0 does not answer"),
        ({}, {}, {}, ROOM, "queue 2077 is not bound"),
        (
            {"ruleset": False},
            {},
            QUEUES,
            ROOM,
            "the ruleset is gone: new flows are not inspected",
        ),
        (
            {"reload": {"time": 1.0, "error": "no"}},
            {},
            QUEUES,
            ROOM,
            "the last reload was refused: no",
        ),
        (
            {"events_error": "/x: no"},
            {},
            QUEUES,
            ROOM,
            "no events are written to a file: /x: no",
        ),
        ({}, {}, QUEUES, Fill(90, 100), "the kernel's conntrack table has 90 of 100"),
        (
            {},
            {"flows": {"used": 95, "most": 100}},
            QUEUES,
            ROOM,
            "worker 0: flows at 95 of 100",
        ),
        (
            {},
            {"memory": {"used": 95, "most": 100}},
            QUEUES,
            ROOM,
            "worker 0: memory at 95 of 100 bytes",
        ),
        (
            {},
            {"quarantined": ["line"]},
            QUEUES,
            ROOM,
            "worker 0: helper line is left out after faults",
        ),
    ],
)
def test_what_is_amiss_is_said(
    of_supervisor: dict[str, object],
    of_server: dict[str, object] | None,
    queues: dict[int, BoundQueue],
    entries: Fill,
    problem: str,
) -> None:
    state = None if of_server is None else server(**of_server)
    found = status(supervisor(**of_supervisor), {0: state}, queues, entries, None)
    assert (found["health"], found["problems"]) == ("degraded", [problem])


def test_supervisor_that_does_not_answer_is_told() -> None:
    found = status(None, {0: server()}, QUEUES, ROOM, ROOM)
    assert found["problems"] == [
        "the supervisor does not answer: it may be busy with nft"
    ]
    assert found["supervisor"] is None


def test_closed_queue_has_dropped() -> None:
    found = status(supervisor(closed_queues=[2077]), {0: server()}, QUEUES, None, None)
    assert found["queues"] == [
        {"queue": 2077, "bound": True, "waiting": 4, "dropped": 5}
    ]
