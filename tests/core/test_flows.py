# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow table."""

from collections import OrderedDict
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Policy
from cthelper.core.flows import _LOOKED_AT, Flow, FlowTable, _Share
from cthelper.core.patches import Patch, Patches
from cthelper.core.tuples import ORIGINAL, REPLY, Conntrack, Status, flow_key, key_of
from tests.core.builders import CLIENT, SERVER, SERVER6, conntrack, flow_tuple

MEMORY = 1 << 20


class Silent(Helper):
    """Asks for nothing."""

    name = "silent"
    transports = frozenset({TCP})
    ports = (7000,)
    policies = (Policy("data"),)

    def on_message(self, message: Message) -> Effects:
        yield from ()


def begun(table: FlowTable, entry: Conntrack) -> Flow:
    flow = Flow.begin(entry, Silent, Silent.name)
    table.add(flow)
    return flow


def listed(share: _Share) -> list[Flow]:
    """The flows of a share in its order, each of which knows its neighbours."""
    found: list[Flow] = []
    flow = share.oldest
    while flow is not None:
        assert flow.older is (found[-1] if found else None)
        found.append(flow)
        flow = flow.newer
    return found


def test_unknown_flow_is_not_found() -> None:
    assert FlowTable(2, MEMORY).find(conntrack()) is None


def test_flow_is_found_again() -> None:
    table = FlowTable(2, MEMORY)
    flow = begun(table, conntrack(id_=1))
    begun(table, conntrack(id_=2))
    assert table.find(conntrack(id_=1)) is flow
    assert len(table) == 2


def test_least_recently_used_flow_is_evicted_and_counted() -> None:
    table = FlowTable(2, MEMORY)
    first, second, third = (conntrack(id_=number) for number in (1, 2, 3))
    kept = begun(table, first)
    begun(table, second)
    table.find(first)
    assert table.evicted == {}
    newest = begun(table, third)
    assert table.evicted == {"flows": 1}
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
    table = FlowTable(64, MEMORY)
    idle = [passed(table, assured(number)) for number in range(56)]
    for number in range(1000, 21000):
        passed(table, datagram(number, f"203.0.{number % 256}.{number // 256}"))
        assert len(table) <= 64
    assert [table.find(assured(number)) for number in range(56)] == idle
    assert table.evicted == {"flows": 20000 - 8}


def test_assured_flows_leave_an_eighth_to_those_that_begin() -> None:
    table = FlowTable(64, MEMORY)
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
    table = FlowTable(64, MEMORY)
    others = [datagram(number, f"192.0.2.{number}") for number in range(1, 17)]
    flows = [passed(table, entry) for entry in others]
    for number in range(1000, 3000):
        passed(table, datagram(number, "203.0.113.9"))
    flooded = table._number(ip_address("203.0.113.9"))
    for entry, flow in zip(others, flows, strict=True):
        # Who shares with it by chance fares as he would without shares.
        if table._number(entry.original.source.address) != flooded:
            assert table.find(entry) is flow


def test_sources_of_one_ipv6_network_share() -> None:
    table = FlowTable(64, MEMORY)
    other = datagram(1, "2001:db8:1::1")
    flow = passed(table, other)
    for number in range(1000, 1300):
        passed(table, datagram(number, f"2001:db8:2::{number}"))
    shares = {table._number(ip_address(f"2001:db8:2::{n}")) for n in range(1, 300)}
    assert len(shares) == 1
    if table._number(ip_address("2001:db8:1::1")) not in shares:
        assert table.find(other) is flow


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(("add", "use", "remove"))),
        max_size=80,
    ),
    st.lists(st.integers(0, 5), min_size=13, max_size=13),
)
def test_share_is_in_the_order_of_use(
    steps: list[tuple[int, str]], weights: list[int]
) -> None:
    share = _Share(assured=False)
    flows = [
        Flow.begin(conntrack(id_=number), Silent, Silent.name) for number in range(13)
    ]
    for flow, weight in zip(flows, weights, strict=True):
        flow.weight = weight
    expected: OrderedDict[int, Flow] = OrderedDict()
    for number, step in steps:
        flow = flows[number]
        if step == "add" and number not in expected:
            share.add(flow)
            expected[number] = flow
        elif step == "use" and number in expected:
            share.use(flow)
            expected.move_to_end(number)
        elif step == "remove" and expected.pop(number, None) is not None:
            share.remove(flow)
            assert flow.older is flow.newer is None
        assert list(share) == listed(share) == list(expected.values())
        assert share.count == len(expected)
    heaviest = max(expected.values(), key=lambda each: each.weight, default=None)
    assert share.heaviest() is heaviest


