# SPDX-License-Identifier: GPL-2.0-or-later
"""Conntrack entries decoded by hand: no bytes may do harm.

The live tests hold this decoder against pyroute2's on what a kernel sends.
"""

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import Truncated
from cthelper.core.netlink import decoding
from cthelper.core.netlink.decoding import (
    conntrack_entry,
    conntrack_key,
    expectations_made,
    read_tuple,
    read_u32,
    walk,
)
from cthelper.core.tuples import (
    TCP,
    UDP,
    Conntrack,
    Endpoint,
    Status,
    Transport,
    Tuple,
    flow_key,
    zone_of,
)
from tests.cases import cases

# include/uapi/linux/netfilter/nfnetlink_conntrack.h
TUPLE_ORIG, TUPLE_REPLY, STATUS, HELP, TIMEOUT, MARK = 1, 2, 3, 5, 7, 8
ID, TUPLE_MASTER, ZONE = 12, 14, 18
TUPLE_IP, TUPLE_PROTO = 1, 2
V4_SRC, V4_DST, V6_SRC, V6_DST = 1, 2, 3, 4
PROTO_NUM, SRC_PORT, DST_PORT = 1, 2, 3
HELP_NAME, HELP_INFO = 1, 2
NESTED, NETWORK_ORDER = 0x8000, 0x4000


def attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return struct.pack("=HH", len(value) + 4, kind) + value + padding


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4))


def ip(source: str, destination: str) -> bytes:
    first = V4_SRC if ip_address(source).version == 4 else V6_SRC
    return attribute(
        NESTED | TUPLE_IP,
        attribute(first, ip_address(source).packed)
        + attribute(first + 1, ip_address(destination).packed),
    )


def proto(number: int, source: int, destination: int) -> bytes:
    return attribute(
        NESTED | TUPLE_PROTO,
        attribute(PROTO_NUM, bytes([number]))
        + attribute(SRC_PORT, source.to_bytes(2))
        + attribute(DST_PORT, destination.to_bytes(2)),
    )


def tuple_(kind: int, value: Tuple, number: int | None = None) -> bytes:
    return attribute(
        NESTED | kind,
        ip(str(value.source.address), str(value.destination.address))
        + proto(
            value.transport if number is None else number,
            value.source.port,
            value.destination.port,
        ),
    )


FOUR, SIX = ("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8::2")


def flow(transport: Transport, source: str, destination: str) -> Tuple:
    return Tuple(
        transport,
        Endpoint(ip_address(source), 40000),
        Endpoint(ip_address(destination), 111),
    )


ORIGINAL = flow(UDP, "192.0.2.1", "198.51.100.2")
REPLY = Tuple(UDP, ORIGINAL.destination, ORIGINAL.source)
BOTH = tuple_(TUPLE_ORIG, ORIGINAL) + tuple_(TUPLE_REPLY, REPLY)
LEAST = Conntrack(id=0, original=ORIGINAL, reply=REPLY, status=Status(0))


def decode(data: bytes) -> Conntrack | None:
    """The entry in `data`, which lies amid other bytes."""
    return conntrack_entry(b"\xa5" * 3 + data + b"\xa5" * 5, 3, 3 + len(data))


def test_hand_built_entry_is_decoded() -> None:
    master = flow(TCP, "192.0.2.9", "198.51.100.9")
    data = (
        BOTH
        + u32(STATUS, Status.CONFIRMED | Status.HELPER)
        + attribute(NESTED | HELP, attribute(HELP_NAME, b"sunrpc\0"))
        + u32(TIMEOUT, 30)
        + u32(MARK, 0xDEADBEEF)
        + u32(ID, 0xCAFE0001)
        + tuple_(TUPLE_MASTER, master)
        + attribute(ZONE, (7).to_bytes(2))
    )
    assert decode(data) == Conntrack(
        id=0xCAFE0001,
        original=ORIGINAL,
        reply=REPLY,
        status=Status.CONFIRMED | Status.HELPER,
        zone=7,
        helper="sunrpc",
        mark=0xDEADBEEF,
        timeout=30,
        master=master,
    )


