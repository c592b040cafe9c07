# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of conntrack: flows, their ends, what is expected and what meets it.

Every rule has its case here, with the place in Linux 6.1 that it is from; that the
kernel does the same with random sequences is for tests/live/test_differential.py.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, fragment
from scapy.layers.inet import UDP as ScapyUDP

from cthelper.core.api import DONE, Effects, Helper, Message, OptionValue, Policy
from cthelper.core.config import HelperConfig
from cthelper.core.offline.conntrack import Seen, State, Table
from cthelper.core.offline.entries import Entry, Expected, Timeouts
from cthelper.core.offline.expectations import Outcome
from cthelper.core.offline.tcp import TCP_TIMEOUTS, TcpState
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Endpoint,
    Expectation,
    Status,
    Transport,
    Tuple,
)
from tests.core.builders import endpoint, flow_tuple

CLIENT, OTHER, SERVER = "192.0.2.1", "192.0.2.9", "198.51.100.2"
CLIENT6, SERVER6 = "2001:db8:1::1", "2001:db8:2::2"
# Control ports of the helper and of none.
CONTROL, PLAIN = 7000, 7100
DATA: Final = 5000

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


class Lab(Helper):
    """Nothing of it is run."""

    name = "lab"
    transports = frozenset({TCP, UDP})

    def on_message(self, message: Message) -> Effects:
        yield DONE


class Second(Lab):
    """Another one."""

    name = "second"
    transports = frozenset({UDP})


def config(helper: type[Helper] = Lab, **changes: Any) -> HelperConfig:
    """A helper for CONTROL with two classes: 2 for 10 s, and 1 for 20 s."""
    given = HelperConfig(
        helper=helper,
        queue=0,
        ports=(CONTROL,),
        policies=(Policy("data", 2, 10), Policy("more", 1, 20)),
        options={},
    )
    return replace(given, **changes)


def table(*helpers: HelperConfig, **changes: Any) -> Table:
    """A table with these helpers, or with Lab alone."""
    found = helpers or (config(),)
    return Table({each.helper.name: each for each in found}, **changes)


# Packets


def wrapped(flow: Tuple, header: bytes) -> bytes:
    """An IP packet; conntrack's model asks for no checksum."""
    source, destination = flow.source.address, flow.destination.address
    addresses = source.packed + destination.packed
    if source.version == 6:
        size = struct.pack("!IHBB", 6 << 28, len(header), flow.transport, 64)
        return size + addresses + header
    size = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(header), 0, 64, flow.transport, 0)
    return size + addresses + header


def packet(flow: Tuple, flags: int = SYN, end: int = 1, acknowledged: int = 1) -> bytes:
    """A packet without payload; the flags and numbers are for TCP."""
    ports = struct.pack("!HH", flow.source.port, flow.destination.port)
    if flow.transport is UDP:
        return wrapped(flow, ports + struct.pack("!HH", 8, 0))
    first = end - bool(flags & SYN) - bool(flags & FIN)
    numbers = struct.pack("!II", first & 0xFFFFFFFF, acknowledged)
    rest = numbers + struct.pack("!BBHHH", 0x50, flags, 1024, 0, 0)
    return wrapped(flow, ports + rest)


def udp(
    source: tuple[str, int] = (CLIENT, 40000), to: tuple[str, int] = (SERVER, CONTROL)
) -> Tuple:
    """A tuple of UDP, the helper's unless told."""
    return flow_tuple(UDP, source, to)


def tcp(
    source: tuple[str, int] = (CLIENT, 40000), to: tuple[str, int] = (SERVER, CONTROL)
) -> Tuple:
    """A tuple of TCP, the helper's unless told."""
    return flow_tuple(TCP, source, to)


def turned(flow: Tuple) -> Tuple:
    """The tuple of the answers."""
    return Tuple(flow.transport, flow.destination, flow.source)


# A flow to the helper's port and one to none's, of each transport and IP version.
FLOWS: Final = [
    udp(),
    tcp(),
    udp((CLIENT6, 40000), (SERVER6, CONTROL)),
    tcp((CLIENT6, 40000), (SERVER6, CONTROL)),
    udp(to=(SERVER, PLAIN)),
    tcp(to=(SERVER, PLAIN)),
    udp((CLIENT6, 40000), (SERVER6, PLAIN)),
    tcp((CLIENT6, 40000), (SERVER6, PLAIN)),
]


def track(held: Table, now: float, flow: Tuple, flags: int = SYN) -> Seen:
    """Have a packet pass: its entry is confirmed."""
    seen = held.track(1, now, packet(flow, flags), 0)
    assert seen is not None
    if seen.entry is not None:
        held.confirm(seen.entry)
    return seen