def test_only_flows_that_were_not_used_for_long_are_weighed() -> None:
    share = _Share(assured=False)
    for number in range(_LOOKED_AT + 1):
        flow = Flow.begin(conntrack(id_=number), Silent, Silent.name)
        flow.weight = number
        share.add(flow)
    heaviest = share.heaviest()
    assert heaviest is not None
    assert heaviest.weight == _LOOKED_AT - 1


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), max_size=80),
    st.integers(1, 9),
)
def test_table_is_bounded_and_holds_what_it_says(
    steps: list[tuple[int, bool, bool]], limit: int
) -> None:
    table = FlowTable(limit, MEMORY)
    for number, sure, gone in steps:
        entry = assured(number) if sure else conntrack(id_=number)
        if gone:
            table.remove(key_of(entry))
            assert table.find(entry) is None
        else:
            assert passed(table, entry) in list(table)
        assert len(table) == len(list(table)) <= limit
        assert {flow.key for flow in table} == {
            flow_key(each, 0) for each in range(13) if table.find(conntrack(id_=each))
        }


def test_id_that_comes_again_with_another_tuple_is_another_flow() -> None:
    table = FlowTable(2, MEMORY)
    begun(table, conntrack(id_=1))
    other = conntrack(flow_tuple(TCP, (CLIENT, 40001), (SERVER, 7000)), id_=1)
    assert table.find(other) is None
    assert len(table) == 0
    flow = begun(table, other)
    assert table.find(other) is flow


def test_zone_is_part_of_the_key() -> None:
    table = FlowTable(4, MEMORY)
    here = begun(table, conntrack(id_=1, zone=0))
    there = begun(table, conntrack(id_=1, zone=7))
    assert table.find(conntrack(id_=1, zone=0)) is here
    assert table.find(conntrack(id_=1, zone=7)) is there
    assert table.find(conntrack(id_=1, zone=8)) is None


def test_removed_flow_is_forgotten_without_being_counted() -> None:
    table = FlowTable(2, MEMORY)
    entry = conntrack()
    begun(table, entry)
    table.remove(key_of(entry))
    table.remove(key_of(entry))
    assert table.find(entry) is None
    assert table.evicted == {}


def test_first_reason_for_finishing_stays() -> None:
    flow = Flow.begin(conntrack(), Silent, Silent.name)
    flow.helper = Silent()
    assert flow.side(ORIGINAL).stream is not None
    flow.finish("gap")
    flow.finish("done")
    assert flow.finished == "gap"
    assert flow.side(ORIGINAL).stream is flow.side(REPLY).stream is None
    assert flow.helper is None


def test_flow_is_quiet_when_it_is_finished_and_nothing_was_rewritten() -> None:
    flow = Flow.begin(conntrack(), Silent, Silent.name)
    assert not flow.quiet
    flow.finish("done")
    assert [flow.quiet] == [True]
    flow.side(REPLY).patches = Patches()
    assert [flow.quiet] == [False]


def test_flow_of_datagrams_keeps_no_streams() -> None:
    flow = Flow.begin(conntrack(flow_tuple(UDP)), Silent, Silent.name)
    assert flow.side(ORIGINAL).stream is flow.side(REPLY).stream is None


# Memory.


class Heavy(Silent):
    """Its instance says what it takes."""


def weighing(table: FlowTable, entry: Conntrack, kept: int) -> Flow:
    """A flow whose helper keeps so many bytes."""
    flow = passed(table, entry)
    flow.helper = flow.helper or Heavy()
    flow.kept = kept
    table.weigh(flow)
    return flow


def of_other_shares(table: FlowTable, address: str, *others: str) -> list[str]:
    """Those of `others` that do not share with `address` by chance."""
    number = table._number(ip_address(address))
    return [each for each in others if table._number(ip_address(each)) != number]


def test_weight_is_what_the_flows_take() -> None:
    table = FlowTable(8, MEMORY)
    flow = passed(table, conntrack(id_=1))
    alone = table.weight
    assert 1000 < alone < 2000
    stream = flow.side(ORIGINAL).stream
    assert stream is not None
    stream.begin(1)
    stream.feed(1, bytes(5000))
    assert table.weight == alone
    table.weigh(flow)
    assert table.weight == alone + 6250
    stream.feed(6001, bytes(3000))
    table.weigh(flow)
    assert alone + 9250 < table.weight < alone + 9500
    weighing(table, conntrack(id_=1), 700)
    assert alone + 9950 < table.weight < alone + 10200
    flow.side(REPLY).patches = Patches([Patch(1, 2, b"x")] * 10)
    table.weigh(flow)
    assert table.weight > alone + 11000
    flow.finish("done")
    flow.side(REPLY).patches = None
    table.weigh(flow)
    assert table.weight == 1000
    table.remove(flow.key)
    table.weigh(flow)
    assert table.weight == 0


