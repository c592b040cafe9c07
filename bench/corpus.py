# SPDX-License-Identifier: GPL-2.0-or-later
"""A capture to measure with: many flows, of which few have a helper.

Web and DNS traffic of many clients over IPv4 and IPv6, and among it real portmapper
exchanges (TCP and UDP) with the flows that they announce. The same seed gives the same
bytes.
"""

import random
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from cthelper.core.tuples import TCP, UDP, Transport

_SYN, _ACK, _FIN, _PUSH = 0x02, 0x10, 0x01, 0x08
_ETHERNET4: Final = bytes(12) + b"\x08\x00"
_ETHERNET6: Final = bytes(12) + b"\x86\xdd"
_SERVICE: Final = 40000

Packets = Iterator[bytes]


def write(path: Path, packets: int, seed: int = 1) -> int:
    """Write a pcap of about `packets` packets; how many."""
    chance = random.Random(seed)
    active = [_next_flow(chance) for _ in range(200)]
    count = 0
    with path.open("wb") as file:
        file.write(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        while count < packets:
            place = chance.randrange(len(active))
            packet = next(active[place], None)
            if packet is None:
                active[place] = _next_flow(chance)
                continue
            count += 1
            seconds, rest = divmod(count * 50, 1_000_000)
            file.write(struct.pack("<IIII", seconds, rest, len(packet), len(packet)))
            file.write(packet)
    return count


def _next_flow(chance: random.Random) -> Packets:
    kind = chance.random()
    version = 6 if chance.random() < 0.3 else 4
    client = _Host(version, chance.randrange(1, 60000), chance.randrange(1024, 65536))
    server = chance.randrange(60001, 65000)
    if kind < 0.28:
        return _portmapper(client, server, chance)
    if kind < 0.6:
        return _dns(client, server)
    return _web(client, server, chance)


class _Host:
    """A client: its address within the network of its IP version, and its port."""

    def __init__(self, version: int, number: int, port: int) -> None:
        self.version = version
        self.number = number
        self.port = port


def _web(client: _Host, server: int, chance: random.Random) -> Packets:
    flow = _Tcp(client, server, 443)
    yield from flow.open()
    for _ in range(chance.randrange(2, 40)):
        yield flow.sent(bytes(chance.randrange(100, 600)))
        yield flow.answered(bytes(1200))
        yield flow.answered(bytes(1200))
    yield from flow.close()


def _dns(client: _Host, server: int) -> Packets:
    for _ in range(2):
        yield _datagram(client, server, 53, bytes(40))
        yield _datagram(client, server, 53, bytes(120), reply=True)


def _portmapper(client: _Host, server: int, chance: random.Random) -> Packets:
    """GETPORT over TCP or UDP, and a call of the service that it announces."""
    xid = chance.randrange(1 << 32)
    transport = chance.choice((TCP, UDP))
    port = _SERVICE + chance.randrange(1000)
    asked = struct.pack("!10I", xid, 0, 2, 100000, 2, 3, 0, 0, 0, 0)
    asked += struct.pack("!4I", 100005, 3, transport, 0)
    answered = struct.pack("!7I", xid, 1, 0, 0, 0, 0, port)
    yield from _exchange(client, server, 111, asked, answered, transport)
    yield from _exchange(client, server, port, bytes(60), bytes(80), transport)


def _exchange(
    client: _Host,
    server: int,
    port: int,
    asked: bytes,
    answered: bytes,
    transport: Transport,
) -> Packets:
    if transport is UDP:
        yield _datagram(client, server, port, asked)
        yield _datagram(client, server, port, answered, reply=True)
        return
    flow = _Tcp(client, server, port)
    yield from flow.open()
    mark = 0x80000000
    yield flow.sent(struct.pack("!I", mark | len(asked)) + asked)
    yield flow.answered(struct.pack("!I", mark | len(answered)) + answered)
    yield from flow.close()


class _Tcp:
    """One connection: makes its segments with the right sequence numbers."""

    def __init__(self, client: _Host, server: int, port: int) -> None:
        self._client = client
        self._server = server
        self._port = port
        self._next = [1000, 9000]

    def open(self) -> Packets:
        yield self._segment(_SYN, reply=False)
        yield self._segment(_SYN | _ACK, reply=True)
        yield self._segment(_ACK, reply=False)

    def close(self) -> Packets:
        yield self._segment(_FIN | _ACK, reply=False)
        yield self._segment(_FIN | _ACK, reply=True)
        yield self._segment(_ACK, reply=False)

    def sent(self, data: bytes) -> bytes:
        return self._segment(_PUSH | _ACK, data, reply=False)

    def answered(self, data: bytes) -> bytes:
        return self._segment(_PUSH | _ACK, data, reply=True)

    def _segment(self, flags: int, data: bytes = b"", *, reply: bool) -> bytes:
        sequence, acknowledged = self._next[reply], self._next[not reply]
        self._next[reply] += len(data) + bool(flags & (_SYN | _FIN))
        source, destination = self._client.port, self._port
        if reply:
            source, destination = destination, source
        header = struct.pack(
            "!HHIIBBHHH",
            *(source, destination, sequence, acknowledged, 5 << 4, flags),
            *(65535, 0, 0),
        )
        return _packet(self._client, self._server, TCP, header + data, reply=reply)


def _datagram(
    client: _Host, server: int, port: int, data: bytes, *, reply: bool = False
) -> bytes:
    ports = (port, client.port) if reply else (client.port, port)
    header = struct.pack("!HHHH", *ports, 8 + len(data), 0)
    return _packet(client, server, UDP, header + data, reply=reply)


def _packet(
    client: _Host, server: int, transport: Transport, payload: bytes, *, reply: bool
) -> bytes:
    numbers = (server, client.number) if reply else (client.number, server)
    if client.version == 4:
        base = int(IPv4Address("10.0.0.0"))
        head = struct.pack(
            "!BBHHHBBHII",
            *(0x45, 0, 20 + len(payload), 0, 0x4000, 64, transport, 0),
            *(base + number for number in numbers),
        )
        return _ETHERNET4 + head + payload
    base6 = int(IPv6Address("fd00::"))
    head = struct.pack("!IHBB", 6 << 28, len(payload), transport, 64)
    ends = b"".join((base6 + number).to_bytes(16) for number in numbers)
    return _ETHERNET6 + head + ends + payload
