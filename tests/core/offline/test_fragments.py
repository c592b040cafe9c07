# SPDX-License-Identifier: GPL-2.0-or-later
"""Fragments in any order, twice, overlapping, contradicting, too many, too late."""

import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_Router_Alert, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.packet import Packet

from cthelper.core.offline.fragments import Reassembler

PAYLOAD: Final = bytes(range(40))
SOURCE: Final = "192.0.2.1"
SOURCE6: Final = "2001:db8::1"


def v4(
    start: int,
    payload: bytes,
    more: bool,
    *,
    number: int = 1,
    source: str = SOURCE,
    protocol: int = 17,
    tos: int = 0,
    df: bool = False,
    options: bytes = b"",
) -> bytes:
    """An IPv4 fragment; the header's checksum is left 0."""
    size = 20 + len(options)
    field = start // 8 | more << 13 | df << 14
    return (
        struct.pack("!BBH", 0x40 | size // 4, tos, size + len(payload))
        + struct.pack("!HHBBH", number, field, 64, protocol, 0)
        + ip_address(source).packed
        + ip_address("192.0.2.2").packed
        + options
        + payload
    )


def v6(
    start: int,
    payload: bytes,
    more: bool,
    *,
    number: int = 1,
    source: str = SOURCE6,
    kind: int = 17,
    traffic: int = 0,
    before: bytes = b"",
) -> bytes:
    """An IPv6 fragment; `before` is a hop-by-hop header or nothing."""
    return (
        struct.pack("!IH", 6 << 28 | traffic << 20, len(before) + 8 + len(payload))
        + bytes([0 if before else 44, 64])
        + ip_address(source).packed
        + ip_address("2001:db8::2").packed
        + before
        + struct.pack("!BBHI", kind, 0, start | more, number)
        + payload
    )


def feed(fragments: Sequence[bytes]) -> list[bytes | None]:
    """What each of them gives, all at one time."""
    reassembler = Reassembler()
    return [reassembler.feed(0, each) for each in fragments]


def payload_of(packet: bytes | None) -> bytes | None:
    """Behind the header of a whole packet (no options, no extension headers)."""
    if packet is None:
        return None
    return packet[20 if packet[0] >> 4 == 4 else 40 :]


# Each fragment: where it starts, its bytes, whether more follow. What comes of it: the
# index of the one that makes the packet whole, or None.
A, B, C = (0, PAYLOAD[:16], True), (16, PAYLOAD[16:32], True), (32, PAYLOAD[32:], False)
OTHER: Final = b"other than before"
Piece = tuple[int, bytes, bool]
Make = Callable[..., bytes]
CASES: Final[dict[str, tuple[list[Piece], int | None]]] = {
    "in order": ([A, B, C], 2),
    "last first": ([C, B, A], 2),
    "middle last": ([A, C, B], 2),
    "one lacks": ([A, C], None),
    "no last": ([A, B], None),
    "no first": ([B, C], None),
    "twice each": ([A, A, B, B, C], 4),
    "first again with other bytes": ([A, (0, OTHER[:16], True), B, C], 3),
    "part of what is there": ([A, (8, PAYLOAD[8:16], True), B, C], 3),
    # What came in order is one run, and a repetition of parts of both is within it.
    "across two in order": ([A, B, (8, PAYLOAD[8:24], True), C], 3),
    "across two not in order": ([B, A, (8, PAYLOAD[8:24], True), C], None),
    "overlap at the end": ([A, (8, PAYLOAD[8:32], True), C], None),
    "overlap at the start": ([B, (8, PAYLOAD[8:24], True), A, C], None),
    "overlap over all": ([B, (0, PAYLOAD[:32], True), C], None),
    "overlap, then all anew": ([A, (8, PAYLOAD[8:32], True), A, B, C], 4),
}


EITHER: Final = pytest.mark.parametrize("make", [v4, v6], ids=["IPv4", "IPv6"])


@EITHER
@pytest.mark.parametrize("case", CASES)
def test_fragments(case: str, make: Make) -> None:
    pieces, complete = CASES[case]
    found = [payload_of(each) for each in feed([make(*piece) for piece in pieces])]
    assert found == [PAYLOAD if at == complete else None for at in range(len(pieces))]


def test_ipv4_contradictions_drop_what_is_there() -> None:
    for wrong in (
        (24, PAYLOAD[24:36], False),  # ends elsewhere than the last fragment
        (40, PAYLOAD[:8], True),  # behind the last fragment
        (24, b"", True),  # holds nothing
        (24, b"seven..", True),  # is nothing in units of 8
    ):
        found = feed([v4(*each) for each in (C, A, wrong, B)])
        assert found == [None] * 4, wrong


def test_ipv6_contradictions_are_dropped_themselves() -> None:
    for wrong in (
        (24, PAYLOAD[24:36], False),
        (40, PAYLOAD[:8], True),
        (24, b"", True),
        (65528, bytes(8), True),
    ):
        found = feed([v6(*each) for each in (C, A, wrong, B)])
        assert payload_of(found[3]) == PAYLOAD, wrong
        assert found[:3] == [None] * 3


def test_ipv6_fragment_of_odd_size_drops_what_is_there() -> None:
    found = feed([v6(*each) for each in (C, A, (24, b"seven..", True), B)])
    assert found == [None] * 4


def test_ipv4_fragment_of_odd_size_is_trimmed() -> None:
    pieces = [(0, PAYLOAD[:16] + b"trim", True), B, C]
    assert payload_of(feed([v4(*each) for each in pieces])[2]) == PAYLOAD


@pytest.mark.parametrize(
    ("make", "differs"),
    [
        (v4, {"number": 2}),
        (v4, {"source": "192.0.2.9"}),
        (v4, {"protocol": 6}),
        (v6, {"number": 2}),
        (v6, {"source": "2001:db8::9"}),
    ],
)
def test_packets_are_kept_apart(make: Make, differs: dict[str, int | str]) -> None:
    first = [make(*each) for each in (A, B, C)]
    second = [make(*each, **differs) for each in (A, B, C)]
    mixed = [
        each for pair in zip(first, reversed(second), strict=True) for each in pair
    ]
    found = feed(mixed)
    assert [payload_of(each) for each in found] == [None] * 4 + [PAYLOAD] * 2
    assert feed([first[0], second[1], first[2]]) == [None] * 3


def test_ipv6_packets_of_any_next_header_are_one() -> None:
    found = feed([v6(*A), v6(*B, kind=6), v6(*C, kind=6)])
    assert found[2] is not None
    assert found[2][6] == 17


@pytest.mark.parametrize(("make", "seconds"), [(v4, 30), (v6, 60)])
def test_fragments_wait_so_long_from_the_first_on(make: Make, seconds: int) -> None:
    for late, complete in ((seconds - 0.001, True), (seconds, False)):
        reassembler = Reassembler()
        assert reassembler.feed(100, make(*A)) is None
        assert reassembler.feed(100 + seconds / 2, make(*B)) is None
        found = reassembler.feed(100 + late, make(*C))
        assert (payload_of(found) == PAYLOAD) is complete


@EITHER
def test_the_clock_may_go_back(make: Make) -> None:
    reassembler = Reassembler()
    reassembler.feed(1000, make(*A, number=1))
    reassembler.feed(0, make(*A, number=2))
    # The queue of 2 is over, though that of the older 1 is not.
    assert reassembler.feed(70, make(*B, number=2)) is None
    assert reassembler.feed(70, make(*C, number=2)) is None
    reassembler.feed(70, make(*B, number=1))
    assert payload_of(reassembler.feed(70, make(*C, number=1))) == PAYLOAD


@EITHER
def test_memory_is_bounded_and_comes_back(make: Make) -> None:
    reassembler = Reassembler()
    big = bytes(1400)
    assert reassembler.feed(0, make(*A, number=60_000)) is None
    for number in range(4000):
        assert reassembler.feed(1, make(0, big, True, number=number)) is None
    # As many as fit, 4 MiB, were kept, and none was pushed out for another.
    found = [reassembler.feed(2, make(1400, b"1", False, number=0))]
    assert found == [None]
    assert reassembler.feed(2, make(*B, number=60_000)) is None
    # When they are over, there is room again.
    late = [reassembler.feed(61, make(*each, number=7)) for each in (A, B, C)]
    assert payload_of(late[2]) == PAYLOAD


@EITHER
def test_a_whole_packet_gives_its_memory_back(make: Make) -> None:
    reassembler = Reassembler()
    for number in range(3000):
        first = make(0, bytes(1400), True, number=number)
        assert reassembler.feed(0, first) is None
        assert reassembler.feed(0, make(1400, bytes(1400), False, number=number))


def test_ipv4_sender_that_sent_much_else_begins_anew() -> None:
    for others, complete in ((63, True), (64, False)):
        reassembler = Reassembler()
        assert reassembler.feed(0, v4(*A)) is None
        for number in range(others):
            reassembler.feed(0, v4(*A, number=100 + number))
        # Another sender does not count.
        reassembler.feed(0, v4(*A, source="192.0.2.77"))
        assert reassembler.feed(0, v4(*B)) is None
        assert (payload_of(reassembler.feed(0, v4(*C))) == PAYLOAD) is complete
        assert (payload_of(reassembler.feed(0, v4(*A))) == PAYLOAD) is not complete


# The ECN field (RFC 3168): 0 is not capable, 1 and 2 are capable, 3 is congested.
@EITHER
@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ((0, 0), 0),
        ((1, 1), 1),
        ((2, 1), 2),
        ((3, 3), 3),
        ((1, 3), 3),
        ((3, 2), 3),
        ((0, 1), None),
        ((3, 0), None),
        ((2, 0), None),
    ],
)
def test_congestion(make: Make, fields: tuple[int, int], result: int | None) -> None:
    name = "tos" if make is v4 else "traffic"
    packet = feed(
        [
            make(0, PAYLOAD[:8], True, **{name: 0x28 | fields[0]}),
            make(8, PAYLOAD[8:], False, **{name: 0x28 | fields[1]}),
        ]
    )[1]
    if result is None:
        assert packet is None
    else:
        assert packet is not None
        (word,) = struct.unpack_from("!H", packet)
        found = word & 0xFF if make is v4 else word >> 4 & 0xFF
        assert found == 0x28 | result


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (False, False, False),
        (True, True, True),
        (True, False, True),  # the larger one says so
        (False, True, False),
    ],
)
def test_ipv4_do_not_fragment(first: bool, second: bool, kept: bool) -> None:
    packet = feed(
        [v4(0, PAYLOAD[:24], True, df=first), v4(24, PAYLOAD[24:], False, df=second)]
    )[1]
    assert packet is not None
    assert packet[6:8] == (b"\x40\0" if kept else b"\0\0")


