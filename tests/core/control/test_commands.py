# SPDX-License-Identifier: GPL-2.0-or-later
"""What each command answers, and what it refuses."""

import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from cthelper.core.control import commands as module
from cthelper.core.control import watching
from cthelper.core.control.commands import Commands, Refused
from cthelper.core.control.following import SUPERVISOR
from cthelper.core.control.recent import KEPT
from cthelper.core.control.reports import TOO_LONG, Asker, pair
from cthelper.core.control.statistics import Statistics
from cthelper.core.errors import NetlinkError, NotFound
from cthelper.core.netlink.monitor import Happened
from cthelper.core.records import Record, flow_record
from cthelper.core.tuples import Kind, flow_key
from tests.core.builders import CLIENT, SERVER, flow_tuple
from tests.core.control.controlled import Told, World
from tests.core.control.test_tree import expectation, listed, tuple_of

EXPECTS = {
    "transport": "tcp",
    "source": CLIENT,
    "source_port": None,
    "destination": f"{SERVER}:7001",
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "socket")
    world.kernel.table = [
        listed(1, helper="line"),
        listed(2, helper="line"),
        listed(10, master=tuple_of(1)),
        listed(50),
    ]
    world.kernel.expected = [expectation(1, 7001), expectation(2, 7002)]
    world.server.flows = [[flow_key(number, 0), None] for number in range(1200)]
    return world


def ports(found: list[Any]) -> list[int]:
    return [int(each["flow"]["source"].rpartition(":")[2]) for each in found]


def test_status_is_one_record(world: World) -> None:
    (found,) = world.run("status")
    assert found["health"] == "ok"
    assert found["tables"]["conntrack"] == {"used": 2, "most": 65536}
    world.server.state = None
    (found,) = world.run("status")
    assert found["problems"] == ["worker 0 does not answer"]
    world.server.state = {TOO_LONG: True}
    (found,) = world.run("status")
    assert found["problems"] == ["worker 0 does not answer"]


def test_many_that_do_not_answer_are_not_waited_for_one_after_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(module, "_LATE_SECONDS", 0.01)
    pairs = [pair() for _ in range(16)]
    silent = {number: Asker(asking) for number, (asking, _) in enumerate(pairs)}
    commands = Commands(
        {SUPERVISOR: cast(Asker, world.supervisor), **silent},
        queues=dict,
        expectations=lambda: None,
        entries=lambda: None,
    )
    begun = time.monotonic()
    (found,) = commands.run({"command": "status"}, root=False)
    assert time.monotonic() - begun < 2
    assert found is not None
    assert found["servers"] == [
        {"worker": number, "answers": False} for number in range(16)
    ]
    for end in (each for both in pairs for each in both):
        end.close()


def test_flows_are_listed_with_what_the_servers_know(world: World) -> None:
    found = world.run("flows")
    assert ports(found) == [1, 2]
    assert [each["inspection"] for each in found] == ["inspected"] * 2
    # A page at a time, and one that says that there are no more.
    assert world.server.asked.count("flows") == 4
    assert ports(world.run("flows", all=True)) == [50, 1, 2]
    assert ports(world.run("flows", filter={"sport": 10})) == [1]
    world.server.state = None
    assert [each["inspection"] for each in world.run("flows")] == ["unknown"] * 2


def test_expectations_are_listed(world: World) -> None:
    found = world.run("expectations", filter={"dport": 7002})
    assert ports(found) == [2]
    assert found[0]["expects"] == {**EXPECTS, "destination": f"{SERVER}:7002"}
    assert found[0]["policy"] == "data"


@pytest.mark.parametrize(("data", "left"), [(False, [2, 10, 50]), (True, [2, 50])])
def test_flows_are_deleted(world: World, data: bool, left: list[int]) -> None:
    (found,) = world.run("delete-flows", filter={"sport": 1}, data=data)
    assert found["deleted"] == 1 + data
    assert [each.entry.id for each in world.kernel.table] == left


def test_expectations_of_ours_are_deleted_and_no_others(world: World) -> None:
    theirs = expectation(2, 7003)
    theirs.helper = "ftp"
    world.kernel.expected.append(theirs)
    assert ports(world.run("delete-expectations", filter={"dport": 7001})) == [1]
    assert ports(world.run("delete-expectations", all=True)) == [2]
    assert world.kernel.expected == [theirs]


