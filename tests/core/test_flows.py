# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow table."""

from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Policy
from cthelper.core.flows import Flow, FlowTable
from cthelper.core.patches import Patches
from cthelper.core.tuples import ORIGINAL, REPLY, Conntrack, key_of
from tests.core.builders import CLIENT, SERVER, conntrack, flow_tuple


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
    flow.side(REPLY).pending = bytearray(b"begun")
    assert flow.side(ORIGINAL).stream is not None
    flow.finish("gap")
    flow.finish("done")
    assert flow.finished == "gap"
    assert flow.side(ORIGINAL).stream is None
    assert not flow.side(REPLY).pending
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