def test_ipv4_header_is_the_first_fragments() -> None:
    options = b"\x94\x04\0\0"
    packet = feed(
        [v4(*C, tos=0x10), v4(*A, options=options, tos=0x20), v4(*B, tos=0x10)]
    )[2]
    assert packet is not None
    whole = IP(packet)
    assert (whole.tos, bytes(whole.options[0]), whole.len) == (0x20, options, 64)
    assert bytes(whole.payload) == PAYLOAD
    checksum = whole.chksum
    del whole.chksum
    assert IP(bytes(whole)).chksum == checksum


@EITHER
def test_over_65535_bytes_there_is_no_packet(make: Make) -> None:
    # With 20 bytes of IPv4 header there is room for 65515; IPv6 does not count its.
    room = 65515 if make is v4 else 65535
    for size, complete in ((room, True), (room + 1, False)):
        content = bytes(size)
        found = feed(
            [make(0, content[:40000], True), make(40000, content[40000:], False)]
        )
        assert (payload_of(found[1]) == content) is complete


def test_ipv6_extension_headers_count_against_the_length() -> None:
    before = bytes([44, 0, 1, 4, 0, 0, 0, 0])
    for size, complete in ((65527, True), (65528, False)):
        content = bytes(size)
        found = feed(
            [
                v6(0, content[:40000], True, before=before),
                v6(40000, content[40000:], False, before=before),
            ]
        )
        assert (found[1] is not None) is complete


