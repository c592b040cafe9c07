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
) -> bytes:
    """An IPv4 packet with a segment between the client and the server."""
    source, destination = _ends(direction)
    ip = IP(src=source[0], dst=destination[0])
    header = ScapyTCP(
        sport=source[1], dport=destination[1], seq=sequence % 2**32, flags=flags
    )
    return bytes(ip / header / payload)


def udp(payload: bytes, *, direction: Direction = ORIGINAL) -> bytes:
    """An IPv4 packet with a datagram between the client and the server."""
    source, destination = _ends(direction)
    ip = IP(src=source[0], dst=destination[0])
    return bytes(ip / ScapyUDP(sport=source[1], dport=destination[1]) / payload)


def packet6(transport: Transport, payload: bytes) -> bytes:
    """An IPv6 packet without extension headers, from the client to the server."""
    layer = ScapyTCP if transport is Transport.TCP else ScapyUDP
    ip = IPv6(src=CLIENT6, dst=SERVER6)
    return bytes(ip / layer(sport=CLIENT_PORT, dport=SERVER_PORT) / payload)


def cut(content: bytes, at: Iterable[int]) -> list[bytes]:
    """`content` in pieces, cut at the offsets that lie inside it."""
    inner = {offset for offset in at if 0 < offset < len(content)}
    bounds = [0, *sorted(inner), len(content)]
    return [content[start:stop] for start, stop in pairwise(bounds)]


def _ends(direction: Direction) -> tuple[tuple[str, int], tuple[str, int]]:
    client, server = (CLIENT, CLIENT_PORT), (SERVER, SERVER_PORT)
    return (client, server) if direction is ORIGINAL else (server, client)
