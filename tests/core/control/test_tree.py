# SPDX-License-Identifier: GPL-2.0-or-later
"""Control flows with what is theirs, from what the kernel lists."""

from dataclasses import replace
from ipaddress import ip_address
from typing import cast

import pytest

from cthelper.core.control.matching import STATES, Filter, in_state
from cthelper.core.control.tree import Branch, Known, branch_record, branches, meant
from cthelper.core.netlink.listing import Count, Listed
from cthelper.core.records import Record
from cthelper.core.tuples import TCP, Expectation, Status, Tuple, flow_key, host_network
from tests.core.builders import CLIENT, SERVER, conntrack, endpoint, flow_tuple

POLICIES = {"line": ("data", "more")}


def listed(
    port: int, *, helper: str | None = None, master: Tuple | None = None, zone: int = 0
) -> Listed:
    """A flow of the client's from this port."""
    entry = conntrack(
        flow_tuple(source=(CLIENT, port)), id_=port, zone=zone, helper=helper
    )
    entry.master = master
    return Listed(entry, "ESTABLISHED", Count(3, 300), Count(2, 200))


def tuple_of(port: int) -> Tuple:
    return flow_tuple(source=(CLIENT, port))


def expectation(master: int, port: int, class_: int = 0) -> Expectation:
    return Expectation(
        master=tuple_of(master),
        transport=TCP,
        source=host_network(ip_address(CLIENT)),
        source_port=None,
        destination=endpoint(SERVER, port),
        policy=None,
        timeout=30,
        class_=class_,
        helper="line",
    )


def shapes(found: list[Branch]) -> list[tuple[int, bool, list[int], list[int]]]:
    return [
        (
            each.original.source.port,
            each.listed is None,
            [expected.destination.port for expected in each.expectations],
            [flow.entry.original.source.port for flow in each.flows],
        )
        for each in found
    ]


def test_control_flows_have_what_is_theirs() -> None:
    entries = [
        listed(1, helper="line"),
        listed(2, helper="line"),
        listed(10, master=tuple_of(1)),
        listed(11, master=tuple_of(1)),
        listed(50),
        listed(51, helper="another"),
        listed(52, master=tuple_of(51)),
    ]
    expectations = [expectation(1, 7001), expectation(2, 7002), expectation(9, 7003)]
    found = list(branches(entries, expectations, POLICIES))
    assert shapes(found) == [(1, False, [7001], [10, 11]), (2, False, [7002], [])]
    found = list(branches(entries, expectations, POLICIES, others=True))
    assert shapes(found) == [
        (50, False, [], []),
        (1, False, [7001], [10, 11]),
        (2, False, [7002], []),
        (51, False, [], [52]),
    ]


def test_flows_of_one_that_has_ended_are_not_lost() -> None:
    found = list(branches([listed(10, master=tuple_of(1))], [], POLICIES))
    assert shapes(found) == [(1, True, [], [10])]


def test_expected_flow_that_is_inspected_stands_where_it_was_expected() -> None:
    entries = [listed(1, helper="line"), listed(2, helper="line", master=tuple_of(1))]
    assert shapes(list(branches(entries, [], POLICIES))) == [(1, False, [], [2])]
    # But where it announces something, that is below it.
    found = list(branches(entries, [expectation(2, 7000)], POLICIES))
    assert shapes(found) == [(1, False, [], [2]), (2, False, [7000], [])]


def test_zones_are_kept_apart() -> None:
    entries = [listed(1, helper="line", zone=1), listed(1, helper="line", zone=2)]
    child = listed(10, master=tuple_of(1), zone=2)
    found = list(branches([*entries, child], [], POLICIES))
    assert shapes(found) == [(1, False, [], []), (1, False, [], [10])]
    assert [each.zone for each in found] == [1, 2]


@pytest.mark.parametrize(
    ("record", "is_meant"),
    [
        ({}, True),
        ({"sport": 1}, True),
        ({"sport": 10}, True),
        ({"dport": 7001}, True),
        ({"sport": 3, "dport": 7002}, False),
        ({"helper": "line"}, True),
        ({"helper": "other"}, False),
        ({"state": "ESTABLISHED"}, True),
        ({"state": "CLOSE"}, False),
        ({"state": "UNREPLIED"}, False),
        ({"zone": 0}, True),
        ({"zone": 1}, False),
    ],
)
def test_tree_is_meant_where_any_of_it_is(record: Record, is_meant: bool) -> None:
    entries = [listed(1, helper="line"), listed(10, master=tuple_of(1))]
    (found,) = branches(entries, [expectation(1, 7001)], POLICIES)
    assert meant(found, Filter.read(record)) is is_meant


@pytest.mark.parametrize(
    ("status", "states"),
    [
        (Status(0), {"UNREPLIED"}),
        (Status.SEEN_REPLY, set()),
        (Status.SEEN_REPLY | Status.ASSURED, {"ASSURED"}),
    ],
)
def test_flows_of_udp_have_states_too(status: Status, states: set[str]) -> None:
    found = replace(listed(1), state=None)
    found.entry.status = status
    assert {each for each in STATES if in_state(found, each)} == states


def test_record_says_what_is_known() -> None:
    entries = [listed(1, helper="line"), listed(10, master=tuple_of(1))]
    (found,) = branches(entries, [expectation(1, 7001, 1)], POLICIES)
    known = {flow_key(1, 0): Known(3, "done")}
    record = branch_record(found, known, POLICIES)
    assert (record["inspection"], record["reason"]) == ("finished", "done")
    assert record["worker"] == 3
    assert record["packets"] == [3, 2]
    assert record["expectations"] == [
        {
            "policy": "more",
            "expects": {
                "transport": "tcp",
                "source": CLIENT,
                "source_port": None,
                "destination": f"{SERVER}:7001",
            },
            "permanent": False,
            "timeout": 30,
        }
    ]
    assert [each["inspection"] for each in cast(list[Record], record["flows"])] == [
        None
    ]
    assert branch_record(found, {}, POLICIES)["inspection"] == "unknown"