def test_ipv6_next_header_moves_to_the_header_before() -> None:
    before = bytes([44, 0, 1, 4, 0, 0, 0, 0])
    packet = feed([v6(*each, before=before) for each in (A, B, C)])[2]
    assert packet is not None
    assert packet[6] == 0
    assert packet[40:48] == b"\x11" + before[1:]
    assert packet[4:6] == struct.pack("!H", 8 + len(PAYLOAD))
    assert packet[48:] == PAYLOAD


@pytest.mark.parametrize(
    ("kind", "headers", "complete"),
    [
        (6, 24, True),
        (6, 16, False),
        (17, 8, True),
        (58, 8, True),
        (60, 16, True),
        (60, 8, False),
        (99, 8, True),
    ],
    ids=["TCP", "TCP cut", "UDP", "ICMPv6", "options, UDP", "options cut", "other"],
)
def test_ipv6_first_fragment_holds_all_headers(
    kind: int, headers: int, complete: bool
) -> None:
    content = b"\x11\0\x01\x04\0\0\0\0" + bytes(72)
    found = feed(
        [
            v6(0, content[:headers], True, kind=kind),
            v6(headers, content[headers:], False, kind=kind),
        ]
    )
    assert (found[1] is not None) is complete


def test_ipv6_atomic_fragment_is_whole_at_once() -> None:
    assert payload_of(feed([v6(0, PAYLOAD, False)])[0]) == PAYLOAD


@pytest.mark.parametrize(
    "packet",
    [
        v4(0, PAYLOAD, False),
        v4(0, PAYLOAD, False, df=True) + b"padding",
        bytes(IPv6() / UDP() / b"whole"),
        bytes(IPv6() / IPv6ExtHdrHopByHop() / UDP() / b"whole"),
        bytes(IPv6(plen=0, nh=44) / PAYLOAD),
    ],
)
def test_what_is_no_fragment_comes_back(packet: bytes) -> None:
    assert feed([packet]) == [packet]


