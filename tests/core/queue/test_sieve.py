# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that pass without being read, and helpers that lose nothing by it."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import Helper, Malformed, Match, Matches, Prefilter
from cthelper.core.packet import locate
from cthelper.core.queue.protocol import Hook, QueuedPacket
from cthelper.core.queue.sieve import Sieve, compiled, matches
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Conntrack,
    Direction,
    Status,
    flow_key,
)
from cthelper.helpers.dhcpv6 import Dhcpv6
from cthelper.helpers.mdns import Mdns
from cthelper.helpers.sunrpc import SunRpc
from cthelper.testing import Line, play
from tests.core.builders import CLIENT, conntrack, flow_tuple, tcp, udp

ASKS = Prefilter(
    request=((Match(0, 8, ord("A")),),), reply=((Match(0, 8, ord("B")),),), answers=True
)


def entry(**changes: object) -> Conntrack:
    made = conntrack(flow_tuple(UDP), helper="line")
    return replace(made, timeout=30, **changes)  # type: ignore[arg-type]


def over_tcp() -> Conntrack:
    return conntrack(flow_tuple(TCP), helper="line")


def sieve(prefilter: Prefilter | None = None, limit: int = 8) -> Sieve:
    made = Sieve(limit)
    if prefilter is not None:
        made.filters({"line": prefilter})
    return made


def passes(
    made: Sieve, payload: bytes, known: Conntrack | None, direction: Direction
) -> bool:
    """Whether the sieve lets a packet of the queue pass."""
    segment = None
    with suppress(Malformed):
        segment = locate(payload)
    return made.passes(
        QueuedPacket(1, Hook.POSTROUTING, payload, known, direction, 0, 0, segment)
    )


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        ("A", b"", True),
        ("PA", b"", True),
        ("S", b"", False),
        ("SA", b"", False),
        ("FA", b"", False),
        ("R", b"", False),
        ("A", b"x", False),
    ],
)
def test_segments_without_payload_pass(
    flags: str, payload: bytes, expected: bool
) -> None:
    packet = tcp(payload, 1, flags=flags)
    assert passes(sieve(), packet, over_tcp(), ORIGINAL) is expected
    unconfirmed = replace(over_tcp(), status=Status(0))
    assert not passes(sieve(), packet, unconfirmed, ORIGINAL)
    adjusted = replace(over_tcp(), status=over_tcp().status | Status.SEQ_ADJUST)
    assert not passes(sieve(), packet, adjusted, ORIGINAL)


def test_packet_without_an_entry_or_without_sense_is_read() -> None:
    assert not passes(sieve(), tcp(b"", 1, flags="A"), None, ORIGINAL)
    assert not passes(sieve(), b"\x45", over_tcp(), ORIGINAL)
    assert not passes(sieve(ASKS), b"", entry(), ORIGINAL)


def test_quiet_flow_passes_until_its_id_comes_again_or_it_ends() -> None:
    made = sieve()
    made.note(entry(), quiet=True, held=False)
    assert passes(made, udp(b"A"), entry(), ORIGINAL)
    assert not passes(made, udp(b"A"), entry(status=Status(0)), ORIGINAL)
    adjusted = entry(status=entry().status | Status.SEQ_ADJUST)
    assert not passes(made, udp(b"A"), adjusted, ORIGINAL)
    other = entry(original=flow_tuple(UDP, (CLIENT, 9)))
    assert not passes(made, udp(b"A"), other, ORIGINAL)
    assert not passes(made, udp(b"A"), entry(), ORIGINAL)
    made.note(entry(), quiet=True, held=False)
    made.forget(flow_key(1, 0))
    assert not passes(made, udp(b"A"), entry(), ORIGINAL)


def test_held_flows_that_pass_are_told_once() -> None:
    made = sieve()
    made.note(entry(), quiet=True, held=True)
    for timeout in (20, 30):
        assert passes(made, udp(b"A"), replace(entry(), timeout=timeout), REPLY)
    assert made.touched() == [(flow_key(1, 0), 30)]
    assert made.touched() == []
    made.note(entry(), quiet=True, held=False)
    assert passes(made, udp(b"A"), entry(), REPLY)
    assert made.touched() == []


def test_flow_whose_id_comes_again_is_told_of_no_more() -> None:
    made = sieve()
    made.note(entry(), quiet=True, held=True)
    assert passes(made, udp(b"A"), entry(), REPLY)
    other = entry(original=flow_tuple(UDP, (CLIENT, 9)))
    made.note(other, quiet=True, held=True)
    assert made.touched() == []


def test_answers_are_read_after_a_request_only() -> None:
    made = sieve(ASKS)
    assert passes(made, udp(b"B"), entry(), REPLY)
    assert passes(made, udp(b"B"), entry(), ORIGINAL)
    assert not passes(made, udp(b"A"), entry(), ORIGINAL)
    assert not passes(made, udp(b"B"), entry(), REPLY)
    assert passes(made, udp(b"A"), entry(), REPLY)
    assert passes(made, udp(b"B"), entry(id=2), REPLY)


