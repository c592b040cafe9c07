# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of conntrack: which flow a packet belongs to, and which helper looks at it.

Every rule has its case here, with the place in Linux 6.1 that it is from; that the
kernel does the same with random sequences is for tests/live/test_differential.py.
"""

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, fragment
from scapy.layers.inet import UDP as ScapyUDP

from cthelper.core.api import OptionValue
from cthelper.core.errors import Malformed
from cthelper.core.offline.blocks import Batch
from cthelper.core.offline.conntrack import State
from cthelper.core.packet import Segment, locate
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Expectation,
    Transport,
    Tuple,
)
from tests.core.builders import endpoint, flow_tuple
from tests.core.offline.test_tcp import ACK, FIN, RST, SYN
from tests.core.offline.tracking import (
    CLIENT,
    CLIENT6,
    CONTROL,
    DATA,
    DATA_FLOW,
    FLOWS,
    OTHER,
    PLAIN,
    SERVER,
    SERVER6,
    Lab,
    begin,
    config,
    frame,
    packet,
    see,
    table,
    tcp,
    track,
    turned,
    udp,
    wanted,
)

# Flows and states (nf_conntrack_in, resolve_normal_ct in nf_conntrack_core.c)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_flow_is_new_until_it_is_answered(flow: Tuple) -> None:
    held = table()
    first = track(held, 0.0, flow)
    assert first.created
    assert (first.state, first.direction, first.met) == (State.NEW, ORIGINAL, None)
    again = track(held, 1.0, flow)
    assert (again.entry, again.created) == (first.entry, False)
    assert (again.state, again.direction) == (State.NEW, ORIGINAL)
    answer = track(held, 2.0, turned(flow), SYN | ACK)
    assert (answer.entry, answer.created) == (first.entry, False)
    assert (answer.state, answer.direction) == (State.ESTABLISHED, REPLY)
    more = track(held, 3.0, flow, ACK)
    assert (more.entry, more.state, more.direction) == (
        first.entry,
        State.ESTABLISHED,
        ORIGINAL,
    )
    assert (held.packets, held.flows) == (4, 1)


def test_entry_that_is_not_confirmed_is_in_no_table() -> None:
    held = table()
    first, second = (held.track(1, 0.0, packet(udp()), 0) for _ in range(2))
    assert first
    assert second
    assert first.entry is not second.entry
    assert second.created
    assert held.find(udp()) is None
    assert second.entry is not None
    held.confirm(second.entry)
    held.confirm(second.entry)
    assert held.find(udp()) is second.entry
    assert track(held, 1.0, udp()).entry is second.entry


def test_find_takes_the_original_tuple_alone() -> None:
    held = table()
    entry = begin(held, 0.0, udp())
    assert held.find(udp()) is entry
    assert held.find(turned(udp())) is None
    assert held.find(tcp()) is None
    assert held.find(udp((CLIENT, 40001))) is None


def test_flows_of_both_transports_and_directions_are_apart() -> None:
    held = table()
    flows = [udp(), tcp(), udp((CLIENT, 40001)), udp((OTHER, 40000))]
    entries = {begin(held, 0.0, each).id for each in flows}
    assert len(entries) == len(flows)


def test_offset_of_the_ip_header_and_what_follows_the_packet_do_not_count() -> None:
    held = table()
    whole = packet(udp())
    seen = held.track(1, 0.0, b"\xff" * 14 + whole + b"\0" * 6, 14)
    assert seen is not None
    assert seen.entry is not None
    assert seen.entry.original == udp()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45",
        packet(udp())[:19],
        packet(udp())[:27],
        packet(tcp())[:33],
        packet(udp((CLIENT6, 1), (SERVER6, 2)))[:40],
        b"\x55" + packet(udp())[1:],
        # ICMP.
        packet(udp())[:9] + b"\x01" + packet(udp())[10:],
        # UDP's length is below its header's.
        packet(udp())[:24] + b"\0\x07" + packet(udp())[26:],
        # TCP's header is below 20 bytes.
        packet(tcp())[:32] + b"\x40" + packet(tcp())[33:],
    ],
)
def test_what_is_no_packet_of_tcp_or_udp(data: bytes) -> None:
    held = table()
    assert held.track(1, 0.0, data, 0) is None
    assert see(held, 1, 0.0, data, 0) is None
    assert (held.packets, held.flows) == (0, 0)


def test_packet_that_the_capture_has_cut_counts_as_whole() -> None:
    held = table()
    whole = bytes(IP(src=CLIENT, dst=SERVER) / ScapyUDP(sport=1, dport=2) / bytes(100))
    seen = held.track(1, 0.0, whole[:60], 0)
    assert seen is not None
    assert seen.created


def test_fragments_are_tracked_as_one_packet() -> None:
    # nf_defrag_ipv4 comes before conntrack.
    held = table()
    whole = IP(src=CLIENT, dst=SERVER, id=9) / ScapyUDP(sport=40000, dport=CONTROL)
    pieces = fragment(whole / bytes(3000), 1000)  # type: ignore[no-untyped-call]
    first, *others, last = map(bytes, pieces)
    for each in (first, *others):
        assert held.track(1, 0.0, each, 0) is None
        assert held.packets == 0
    seen = see(held, 1, 0.0, last, 0)
    assert seen is not None
    assert len(seen.packet) == 20 + 8 + 3000
    assert seen.entry is not None
    assert seen.entry.original == udp()
    assert held.packets == 1


# Helpers (nft_ct_helper_obj_eval in nft_ct.c)


class Second(Lab):
    """Another one."""

    name = "second"
    transports = frozenset({UDP})


@pytest.mark.parametrize(
    ("changes", "flow", "tagged"),
    [
        ({}, udp(), True),
        ({}, tcp(), True),
        ({}, udp(to=(SERVER, PLAIN)), False),
        ({}, udp((CLIENT, CONTROL), (SERVER, PLAIN)), False),
        ({"ports": (PLAIN, 1)}, udp(to=(SERVER, 1)), True),
        ({"helper": Second}, tcp(), False),
        ({"sources": (ip_network("192.0.2.0/30"),)}, udp(), True),
        ({"sources": (ip_network("192.0.2.0/30"),)}, udp((OTHER, 1)), False),
        ({"destinations": (ip_network(SERVER),)}, udp(), True),
        ({"destinations": (ip_network("10.0.0.0/8"),)}, udp(), False),
    ],
)
def test_ruleset_tags_a_new_flow(
    changes: Mapping[str, Any], flow: Tuple, tagged: bool
) -> None:
    held = table(config(**changes))
    entry = begin(held, 0.0, flow)
    assert (entry.helper is not None) == tagged
    assert (see(held, 1, 1.0, packet(flow), 0) is not None) == tagged


def test_first_helper_that_tags_a_flow_stays() -> None:
    held = table(config(Second, sources=(ip_network(OTHER),)), config(Lab))
    names = []
    for source in (CLIENT, OTHER):
        helper = begin(held, 0.0, udp((source, 1))).helper
        assert helper is not None
        names.append(helper.helper.name)
    assert names == ["lab", "second"]


def test_expected_flow_is_related_and_not_tagged() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    held.expect(0.0, master, wanted(destination=endpoint(CLIENT, CONTROL)), 1)
    seen = track(held, 1.0, udp((SERVER, 20000), (CLIENT, CONTROL)))
    assert seen.state is State.RELATED
    assert seen.entry is not None
    assert seen.entry.helper is None


class Chained(Lab):
    """Goes on with the flows that it expected."""

    name = "chained"

    @classmethod
    def tags_expected(cls, options: Mapping[str, OptionValue]) -> bool:
        return True


def test_expected_flow_is_tagged_where_the_helper_goes_on_with_it() -> None:
    held = table(config(Chained))
    master = begin(held, 0.0, udp())
    held.expect(0.0, master, wanted(permanent=True), 1)
    expected = begin(held, 1.0, DATA_FLOW)
    assert expected.helper is not None
    assert expected.conntrack(1.0).master == master.original
    # The master's present helper counts.
    master.helper = None
    other = begin(held, 2.0, udp((SERVER, 20001), (CLIENT, DATA)))
    assert other.master is master
    assert other.helper is None


def test_expected_flow_of_another_transport_than_the_helpers_is_not_tagged() -> None:
    served = type("Served", (Chained,), {"transports": frozenset({TCP})})
    held = table(config(served))
    master = begin(held, 0.0, tcp())
    held.expect(0.0, master, wanted(), 1)
    assert begin(held, 1.0, DATA_FLOW).helper is None


# Whatever comes


@given(st.lists(st.tuples(st.floats(0, 1000), st.binary(max_size=80))))
def test_any_bytes(frames: list[tuple[float, bytes]]) -> None:
    held = table()
    for number, (now, data) in enumerate(sorted(frames), 1):
        for start in (0, min(14, len(data))):
            see(held, number, now, data, start)
            held.track(number, now, data, start)


spoilt = st.builds(
    lambda flow, flags, size, changes: bytes(
        changes.get(at, byte) for at, byte in enumerate(packet(flow, flags)[:size])
    ),
    st.sampled_from(FLOWS),
    st.integers(0, 255),
    st.integers(0, 80),
    st.dictionaries(st.integers(0, 60), st.integers(0, 255), max_size=3),
)


@given(st.lists(st.tuples(st.floats(0, 1000), spoilt)))
def test_any_spoilt_packets(frames: list[tuple[float, bytes]]) -> None:
    held = table()
    for number, (now, data) in enumerate(sorted(frames), 1):
        seen = see(held, number, now, data, 0)
        if seen is not None and seen.entry is not None:
            held.confirm(seen.entry)
        held.track(number, now, data, 0)


# Few hosts and ports, so that flows meet each other and what is expected.
ends = st.sampled_from(
    [
        (source, to)
        for hosts in ((CLIENT, SERVER), (CLIENT6, SERVER6))
        for source, to in (hosts, hosts[::-1])
    ]
)
flows = st.builds(
    lambda transport, hosts, port, to: flow_tuple(
        transport, (hosts[0], port), (hosts[1], to)
    ),
    st.sampled_from(list(Transport)),
    ends,
    st.sampled_from([CONTROL, PLAIN, DATA]),
    st.sampled_from([CONTROL, PLAIN, DATA]),
)
flags_ = st.sampled_from(
    [SYN, SYN | ACK, ACK, ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, SYN | FIN]
)
numbers = st.integers(1, 4)
packets = st.builds(packet, flows, flags_, numbers, numbers)
# Some with lengths that lie, options, fragments, cut or padded.
mangled = st.builds(
    lambda data, changes, cut, more: (
        bytes(changes.get(at, byte) for at, byte in enumerate(data))[: cut or len(data)]
        + bytes(more)
    ),
    packets,
    st.dictionaries(
        st.sampled_from([0, 2, 3, 4, 5, 6, 7, 9, 24, 25, 32, 33, 44, 45, 52, 53]),
        st.sampled_from([0, 1, 6, 7, 8, 16, 17, 20, 28, 40, 0x46, 0x50, 0x60, 255]),
        max_size=2,
    ),
    st.sampled_from([0, 0, 0, 8, 27, 28, 33, 34, 39, 48, 53, 54, 59]),
    st.sampled_from([0, 0, 6]),
)
waits = st.sampled_from([0.0, 0.5, 1.5, 5.0, 12.0, 29.0, 70.0, 200.0])
expectations = st.builds(
    lambda flow, masked, port, permanent: wanted(
        transport=flow.transport,
        source=ip_network(flow.source.address) if masked else None,
        source_port=flow.source.port if port else None,
        destination=flow.destination,
        permanent=permanent,
    ),
    flows,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
kept = st.sampled_from([None, None, 7.0, 300.0])
Step = tuple[float, bytes, Expectation | None, float | None]
steps_ = st.lists(
    st.tuples(waits, packets, st.none() | expectations, kept), min_size=1, max_size=40
)
mangled_steps = st.lists(
    st.tuples(waits, packets | mangled, st.none() | expectations, kept),
    min_size=1,
    max_size=40,
)


@given(mangled_steps)
def test_pass_over_says_what_track_says(steps: list[Step]) -> None:
    held, fast = table(), table()
    now = 0.0
    for number, (wait, data, expectation, seconds) in enumerate(steps, 1):
        now += wait
        full = held.track(number, now, data, 0)
        seen = see(fast, number, now, data, 0)
        entry = None if full is None else full.entry
        told = (
            full is not None
            and entry is not None
            and full.state is not State.INVALID
            and (entry.helper or full.met or full.missed) is not None
        )
        assert (seen is not None) == told
        if seen is not None:
            assert full is not None
            assert entry is not None
            assert seen.entry is not None
            assert seen.entry.id == entry.id
            assert seen.segment in (None, _located(data))
            assert (seen.state, seen.direction) == (full.state, full.direction)
            assert (seen.created, seen.packet) == (full.created, full.packet)
            assert (seen.met is None) == (full.met is None)
            assert (seen.missed is None) == (full.missed is None)
            fast.confirm(seen.entry)
            held.confirm(entry)
            if expectation is not None:
                found, _ = fast.expect(now, seen.entry, expectation, number)
                assert held.expect(now, entry, expectation, number)[0] is found
            if seconds is not None and not entry.gone:
                held.keep(now, entry, seconds)
                fast.keep(now, seen.entry, seconds)
        if entry is not None:
            held.confirm(entry)
            theirs = fast.find(entry.original)
            assert theirs is not None or entry.gone
            if theirs is not None:
                assert theirs.expires == entry.expires
                assert theirs.conntrack(now) == entry.conntrack(now)
        assert (held.packets, held.flows) == (fast.packets, fast.flows)
        ours = [(each.expectation, each.expires) for each in held.live(now)]
        assert ours == [(each.expectation, each.expires) for each in fast.live(now)]


@given(steps_)
def test_table_of_expectations_holds_what_it_should(steps: list[Step]) -> None:
    held = table()
    now = 0.0
    for number, (wait, data, expectation, seconds) in enumerate(steps, 1):
        now += wait
        seen = frame(held, number, now, data)
        if seen.entry is None:
            continue
        if expectation is not None:
            held.expect(now, seen.entry, expectation, number)
        if seconds is not None and not seen.entry.gone:
            held.keep(now, seen.entry, seconds)
        live = held.live(now)
        for each in live:
            assert each.expires > now
            assert each.master.expires > now
            assert each.master.helper is not None
            assert each in each.master.expectations
            assert held.find(each.master.original) is each.master
            alike = [held for held in each.master.expectations if held in live]
            assert alike == each.master.expectations
            assert len(alike) <= 2
        # No packet could meet two of them.
        assert not any(
            one is not other and one.key == other.key and one.clashes(other)
            for one in live
            for other in live
        )


@given(steps_)
def test_answer_belongs_to_the_flow_of_the_packet(steps: list[Step]) -> None:
    held = table()
    now = 0.0
    for number, (wait, data, *_) in enumerate(steps, 1):
        now += wait
        seen = held.track(number, now, data, 0)
        assert seen is not None
        entry = seen.entry
        if entry is None or seen.state is State.INVALID:
            continue
        held.confirm(entry)
        if entry.gone:
            continue
        assert entry.reply == turned(entry.original)
        sent, answered = entry.original, entry.reply
        if seen.direction is REPLY:
            sent, answered = answered, sent
        back = held.track(number, now, packet(answered, ACK), 0)
        assert back is not None
        # An ACK may be the wrong answer, but whose it is is clear.
        assert back.entry is entry
        assert back.direction is not seen.direction
        assert track(held, now, sent, ACK).entry is entry


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("transport", Transport)
def test_memory_does_not_grow_with_the_capture(
    transport: Transport, version: int
) -> None:
    gone: list[int] = []
    held = table(on_destroy=lambda entry: gone.append(entry.id))
    hosts = (CLIENT, SERVER) if version == 4 else (CLIENT6, SERVER6)
    total = 20000
    for number in range(total):
        # 65 a second last at most 120 s.
        source = (hosts[0], 1024 + number % 60000)
        to = (hosts[1], CONTROL if number % 3 else PLAIN)
        flow = flow_tuple(transport, source, to)
        seen = see(held, number, number / 65, packet(flow), 0)
        if seen is not None:
            assert seen.entry is not None
            held.confirm(seen.entry)
            end = endpoint(hosts[0], 1 + number % 5000)
            expectation = wanted(
                source=None, destination=end, permanent=True, master=seen.entry.original
            )
            held.expect(number / 65, seen.entry, expectation, number)
    alive = held.flows - len(gone)
    assert held.flows == total
    lasting = 30 if transport is UDP else 120
    # What lives, and as many again between two sweeps.
    assert alive <= 2 * max(65 * lasting, 4096)
    assert len(held.live(total / 65)) <= 65 * 10


def test_ids_and_numbers_only_grow() -> None:
    held = table()
    entries = [begin(held, float(40 * number), udp()) for number in range(5)]
    assert all(one.id < other.id for one, other in pairwise(entries))


def _located(data: bytes) -> Segment | None:
    with suppress(Malformed):
        return locate(data)
    return None


@given(
    st.lists(st.tuples(waits, packets | mangled), max_size=30),
    st.sampled_from([0.3, 4.0, 300.0]),
)
def test_packets_of_a_batch_are_seen_as_one_by_one(
    steps: list[tuple[float, bytes]], period: float
) -> None:
    together, alone = table(), table()
    now = 0.0
    data = b""
    places = []
    for number, (wait, each) in enumerate(steps, 1):
        # Some clocks of captures go back.
        now += -3.0 if wait == 1.5 else wait
        places.append((number, now, len(data), len(data), len(data) + len(each)))
        data += each
    batch = Batch(data, places)
    told = []
    due = 0.0
    while batch.at < len(places):
        found = together.pass_over(batch, due)
        if found is None and batch.at < len(places):
            # Before a packet that comes then.
            assert places[batch.at][1] >= due
            due = places[batch.at][1] + period
            continue
        if found is not None:
            told.append((places[batch.at - 1][0], found.state, found.packet))
            if found.entry is not None:
                together.confirm(found.entry)
        times = [time for _, time, *_ in places[: batch.at]]
        assert together.now == max([0.0, *times])
    expected = []
    latest = 0.0
    for number, time, _, start, stop in places:
        latest = max(latest, time)
        one = see(alone, number, latest, data[start:stop], 0)
        if one is not None:
            expected.append((number, one.state, one.packet))
            if one.entry is not None:
                alone.confirm(one.entry)
    assert told == expected
    assert (together.packets, together.flows) == (alone.packets, alone.flows)
