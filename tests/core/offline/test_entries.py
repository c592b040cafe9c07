# SPDX-License-Identifier: GPL-2.0-or-later
"""Flows of the model of conntrack: how they are reported, and when they end.

Every rule has its case here, with the place in Linux 6.1 that it is from.
"""

from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from cthelper.core.offline.conntrack import State
from cthelper.core.offline.entries import Entry, Timeouts
from cthelper.core.offline.tcp import TCP_TIMEOUTS, TcpState
from cthelper.core.tuples import ORIGINAL, REPLY, UDP, Status, Tuple
from tests.core.offline.test_tcp import ACK, FIN, RST, SYN
from tests.core.offline.tracking import (
    CONTROL,
    FLOWS,
    PLAIN,
    SERVER,
    begin,
    packet,
    play,
    see,
    table,
    tcp,
    timed,
    track,
    turned,
    udp,
    unconfirmed,
    wanted,
)


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


def test_addresses_of_entries_are_what_was_sent() -> None:
    held = table()
    for flow in FLOWS:
        entry = begin(held, 0.0, flow)
        assert entry.original == flow
        assert entry.original.source.address == ip_address(str(flow.source.address))


# Ends


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
            seen = see(fast, 1, now, packet(sent), 0)
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
        assert see(fast, number, now, data, 0) is None
    for each in (held, fast):
        entry = each.find(flow)
        assert entry is not None
        assert entry.expires - last == TCP_TIMEOUTS[state]


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
    assert see(held, 1, 0.0, packet(tcp(), flags), 0) is None
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
    entry = unconfirmed(held, 0.0, udp())
    held.keep(0.0, entry, 300.0)
    assert entry.expires == 30.0
