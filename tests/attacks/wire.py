# SPDX-License-Identifier: GPL-2.0-or-later
"""What attackers and honest hosts send: packets, and the messages of the protocols.

Nothing here is taken from the code that reads it.
"""

import struct
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from itertools import pairwise
from typing import Final

from cthelper.core.tuples import TCP, UDP, Direction, Endpoint, Transport, Tuple

SYN, ACK, PUSH, RST, FIN = 0x02, 0x10, 0x08, 0x04, 0x01

# The attacker on the clients' link and his server; a victim and a third host inside.
ATTACKER, EVIL = "192.0.2.66", "198.51.100.66"
VICTIM, THIRD = "192.0.2.50", "192.0.2.7"
SERVER: Final = "198.51.100.2"
# Who goes on working beside the attack.
HONEST, HONEST_SERVER = "192.0.2.100", "198.51.100.9"
# The gateway itself, which asks groups.
GATEWAY, GATEWAY6, GATEWAY_LOCAL6 = "192.0.2.1", "2001:db8:1::1", "fe80::1"
LINK, LINK6 = "192.0.2.0/24", "2001:db8:1::/64"

# Packets


def end(address: str, port: int) -> Endpoint:
    """An endpoint from text."""
    return Endpoint(ip_address(address), port)


def flow(
    transport: Transport, source: tuple[str, int], destination: tuple[str, int]
) -> Tuple:
    """The tuple of what goes from one to the other."""
    return Tuple(transport, end(*source), end(*destination))


def turned(way: Tuple) -> Tuple:
    """The tuple of the answers."""
    return Tuple(way.transport, way.destination, way.source)


def ip(way: Tuple, body: bytes) -> bytes:
    """An IP packet whose checksums nobody looks at."""
    source, destination = way.source.address, way.destination.address
    ends = source.packed + destination.packed
    if source.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(body), way.transport, 64)
    else:
        head = struct.pack("!BxHIBBxx", 0x45, 20 + len(body), 0, 64, way.transport)
    return head + ends + body


def datagram(way: Tuple, payload: bytes) -> bytes:
    """A packet of UDP."""
    ports = struct.pack("!HH", way.source.port, way.destination.port)
    return ip(way, ports + struct.pack("!Hxx", 8 + len(payload)) + payload)


def segment(
    way: Tuple,
    payload: bytes,
    sequence: int,
    acknowledged: int,
    flags: int = ACK | PUSH,
) -> bytes:
    """A packet of TCP."""
    head = struct.pack(
        "!HHIIBBHHH",
        *(way.source.port, way.destination.port),
        *(sequence % 2**32, acknowledged % 2**32),
        *(0x50, flags, 64000, 0, 0),
    )
    return ip(way, head + payload)