def test_expectation_is_added(world: World) -> None:
    flow = flow_record(tuple_of(1))
    (found,) = world.run("add-expectation", flow=flow, expects=EXPECTS, permanent=True)
    assert (found["helper"], found["policy"]) == ("line", "data")
    assert found["expects"] == EXPECTS
    assert found["permanent"] is True
    assert world.kernel.expected[-1].master == tuple_of(1)


FLOW = flow_record(tuple_of(1))


@pytest.mark.parametrize(
    ("details", "why"),
    [
        ({}, "the flow is no object"),
        ({"flow": FLOW}, "expects is no object"),
        ({"flow": FLOW, "expects": {}}, "None is no address:port"),
        (
            {"flow": FLOW, "expects": EXPECTS, "policy": "x"},
            "x is no policy of line: data",
        ),
        (
            {"flow": FLOW, "expects": EXPECTS, "zone": "x"},
            "zone x is no number from 0 to 65535",
        ),
        (
            {"flow": FLOW, "expects": {**EXPECTS, "source": "::1"}},
            "source and destination are of two versions of IP",
        ),
        (
            {"flow": FLOW, "expects": {**EXPECTS, "source_port": 70000}},
            "source port 70000 is no number from 1 to 65535",
        ),
        (
            {"flow": FLOW, "expects": {**EXPECTS, "destination": "10.0.0.1:70000"}},
            "port 70000 is over 65535",
        ),
        (
            {"flow": flow_record(tuple_of(50)), "expects": EXPECTS},
            "has none of this daemon's helpers",
        ),
    ],
)
def test_expectation_that_cannot_be_is_refused(
    world: World, details: dict[str, Any], why: str
) -> None:
    with pytest.raises(Refused, match=re.escape(why)) as caught:
        world.run("add-expectation", **details)
    assert caught.value.reason == "wrong-request"


def test_flow_that_is_not_there_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        world.run("add-expectation", flow=flow_record(tuple_of(99)), expects=EXPECTS)


@pytest.mark.parametrize(
    "command", ["delete-flows", "delete-expectations", "add-expectation"]
)
def test_what_changes_something_is_roots_alone(world: World, command: str) -> None:
    with pytest.raises(Refused, match="is root's alone") as caught:
        world.run(command, root=False, all=True, flow=FLOW, expects=EXPECTS)
    assert caught.value.reason == "not-permitted"
    assert len(world.kernel.table) == 4


@pytest.mark.parametrize("command", ["delete-flows", "delete-expectations"])
def test_all_is_not_deleted_by_mistake(world: World, command: str) -> None:
    with pytest.raises(Refused, match="nothing says which"):
        world.run(command)


@pytest.mark.parametrize("command", ["x", None, 7, [], {}])
def test_unknown_command_is_refused(world: World, command: Any) -> None:
    with pytest.raises(Refused) as caught:
        list(world.commands.run({"command": command}, root=True))
    assert caught.value.reason == "unknown-command"


def test_supervisor_that_is_busy_is_said(world: World) -> None:
    world.supervisor.state = None
    with pytest.raises(Refused, match="the supervisor does not answer: try again"):
        world.run("flows")


def told(world: World, **details: Any) -> list[object]:
    return [
        (each["event"], each.get("number"), each.get("count"), each["worker"])
        for each in world.run("events", since=3600, **details)
    ]


def test_events_of_all_processes_come_in_their_order(world: World) -> None:
    now = world.commands._clock()
    for process, name, times in (
        (world.supervisor, "started", (1, 3)),
        (world.server, "refused", (2, 4)),
    ):
        for number in times:
            fields: Record = {"number": number, "flow": flow_tuple(), "helper": "line"}
            process.recent.add(now - 100 + number, name, "info", fields)
    assert told(world) == [
        ("started", 1, None, "supervisor"),
        ("refused", 2, None, 0),
        ("started", 3, None, "supervisor"),
        ("refused", 4, None, 0),
    ]
    assert [each[1] for each in told(world, events=["refused"])] == [2, 4]  # type: ignore[index]
    assert len(told(world, filter={"source": CLIENT, "helper": "line"})) == 4
    assert told(world, filter={"source": "10.9.9.9"}) == []
    assert told(world, filter={"helper": "tns"}) == []
    assert world.run("events", since=50) == []


