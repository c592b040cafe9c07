# SPDX-License-Identifier: GPL-2.0-or-later
"""Segments of a stream that is rewritten, in any order, cut in any way, and again.

What the receiver is given of the stream is the same each time, whatever the segments.
"""

from collections.abc import Iterator
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
    Rewrite,
    Tuple,
    expect,
)
from cthelper.core.config import parse
from cthelper.core.engine import Engine
from cthelper.core.guard import UNLIMITED, Guard
from cthelper.core.outcome import Fault
from cthelper.core.packet import locate
from cthelper.core.registry import register
from cthelper.core.tuples import Conntrack, Status
from tests.fuzz.cost import WATCH
from tests.fuzz.oracle import check_packet, headers

_SIZE: Final = 8
_SPAN: Final = (2, 6)
_MESSAGES: Final = 512
_FIRST: Final = {ORIGINAL: 0xFFFFFE00, REPLY: 0xFFFFFFF0}
_MODULUS: Final = 1 << 32
_STEP: Final = 4
_STEPS: Final = 64
_TOGETHER: Final = 128


def _message(number: int) -> bytes:
    return b"%c.%04d.\n" % (b"rk"[number % 3 == 2], number)


_STREAM: Final = b"".join(map(_message, range(_MESSAGES)))


def _written(number: int) -> bytes:
    """What takes the place of a message's span: nothing, as much, more."""
    return (b"", b"WXYZ", b"R", b"ABCDEFGHIJ")[number % 4]


class Rewrites(Helper):
    """Messages of eight bytes, of two in three of which the middle is rewritten."""

    name = "rewrites"
    transports = frozenset({TCP})
    ports = (7000,)
    policies = (Policy("data", max_expected=255),)

    def frame(self, data: memoryview) -> int | None:
        """All are of one size."""
        return _SIZE if len(data) >= _SIZE else None

    def on_message(self, message: Message) -> Effects:
        """Expect something, and write it."""
        number = int(message.payload[_SPAN[0] : _SPAN[1]])
        if message.payload[:1] == b"r":
            end = Endpoint(message.source.address, 5000 + number)
            yield from expect(end, policy="data")
            yield Rewrite(_SPAN, _written(number))


_CLIENT: Final = Endpoint(IPv4Address("192.0.2.1"), 40000)
_SERVER: Final = Endpoint(IPv4Address("198.51.100.2"), 7000)
_SHOWN: Final = Endpoint(IPv4Address("203.0.113.77"), 40000)
_ENTRY: Final = Conntrack(
    id=1,
    original=Tuple(TCP, _CLIENT, _SERVER),
    reply=Tuple(TCP, _SERVER, _SHOWN),
    status=Status.CONFIRMED | Status.SEEN_REPLY,
    helper="rewrites",
)
_CONFIG: Final = parse(
    '[helpers.rewrites]\nnat.unrewritable = "drop"\n'
    "guard.per_source = 0\nguard.per_helper = 0\n",
    Path("settings"),
    register([Rewrites]),
).helpers["rewrites"]


def retransmission(data: bytes) -> None:
    """The client sends pieces of its stream; what goes on fits what went on before.

    A piece takes two bytes for where it begins and two for its size, of which the
    highest bit says that the server acknowledges all that came in order.
    """
    engine = Engine(
        {"rewrites": _CONFIG},
        guard=Guard(UNLIMITED),
        on_link=lambda address: (),
        clock=lambda: 0.0,
        flow_limit=1,
    )
    forms: dict[int, bytes] = {}
    came: set[int] = set()
    reached = 0
    _send(engine, ORIGINAL, _FIRST[ORIGINAL] - 1, 0, 0x02, b"")
    _send(engine, REPLY, _FIRST[REPLY] - 1, _FIRST[ORIGINAL], 0x12, b"")
    for at in range(0, min(len(data), _STEP * _STEPS) - _STEP + 1, _STEP):
        start = int.from_bytes(data[at : at + 2]) % len(_STREAM)
        size = int.from_bytes(data[at + 2 : at + 4])
        stop = min(len(_STREAM), start + size % _TOGETHER)
        sequence = _FIRST[ORIGINAL] + start
        sent = _send(
            *(engine, ORIGINAL, sequence, _FIRST[REPLY], 0x18, _STREAM[start:stop])
        )
        if sent is not None:
            _compare(start, stop, sent, forms)
        came.update(range(start, stop))
        while reached in came:
            reached += 1
        if size & 0x8000:
            acknowledged = _FIRST[ORIGINAL] + reached
            _send(engine, REPLY, _FIRST[REPLY], acknowledged, 0x10, b"")