def test_ipv6_entry_is_decoded() -> None:
    ours = flow(TCP, "2001:db8::1", "2001:db8::2")
    theirs = Tuple(TCP, ours.destination, ours.source)
    data = tuple_(TUPLE_ORIG, ours) + tuple_(TUPLE_REPLY, theirs)
    assert decode(data) == replace(LEAST, original=ours, reply=theirs)


def test_what_the_kernel_leaves_out_has_its_default() -> None:
    assert decode(BOTH) == LEAST


def test_order_and_flags_of_attributes_do_not_matter() -> None:
    data = u32(NETWORK_ORDER | ID, 5) + tuple_(TUPLE_REPLY, REPLY)
    data += tuple_(TUPLE_ORIG, ORIGINAL)
    assert decode(data) == replace(LEAST, id=5)


def as_told(read: Callable[[bytes], Tuple | None], data: bytes) -> object:
    """A tuple, None, or that it was cut off."""
    try:
        return read(data)
    except Truncated:
        return Truncated


@given(
    st.sampled_from([flow(UDP, *ends) for ends in (FOUR, SIX)]),
    st.lists(st.tuples(st.integers(0, 71), st.integers(0, 255)), max_size=3),
)
def test_usual_layout_is_read_as_any_other(
    value: Tuple, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(tuple_(TUPLE_ORIG, value)[4:])
    assert len(data) in decoding._LAYOUTS
    assert read_tuple(bytes(data)) == value
    for at, byte in changes:
        data[at % len(data)] = byte
    told = as_told(decoding._walked_tuple, bytes(data))
    assert as_told(read_tuple, bytes(data)) == told


def test_unknown_attributes_are_passed_over() -> None:
    data = attribute(99, b"x") + BOTH + attribute(100, bytes(9))
    assert decode(data) == LEAST


def test_unknown_status_bits_are_kept() -> None:
    entry = decode(BOTH + u32(STATUS, 1 << 30 | 8))
    assert entry is not None
    assert entry.status == 1 << 30 | 8
    assert entry.confirmed


@pytest.mark.parametrize("number", [1, 58, 132, 0, 255])
def test_flow_that_is_neither_of_tcp_nor_of_udp_is_none(number: int) -> None:
    data = tuple_(TUPLE_ORIG, ORIGINAL, number) + tuple_(TUPLE_REPLY, REPLY, number)
    assert decode(data) is None


@pytest.mark.parametrize(
    "data",
    [b"", tuple_(TUPLE_ORIG, ORIGINAL), tuple_(TUPLE_REPLY, REPLY)],
    ids=["empty", "no reply", "no original"],
)
def test_entry_without_both_tuples_is_none(data: bytes) -> None:
    assert decode(data) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (attribute(HELP_NAME, b"tns\0"), "tns"),
        (attribute(HELP_NAME, b"tns"), "tns"),
        (attribute(HELP_INFO, bytes(16)) + attribute(HELP_NAME, b"tns\0"), "tns"),
        (attribute(HELP_NAME, b"t\xff\0"), "t\ufffd"),
        (attribute(HELP_INFO, bytes(16)), None),
        (b"", None),
    ],
    ids=["name", "no end", "after data", "not ASCII", "data alone", "nothing"],
)
def test_helper_is_named(value: bytes, name: str | None) -> None:
    assert decode(BOTH + attribute(NESTED | HELP, value)) == replace(LEAST, helper=name)


def inside(part: bytes) -> bytes:
    """An entry whose original tuple holds `part` in place of what belongs there."""
    return attribute(NESTED | TUPLE_ORIG, part) + tuple_(TUPLE_REPLY, REPLY)


ADDRESSES = ip("192.0.2.1", "198.51.100.2")


