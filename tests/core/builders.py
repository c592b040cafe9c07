# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets and conntrack entries for the tests of the core.

The packets come from scapy, which shares no code with cthelper.core.packet.
"""

from collections.abc import Iterable
from ipaddress import ip_address
from itertools import pairwise
from typing import Final

from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet import UDP as ScapyUDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from cthelper.core.tuples import (
    ORIGINAL,
    Conntrack,
    Direction,
    Endpoint,
    Status,
    Transport,
    Tuple,
)

CLIENT: Final = "192.0.2.1"
SERVER: Final = "198.51.100.2"
CLIENT6: Final = "2001:db8:1::1"
SERVER6: Final = "2001:db8:2::2"
CLIENT_PORT: Final = 40000
SERVER_PORT: Final = 7000


def endpoint(address: str, port: int) -> Endpoint:
    """An endpoint from text."""
    return Endpoint(ip_address(address), port)


def flow_tuple(
    transport: Transport = Transport.TCP,
    source: tuple[str, int] = (CLIENT, CLIENT_PORT),
    destination: tuple[str, int] = (SERVER, SERVER_PORT),
) -> Tuple:
    """One direction of a flow, from the client to the server unless told."""
    return Tuple(transport, endpoint(*source), endpoint(*destination))


def conntrack(
    original: Tuple | None = None,
    reply: Tuple | None = None,
    *,
    id_: int = 1,
    zone: int = 0,
    helper: str | None = "line",
) -> Conntrack:
    """A confirmed entry; without a reply tuple, one that is not translated."""
    original = original or flow_tuple()
    if reply is None:
        reply = Tuple(original.transport, original.destination, original.source)
    status = Status.CONFIRMED | Status.SEEN_REPLY
    return Conntrack(
        id=id_, original=original, reply=reply, status=status, zone=zone, helper=helper
    )


def tcp(
    payload: bytes,
    sequence: int,
    *,
    flags: str = "PA",
    direction: Direction = ORIGINAL,
    version: int = 4,
    acknowledged: int = 0,
) -> bytes:
    """An IP packet with a segment between the client and the server."""
    header = ScapyTCP(seq=sequence % 2**32, ack=acknowledged, flags=flags)
    return _packet(header / payload, direction, version)


def udp(payload: bytes, *, direction: Direction = ORIGINAL, version: int = 4) -> bytes:
    """An IP packet with a datagram between the client and the server."""
    return _packet(ScapyUDP() / payload, direction, version)


def packet6(transport: Transport, payload: bytes) -> bytes:
    """An IPv6 packet without extension headers, from the client to the server."""
    if transport is Transport.UDP:
        return udp(payload, version=6)
    return tcp(payload, 0, flags="S", version=6)


def cut(content: bytes, at: Iterable[int]) -> list[bytes]:
    """`content` in pieces, cut at the offsets that lie inside it."""
    inner = {offset for offset in at if 0 < offset < len(content)}
    bounds = [0, *sorted(inner), len(content)]
    return [content[start:stop] for start, stop in pairwise(bounds)]


def _packet(datagram: Packet, direction: Direction, version: int) -> bytes:
    ip = IP(src=CLIENT, dst=SERVER) if version == 4 else IPv6(src=CLIENT6, dst=SERVER6)
    datagram.sport, datagram.dport = CLIENT_PORT, SERVER_PORT
    if direction is not ORIGINAL:
        ip.src, ip.dst = ip.dst, ip.src
        datagram.sport, datagram.dport = datagram.dport, datagram.sport
    return bytes(ip / datagram)