def _send(
    engine: Engine,
    direction: Direction,
    sequence: int,
    acknowledged: int,
    flags: int,
    payload: bytes,
) -> bytes | None:
    """The payload that goes on; None: the packet was dropped."""
    tuple_ = _ENTRY.original if direction is ORIGINAL else _ENTRY.reply
    packet = headers(
        TCP,
        (tuple_.source.address, tuple_.destination.address),
        (tuple_.source.port, tuple_.destination.port),
        (sequence % _MODULUS).to_bytes(4)
        + (acknowledged % _MODULUS).to_bytes(4)
        + bytes([0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0])
        + payload,
    )
    decision = WATCH.measure(lambda: engine.handle(packet, _ENTRY, direction))
    for event in decision.events:
        if isinstance(event, Fault):
            raise AssertionError(f"fault: {event.error} at {event.where}")
    if decision.drop:
        return None
    if decision.packet is None:
        return payload
    check_packet(decision.packet, packet)
    segment = locate(decision.packet)
    assert segment is not None
    return decision.packet[segment.start : segment.stop]


def _compare(start: int, stop: int, sent: bytes, forms: dict[int, bytes]) -> None:
    """Hold what goes on of a piece of the stream against what went on before.

    `forms` has, of each message of which some went on, what stands in its span.
    """
    rest = sent
    for number in range(start // _SIZE, -(-stop // _SIZE)):
        begin = number * _SIZE
        first, last = max(start, begin), min(stop, begin + _SIZE)
        if first >= last:
            continue
        span = begin + _SPAN[0], begin + _SPAN[1]
        old, new = _STREAM[span[0] : span[1]], _written(number)
        inside = max(first, span[0]), min(last, span[1])
        if inside[0] >= inside[1]:
            expected = _STREAM[first:last]
        elif inside == span:
            head, tail = _STREAM[first : span[0]], _STREAM[span[1] : last]
            form = old if rest.startswith(head + old + tail) else new
            _agree(number, form, forms)
            expected = head + form + tail
        else:
            _agree(number, old, forms)
            expected = _STREAM[first:last]
        assert rest.startswith(expected), f"message {number}: {rest[:20]!r}"
        rest = rest[len(expected) :]
    assert not rest, f"more than was sent: {rest!r}"


def _agree(number: int, form: bytes, forms: dict[int, bytes]) -> None:
    known = forms.setdefault(number, form)
    assert known == form, f"message {number} is {form!r} and was {known!r}"


def retransmission_seeds() -> Iterator[bytes]:
    """In order, out of order, twice, cut within a message and within a span."""

    def steps(*pieces: tuple[int, int], acknowledge: bool = False) -> bytes:
        return b"".join(
            start.to_bytes(2) + (size | acknowledge << 15).to_bytes(2)
            for start, size in pieces
        )

    in_order = [(at, 40) for at in range(0, 400, 40)]
    yield steps(*in_order)
    yield steps(*in_order, acknowledge=True)
    yield steps(*in_order[::2], *in_order[1::2])
    yield steps(*in_order, *in_order)
    yield steps(*((at, 80) for at in range(0, 400, 40)))
    yield steps(*((at, 3) for at in range(0, 200, 3)), (0, 120), (5, 30))
    yield steps((8, 16), (0, 8), (8, 3), (4, 16), (0, 120))