@cases(
    "data",
    {
        "length of 3": struct.pack("=HH", 3, ID),
        "length of 0": struct.pack("=HH", 0, ID),
        "value cut off": struct.pack("=HH", 9, ID) + bytes(4),
        "id of 3 bytes": attribute(ID, b"\0\0\0"),
        "empty status": attribute(STATUS, b""),
        "zone of a byte": attribute(ZONE, b"\0"),
        "timeout of a byte": attribute(TIMEOUT, b"\0"),
        "mark of a byte": attribute(MARK, b"\0"),
        "helper cut off": attribute(NESTED | HELP, struct.pack("=HH", 40, HELP_NAME)),
        "addresses cut off": inside(struct.pack("=HH", 40, TUPLE_IP)),
        "IPv4 address of 3 bytes": inside(
            attribute(TUPLE_IP, attribute(V4_SRC, b"\1\2\3")) + proto(17, 1, 2)
        ),
        "IPv4 address of 5 bytes": inside(
            attribute(TUPLE_IP, attribute(V4_SRC, bytes(5))) + proto(17, 1, 2)
        ),
        "IPv6 address of 4 bytes": inside(
            attribute(TUPLE_IP, attribute(V6_SRC, bytes(4))) + proto(17, 1, 2)
        ),
        "no address": inside(proto(17, 1, 2)),
        "ports cut off": inside(ADDRESSES + attribute(TUPLE_PROTO, b"\x0a\0\0\0")),
        "no port": inside(
            ADDRESSES + attribute(TUPLE_PROTO, attribute(PROTO_NUM, b"\x11"))
        ),
        "port of 3 bytes": inside(
            ADDRESSES
            + attribute(
                TUPLE_PROTO,
                attribute(PROTO_NUM, b"\x11") + attribute(SRC_PORT, b"\1\2\3"),
            )
        ),
    },
)
def test_attribute_of_a_wrong_size_is_truncated(data: bytes) -> None:
    with pytest.raises(Truncated):
        decode(data)


def test_key_is_id_and_zone() -> None:
    data = b"\xa5" * 20 + BOTH + u32(ID, 9) + attribute(ZONE, (3).to_bytes(2))
    assert conntrack_key(data, 20) == flow_key(9, 3)
    assert conntrack_key(b"\xa5" * 20 + BOTH, 20) == flow_key(0, 0)


def test_expectations_are_counted_by_what_was_put_in_and_taken_out() -> None:
    head = b"\xa5" * 20
    # New, create, delete: a CPU may have taken out more than it has put in.
    assert expectations_made(head + u32(1, 9) + u32(2, 7) + u32(3, 5), 20) == 2
    assert expectations_made(head + u32(1, 9) + u32(2, 5) + u32(3, 7), 20) == -2
    assert expectations_made(head, 20) == 0
    with pytest.raises(Truncated):
        expectations_made(head + attribute(2, b"\1"), 20)


def test_attributes_are_walked_up_to_the_end() -> None:
    data = attribute(1, b"a") + attribute(NESTED | 2, b"bcde") + b"\0\0\0"
    found = [(kind, data[start:stop]) for kind, start, stop in walk(data, 0, len(data))]
    assert found == [(1, b"a"), (2, b"bcde")]


def test_value_of_32_bits_is_in_network_order() -> None:
    assert read_u32(b"\1\2\3\4", 0, 4) == 0x01020304
    with pytest.raises(Truncated):
        read_u32(b"\1\2\3\4", 1, 4)


# Any bytes, and bytes that come nearer to an entry.

values: st.SearchStrategy[bytes] = st.recursive(
    st.binary(max_size=17) | st.sampled_from([b"\x06", b"\x11", bytes(2), bytes(4)]),
    lambda inner: st.lists(
        st.builds(attribute, st.integers(0, 19) | st.sampled_from([NESTED | 1]), inner),
        max_size=4,
    ).map(b"".join),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An entry with a few of its bytes changed."""
    data = bytearray(BOTH + u32(STATUS, 8) + u32(ID, 1))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(
    st.binary() | values | damaged() | st.builds(bytes.__add__, values, st.just(BOTH))
)
def test_any_bytes_give_an_entry_none_or_truncated(data: bytes) -> None:
    try:
        entry = decode(data)
    except Truncated:
        return
    assert entry is None or isinstance(entry, Conntrack)


@given(st.binary() | values, st.integers(0, 8))
def test_any_bytes_give_a_key_or_truncated(data: bytes, start: int) -> None:
    try:
        key = conntrack_key(data, start)
    except Truncated:
        return
    assert 0 <= zone_of(key) < 1 << 16


@given(st.binary() | values)
def test_walk_never_leaves_the_bytes(data: bytes) -> None:
    end = 0
    try:
        for _, start, stop in walk(data, 0, len(data)):
            assert end <= start <= stop <= len(data)
            end = stop
    except Truncated:
        pass