def begin(held: Table, now: float, flow: Tuple) -> Entry:
    """The entry of a flow that begins here."""
    seen = track(held, now, flow)
    assert seen.created
    assert seen.entry is not None
    return seen.entry


def wanted(**changes: Any) -> Expectation:
    """The server may send to the client's DATA port over UDP."""
    given = Expectation(
        master=udp(),
        transport=UDP,
        source=ip_network(SERVER),
        source_port=None,
        destination=endpoint(CLIENT, DATA),
        policy="data",
        timeout=10,
    )
    return replace(given, **changes)


DATA_FLOW: Final = udp((SERVER, 20000), (CLIENT, DATA))


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


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_entry_as_the_kernel_would_report_it(flow: Tuple) -> None:
    held = table()
    seen = held.track(7, 5.0, packet(flow), 0)
    assert seen is not None
    entry = seen.entry
    assert entry is not None
    tagged = flow.destination.port == CONTROL
    assert entry.frame == 7
    read = entry.conntrack(5.0)
    assert (read.original, read.reply) == (flow, turned(flow))
    assert (read.id, read.zone, read.mark, read.master) == (entry.id, 0, 0, None)
    assert read.helper == ("lab" if tagged else None)
    assert not read.confirmed
    assert (Status.HELPER in read.status) == tagged
    held.confirm(entry)
    assert entry.conntrack(5.0).confirmed
    lasting = 30 if flow.transport is UDP else 120
    assert entry.conntrack(5.0).timeout == lasting
    assert entry.conntrack(9.5).timeout == lasting - 5
    assert entry.conntrack(500.0).timeout == 0
    assert Status.SEEN_REPLY not in entry.conntrack(5.0).status
    track(held, 6.0, turned(flow), SYN | ACK)
    assert Status.SEEN_REPLY in entry.conntrack(6.0).status


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
    assert held.see(1, 0.0, data, 0) is None
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
    seen = held.see(1, 0.0, last, 0)
    assert seen is not None
    assert len(seen.packet) == 20 + 8 + 3000
    assert seen.entry is not None
    assert seen.entry.original == udp()
    assert held.packets == 1


# Helpers (nft_ct_helper_obj_eval in nft_ct.c)


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
    assert (held.see(1, 1.0, packet(flow), 0) is not None) == tagged


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
    # It has a master, and so it keeps the helper.
    assert not held.detach(expected)
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


# Ends of flows


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        # nf_conntrack_udp_packet in nf_conntrack_proto_udp.c.
        ([(0.0, ">")], 30),
        ([(0.0, ">"), (1.0, ">"), (25.0, ">")], 30),
        ([(0.0, ">"), (1.0, "<")], 30),
        # The first answer finds a flow that has seen none.
        ([(0.0, ">"), (3.0, "<")], 30),
        ([(0.0, ">"), (3.0, "<"), (3.0, "<")], 120),
        ([(0.0, ">"), (1.0, "<"), (2.0, ">")], 30),
        ([(0.0, ">"), (1.0, "<"), (2.1, ">")], 120),
        ([(0.0, ">"), (1.0, "<"), (2.1, "<")], 120),
        # The two seconds count from the first packet.
        ([(0.0, ">"), (29.0, ">"), (40.0, "<"), (40.0, ">")], 120),
    ],
)
def test_timeout_of_udp(steps: Sequence[tuple[float, str]], left: float) -> None:
    for flow in (udp(), udp(to=(SERVER, PLAIN))):
        held, fast = table(), table()
        for now, side in steps:
            sent = flow if side == ">" else turned(flow)
            track(held, now, sent)
            seen = fast.see(1, now, packet(sent), 0)
            if seen is not None:
                assert seen.entry is not None
                fast.confirm(seen.entry)
        last = steps[-1][0]
        for each in (held, fast):
            entry = each.find(flow)
            assert entry is not None
            assert entry.expires - last == left
            assert each.flows == 1


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (">S", TcpState.SYN_SENT),
        (">S <SA", TcpState.SYN_RECV),
        (">S <SA >A", TcpState.ESTABLISHED),
        (">S <SA >A >FA", TcpState.FIN_WAIT),
        (">S <SA >A >FA <A", TcpState.CLOSE_WAIT),
        (">S <SA >A >FA <FA", TcpState.LAST_ACK),
        (">S <SA >A >FA <FA >A", TcpState.TIME_WAIT),
        (">S <SA >A >R", TcpState.CLOSE),
    ],
)
def test_timeout_of_tcp(words: str, state: TcpState) -> None:
    flow = tcp(to=(SERVER, PLAIN))
    held, fast = table(), table()
    last = play(held, flow, words)
    for number, now, data in timed(flow, words):
        assert fast.see(number, now, data, 0) is None
    for each in (held, fast):
        entry = each.find(flow)
        assert entry is not None
        assert entry.expires - last == TCP_TIMEOUTS[state]


