# SPDX-License-Identifier: GPL-2.0-or-later
"""What is counted of announcements and of the flows that came of them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.control import statistics as module
from cthelper.core.control.statistics import BOUNDS, Statistics
from cthelper.core.netlink.listing import Listed
from cthelper.core.tuples import Expectation, flow_key
from tests.core.builders import CLIENT, SERVER, conntrack, flow_tuple
from tests.core.control.test_tree import expectation, listed, tuple_of


def data(id_: int, master: int, port: int = 7001, *, client: str = CLIENT) -> Listed:
    """A flow to a port of the server's, expected by the flow from port `master`."""
    entry = conntrack(
        flow_tuple(source=(client, 50_000 + id_), destination=(SERVER, port)),
        id_=id_,
        helper=None,
    )
    entry.master = tuple_of(master)
    counted = listed(1)
    return Listed(entry, None, counted.sent, counted.answered)


def rows(statistics: Statistics) -> list[Any]:
    return list(statistics.rows()[0].values())


def line(statistics: Statistics) -> Any:
    """What is counted of the helper."""
    helpers: Any = statistics.totals()["helpers"]
    return helpers["line"]


def test_announcement_flow_and_end_are_counted_once() -> None:
    statistics = Statistics(5.0)
    statistics.announced(expectation(1, 7001), 100.0)
    statistics.begun(data(10, 1), 100.02)
    (row,) = rows(statistics)
    assert row["helper"] == "line"
    assert row["peer"] == CLIENT
    assert row["service"] == {"transport": "tcp", "destination": f"{SERVER}:7000"}
    assert (row["announced"], row["flows"], row["live"]) == (1, 1, 1)
    assert (row["packets"], row["bytes"]) == (0, 0)
    assert row["setup"]["count"] == 1
    assert row["setup"]["slowest"] == pytest.approx(0.02)
    assert [end for end, count in row["setup"]["classes"] if count] == [0.03]
    statistics.ended(data(10, 1))
    statistics.ended(data(10, 1))
    (row,) = rows(statistics)
    assert (row["live"], row["packets"], row["bytes"]) == (0, 5, 500)
    assert {**row, **line(statistics)} == row
    assert statistics.totals()["since"] == 5.0
    assert statistics.totals()["left_out"] == {}


def test_only_the_first_flow_says_how_long_it_took() -> None:
    statistics = Statistics(0.0)
    statistics.announced(replace(expectation(1, 7001), permanent=True), 0.0)
    for id_, now in ((10, 1.0), (11, 200.0)):
        statistics.begun(data(id_, 1), now)
    assert (line(statistics)["flows"], line(statistics)["setup"]["count"]) == (2, 1)
    # It was announced anew.
    statistics.announced(replace(expectation(1, 7001), permanent=True), 300.0)
    statistics.begun(data(12, 1), 302.0)
    setup = line(statistics)["setup"]
    assert (setup["count"], setup["seconds"], setup["slowest"]) == (2, 3.0, 2.0)


def test_two_announcements_of_one_flow_are_told_apart() -> None:
    statistics = Statistics(0.0)
    statistics.announced(expectation(1, 7001), 0.0)
    statistics.announced(expectation(1, 7002), 5.0)
    statistics.begun(data(10, 1, 7002), 6.0)
    assert line(statistics)["setup"]["slowest"] == 1.0
    statistics.begun(data(11, 1, 7001), 7.0)
    assert line(statistics)["setup"]["slowest"] == 7.0


@pytest.mark.parametrize(
    "other",
    [
        data(10, 1, 7002),
        data(10, 1, client="192.0.2.9"),
        data(10, 2),
    ],
    ids=["port", "source", "control flow"],
)
def test_flow_that_is_not_the_one_says_nothing_of_its_time(other: Listed) -> None:
    statistics = Statistics(0.0)
    statistics.announced(expectation(1, 7001), 0.0)
    statistics.announced(expectation(2, 7009), 0.0)
    statistics.begun(other, 1.0)
    assert (line(statistics)["flows"], line(statistics)["setup"]["count"]) == (1, 0)


def test_helpers_peers_and_services_have_rows_of_their_own() -> None:
    statistics = Statistics(0.0)
    for master, port, helper in ((1, 7000, "line"), (2, 7000, "line"), (3, 80, "web")):
        original = flow_tuple(source=(CLIENT, master), destination=(SERVER, port))
        statistics.announced(
            replace(expectation(master, 9), master=original, helper=helper), 0.0
        )
    # Two control flows of one peer to one service are one row.
    assert [(each["helper"], each["announced"]) for each in rows(statistics)] == [
        ("line", 2),
        ("web", 1),
    ]


def test_what_was_there_before_is_counted_and_has_no_time() -> None:
    statistics = Statistics(0.0)
    table = [listed(1, helper="line"), data(10, 1), data(11, 9), listed(50)]
    statistics.compare(table)
    # What belongs to a control flow that is gone cannot be said.
    assert (line(statistics)["flows"], line(statistics)["live"]) == (1, 1)
    # It was told of as well as listed.
    statistics.begun(data(10, 1), 1.0)
    assert line(statistics)["flows"] == 1
    statistics.ended(data(10, 1))
    assert line(statistics)["packets"] == 5