@EITHER
def test_padding_is_left_out(make: Make) -> None:
    found = feed([make(*each) + b"padding" for each in (A, B, C)])
    assert payload_of(found[2]) == PAYLOAD


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\x55" * 40,
        v4(*B)[:-1],
        v4(*B)[:19],
        b"\x44" + v4(*B)[1:],
        b"\x4f" + v4(*B)[1:],
        v6(*B)[:-1],
        v6(*B)[:39],
        v6(*B)[:4] + b"\0\7" + v6(*B)[6:],
    ],
    ids=[
        "empty",
        "version 5",
        "cut",
        "header cut",
        "header of 16",
        "header of 60",
        "cut, IPv6",
        "header cut, IPv6",
        "fragment header cut",
    ],
)
def test_malformed_fragments_change_nothing(wrong: bytes) -> None:
    make = v6 if wrong[:1] == b"\x60" else v4
    found = feed([make(*A), make(*B), wrong, make(*C)])
    assert found[2] is None
    assert payload_of(found[3]) == PAYLOAD


CONTENT: Final = st.binary(min_size=9, max_size=1500)


@given(
    content=CONTENT,
    size=st.integers(1, 60),
    tcp=st.booleans(),
    df=st.booleans(),
    options=st.booleans(),
    data=st.data(),
)
def test_ipv4_fragments_in_any_order_are_the_packet(
    content: bytes, size: int, tcp: bool, df: bool, options: bool, data: st.DataObject
) -> None:
    router_alert = [IPOption_Router_Alert()] if options else []
    head = IP(src=SOURCE, dst="192.0.2.2", id=7, flags="DF" if df else "")
    head.options = router_alert
    whole = IP(bytes(head / (TCP() if tcp else UDP()) / content))
    pieces = [bytes(each) for each in fragment(whole, size * 8)]  # type: ignore[no-untyped-call]
    found = feed(data.draw(st.permutations(pieces)))
    assert found == [None] * (len(pieces) - 1) + [bytes(whole)]


BEFORE: Final[tuple[list[Packet], ...]] = (
    [],
    [IPv6ExtHdrHopByHop(options=[PadN(optdata=b"12")])],
    [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting()],
)
BEHIND: Final[tuple[list[Packet], ...]] = ([], [IPv6ExtHdrDestOpt()])


@given(
    content=CONTENT,
    size=st.integers(14, 80),
    before=st.sampled_from(BEFORE),
    behind=st.sampled_from(BEHIND),
    data=st.data(),
)
def test_ipv6_fragments_in_any_order_are_the_packet(
    content: bytes,
    size: int,
    before: list[Packet],
    behind: list[Packet],
    data: st.DataObject,
) -> None:
    def packet(*headers: Packet) -> IPv6:
        packet: Packet = IPv6(src=SOURCE6, dst="2001:db8::2")
        for header in (*headers, UDP(chksum=0x1234)):
            packet = packet / header
        return IPv6(bytes(packet / content))

    cut = packet(*before, IPv6ExtHdrFragment(id=9), *behind)
    pieces = fragment6(cut, size * 8)  # type: ignore[no-untyped-call]
    found = feed(data.draw(st.permutations([bytes(each) for each in pieces])))
    # Where all of it fits in one fragment, that is an atomic one.
    assert found == [None] * (len(pieces) - 1) + [bytes(packet(*before, *behind))]


@given(
    content=st.binary(min_size=64, max_size=200),
    spans=st.lists(st.tuples(st.integers(0, 25), st.integers(1, 25)), max_size=30),
    make=st.sampled_from([v4, v6]),
)
def test_whatever_comes_of_consistent_pieces_is_the_packet(
    content: bytes, spans: list[tuple[int, int]], make: Make
) -> None:
    pieces = []
    for start, length in spans:
        stop = (start + length) * 8
        if start * 8 < len(content):
            piece = content[start * 8 : stop]
            pieces.append(make(start * 8, piece, stop < len(content)))
    for found in feed(pieces):
        assert payload_of(found) in (None, content)


@given(
    packets=st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.builds(
                lambda make, start, payload, more: make(start * 8, payload, more),
                st.sampled_from([v4, v6]),
                st.integers(0, 8191),
                st.binary(max_size=40),
                st.booleans(),
            ),
        )
    ),
    data=st.data(),
)
def test_any_bytes_give_a_packet_or_none(
    packets: list[bytes], data: st.DataObject
) -> None:
    reassembler = Reassembler()
    for packet in packets:
        content = bytearray(packet)
        if content and data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.integers(0, 255))
        now = data.draw(st.floats(-100, 100))
        found = reassembler.feed(now, bytes(content))
        assert found is None or found[0] >> 4 in (4, 6)