LETTERS: Final = {"F": FIN, "S": SYN, "R": RST, "A": ACK}


def timed(flow: Tuple, words: str) -> list[tuple[int, float, bytes]]:
    """Segments by number and second, as test_tcp.py writes them."""
    return [
        (
            number,
            float(number),
            packet(
                flow if word[0] == ">" else turned(flow),
                sum(LETTERS[letter] for letter in word[1:]),
            ),
        )
        for number, word in enumerate(words.split())
    ]


def play(held: Table, flow: Tuple, words: str) -> float:
    """Have these segments pass, one each second; the time of the last one."""
    for number, now, data in timed(flow, words):
        seen = held.track(number, now, data, 0)
        assert seen is not None
        if seen.entry is not None:
            held.confirm(seen.entry)
    return float(len(words.split()) - 1)


def test_syn_that_is_repeated_renews_nothing() -> None:
    # "do not renew timeout on SYN retransmit" in nf_conntrack_tcp_packet,
    # nor does the SYN of the other side that crosses it.
    held = table()
    entry = begin(held, 0.0, tcp())
    track(held, 60.0, tcp())
    track(held, 70.0, turned(tcp()))
    assert entry.expires == 120.0
    track(held, 80.0, turned(tcp()))
    assert entry.expires == 200.0


def test_ignored_and_invalid_segments_renew_nothing() -> None:
    held = table()
    play(held, tcp(), ">S <SA >A")
    entry = held.find(tcp())
    assert entry is not None
    expires = entry.expires
    ignored = track(held, 50.0, tcp(), SYN)
    assert (ignored.entry, ignored.state) == (entry, State.ESTABLISHED)
    invalid = track(held, 51.0, tcp(), SYN | FIN)
    assert (invalid.entry, invalid.state) == (entry, State.INVALID)
    assert entry.expires == expires


@pytest.mark.parametrize(
    ("timeouts", "left"),
    [
        (Timeouts(), 300.0),
        (Timeouts(tcp={**TCP_TIMEOUTS, TcpState.ESTABLISHED: 60.0}), 60.0),
        (Timeouts(tcp_unacknowledged=20.0), 20.0),
    ],
)
def test_connection_taken_up_in_its_middle(timeouts: Timeouts, left: float) -> None:
    # nf_conntrack_tcp_loose is 1; "Avoid large ESTABLISHED timeout".
    held = table(timeouts=timeouts)
    seen = track(held, 0.0, tcp(), ACK)
    assert (seen.state, seen.created) == (State.NEW, True)
    entry = seen.entry
    assert entry is not None
    assert entry.expires == left
    track(held, 1.0, tcp(), ACK)
    assert entry.expires == 1.0 + left
    track(held, 2.0, turned(tcp()), ACK)
    track(held, 3.0, tcp(), ACK)
    assert entry.expires == 3.0 + timeouts.tcp[TcpState.ESTABLISHED]


@pytest.mark.parametrize("flags", [SYN | ACK, FIN | ACK, RST, RST | ACK, 0, SYN | FIN])
def test_segment_that_begins_no_flow_is_invalid(flags: int) -> None:
    # tcp_new and tcp_error in nf_conntrack_proto_tcp.c.
    held = table()
    seen = track(held, 0.0, tcp(), flags)
    assert (seen.entry, seen.state, seen.created) == (None, State.INVALID, False)
    assert held.see(1, 0.0, packet(tcp(), flags), 0) is None
    assert held.flows == 0


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_flow_that_has_ended_begins_anew(flow: Tuple) -> None:
    held = table()
    entry = begin(held, 0.0, flow)
    assert track(held, entry.expires - 0.1, turned(flow), ACK).entry is entry
    held = table()
    entry = begin(held, 0.0, flow)
    # The entry itself ends at the very moment (nf_ct_is_expired).
    again = begin(held, entry.expires, flow)
    assert again is not entry
    assert entry.gone
    assert (held.flows, held.find(flow)) == (2, again)


def test_answer_after_the_end_begins_a_flow_of_its_own() -> None:
    held = table()
    begin(held, 0.0, udp())
    seen = track(held, 31.0, turned(udp()))
    assert seen.created
    assert seen.entry is not None
    assert seen.entry.original == turned(udp())
    assert track(held, 32.0, udp()).direction is REPLY


