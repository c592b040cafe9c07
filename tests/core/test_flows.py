# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow table."""

import sys
from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Policy
from cthelper.core.flows import Flow, FlowTable
from cthelper.core.patches import Patches
from cthelper.core.tuples import ORIGINAL, REPLY, Conntrack, Status, key_of
from tests.core.builders import CLIENT, SERVER, SERVER6, conntrack, flow_tuple


class Silent(Helper):
    """Asks for nothing."""

    name = "silent"
    transports = frozenset({TCP})
    ports = (7000,)
    policies = (Policy("data"),)

    def on_message(self, message: Message) -> Effects:
        yield from ()


def begun(table: FlowTable, entry: Conntrack) -> Flow:
    flow = Flow.begin(entry, Silent)
    table.add(flow)
    return flow


def test_unknown_flow_is_not_found() -> None:
    assert FlowTable(2).find(conntrack()) is None


def test_flow_is_found_again() -> None:
    table = FlowTable(2)
    flow = begun(table, conntrack(id_=1))
    begun(table, conntrack(id_=2))
    assert table.find(conntrack(id_=1)) is flow
    assert len(table) == 2


def test_least_recently_used_flow_is_evicted_and_counted() -> None:
    table = FlowTable(2)
    first, second, third = (conntrack(id_=number) for number in (1, 2, 3))
    kept = begun(table, first)
    begun(table, second)
    table.find(first)
    assert table.evicted == 0
    newest = begun(table, third)
    assert table.evicted == 1
    assert table.find(second) is None
    assert list(table) == [kept, newest]


def assured(number: int) -> Conntrack:
    """A connection whose handshake is complete."""
    entry = conntrack(id_=number)
    return replace(entry, status=entry.status | Status.ASSURED)


def datagram(number: int, source: str) -> Conntrack:
    """A flow of one datagram."""
    destination = SERVER6 if ":" in source else SERVER
    return conntrack(flow_tuple(UDP, (source, 40000), (destination, 7000)), id_=number)


def passed(table: FlowTable, entry: Conntrack) -> Flow:
    """Two packets of a flow."""
    if table.find(entry) is None:
        begun(table, entry)
    flow = table.find(entry)
    assert flow is not None
    return flow


def test_flows_of_one_datagram_never_evict_an_assured_one() -> None:
    table = FlowTable(64)
    idle = [passed(table, assured(number)) for number in range(56)]
    for number in range(1000, 21000):
        passed(table, datagram(number, f"203.0.{number % 256}.{number // 256}"))
        assert len(table) <= 64
    assert [table.find(assured(number)) for number in range(56)] == idle
    assert table.evicted == 20000 - 8


def test_assured_flows_leave_an_eighth_to_those_that_begin() -> None:
    table = FlowTable(64)
    for number in range(64):
        passed(table, assured(number))
    beginning = [conntrack(id_=number) for number in range(100, 108)]
    flows = [passed(table, entry) for entry in beginning]
    assert [table.find(entry) for entry in beginning] == flows
    # The least recently used have gone.
    assert table.find(assured(7)) is None
    assert table.find(assured(8)) is not None
    assert len(table) == 64


def test_source_that_floods_evicts_its_own_flows() -> None:
    table = FlowTable(64)
    others = [datagram(number, f"192.0.2.{number}") for number in range(1, 17)]
    flows = [passed(table, entry) for entry in others]
    for number in range(1000, 3000):
        passed(table, datagram(number, "203.0.113.9"))
    flooded = table._share(ip_address("203.0.113.9"))
    for entry, flow in zip(others, flows, strict=True):
        # Who shares with it by chance fares as he would without shares.
        if table._share(entry.original.source.address) != flooded:
            assert table.find(entry) is flow


def test_sources_that_flood_in_turn_take_no_more_room_than_one() -> None:
    table = FlowTable(1024)

    def flood(source: int) -> int:
        for number in range(1024):
            passed(table, datagram(number, f"203.0.113.{source}"))
        took = sum(map(sys.getsizeof, table._shares))
        # Its last one stays for a while.
        for key in [flow.key for flow in table][:-1]:
            table.remove(key)
        return took

    first = flood(1)
    assert all(flood(source) < 2 * first for source in range(2, 200))


def test_sources_of_one_ipv6_network_share() -> None:
    table = FlowTable(64)
    other = datagram(1, "2001:db8:1::1")
    flow = passed(table, other)
    for number in range(1000, 1300):
        passed(table, datagram(number, f"2001:db8:2::{number}"))
    shares = {table._share(ip_address(f"2001:db8:2::{n}")) for n in range(1, 300)}
    assert len(shares) == 1
    if table._share(ip_address("2001:db8:1::1")) not in shares:
        assert table.find(other) is flow


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), max_size=80),
    st.integers(1, 9),
)
def test_table_is_bounded_and_holds_what_it_says(
    steps: list[tuple[int, bool, bool]], limit: int
) -> None:
    table = FlowTable(limit)
    for number, sure, gone in steps:
        entry = assured(number) if sure else conntrack(id_=number)
        if gone:
            table.remove(key_of(entry))
            assert table.find(entry) is None
        else:
            assert passed(table, entry) in list(table)
        assert len(table) == len(list(table)) <= limit
        assert {flow.key for flow in table} == {
            (each, 0) for each in range(13) if table.find(conntrack(id_=each))
        }


def test_id_that_comes_again_with_another_tuple_is_another_flow() -> None:
    table = FlowTable(2)
    begun(table, conntrack(id_=1))
    other = conntrack(flow_tuple(TCP, (CLIENT, 40001), (SERVER, 7000)), id_=1)
    assert table.find(other) is None
    assert len(table) == 0
    flow = begun(table, other)
    assert table.find(other) is flow


def test_zone_is_part_of_the_key() -> None:
    table = FlowTable(4)
    here = begun(table, conntrack(id_=1, zone=0))
    there = begun(table, conntrack(id_=1, zone=7))
    assert table.find(conntrack(id_=1, zone=0)) is here
    assert table.find(conntrack(id_=1, zone=7)) is there
    assert table.find(conntrack(id_=1, zone=8)) is None


def test_removed_flow_is_forgotten_without_being_counted() -> None:
    table = FlowTable(2)
    entry = conntrack()
    begun(table, entry)
    table.remove(key_of(entry))
    table.remove(key_of(entry))
    assert table.find(entry) is None
    assert table.evicted == 0


def test_first_reason_for_finishing_stays() -> None:
    flow = Flow.begin(conntrack(), Silent)
    flow.helper = Silent()
    assert flow.side(ORIGINAL).stream is not None
    flow.finish("gap")
    flow.finish("done")
    assert flow.finished == "gap"
    assert flow.side(ORIGINAL).stream is flow.side(REPLY).stream is None
    assert flow.helper is None


def test_flow_is_quiet_when_it_is_finished_and_nothing_was_rewritten() -> None:
    flow = Flow.begin(conntrack(), Silent)
    assert not flow.quiet
    flow.finish("done")
    assert [flow.quiet] == [True]
    flow.side(REPLY).patches = Patches()
    assert [flow.quiet] == [False]


def test_flow_of_datagrams_keeps_no_streams() -> None:
    flow = Flow.begin(conntrack(flow_tuple(UDP)), Silent)
    assert flow.side(ORIGINAL).stream is flow.side(REPLY).stream is None