def fragments(packet: bytes, size: int) -> list[bytes]:
    """An IPv4 packet in fragments of so many bytes of payload, a multiple of 8."""
    head, body = bytearray(packet[:20]), packet[20:]
    found = []
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        more = start + size < len(body)
        head[2:4] = (20 + len(piece)).to_bytes(2)
        head[4:6] = b"\x12\x34"
        head[6:8] = (start // 8 | more << 13).to_bytes(2)
        found.append(bytes(head) + piece)
    return found


class Connection:
    """A TCP connection, as its two honest ends number it."""

    def __init__(self, client: tuple[str, int], server: tuple[str, int]) -> None:
        self.way = flow(TCP, client, server)
        self._next = [1000, 5000]

    def opened(self) -> list[bytes]:
        """The handshake."""
        ours, theirs = self._next
        self._next = [ours + 1, theirs + 1]
        return [
            segment(self.way, b"", ours, 0, SYN),
            segment(turned(self.way), b"", theirs, ours + 1, SYN | ACK),
            segment(self.way, b"", ours + 1, theirs + 1, ACK),
        ]

    def sent(self, *payloads: bytes) -> list[bytes]:
        """What the client sends, a segment each."""
        return [self._one(0, each) for each in payloads]

    def answered(self, *payloads: bytes) -> list[bytes]:
        """What the server sends, a segment each."""
        return [self._one(1, each) for each in payloads]

    def forged(
        self,
        direction: Direction,
        payload: bytes = b"",
        flags: int = ACK | PUSH,
        *,
        at: int = 0,
        acknowledges: int = 0,
    ) -> bytes:
        """A segment that moves nothing on, so many bytes off what is next."""
        side = direction is not Direction.ORIGINAL
        way = turned(self.way) if side else self.way
        return segment(
            way,
            payload,
            self._next[side] + at,
            self._next[not side] + acknowledges,
            flags,
        )

    def _one(self, side: int, payload: bytes) -> bytes:
        way = turned(self.way) if side else self.way
        found = segment(way, payload, self._next[side], self._next[not side])
        self._next[side] += len(payload)
        return found


def cut(data: bytes, *at: int) -> list[bytes]:
    """Bytes in pieces."""
    bounds = [0, *at, len(data)]
    return [data[start:stop] for start, stop in pairwise(bounds)]


# TNS


def tns(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A packet, whose header may lie about its length."""
    size = 8 + len(body) if length is None else length
    return struct.pack("!HHBBH", size, 0, kind, 0, 0) + body


CONNECT: Final = tns(1, bytes(50) + b"(CONNECT_DATA=(SERVICE_NAME=x))")
ACCEPT: Final = tns(2, bytes(24))


def address_of(host: str, port: int) -> bytes:
    """The text of a redirect."""
    return f"(ADDRESS=(PROTOCOL=tcp)(HOST={host})(PORT={port}))".encode()


def redirect(text: bytes, length: int | None = None) -> bytes:
    """A REDIRECT with its text in it."""
    size = len(text) if length is None else length
    return tns(5, size.to_bytes(2) + text)


def tns_data(text: bytes) -> bytes:
    """A DATA packet."""
    return tns(6, b"\0\0" + text)


# RPC

MOUNTD: Final = 100005


def xdr(*values: int | bytes) -> bytes:
    """Numbers of 32 bits, and strings with their lengths and padding."""
    return b"".join(
        each.to_bytes(4)
        if isinstance(each, int)
        else len(each).to_bytes(4) + each + bytes(-len(each) % 4)
        for each in values
    )


def call(xid: int, version: int, procedure: int, arguments: bytes = b"") -> bytes:
    """A call of the portmapper."""
    return xdr(xid, 0, 2, 100000, version, procedure, 0, 0, 0, 0) + arguments


def reply(xid: int, result: bytes = b"") -> bytes:
    """An accepted reply."""
    return xdr(xid, 1, 0, 0, 0, 0) + result


def getport(xid: int, protocol: int = TCP) -> bytes:
    """GETPORT for mountd."""
    return call(xid, 2, 3, xdr(MOUNTD, 3, protocol, 0))


def getaddr(xid: int, netid: bytes = b"tcp") -> bytes:
    """GETADDR for mountd."""
    return call(xid, 3, 3, xdr(MOUNTD, 3, netid, b"", b""))


def getaddrlist(xid: int) -> bytes:
    """GETADDRLIST for mountd."""
    return call(xid, 4, 11, xdr(MOUNTD, 3, b"", b"", b""))


def callit(xid: int, program: int = 100001) -> bytes:
    """CALLIT: the answer comes from any port of the server's."""
    return call(xid, 2, 5, xdr(program, 3, 1, b"abc"))


def uaddr(host: str, port: int) -> bytes:
    """A universal address."""
    return f"{host}.{port >> 8}.{port & 0xFF}".encode()


def listed(addresses: Iterable[bytes], netid: bytes = b"tcp") -> bytes:
    """The result of GETADDRLIST."""
    entries = (xdr(1, each, netid, 1, b"inet", netid) for each in addresses)
    return b"".join(entries) + xdr(0)


def record(message: bytes, *cuts: int) -> bytes:
    """A record on TCP, in one fragment or several."""
    pieces = cut(message, *cuts)
    last = len(pieces) - 1
    return b"".join(
        (len(piece) | (number == last) << 31).to_bytes(4) + piece
        for number, piece in enumerate(pieces)
    )


# Discovery

MDNS_GROUP, MDNS_GROUP6 = "224.0.0.251", "ff02::fb"
SLP_GROUP: Final = "239.255.255.253"
DHCPV6_GROUP: Final = "ff02::1:2"


def tftp(file: bytes = b"pxelinux.0", mode: bytes = b"octet") -> bytes:
    """A request to read a file."""
    return b"\0\1" + file + b"\0" + mode + b"\0"


def mdns_query(*names: bytes, flags: int = 0, unicast: bool = True) -> bytes:
    """A query; a name is as it stands on the wire, without its root."""
    kind = struct.pack("!HH", 12, 0x8001 if unicast else 1)
    questions = b"".join(each + b"\0" + kind for each in names or (b"\4test\5local",))
    return struct.pack("!6H", 0, flags, len(names) or 1, 0, 0, 0) + questions


def slp_request(*, function: int = 1, length: int | None = None) -> bytes:
    """A request for services, whose header may lie about its length."""
    strings = (b"", b"service:printer", b"DEFAULT", b"", b"")
    body = b"".join(len(each).to_bytes(2) + each for each in strings)
    size = 16 + len(body) if length is None else length
    head = bytes([2, function]) + size.to_bytes(3) + (0x2000).to_bytes(2)
    return head + bytes(3) + b"\0\7\0\2en" + body


def dhcpv6(kind: int = 1) -> bytes:
    """A message of a client's: SOLICIT unless told."""
    return bytes([kind]) + b"abc" + struct.pack("!HH", 1, 4) + b"duid"


# FTP


def six(host: str, port: int) -> bytes:
    """The six numbers of PORT and 227."""
    return f"{host.replace('.', ',')},{port >> 8},{port & 0xFF}".encode()


def numbered(transport: Transport, port: int, server: str = SERVER) -> Iterator[Tuple]:
    """Flows to a server's port from ever another port of the attacker's."""
    for own in range(1024, 65536):
        yield flow(transport, (ATTACKER, own), (server, port))


def udp_flow(source: tuple[str, int], destination: tuple[str, int]) -> Tuple:
    """The tuple of datagrams."""
    return flow(UDP, source, destination)


# SANE

SANE_INIT: Final = xdr(0, 0x01010003, 0)
SANE_HELLO: Final = xdr(0, 0x01010003)
SANE_START: Final = xdr(7, 0)


def sane_start(port: int, status: int = 0, resource: bytes = b"") -> bytes:
    """A reply to START."""
    return xdr(status, port, 0x1234, len(resource)) + resource


# Amanda


def amanda(kind: str, sequence: int, *lines: str) -> bytes:
    """A datagram of any type."""
    head = f"Amanda 3.5 {kind} HANDLE 000-00000000 SEQ {sequence}"
    return "".join(f"{each}\n" for each in (head, *lines)).encode()