def test_refused_connection_is_forgotten_at_once() -> None:
    # "If only reply is a RST" in nf_conntrack_tcp_packet.
    gone: list[Entry] = []
    held = table(on_destroy=gone.append)
    entry = begin(held, 0.0, tcp())
    seen = track(held, 0.1, turned(tcp()), RST | ACK)
    assert (seen.entry, seen.state) == (entry, State.ESTABLISHED)
    assert gone == [entry]
    assert held.find(tcp()) is None
    assert track(held, 0.2, tcp()).created


def test_connection_that_was_reset_lasts_ten_seconds() -> None:
    held = table()
    play(held, tcp(), ">S <SA >A <R")
    entry = held.find(tcp())
    assert entry is not None
    assert entry.expires == 13.0


@pytest.mark.parametrize(
    ("words", "opener"),
    [
        (">S <SA >A >FA <FA >A", tcp()),
        (">S <SA >A >FA <FA >A", turned(tcp())),
        (">S <SA >A >R", tcp()),
    ],
)
def test_closed_connection_is_opened_again(words: str, opener: Tuple) -> None:
    gone: list[Entry] = []
    held = table(on_destroy=gone.append)
    now = play(held, tcp(), words)
    first = held.find(tcp())
    seen = track(held, now + 1.0, opener)
    assert (seen.created, seen.state, seen.direction) == (True, State.NEW, ORIGINAL)
    assert gone == [first]
    assert held.flows == 2


def test_each_end_is_told_once() -> None:
    gone: list[Entry] = []
    held = table(on_destroy=gone.append)
    entry = begin(held, 0.0, udp())
    held.expect(0.0, entry, wanted(), 1)
    held.keep(0.0, entry, 5.0)
    held.live(5.0)
    assert gone == [entry]
    begin(held, 6.0, udp())
    held.live(6.0)
    assert gone == [entry]


def test_keep_sets_what_is_left() -> None:
    # ctnetlink_change_timeout in nf_conntrack_netlink.c.
    held = table()
    entry = begin(held, 0.0, udp())
    held.keep(10.0, entry, 300.0)
    assert entry.expires == 310.0
    track(held, 20.0, udp())
    assert entry.expires == 50.0
    held.keep(21.0, entry, 0.0)
    assert track(held, 21.0, udp()).created


def test_keep_leaves_an_unconfirmed_entry_as_it_is() -> None:
    held = table()
    seen = held.track(1, 0.0, packet(udp()), 0)
    assert seen is not None
    assert seen.entry is not None
    held.keep(0.0, seen.entry, 300.0)
    assert seen.entry.expires == 30.0


# What meets an expectation (nf_ct_find_expectation in nf_conntrack_expect.c)


@pytest.mark.parametrize(
    ("changes", "flow", "met"),
    [
        ({}, DATA_FLOW, True),
        ({}, udp((SERVER, 1), (CLIENT, DATA)), True),
        ({}, udp((OTHER, 20000), (CLIENT, DATA)), False),
        ({}, udp((SERVER, 20000), (OTHER, DATA)), False),
        ({}, udp((SERVER, 20000), (CLIENT, DATA + 1)), False),
        ({}, tcp((SERVER, 20000), (CLIENT, DATA)), False),
        ({}, turned(DATA_FLOW), False),
        ({"transport": TCP}, tcp((SERVER, 20000), (CLIENT, DATA)), True),
        ({"transport": TCP}, DATA_FLOW, False),
        ({"source": None}, udp((OTHER, 20000), (CLIENT, DATA)), True),
        ({"source": ip_network("198.51.100.0/30")}, DATA_FLOW, True),
        (
            {"source": ip_network("198.51.100.0/31")},
            udp(("198.51.100.1", 1), (CLIENT, DATA)),
            True,
        ),
        ({"source": ip_network("198.51.100.0/31")}, DATA_FLOW, False),
        ({"source_port": 20000}, DATA_FLOW, True),
        ({"source_port": 20001}, DATA_FLOW, False),
        ({"source": None, "source_port": 20000}, DATA_FLOW, True),
    ],
)
def test_which_flow_meets_an_expectation(
    changes: Mapping[str, Any], flow: Tuple, met: bool
) -> None:
    held = table()
    master = begin(held, 0.0, udp())
    outcome, expected = held.expect(0.0, master, wanted(**changes), 1)
    assert outcome is Outcome.CREATED
    seen = track(held, 1.0, flow)
    assert seen.met is (expected if met else None)
    assert seen.state is (State.RELATED if met else State.NEW)
    assert len(held.live(1.0)) == (0 if met else 1)