def test_answers_are_read_where_it_cannot_be_noted_who_asked() -> None:
    made = sieve(ASKS, limit=1)
    assert not passes(made, udp(b"A"), entry(id=1), ORIGINAL)
    assert not passes(made, udp(b"A"), entry(id=2), ORIGINAL)
    assert not passes(made, udp(b"B"), entry(id=2), REPLY)
    # Until none of them can be alive that has not had a packet since.
    for _ in range(119):
        made.touched()
    assert not passes(made, udp(b"B"), entry(id=2), REPLY)
    made.touched()
    assert passes(made, udp(b"B"), entry(id=2), REPLY)
    assert not passes(made, udp(b"B"), entry(id=1), REPLY)
    # And anew, each time.
    assert not passes(made, udp(b"A"), entry(id=3), ORIGINAL)
    assert not passes(made, udp(b"B"), entry(id=3), REPLY)
    # Where there is room again it is noted.
    made.forget(flow_key(1, 0))
    assert not passes(made, udp(b"A"), entry(id=3), ORIGINAL)
    for _ in range(120):
        made.touched()
    assert not passes(made, udp(b"B"), entry(id=3), REPLY)
    assert passes(made, udp(b"B"), entry(id=2), REPLY)


def test_helper_without_a_prefilter_reads_everything() -> None:
    assert not passes(sieve(), udp(b"x"), entry(), ORIGINAL)
    other = sieve()
    other.filters({"other": ASKS})
    assert not passes(other, udp(b"x"), entry(), ORIGINAL)


@pytest.mark.parametrize(
    ("alternatives", "payload", "expected"),
    [
        (None, b"", True),
        ((), b"abc", False),
        (((Match(0, 8, 0x61),),), b"abc", True),
        (((Match(0, 8, 0x61),),), b"", False),
        (((Match(8, 16, 0x6263),),), b"abc", True),
        (((Match(8, 24, 0x626300),),), b"abc", False),
        (((Match(1, 3, 0b110),),), b"a", True),
        (((Match(4, 8, 0x16),),), b"ab", True),
        (((Match(0, 8, 0x61), Match(8, 8, 0x7A)),), b"abc", False),
        (((Match(0, 8, 1),), (Match(8, 8, 0x62),)), b"abc", True),
        (((Match(480, 32, 0x01020304),),), bytes(60) + b"\1\2\3\4tail", True),
        (((Match(0, 32, 0xFFFFFFFF),),), b"\xff" * 4, True),
        # What can never be.
        (((Match(0, 8, 1), Match(0, 8, 2)),), b"\3", False),
        (((Match(0, 8, 0x161),),), b"a", False),
        (((Match(504, 16, 0),),), bytes(80), False),
    ],
)
def test_matches_are_bits_as_nft_counts_them(
    alternatives: Matches | None, payload: bytes, expected: bool
) -> None:
    assert matches(compiled(alternatives), payload) is expected


def effects(
    helper: Helper, line: Line, messages: Iterable[tuple[Direction, bytes]]
) -> list[object]:
    try:
        return list(play(helper, [line.message(way, data) for way, data in messages]))
    except Malformed:
        return []


CALL = bytes.fromhex("00000007 00000000 00000002 000186a0 00000002 00000003")


@given(
    st.sampled_from((Mdns, Dhcpv6, SunRpc)),
    st.binary(max_size=80)
    | st.integers(0, 255).map(
        lambda byte: CALL[:23] + bytes([byte]) + bytes(16) + bytes(16)
    ),
)
def test_what_a_prefilter_leaves_out_has_no_effect(
    helper: type[Helper], data: bytes
) -> None:
    options = {option.name: option.default for option in helper.options}
    prefilter = helper.prefilter(options)
    group = ip_address("ff02::1:2") if helper is Dhcpv6 else ip_address("ff02::fb")
    original = flow_tuple(UDP, ("fe80::1", 546), (str(group), helper.ports[0]))
    line = Line(original, options)
    if not matches(compiled(prefilter.request), data):
        assert effects(helper(), line, [(ORIGINAL, data)]) == []
    if not matches(compiled(prefilter.reply), data):
        assert effects(helper(), line, [(REPLY, data)]) == []
    if prefilter.answers:
        # Nobody has asked.
        assert effects(helper(), line, [(REPLY, data)]) == []


def test_calls_that_open_something_are_let_through() -> None:
    options = {option.name: option.default for option in SunRpc.options}
    request = compiled(SunRpc.prefilter(options).request)
    read = {
        (version, number)
        for version in range(6)
        for number in range(16)
        if matches(
            request,
            CALL[:16] + version.to_bytes(4) + number.to_bytes(4) + bytes(32),
        )
    }
    assert read == {(2, 3), (3, 3), (4, 3), (4, 9), (4, 11)}