def test_events_that_were_not_asked_for_in_time_are_counted(world: World) -> None:
    now = world.commands._clock()
    for number in range(3):
        world.server.recent.add(now, "refused", "info", {"number": number})
    following = world.commands.run(
        {"command": "events", "since": 9, "follow": True}, root=False
    )
    assert [next(following)["number"] for _ in range(3)] == [0, 1, 2]  # type: ignore[index]
    assert next(following) is None
    for number in range(KEPT + 5):
        world.server.recent.add(now, "refused", "info", {"number": number})
    missed, first = next(following), next(following)
    assert missed is not None
    assert first is not None
    assert (missed["event"], missed["count"]) == ("events-missed", 5)
    assert first["number"] == 5


def test_statistics_are_of_peers_and_services(world: World) -> None:
    with pytest.raises(Refused, match="statistics are off") as refused:
        world.run("stats")
    assert refused.value.reason == "no-statistics"
    statistics = Statistics(0.0)
    statistics.compare(world.kernel.table)
    statistics.announced(replace(expectation(3, 1), helper="ftp"), 0.0)
    world.collect(statistics)
    head, *rows = world.run("stats")
    assert head["helpers"].keys() == {"line", "ftp"}
    assert [each["helper"] for each in rows] == ["line", "ftp"]
    # One flow is there, and has carried so much so far.
    assert [each["live_packets"] for each in rows] == [5, 0]
    for wanted, left in (
        ({"helper": "ftp"}, ["ftp"]),
        ({"source": CLIENT, "dport": 7000}, ["line", "ftp"]),
        ({"destination": CLIENT}, []),
    ):
        found = world.run("stats", root=False, filter=wanted)[1:]
        assert [each["helper"] for each in found] == left
    for key in ("sport", "zone"):
        with pytest.raises(Refused, match="statistics know no port"):
            world.run("stats", filter={key: 1})


@pytest.mark.parametrize("events", ["new", ["newer"], [["new"]], 7])
def test_kinds_of_events_are_known_ones(world: World, events: object) -> None:
    with pytest.raises(Refused) as refused:
        world.run("flow-events", events=events)
    assert refused.value.reason == "wrong-request"


def test_only_flows_of_the_daemons_helpers_are_followed_unless_all_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(
        [
            Happened(Kind.NEW, listed(3, helper="line")),
            Happened(Kind.NEW, listed(4, helper="ftp")),
            Happened(Kind.NEW, listed(50)),
            Happened(Kind.NEW, listed(11, master=tuple_of(1))),
            Happened(Kind.EXPECTATION_NEW, expectation(1, 7003)),
            Happened(Kind.EXPECTATION_NEW, replace(expectation(4, 7004), helper="ftp")),
        ]
    )
    monkeypatch.setattr(watching, "Monitor", told.opened)
    for more, own in (({}, True), ({"all": True}, False)):
        request: Record = {"command": "flow-events", **more}
        found: list[Record] = []
        with suppress(NetlinkError):
            for each in world.commands.run(request, root=False):
                found += [] if each is None else [each]
        assert found.pop()["event"] == "events-missed"
        assert len(found) == (3 if own else 6)
        assert [each["event"] for each in found][-1] == "expectation-new"


def test_numbers_beyond_all_reason_are_refused(world: World) -> None:
    for request in (
        {"command": "events", "since": 10**400},
        {"command": "add-expectation", "flow": FLOW, "expects": EXPECTS, "zone": -1},
        {"command": "add-expectation", "flow": FLOW, "expects": EXPECTS, "zone": 1e9},
    ):
        with pytest.raises(Refused) as refused:
            list(world.commands.run(request, root=True))
        assert refused.value.reason == "wrong-request"


def test_what_was_missed_is_said_whatever_is_asked_for(world: World) -> None:
    for _ in range(KEPT + 5):
        world.server.recent.add(time.time(), "refused", "info", {})
    for more in ({"events": ["expectation"]}, {"filter": {"dport": 7}}):
        (missed,) = world.run("events", since=60, **cast(Any, more))
        assert (missed["event"], missed["count"]) == ("events-missed", 5)