@pytest.mark.parametrize("transport", Transport)
def test_expectation_of_ipv6(transport: Transport) -> None:
    held = table()
    master = begin(held, 0.0, udp((CLIENT6, 1), (SERVER6, CONTROL)))
    expectation = wanted(
        master=master.original,
        transport=transport,
        source=ip_network("2001:db8:2::/64"),
        destination=endpoint(CLIENT6, DATA),
    )
    held.expect(0.0, master, expectation, 1)
    away = flow_tuple(transport, ("2001:db8:3::2", 1), (CLIENT6, DATA))
    assert track(held, 1.0, away).met is None
    near = flow_tuple(transport, ("2001:db8:2:0:ffff::9", 1), (CLIENT6, DATA))
    assert track(held, 1.0, near).met is not None


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize("permanent", [False, True])
def test_expected_flow(transport: Transport, permanent: bool) -> None:
    held = table()
    master = begin(held, 0.0, udp())
    expectation = wanted(transport=transport, permanent=permanent)
    _, expected = held.expect(0.0, master, expectation, 4)
    assert expected is not None
    assert (expected.frame, expected.master, expected.helper) == (4, master, "lab")
    flow = flow_tuple(transport, (SERVER, 20000), (CLIENT, DATA))
    first = held.see(5, 1.0, packet(flow), 0)
    assert first is not None
    assert (first.met, first.created) == (expected, True)
    entry = first.entry
    assert entry is not None
    assert entry.master is master
    held.confirm(entry)
    # nft's "related" until it is answered.
    again = track(held, 2.0, flow)
    assert (again.entry, again.met, again.state) == (entry, None, State.RELATED)
    assert entry.conntrack(2.0).master == master.original
    assert Status.EXPECTED in entry.conntrack(2.0).status
    answer = track(held, 3.0, turned(flow), SYN | ACK)
    assert answer.state is State.ESTABLISHED
    assert track(held, 4.0, flow, ACK).state is State.ESTABLISHED
    # One that is for one flow is used up; a permanent one is there for the next.
    other = replace(flow, source=Endpoint(flow.source.address, 20001))
    assert track(held, 5.0, other).met is (expected if permanent else None)
    assert held.live(5.0) == ([expected] if permanent else [])


def test_flow_that_is_there_meets_nothing() -> None:
    held = table()
    begin(held, 0.0, DATA_FLOW)
    master = begin(held, 0.0, udp())
    held.expect(0.0, master, wanted(), 1)
    seen = track(held, 1.0, DATA_FLOW)
    assert (seen.met, seen.state) == (None, State.NEW)
    assert len(held.live(1.0)) == 1


def test_expectation_of_an_unconfirmed_master_is_not_met() -> None:
    held = table()
    seen = held.track(1, 0.0, packet(udp()), 0)
    assert seen is not None
    assert seen.entry is not None
    outcome, expected = held.expect(0.0, seen.entry, wanted(), 1)
    assert outcome is Outcome.CREATED
    assert track(held, 0.0, DATA_FLOW).met is None
    held.confirm(seen.entry)
    other = replace(DATA_FLOW, source=endpoint(SERVER, 20001))
    assert track(held, 1.0, other).met is expected


def test_invalid_segment_uses_an_expectation_up() -> None:
    # init_conntrack looks for it before nf_conntrack_tcp_packet judges the segment.
    held = table()
    master = begin(held, 0.0, udp())
    held.expect(0.0, master, wanted(transport=TCP), 1)
    flow = tcp((SERVER, 20000), (CLIENT, DATA))
    seen = track(held, 1.0, flow, RST)
    assert (seen.state, seen.met) == (State.INVALID, None)
    assert held.live(1.0) == []
    assert track(held, 1.0, flow).state is State.NEW


def test_connection_opened_again_meets_an_expectation() -> None:
    held = table()
    flow = tcp((SERVER, 20000), (CLIENT, DATA))
    now = play(held, flow, ">S <SA >A >FA <FA >A")
    master = begin(held, now, udp())
    held.expect(now, master, wanted(transport=TCP), 1)
    assert track(held, now + 1.0, flow).state is State.RELATED


# What becomes of an expectation (__nf_ct_expect_check in nf_conntrack_expect.c,
# ctnetlink_new_expect in nf_conntrack_netlink.c)


def make(held: Table, now: float, master: Entry, **changes: Any) -> Expected:
    """An expectation that is made."""
    outcome, expected = held.expect(now, master, wanted(**changes), 1)
    assert outcome is Outcome.CREATED
    assert expected is not None
    return expected


