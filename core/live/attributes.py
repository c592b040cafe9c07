# SPDX-License-Identifier: GPL-2.0-or-later
"""Netlink attributes decoded by hand, for what comes with every packet or flow.

pyroute2's declarations (messages.py) read the same bytes some twenty times slower; a
test holds the two against each other.
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cthelper.core.errors import Truncated
from cthelper.core.tuples import (
    Address,
    Conntrack,
    Endpoint,
    Status,
    Transport,
    Tuple,
)

_TYPE: Final = 0x3FFF
_ORIG, _REPL, _STATUS, _HELP, _TIMEOUT, _MARK = 1, 2, 3, 5, 7, 8
_ID, _MASTER, _ZONE = 12, 14, 18

_ATTRIBUTE = struct.Struct("=HH")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


def conntrack_entry(data: bytes, start: int, stop: int) -> Conntrack | None:
    """The entry in the CTA_* attributes of ``data[start:stop]``.

    None where it is neither TCP's nor UDP's. Raises Truncated.
    """
    original = reply = master = None
    helper = None
    zone = mark = timeout = identity = status = 0
    for kind, first, last in walk(data, start, stop):
        if kind == _ORIG:
            original = _tuple(data[first:last])
        elif kind == _REPL:
            reply = _tuple(data[first:last])
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
            (zone,) = read(_U16, data, first, last)
        elif kind == _MASTER:
            master = _tuple(data[first:last])
    if original is None or reply is None:
        return None
    return Conntrack(
        id=identity,
        original=original,
        reply=reply,
        status=Status(status),
        zone=zone,
        helper=helper,
        mark=mark,
        timeout=timeout,
        master=master,
    )


# A flow's packets come with the same bytes again and again, and the objects inside a
# tuple are what decoding costs most.
@lru_cache(maxsize=8192)
def _tuple(data: bytes) -> Tuple | None:
    addresses: dict[int, bytes] = {}
    ports: dict[int, bytes] = {}
    for kind, start, stop in walk(data, 0, len(data)):
        if kind == 1:  # CTA_TUPLE_IP
            for part, first, last in walk(data, start, stop):
                addresses[part] = data[first:last]
        elif kind == 2:  # CTA_TUPLE_PROTO
            for part, first, last in walk(data, start, stop):
                ports[part] = data[first:last]
    protocol = int.from_bytes(ports.get(1, b""))
    if protocol not in tuple(Transport):
        return None
    if 1 in addresses:
        source = _sized(addresses[1], 4)
        destination = _sized(addresses.get(2, b""), 4)
    else:
        source = _sized(addresses.get(3, b""), 16)
        destination = _sized(addresses.get(4, b""), 16)
    return Tuple(
        Transport(protocol),
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


def conntrack_key(data: bytes, start: int) -> tuple[int, int]:
    """Id and zone in the CTA_* attributes from `start` on. Raises Truncated."""
    identity = zone = 0
    for kind, first, last in walk(data, start, len(data)):
        if kind == _ID:
            identity = read_u32(data, first, last)
        elif kind == _ZONE:
            (zone,) = read(_U16, data, first, last)
    return identity, zone


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


def read_u32(data: bytes, start: int, stop: int) -> int:
    """The value of an attribute of 32 bits. Raises Truncated."""
    return read(_U32, data, start, stop)[0]
