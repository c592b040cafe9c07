# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures drawn with scapy: of messages, and one for a plugin's author to start from.

In the latter two hosts talk: a control flow, and beside it the data flow that it
announces. The addresses are those of documentation (RFC 5737).
"""

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import wrpcap

from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    Address,
    Direction,
    Endpoint,
    Transport,
    Tuple,
    is_group,
)

# Seconds since 1970: any will do.
_BEGIN: Final = 1_700_000_000
_STEP: Final = 0.001
# What a segment holds over Ethernet, IPv4 and IPv6 alike.
_SEGMENT: Final = 1440
_DATAGRAM: Final = 0xFFFF - 20 - 8


class Said(NamedTuple):
    """What one end of a flow says, `now` seconds after the capture's beginning."""

    original: Tuple
    direction: Direction
    payload: bytes
    now: float = 0.0


def write(path: Path, said: Iterable[Said]) -> None:
    """Write what was said, see `cthelper.testing.write_capture`.

    Raises OSError and ValueError.
    """
    drawing = _Drawing()
    for each in said:
        drawing.say(each)
    drawing.close()
    if not drawing.frames:
        raise ValueError("no message, no capture")
    wrpcap(str(path), drawing.frames)


def draw(path: Path, transport: Transport, port: int) -> None:
    """Write the capture of RENDEZVOUS/1 with the control port `port`.

    Over TCP the server announces a port in frame 6 and the data flow begins in frame 8,
    over UDP the client does in frame 1 and it begins in frame 3.
    """
    client, server = map(ip_address, ("192.0.2.1", "198.51.100.2"))
    control = Tuple(transport, Endpoint(client, 40000), Endpoint(server, port))
    announced = 40001
    if transport is Transport.TCP:
        ends = Endpoint(client, 40002), Endpoint(server, announced)
        said = [
            Said(control, ORIGINAL, b"MEET\r\n"),
            Said(control, REPLY, b"OPEN %d\r\n" % announced),
            Said(Tuple(transport, *ends), ORIGINAL, b"hello"),
        ]
    else:
        ends = Endpoint(server, 40002), Endpoint(client, announced)
        data = Tuple(transport, *ends)
        said = [
            Said(control, ORIGINAL, b"SEND %d" % announced),
            Said(control, REPLY, b"OK"),
            Said(data, ORIGINAL, b"hello"),
            Said(data, REPLY, b"thanks"),
        ]
    write(path, said)


class _Drawing:
    """Frames, one after the other, of any number of flows."""

    def __init__(self) -> None:
        self.frames: list[Packet] = []
        self._hosts: dict[Address, str] = {}
        # Of each flow over TCP: the next sequence number in each direction.
        self._flows: dict[Tuple, dict[Direction, int]] = {}

    def say(self, said: Said) -> None:
        """Add what is said; over TCP the handshake before, where it is the first."""
        flow, direction, payload, now = said
        if flow.transport is Transport.UDP:
            if len(payload) > _DATAGRAM:
                raise ValueError(f"datagram of {len(payload)} bytes")
            self._add(flow, direction, UDP(), payload, now)
            return
        if flow not in self._flows:
            self._flows[flow] = {ORIGINAL: 1000, REPLY: 2000}
            self._segment(flow, ORIGINAL, "S", now=now)
            self._segment(flow, REPLY, "SA")
            self._segment(flow, ORIGINAL, "A")
        for start in range(0, len(payload), _SEGMENT):
            part = payload[start : start + _SEGMENT]
            self._segment(flow, direction, "PA", part, now)
            self._segment(flow, _other(direction), "A")

    def close(self) -> None:
        """Close the flows over TCP, the last one first."""
        for flow in reversed(self._flows):
            self._segment(flow, ORIGINAL, "FA")
            self._segment(flow, REPLY, "FA")
            self._segment(flow, ORIGINAL, "A")

    def _segment(
        self,
        flow: Tuple,
        direction: Direction,
        flags: str,
        payload: bytes = b"",
        now: float = 0.0,
    ) -> None:
        following = self._flows[flow]
        header = TCP(flags=flags, seq=following[direction])
        if "A" in flags:
            header.ack = following[_other(direction)]
        following[direction] += len(payload) + ("S" in flags or "F" in flags)
        self._add(flow, direction, header, payload, now)

    def _add(
        self,
        flow: Tuple,
        direction: Direction,
        header: Packet,
        payload: bytes,
        now: float,
    ) -> None:
        ends = flow.source, flow.destination
        source, destination = ends if direction is ORIGINAL else ends[::-1]
        header.sport, header.dport = source.port, destination.port
        network = IP if source.address.version == 4 else IPv6
        packet = (
            Ether(src=self._mac(source.address), dst=self._mac(destination.address))
            / network(src=str(source.address), dst=str(destination.address))
            / header
        )
        frame = packet / payload if payload else packet
        after = float(self.frames[-1].time) + _STEP if self.frames else _BEGIN
        frame.time = max(after, _BEGIN + now)
        self.frames.append(frame)

    def _mac(self, address: Address) -> str:
        if is_group(address):
            return "ff:ff:ff:ff:ff:ff"
        number = len(self._hosts) + 1
        return self._hosts.setdefault(
            address, f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        )


def _other(direction: Direction) -> Direction:
    return REPLY if direction is ORIGINAL else ORIGINAL