def test_expectation_lasts_as_long_as_its_policy_says() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    # CTA_EXPECT_TIMEOUT counts for a refresh alone (nf_ct_expect_insert).
    first = make(held, 1.0, master, timeout=99)
    more = make(
        held, 1.0, master, destination=endpoint(CLIENT, 1), helper="lab", class_=1
    )
    assert (first.expires, more.expires) == (11.0, 21.0)
    assert set(held.live(10.9)) == {first, more}
    assert held.live(11.0) == [more]
    assert held.live(21.0) == []
    assert master.expectations == []


def test_expectation_that_has_expired_is_not_met() -> None:
    held = table()
    make(held, 0.0, begin(held, 0.0, udp()))
    assert track(held, 10.0, DATA_FLOW).met is None


def test_class_without_the_name_of_a_helper_is_the_first() -> None:
    # ctnetlink_alloc_expect.
    held = table()
    expected = make(held, 0.0, begin(held, 0.0, udp()), class_=1)
    assert (expected.class_, expected.expires) == (0, 10.0)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        # The same, and what the first one covers.
        ({}, {}, Outcome.REFRESHED),
        ({}, {"permanent": True}, Outcome.REFRESHED),
        ({}, {"helper": "lab", "class_": 1}, Outcome.REFRESHED),
        ({"source": None}, {}, Outcome.REFRESHED),
        ({"source": None}, {"source": None}, Outcome.REFRESHED),
        ({}, {"source_port": 20000}, Outcome.REFRESHED),
        ({"source": ip_network("198.51.100.0/24")}, {}, Outcome.REFRESHED),
        # One that covers more clashes with it.
        ({}, {"source": None}, Outcome.CLASH),
        ({}, {"source": ip_network("198.51.100.0/24")}, Outcome.CLASH),
        ({"source_port": 20000}, {}, Outcome.CLASH),
        ({"source_port": 20000}, {"source": None}, Outcome.CLASH),
        (
            {"source": None, "source_port": 20000},
            {"source": ip_network(SERVER), "source_port": None},
            Outcome.CLASH,
        ),
        # What one packet cannot meet both does not.
        ({}, {"source": ip_network(OTHER)}, Outcome.CREATED),
        ({}, {"transport": TCP}, Outcome.CREATED),
        ({}, {"destination": endpoint(CLIENT, DATA + 1)}, Outcome.CREATED),
        ({}, {"destination": endpoint(OTHER, DATA)}, Outcome.CREATED),
        ({"source_port": 20000}, {"source_port": 20001}, Outcome.CREATED),
        (
            {"source": ip_network("198.51.100.0/31")},
            {"source": ip_network("198.51.100.2/31")},
            Outcome.CREATED,
        ),
    ],
)
def test_expectation_beside_another(
    before: Mapping[str, Any], after: Mapping[str, Any], outcome: Outcome
) -> None:
    for same_master in (True, False):
        held = table()
        master = begin(held, 0.0, udp())
        other = master if same_master else begin(held, 0.0, udp((CLIENT, 40001)))
        first = make(held, 0.0, master, **before)
        expectation = wanted(**after, timeout=7)
        found, expected = held.expect(5.0, other, expectation, 2)
        assert found is outcome
        if outcome is Outcome.REFRESHED:
            # It stays another's, and takes the timeout (ctnetlink_change_expect).
            assert expected is first
            assert (first.master, first.expires) == (master, 12.0)
            assert held.live(5.0) == [first]
        else:
            assert (expected is None) == (outcome is Outcome.CLASH)
            assert len(held.live(5.0)) == 1 + (outcome is Outcome.CREATED)


def unconfirmed(held: Table, now: float, flow: Tuple) -> Entry:
    """The entry of a flow whose first packet is still on its way."""
    seen = held.track(1, now, packet(flow), 0)
    assert seen is not None
    assert seen.entry is not None
    return seen.entry


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ({}, {}, Outcome.CREATED),
        ({}, {"permanent": True}, Outcome.CREATED),
        ({}, {"helper": "lab", "class_": 1}, Outcome.ALREADY),
        ({"source": None}, {}, Outcome.CLASH),
        ({}, {"source": None}, Outcome.CLASH),
        ({}, {"source": ip_network(OTHER)}, Outcome.CREATED),
    ],
)
def test_expectation_in_a_verdict_beside_another(
    before: Mapping[str, Any], after: Mapping[str, Any], outcome: Outcome
) -> None:
    # Nothing is refreshed there (ctnetlink_glue_attach_expect): the same one is made
    # anew, and one of another master clashes.
    held = table()
    master = unconfirmed(held, 0.0, udp())
    first = make(held, 0.0, master, **before)
    found, expected = held.expect(5.0, master, wanted(**after), 2)
    assert found is outcome
    live = held.live(5.0)
    if outcome is Outcome.CREATED:
        assert expected is not None
        assert expected.expires == 15.0
        assert live[0] is expected
        assert (first in live) == ("source" in after)
    else:
        assert live == [first]
    other = unconfirmed(held, 5.0, udp((CLIENT, 40001)))
    assert held.expect(5.0, other, live[0].expectation, 3) == (Outcome.CLASH, None)