def test_lost_ends_are_noticed() -> None:
    statistics = Statistics(0.0)
    statistics.compare([listed(1, helper="line"), data(10, 1), data(11, 1)])
    statistics.compare([listed(1, helper="line"), data(11, 1), data(12, 1)])
    assert (line(statistics)["flows"], line(statistics)["live"]) == (3, 2)
    assert statistics.totals()["left_out"] == {"ends": 1}


def test_flows_that_are_not_counted_are_said() -> None:
    statistics = Statistics(0.0)
    statistics.announced(expectation(1, 7001), 0.0)
    statistics.begun(data(10, 1), 1.0)
    statistics.ended(replace(data(10, 1), sent=None, answered=None))
    statistics.ended(listed(50))
    statistics.begun(listed(51), 2.0)
    statistics.announced(replace(expectation(1, 7001), helper=None), 0.0)
    assert statistics.totals()["left_out"] == {"packets": 1}


def test_nothing_grows_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ROWS", "_MASTERS", "_ANNOUNCED", "_LIVE"):
        monkeypatch.setattr(module, name, 10)
    statistics = Statistics(0.0)
    for number in range(100):
        source = (f"192.0.2.{number}", 1000)
        statistics.announced(
            replace(expectation(1, 7001), master=flow_tuple(source=source)), 0.0
        )
        flow = data(number, 1)
        flow.entry.master = flow_tuple(source=source)
        if number % 2:
            statistics.begun(flow, 1.0)
    found, live = statistics.rows()
    assert (len(found), len(live)) == (10, 10)
    left_out: Any = statistics.totals()["left_out"]
    assert left_out["rows"] == 90
    assert left_out["flows"] == 40
    # The totals miss none of what is counted.
    assert line(statistics)["announced"] == 100
    assert line(statistics)["live"] == 10
    # Those of the last control flows are known; what came before is forgotten.
    late = data(200, 1)
    late.entry.master = flow_tuple(source=("192.0.2.3", 1000))
    statistics.begun(late, 1.0)
    assert statistics.totals()["left_out"] != left_out


def test_announcements_that_are_over_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANNOUNCED", 3)
    statistics = Statistics(0.0)
    for number in range(100):
        statistics.announced(expectation(1, 7000 + number), number * 20.0)
    assert statistics.totals()["left_out"] == {}
    statistics.begun(data(1, 1, 7099), 1981.0)
    assert line(statistics)["setup"]["slowest"] == 1.0


def kind(number: int) -> Expectation:
    return expectation(number % 3 + 1, 7000 + number % 4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), max_size=60))
def test_no_order_of_events_makes_counters_wrong(
    events: list[tuple[int, int]],
) -> None:
    statistics = Statistics(0.0)
    there: dict[int, Listed] = {}
    for now, (what, number) in enumerate(events):
        flow = data(number, number % 3 + 1, 7000 + number % 4)
        if what == 0:
            statistics.announced(kind(number), float(now))
        elif what == 1:
            there[number] = flow
            statistics.begun(flow, float(now))
        elif what == 2:
            there.pop(number, None)
            statistics.ended(flow)
        else:
            statistics.compare(there.values())
    told, live = statistics.rows()
    helpers: Any = statistics.totals()["helpers"]
    for name in ("announced", "flows", "live", "packets", "bytes"):
        total = helpers["line"][name] if helpers else 0
        assert sum(int(str(each[name])) for each in told.values()) == total
        assert total >= 0
    if helpers:
        setup = helpers["line"]["setup"]
        assert sum(count for _, count in setup["classes"]) == setup["count"]
        assert setup["count"] <= helpers["line"]["announced"]
        assert helpers["line"]["live"] == len(live)
    assert set(live) <= {flow_key(number, 0) for number in there}


def test_classes_end_with_what_has_no_end() -> None:
    statistics = Statistics(0.0)
    statistics.announced(expectation(1, 7001), 0.0)
    statistics.begun(data(10, 1), BOUNDS[-1] + 1)
    assert line(statistics)["setup"]["classes"][-1] == [None, 1]


def test_announcements_that_were_met_leave_nothing_behind() -> None:
    statistics = Statistics(0.0)
    for number in range(1000):
        source = (CLIENT, 1 + number)
        statistics.announced(
            replace(expectation(1, 7001), master=flow_tuple(source=source)), 0.0
        )
        flow = data(number, 1)
        flow.entry.master = flow_tuple(source=source)
        statistics.begun(flow, 1.0)
        statistics.ended(flow)
    assert not statistics._announced
    assert not statistics._live


def test_one_control_flow_has_no_more_than_its_share() -> None:
    statistics = Statistics(0.0)
    for port in range(1, module._EACH + 11):
        statistics.announced(expectation(1, port), 0.0)
    assert statistics.totals()["left_out"] == {"announced": 10}


def test_announcements_that_are_over_are_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ANNOUNCED", 3)
    statistics = Statistics(0.0)
    for number in range(20):
        statistics.announced(expectation(1 + number, 7000), number * 40.0)
    assert statistics.totals()["left_out"] == {}


def test_row_with_a_live_flow_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 3)
    statistics = Statistics(0.0)
    statistics.announced(expectation(1, 7001), 0.0)
    statistics.begun(data(10, 1), 1.0)
    for number in range(2, 30):
        other = flow_tuple(source=(f"192.0.2.{number}", 1000))
        statistics.announced(replace(expectation(1, 7001), master=other), 0.0)
    statistics.ended(data(10, 1))
    assert [each["bytes"] for each in rows(statistics) if each["peer"] == CLIENT] == [
        500
    ]
    assert len(rows(statistics)) == 3
