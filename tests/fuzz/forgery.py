# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP flow of two honest ends, and somebody who sends in the name of one of them.

He knows addresses and ports, and no sequence numbers. Whatever he sends, the helper
reads what the two ends have sent, all of it, in order.
"""

from collections.abc import Iterator
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    Direction,
    Effects,
    Endpoint,
    Helper,
    Message,
    Policy,
    Tuple,
)
from cthelper.core.config import parse
from cthelper.core.engine import Engine
from cthelper.core.guard import Guard
from cthelper.core.registry import register
from cthelper.core.tuples import Conntrack, Status
from tests.fuzz.cost import WATCH
from tests.fuzz.oracle import headers

_MODULUS: Final = 1 << 32
# What is nearer to a number of the flow is not forged: nobody hits it but by chance.
_NEAR: Final = 1 << 20
_STEP: Final = 11
_STEPS: Final = 64
_STREAM: Final = bytes(range(256)) * 64
_FIN, _SYN, _RST, _PSH, _ACK = 1, 2, 4, 8, 16

_READ: Final[dict[Direction, bytearray]] = {ORIGINAL: bytearray(), REPLY: bytearray()}


class Bytes(Helper):
    """Each byte is a message."""

    name = "bytes"
    transports = frozenset({TCP})
    ports = (7000,)
    policies = (Policy("data"),)

    def frame(self, data: memoryview) -> int | None:
        """All that is there."""
        return len(data)

    def on_message(self, message: Message) -> Effects:
        """Note what was read."""
        _READ[message.direction].extend(message.payload)
        yield from ()


_CLIENT: Final = Endpoint(IPv4Address("192.0.2.1"), 40000)
_SERVER: Final = Endpoint(IPv4Address("198.51.100.2"), 7000)
_ENTRY: Final = Conntrack(
    id=1,
    original=Tuple(TCP, _CLIENT, _SERVER),
    reply=Tuple(TCP, _SERVER, _CLIENT),
    status=Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED,
    helper="bytes",
)
_CONFIG: Final = parse("", Path("settings"), register([Bytes])).helpers["bytes"]


class _Flow:
    """The two ends: how far each has sent, and what it keeps back for later."""

    def __init__(self, secret: bytes) -> None:
        self._engine = Engine(
            {"bytes": _CONFIG},
            guard=Guard(),
            on_link=lambda address: (),
            clock=lambda: 0.0,
            flow_limit=1,
        )
        self._first = {
            ORIGINAL: int.from_bytes(secret[:4]),
            REPLY: int.from_bytes(secret[4:8]),
        }
        self._sent = {ORIGINAL: 0, REPLY: 0}
        self._came = {ORIGINAL: 0, REPLY: 0}
        self._kept: dict[Direction, list[bytes]] = {ORIGINAL: [], REPLY: []}
        self._send(ORIGINAL, self._first[ORIGINAL] - 1, 0, _SYN, b"")
        self._send(
            REPLY, self._first[REPLY] - 1, self._next(ORIGINAL), _SYN | _ACK, b""
        )

    def _next(self, direction: Direction) -> int:
        return (self._first[direction] + self._sent[direction]) % _MODULUS

    def _send(
        self,
        direction: Direction,
        sequence: int,
        acknowledged: int,
        flags: int,
        payload: bytes,
    ) -> None:
        packet = self._packet(direction, sequence, acknowledged, flags, payload)
        self._handle(direction, packet)

    def _handle(self, direction: Direction, packet: bytes) -> None:
        WATCH.measure(lambda: self._engine.handle(packet, _ENTRY, direction))

    def _packet(
        self,
        direction: Direction,
        sequence: int,
        acknowledged: int,
        flags: int,
        payload: bytes,
    ) -> bytes:
        tuple_ = _ENTRY.original if direction is ORIGINAL else _ENTRY.reply
        return headers(
            TCP,
            (tuple_.source.address, tuple_.destination.address),
            (tuple_.source.port, tuple_.destination.port),
            (sequence % _MODULUS).to_bytes(4)
            + acknowledged.to_bytes(4)
            + bytes([0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0])
            + payload,
        )

    def honest(self, direction: Direction, size: int, *, later: bool) -> None:
        """An end goes on; what is for `later` comes behind what it sends next."""
        start = self._sent[direction]
        payload = _STREAM[start : start + size]
        other = REPLY if direction is ORIGINAL else ORIGINAL
        # What is kept has not come to the other end.
        came = (self._first[other] + self._came[other]) % _MODULUS
        packet = self._packet(
            direction, self._next(direction), came, _PSH | _ACK, payload
        )
        self._sent[direction] += len(payload)
        self._kept[direction].append(packet)
        if not later:
            self.flush(direction)

    def flush(self, direction: Direction) -> None:
        """Send what was kept, the latest first."""
        while self._kept[direction]:
            self._handle(direction, self._kept[direction].pop())
        self._came[direction] = self._sent[direction]

    def forged(
        self,
        direction: Direction,
        sequence: int,
        acknowledged: int,
        flags: int,
        payload: bytes,
    ) -> None:
        """Somebody sends in the name of an end, and does not know the numbers."""
        other = REPLY if direction is ORIGINAL else ORIGINAL
        near = _near(sequence, self._next(direction)) or _near(
            acknowledged, self._next(other)
        )
        if not near:
            self._send(direction, sequence, acknowledged, flags, payload)

    def check(self) -> None:
        """All was read, and nothing else. Raises AssertionError."""
        for direction in (ORIGINAL, REPLY):
            self.flush(direction)
            read, sent = _READ[direction], _STREAM[: self._sent[direction]]
            assert read == sent, f"{direction.value}: {bytes(read[-20:])!r} was read"
        (flow,) = self._engine.flows
        assert flow.finished is None, flow.finished


def _near(one: int, other: int) -> bool:
    return (one - other + _NEAR) % _MODULUS < 2 * _NEAR


def forgery(data: bytes) -> None:
    """Two ends go on, and somebody sends in the name of one of them.

    Whose name it is in the first byte, then segments: flags (1: the server's, 2:
    forged, 4: later), TCP's flags, a size, and the sequence number and the
    acknowledgment, 4 bytes each, where it is forged.
    """
    for read in _READ.values():
        read.clear()
    flow = _Flow(sha256(data).digest())
    named = REPLY if data[:1] > b"\x7f" else ORIGINAL
    for at in range(1, min(len(data), _STEP * _STEPS) - _STEP + 1, _STEP):
        flags, control, size = data[at : at + 3]
        if flags & 2:
            sequence = int.from_bytes(data[at + 3 : at + 7])
            acknowledged = int.from_bytes(data[at + 7 : at + 11])
            flow.forged(named, sequence, acknowledged, control & 0x3F, b"!" * size)
        else:
            direction = REPLY if flags & 1 else ORIGINAL
            flow.honest(direction, 1 + size % 64, later=bool(flags & 4))
    flow.check()


def forgery_seeds() -> Iterator[bytes]:
    """Each kind of segment between honest ones."""
    honest = [bytes([side, 0, 9]) + bytes(8) for side in (0, 1, 4, 0, 1)]
    kinds = (_SYN, _SYN | _ACK, _RST, _RST | _ACK, _ACK, _PSH | _ACK, _FIN | _ACK, 0)
    for name in (b"\0", b"\xff"):
        for kind in kinds:
            forged = bytes([2, kind, 5]) + b"\x11\x22\x33\x44\x55\x66\x77\x88"
            yield name + b"".join(honest[:2] + [forged] * 3 + honest[2:])