def test_oldest_of_the_class_makes_room() -> None:
    # evict_oldest_expect; the limit is the master's own.
    held = table()
    master, other = begin(held, 0.0, udp()), begin(held, 0.0, udp((CLIENT, 40001)))
    more = make(
        held, 0.0, master, destination=endpoint(OTHER, 1), helper="lab", class_=1
    )
    theirs = make(held, 0.0, other, destination=endpoint(OTHER, 2))
    made = [
        make(held, float(port), master, destination=endpoint(CLIENT, port))
        for port in (1, 2, 3, 4)
    ]
    assert set(held.live(4.0)) == {more, theirs, made[2], made[3]}
    assert master.expectations == [made[3], made[2], more]
    last = make(
        held, 5.0, master, destination=endpoint(OTHER, 5), helper="lab", class_=1
    )
    assert set(held.live(5.0)) == {last, theirs, made[2], made[3]}


def test_refresh_does_not_make_an_expectation_younger() -> None:
    # The list is in the order of insertion, whatever the timers say.
    held = table()
    master = begin(held, 0.0, udp())
    ports = [endpoint(CLIENT, port) for port in (1, 2, 3)]
    first, second = (make(held, 0.0, master, destination=each) for each in ports[:2])
    held.expect(1.0, master, wanted(destination=ports[0]), 1)
    third = make(held, 2.0, master, destination=ports[2])
    assert first.expires == 11.0
    assert set(held.live(2.0)) == {second, third}


def test_expired_and_met_ones_make_room_by_themselves() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    make(held, 0.0, master)
    second = make(held, 5.0, master, destination=endpoint(CLIENT, 1))
    track(held, 6.0, DATA_FLOW)
    third = make(held, 7.0, master, destination=endpoint(CLIENT, 2))
    assert set(held.live(7.0)) == {second, third}
    fourth = make(held, 15.5, master, destination=endpoint(CLIENT, 3))
    assert set(held.live(15.5)) == {third, fourth}


def test_full_table() -> None:
    # nf_conntrack_expect_max.
    held = table(expect_max=2)
    masters = [begin(held, 0.0, udp((CLIENT, port))) for port in (1, 2, 3)]
    ends = [endpoint(CLIENT, port) for port in (1, 2, 3)]
    for master, end in zip(masters[:2], ends[:2], strict=True):
        make(held, 0.0, master, destination=end)
    late = wanted(destination=ends[2])
    assert held.expect(1.0, masters[2], late, 1) == (Outcome.FULL, None)
    outcome, _ = held.expect(10.0, masters[2], late, 1)
    assert outcome is Outcome.CREATED


def test_flow_without_helper_has_no_expectations() -> None:
    held = table()
    master = begin(held, 0.0, udp(to=(SERVER, PLAIN)))
    assert held.expect(0.0, master, wanted(), 1) == (Outcome.NO_HELPER, None)


def test_class_that_the_helper_does_not_have() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    expectation = wanted(helper="lab", class_=2)
    assert held.expect(0.0, master, expectation, 1) == (Outcome.INVALID, None)


@pytest.mark.parametrize("gone", [False, True])
def test_master_that_has_ended(gone: bool) -> None:
    held = table()
    master = begin(held, 0.0, udp())
    if gone:
        begin(held, 30.0, udp())
    assert held.expect(30.0, master, wanted(), 1) == (Outcome.NO_MASTER, None)


def test_refresh_asks_for_no_master() -> None:
    # ctnetlink_new_expect looks for the expectation first.
    held = table()
    first = make(held, 25.0, begin(held, 25.0, udp()))
    ended = begin(held, 0.0, udp((CLIENT, 40001)))
    plain = begin(held, 25.0, udp(to=(SERVER, PLAIN)))
    for master in (ended, plain):
        found = held.expect(31.0, master, wanted(), 1)
        assert found == (Outcome.REFRESHED, first)


# What ends with a master (nf_ct_remove_expectations)