def test_heaviest_of_those_that_were_not_used_for_long_goes() -> None:
    table = FlowTable(1000, MEMORY)
    entries = [datagram(number, "203.0.113.9") for number in range(100)]
    kept = {10: 100_000, 90: 200_000}
    flows = [
        weighing(table, entry, kept.get(number, 3000))
        for number, entry in enumerate(entries)
    ]
    for entry in entries[:10]:
        table.find(entry)
    weighing(table, datagram(200, "203.0.113.9"), 400_000)
    assert table.evicted == {"memory": 1}
    assert table.find(entries[10]) is None
    assert table.find(entries[90]) is flows[90]


@pytest.mark.parametrize("kept", [100, 5_000, 100_000])
def test_weight_of_one_datagram_each_never_evicts_an_assured_flow(kept: int) -> None:
    table = FlowTable(1 << 20, MEMORY)
    idle = [weighing(table, assured(number), 20_000) for number in range(40)]
    for number in range(1000, 5000):
        source = f"203.0.{number % 256}.{number // 256}"
        weighing(table, datagram(number, source), kept)
        assert table.weight <= MEMORY
    assert [table.find(assured(number)) for number in range(40)] == idle
    assert table.evicted["memory"] > 0
    assert table.evicted["flows"] == 0


def test_assured_flows_leave_an_eighth_of_the_memory() -> None:
    table = FlowTable(1 << 20, MEMORY)
    for number in range(64):
        weighing(table, assured(number), 20_000)
    beginning = [conntrack(id_=number) for number in range(100, 110)]
    flows = [weighing(table, entry, 10_000) for entry in beginning]
    assert [table.find(entry) for entry in beginning] == flows
    assert len(table) < 74


def test_source_whose_flows_are_heavy_evicts_its_own_assured_ones() -> None:
    table = FlowTable(1 << 20, MEMORY)

    def sure(number: int, source: str) -> Conntrack:
        entry = datagram(number, source)
        return replace(entry, status=entry.status | Status.ASSURED)

    others = of_other_shares(
        table, "203.0.113.9", *(f"192.0.2.{number}" for number in range(1, 11))
    )
    entries = [sure(number, source) for number, source in enumerate(others)]
    flows = [weighing(table, entry, 20_000) for entry in entries]
    for number in range(100, 400):
        weighing(table, sure(number, "203.0.113.9"), 10_000)
    assert [table.find(entry) for entry in entries] == flows


def test_hosts_of_one_ipv6_network_share_their_memory() -> None:
    table = FlowTable(1 << 20, MEMORY)
    (other,) = of_other_shares(table, "2001:db8:2::", "2001:db8:1::1") or [""]
    entry = datagram(1, other or "192.0.2.1")
    flow = weighing(table, entry, 20_000)
    for number in range(1000, 1300):
        weighing(table, datagram(number, f"2001:db8:2::{number}"), 10_000)
    assert not other or table.find(entry) is flow


def test_flow_that_takes_all_by_itself_goes() -> None:
    table = FlowTable(8, MEMORY)
    flow = weighing(table, conntrack(id_=1), MEMORY)
    assert (len(table), table.weight) == (0, 0)
    table.weigh(flow)
    assert (len(table), table.weight) == (0, 0)


def test_memory_may_be_less_from_now_on() -> None:
    table = FlowTable(8, MEMORY)
    for number in range(8):
        weighing(table, assured(number), 10_000)
    table.memory = 20_000
    weighing(table, assured(0), 10_001)
    assert table.weight <= 20_000


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12), st.booleans(), st.sampled_from([None, 0, 900, 40_000])
        ),
        max_size=80,
    ),
    st.integers(1, 9),
    st.sampled_from([1, 3000, 50_000, MEMORY]),
)
def test_what_is_accounted_is_what_is_there(
    steps: list[tuple[int, bool, int | None]], limit: int, memory: int
) -> None:
    table = FlowTable(limit, memory)
    for number, sure, kept in steps:
        entry = datagram(number, f"192.0.2.{number % 5}")
        if sure:
            entry = replace(entry, status=entry.status | Status.ASSURED)
        if kept is None:
            table.remove(key_of(entry))
        else:
            flow = table.find(entry)
            if flow is None:
                flow = begun(table, entry)
            flow.helper, flow.kept = Silent(), kept
            table.weigh(flow)
        assert len(table) <= limit
        assert table.weight <= memory
        assert table.weight == sum(each.measured for each in table)
        shares = table._assured + table._others
        for share in shares:
            flows = listed(share)
            assert share.count == len(flows)
            assert share.weight == sum(each.measured for each in flows)
        beginning = sum(each.count for each in table._others)
        assert table._beginning == beginning
        assert table._beginning_weight == sum(each.weight for each in table._others)
