# SPDX-License-Identifier: GPL-2.0-or-later
"""Netlink attributes decoded by hand, for what comes with every packet or flow.

pyroute2's declarations (messages.py) read the same bytes some twenty times slower; a
test holds the two against each other.
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from cthelper.core.errors import Truncated
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    Address,
    Conntrack,
    Endpoint,
    Expectation,
    FlowKey,
    Network,
    Status,
    Translation,
    Transport,
    Tuple,
    flow_key,
)

_TYPE: Final = 0x3FFF
_ORIG, _REPL, _STATUS, _HELP, _TIMEOUT, _MARK = 1, 2, 3, 5, 7, 8
_ID, _MASTER, _ZONE = 12, 14, 18

# CTA_EXPECT_* and CTA_EXPECT_NAT_* (nfnetlink_conntrack.h).
EXP_MASTER, EXP_TUPLE, EXP_MASK, EXP_TIMEOUT = 1, 2, 3, 4
EXP_HELP_NAME, EXP_ZONE, EXP_FLAGS, EXP_CLASS, EXP_NAT, EXP_FN = 6, 7, 8, 9, 10, 11
NAT_DIR, NAT_TUPLE = 1, 2
PERMANENT: Final = 1  # NF_CT_EXPECT_PERMANENT

_CREATED, _DELETED = 2, 3  # CTA_STATS_EXP_CREATE, CTA_STATS_EXP_DELETE

_ATTRIBUTE = struct.Struct("=HH")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")

_PORTS: Final = (
    struct.pack("=4H", 28, 0x8002, 5, 1),
    struct.pack("=2H", 6, 2),
    struct.pack("=2H", 6, 3),
)
# A tuple as kernels lay it out (ctnetlink_dump_tuples), by its size. The attributes'
# headers, which are always these, stand before addresses, number and ports.
_LAYOUTS: Final = {
    48: (
        struct.Struct("=8s4s4s4s8sB3x4s2s2x4s2s2x"),
        (struct.pack("=4H", 20, 0x8001, 8, 1), struct.pack("=2H", 8, 2), *_PORTS),
    ),
    72: (
        struct.Struct("=8s16s4s16s8sB3x4s2s2x4s2s2x"),
        (struct.pack("=4H", 44, 0x8001, 20, 3), struct.pack("=2H", 20, 4), *_PORTS),
    ),
}
_TRANSPORTS: Final = {int(each): each for each in Transport}


def conntrack_entry(data: bytes, start: int, stop: int) -> Conntrack | None:
    """The entry in the CTA_* attributes of ``data[start:stop]``.

    None where it is neither TCP's nor UDP's. Raises Truncated.
    """
    original = reply = master = None
    helper = None
    zone = mark = timeout = identity = status = 0
    for kind, first, last in walk(data, start, stop):
        if kind == _ORIG:
            original = read_tuple(data[first:last])
        elif kind == _REPL:
            reply = read_tuple(data[first:last])
        elif kind == _STATUS:
            status = read_u32(data, first, last)
        elif kind == _ID:
            identity = read_u32(data, first, last)
        elif kind == _TIMEOUT:
            timeout = read_u32(data, first, last)
        elif kind == _MARK:
            mark = read_u32(data, first, last)
        elif kind == _HELP:
            helper = _help_name(data[first:last])
        elif kind == _ZONE:
            zone = read_u16(data, first, last)
        elif kind == _MASTER:
            master = read_tuple(data[first:last])
    if original is None or reply is None:
        return None
    return Conntrack(
        id=identity,
        original=original,
        reply=reply,
        status=_status(status),
        zone=zone,
        helper=helper,
        mark=mark,
        timeout=timeout,
        master=master,
    )


# Flags are dear to make, and there are few that go together.
_status = lru_cache(maxsize=1024)(Status)


# A flow's packets come with the same bytes again and again, and the objects inside a
# tuple are what decoding costs most.
@lru_cache(maxsize=8192)
def read_tuple(data: bytes) -> Tuple | None:
    """The tuple in a CTA_TUPLE_*; None: neither TCP's nor UDP's. Raises Truncated."""
    known = _LAYOUTS.get(len(data))
    if known is not None:
        layout, headers = known
        fields = layout.unpack(data)
        if fields[::2] == headers:
            source, destination, number, port, other = fields[1::2]
            transport = _TRANSPORTS.get(number)
            if transport is None:
                return None
            return Tuple(
                transport, _endpoint(source, port), _endpoint(destination, other)
            )
    return _walked_tuple(data)


def _walked_tuple(data: bytes) -> Tuple | None:
    """As `read_tuple`, whatever the order of the attributes is."""
    addresses: dict[int, bytes] = {}
    ports: dict[int, bytes] = {}
    for kind, start, stop in walk(data, 0, len(data)):
        if kind == 1:  # CTA_TUPLE_IP
            for part, first, last in walk(data, start, stop):
                addresses[part] = data[first:last]
        elif kind == 2:  # CTA_TUPLE_PROTO
            for part, first, last in walk(data, start, stop):
                ports[part] = data[first:last]
    transport = _TRANSPORTS.get(int.from_bytes(ports.get(1, b"")))
    if transport is None:
        return None
    if 1 in addresses:
        source = _sized(addresses[1], 4)
        destination = _sized(addresses.get(2, b""), 4)
    else:
        source = _sized(addresses.get(3, b""), 16)
        destination = _sized(addresses.get(4, b""), 16)
    return Tuple(
        transport,
        _endpoint(source, _sized(ports.get(2, b""), 2)),
        _endpoint(destination, _sized(ports.get(3, b""), 2)),
    )


# Flows are many, their servers few: they share what stands for them.
@lru_cache(maxsize=8192)
def _endpoint(address: bytes, port: bytes) -> Endpoint:
    return Endpoint(_address(address), int.from_bytes(port))


@lru_cache(maxsize=8192)
def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


@lru_cache(maxsize=64)
def _help_name(data: bytes) -> str | None:
    for kind, start, stop in walk(data, 0, len(data)):
        if kind == 1:  # CTA_HELP_NAME
            return data[start:stop].rstrip(b"\0").decode("ascii", "replace")
    return None


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise Truncated(f"address or port of {len(data)} bytes")
    return data


def expectation_entry(data: bytes, start: int) -> Expectation | None:
    """The expectation in the CTA_EXPECT_* attributes from `start` on.

    None where it is neither TCP's nor UDP's. Raises Truncated.
    """
    tuples: dict[int, Tuple | None] = {}
    numbers = dict.fromkeys((EXP_TIMEOUT, EXP_FLAGS, EXP_CLASS), 0)
    helper, zone, translation = b"", 0, None
    for kind, first, last in walk(data, start, len(data)):
        if kind in (EXP_MASTER, EXP_TUPLE, EXP_MASK):
            tuples[kind] = read_tuple(data[first:last])
        elif kind in numbers:
            numbers[kind] = read_u32(data, first, last)
        elif kind == EXP_HELP_NAME:
            helper = data[first:last].rstrip(b"\0")
        elif kind == EXP_ZONE:
            zone = read_u16(data, first, last)
        elif kind == EXP_NAT:
            translation = _read_translation(data, first, last)
    master, wanted, mask = map(tuples.get, (EXP_MASTER, EXP_TUPLE, EXP_MASK))
    if wanted is None or mask is None or master is None:
        return None
    return Expectation(
        master=master,
        transport=wanted.transport,
        source=_source_network(wanted.source.address, mask.source.address),
        source_port=wanted.source.port if mask.source.port else None,
        destination=wanted.destination,
        policy=None,
        timeout=numbers[EXP_TIMEOUT],
        class_=numbers[EXP_CLASS],
        permanent=bool(numbers[EXP_FLAGS] & PERMANENT),
        helper=helper.decode("ascii", "replace") or None,
        zone=zone,
        translation=translation,
    )


def expectations_made(data: bytes, start: int) -> int:
    """How many expectations a CPU has put in beyond those that it has taken out.

    Counters of 32 bits (CTA_STATS_EXP_*). Raises Truncated.
    """
    counts = {
        type_: read_u32(data, begin, end)
        for type_, begin, end in walk(data, start, len(data))
    }
    return counts.get(_CREATED, 0) - counts.get(_DELETED, 0)


def _read_translation(data: bytes, start: int, stop: int) -> Translation | None:
    """What CTA_EXPECT_NAT says; None where it has no tuple."""
    direction, told = ORIGINAL, None
    for kind, first, last in walk(data, start, stop):
        if kind == NAT_DIR:
            direction = REPLY if read_u32(data, first, last) else ORIGINAL
        elif kind == NAT_TUPLE:
            told = read_tuple(data[first:last])
    return None if told is None else Translation(direction, told.source.port)


def _source_network(address: Address, mask: Address) -> Network | None:
    """The masked source; a mask that is no prefix counts by its leading ones."""
    width = address.max_prefixlen
    zeros = width - (int(mask) ^ (1 << width) - 1).bit_length()
    if zeros == 0:
        return None
    kind = IPv4Address if isinstance(address, IPv4Address) else IPv6Address
    return ip_network((kind(int(address)), zeros), strict=False)


def conntrack_key(data: bytes, start: int) -> FlowKey:
    """Of what flow the CTA_* attributes from `start` on are. Raises Truncated."""
    identity = zone = 0
    for kind, first, last in walk(data, start, len(data)):
        if kind == _ID:
            identity = read_u32(data, first, last)
        elif kind == _ZONE:
            zone = read_u16(data, first, last)
    return flow_key(identity, zone)


def walk(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Type, start and end of each attribute's value. Raises Truncated."""
    while start + 4 <= stop:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > stop:
            raise Truncated(f"attribute of {length} bytes, {stop - start} are left")
        yield kind & _TYPE, start + 4, start + length
        start += length + 3 & ~3


def read(layout: struct.Struct, data: bytes, start: int, stop: int) -> tuple[int, ...]:
    """The value of an attribute in a layout. Raises Truncated."""
    if stop - start < layout.size:
        raise Truncated(f"attribute value of {stop - start} bytes")
    return layout.unpack_from(data, start)


def read_u16(data: bytes, start: int, stop: int) -> int:
    """The value of an attribute of 16 bits. Raises Truncated."""
    return read(_U16, data, start, stop)[0]


def read_u32(data: bytes, start: int, stop: int) -> int:
    """The value of an attribute of 32 bits. Raises Truncated."""
    return read(_U32, data, start, stop)[0]