@pytest.mark.parametrize("confirmed", [False, True])
def test_detached_flow_has_no_helper_and_no_expectations(confirmed: bool) -> None:
    # ctnetlink_change_helper.
    held = table()
    master = begin(held, 0.0, udp()) if confirmed else unconfirmed(held, 0.0, udp())
    make(held, 0.0, master)
    other = make(
        held, 0.0, begin(held, 0.0, udp((CLIENT, 2))), destination=endpoint(CLIENT, 1)
    )
    assert held.detach(master)
    assert master.helper is None
    assert held.live(0.0) == [other]
    assert held.expect(0.0, master, wanted(), 1) == (Outcome.NO_HELPER, None)
    assert track(held, 1.0, DATA_FLOW).state is State.NEW
    # It is no longer looked at; a flow of the same tuple after it is.
    held.confirm(master)
    assert held.see(1, 1.0, packet(udp()), 0) is None
    again = held.see(1, 500.0, packet(udp()), 0)
    assert again is not None
    assert again.created


def test_expected_flow_is_not_detached() -> None:
    held = table()
    make(held, 0.0, begin(held, 0.0, udp()))
    seen = track(held, 1.0, DATA_FLOW)
    assert seen.entry is not None
    assert not held.detach(seen.entry)


def ends_by_expiry(held: Table, master: Entry) -> float:
    held.keep(0.0, master, 5.0)
    return 5.0


def ends_by_deletion(held: Table, master: Entry) -> float:
    held.keep(1.0, master, 0.0)
    return 1.0


def ends_by_refusal(held: Table, master: Entry) -> float:
    track(held, 1.0, master.reply, RST | ACK)
    return 1.0


@pytest.mark.parametrize("end", [ends_by_expiry, ends_by_deletion, ends_by_refusal])
@pytest.mark.parametrize("permanent", [False, True])
def test_expectations_end_with_their_master(end: Any, permanent: bool) -> None:
    for listed in (False, True):
        held = table()
        master = begin(held, 0.0, tcp())
        make(held, 0.0, master, permanent=permanent)
        now = end(held, master)
        if listed:
            assert held.live(now) == []
        assert track(held, now, DATA_FLOW).state is State.NEW
        assert held.live(now) == []
        assert held.expect(now, master, wanted(), 1)[0] is Outcome.NO_MASTER


def test_expectations_of_an_ended_master_that_have_ended_themselves() -> None:
    # Both for one end, so that they are looked at together.
    held = table()
    master = begin(held, 0.0, udp())
    make(held, 0.0, master, source_port=1)
    make(held, 5.0, master, source_port=2)
    held.keep(5.0, master, 7.0)
    assert track(held, 12.5, DATA_FLOW).state is State.NEW
    assert held.live(12.5) == []


def test_expected_flow_outlives_its_master() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    make(held, 0.0, master)
    track(held, 1.0, DATA_FLOW)
    held.keep(1.0, master, 0.0)
    seen = track(held, 2.0, DATA_FLOW)
    assert seen.state is State.RELATED
    assert seen.entry is not None
    assert seen.entry.conntrack(2.0).master == master.original


# Whatever comes


@given(st.lists(st.tuples(st.floats(0, 1000), st.binary(max_size=80))))
def test_any_bytes(frames: list[tuple[float, bytes]]) -> None:
    held = table()
    for number, (now, data) in enumerate(sorted(frames), 1):
        for start in (0, min(14, len(data))):
            held.see(number, now, data, start)
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
        seen = held.see(number, now, data, 0)
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


@given(steps_)
def test_see_tells_of_the_same_packets_as_track(steps: list[Step]) -> None:
    held, fast = table(), table()
    now = 0.0
    for number, (wait, data, expectation, seconds) in enumerate(steps, 1):
        now += wait
        full = held.track(number, now, data, 0)
        seen = fast.see(number, now, data, 0)
        assert full is not None
        entry = full.entry
        told = (
            entry is not None
            and full.state is not State.INVALID
            and (entry.helper is not None or full.met is not None)
        )
        assert (seen is not None) == told
        if seen is not None:
            assert entry is not None
            assert seen.entry is not None
            assert seen.entry.id == entry.id
            assert (seen.state, seen.direction) == (full.state, full.direction)
            assert (seen.created, seen.packet) == (full.created, full.packet)
            assert (seen.met is None) == (full.met is None)
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
        seen = held.track(number, now, data, 0)
        assert seen is not None
        if seen.entry is None:
            continue
        held.confirm(seen.entry)
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
        seen = held.see(number, number / 65, packet(flow), 0)
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


def test_addresses_of_entries_are_what_was_sent() -> None:
    held = table()
    for flow in FLOWS:
        entry = begin(held, 0.0, flow)
        assert entry.original == flow
        assert entry.original.source.address == ip_address(str(flow.source.address))
