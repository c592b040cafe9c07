# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures drawn with scapy, for a plugin's author to start from.

Two hosts talk: a control flow, and beside it the data flow that it announces. The
addresses are those of documentation (RFC 5737).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import wrpcap

from cthelper.core.tuples import Transport

CLIENT: Final = "192.0.2.1"
SERVER: Final = "198.51.100.2"

_MACS: Final = {CLIENT: "02:00:00:00:00:01", SERVER: "02:00:00:00:00:02"}
_CONTROL: Final = 40000
_ANNOUNCED: Final = 40001
_DATA: Final = 40002
# Seconds since 1970: any will do.
_BEGIN: Final = 1_700_000_000
_STEP: Final = 0.001

_End = tuple[str, int]


def draw(path: Path, transport: Transport, port: int) -> None:
    """Write the capture of RENDEZVOUS/1 with the control port `port`.

    Over TCP the server announces a port in frame 6 and the data flow begins in frame 8,
    over UDP the client does in frame 1 and it begins in frame 3.
    """
    packets = _over_tcp(port) if transport is Transport.TCP else _over_udp(port)
    frames = []
    for number, packet in enumerate(packets):
        packet.time = _BEGIN + number * _STEP
        frames.append(packet)
    wrpcap(str(path), frames)


def _over_tcp(port: int) -> Iterator[Packet]:
    control = _Tcp((CLIENT, _CONTROL), (SERVER, port))
    data = _Tcp((CLIENT, _DATA), (SERVER, _ANNOUNCED))
    yield from control.open()
    yield from control.say(CLIENT, b"MEET\r\n")
    yield from control.say(SERVER, b"OPEN %d\r\n" % _ANNOUNCED)
    yield from data.open()
    yield from data.say(CLIENT, b"hello")
    yield from data.close()
    yield from control.close()


def _over_udp(port: int) -> Iterator[Packet]:
    client, server = (CLIENT, _CONTROL), (SERVER, port)
    yield _packet(client, server, UDP()) / (b"SEND %d" % _ANNOUNCED)
    yield _packet(server, client, UDP()) / b"OK"
    data = (SERVER, _DATA), (CLIENT, _ANNOUNCED)
    yield _packet(*data, UDP()) / b"hello"
    yield _packet(*data[::-1], UDP()) / b"thanks"


def _packet(source: _End, destination: _End, header: Packet) -> Packet:
    header.sport, header.dport = source[1], destination[1]
    frame = Ether(src=_MACS[source[0]], dst=_MACS[destination[0]])
    return frame / IP(src=source[0], dst=destination[0]) / header


class _Tcp:
    """One connection: knows its sequence numbers, and acknowledges each segment."""

    def __init__(self, client: _End, server: _End) -> None:
        self._ends = {client[0]: client, server[0]: server}
        self._client, self._server = client[0], server[0]
        self._next = {client[0]: 1000, server[0]: 2000}

    def open(self) -> Iterator[Packet]:
        yield self._segment(self._client, "S")
        yield self._segment(self._server, "SA")
        yield self._segment(self._client, "A")

    def say(self, host: str, payload: bytes) -> Iterator[Packet]:
        yield self._segment(host, "PA", payload)
        yield self._segment(self._other(host), "A")

    def close(self) -> Iterator[Packet]:
        yield self._segment(self._client, "FA")
        yield self._segment(self._server, "FA")
        yield self._segment(self._client, "A")

    def _segment(self, host: str, flags: str, payload: bytes = b"") -> Packet:
        other = self._other(host)
        header = TCP(flags=flags, seq=self._next[host])
        if "A" in flags:
            header.ack = self._next[other]
        self._next[host] += len(payload) + ("S" in flags or "F" in flags)
        packet = _packet(self._ends[host], self._ends[other], header)
        return packet / payload if payload else packet

    def _other(self, host: str) -> str:
        return self._server if host == self._client else self._client
