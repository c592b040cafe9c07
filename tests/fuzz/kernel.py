# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says: answers and events of netlink, and packets of a queue in C.

The extension in C must read each message as the Python beside it does, and let pass
what that lets pass.
"""

import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from cthelper.core.api import TCP, UDP, Match, Prefilter
from cthelper.core.errors import NetlinkError, Truncated
from cthelper.core.netlink.decoding import (
    conntrack_entry,
    conntrack_key,
    expectation_entry,
)
from cthelper.core.netlink.socket import NetlinkSocket, split
from cthelper.core.packet import locate
from cthelper.core.queue._native import Packet
from cthelper.core.queue.messages import decode, verdict
from cthelper.core.queue.native import native_queue
from cthelper.core.queue.protocol import QueuedPacket, Verdict
from cthelper.core.queue.sieve import Sieve
from cthelper.core.tuples import key_of
from tests.core.netlink import test_decoding as netlink
from tests.core.queue import test_messages as queue_messages
from tests.fuzz.oracle import headers
from tests.fuzz.script import Script, Step
from tests.fuzz.wire import entry_seeds, forget, queue_seeds

_HEADERS: Final = 20

# Netlink.


class _Kernel:
    """What a socket of netlink is to us: datagrams that wait, and no more then."""

    def __init__(self, waiting: list[bytes]) -> None:
        self._waiting = waiting

    def send(self, data: bytes) -> int:
        """Take a request, and forget it."""
        return len(data)

    def recv(self, size: int) -> bytes:
        """The next datagram. Raises BlockingIOError."""
        if not self._waiting:
            raise BlockingIOError
        return self._waiting.pop(0)[:size]


def _spoken(waiting: list[bytes]) -> NetlinkSocket:
    """A socket of netlink whose kernel says what it is told to."""
    # No class of its own: a compiled one lets none that is not build upon it.
    spoken = NetlinkSocket(0)
    spoken.close()
    spoken._socket = _Kernel(waiting)  # type: ignore[assignment]
    return spoken


def netlink_messages(data: bytes) -> None:
    """Any datagrams are events, answers, or NetlinkError; entries or Truncated."""
    waiting = [step.payload for step in Script.read(data, 0).steps]
    forget()
    for frame in _spoken(list(waiting)).events():
        assert frame.data in b"".join(waiting)
        for read in (_entry, _key, expectation_entry):
            try:
                read(frame.data, _HEADERS)
            except Truncated:
                continue
    asked = _spoken(list(waiting))
    with suppress(NetlinkError):
        for frame in asked.send(socket.AF_INET, b"", 0x100, 0, "ask"):
            assert frame.sequence == 1


def _entry(data: bytes, start: int) -> object:
    return conntrack_entry(data, start, len(data))


def _key(data: bytes, start: int) -> object:
    return conntrack_key(data, start)


def netlink_seeds() -> Iterator[bytes]:
    """Entries, expectations, acknowledgements with words and without."""
    messages = []
    for ends in (("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8:1::2")):
        flow = netlink.flow(TCP, *ends)
        expected = b"".join(
            netlink.tuple_(kind, flow) for kind in (1, 2, 3)
        ) + netlink.attribute(0x8000 | 10, netlink.u32(1, 1) + netlink.tuple_(2, flow))
        for attributes in (*entry_seeds(), expected):
            messages.append(_framed(0x100, bytes(4) + attributes))
    failed = (-17).to_bytes(4, "little", signed=True)
    words = netlink.attribute(1, b"no such table\0")
    messages += [
        _framed(2, bytes(20)),
        _framed(2, failed + bytes(16)),
        _framed(2, failed + bytes(16) + words, flags=0x300),
        _framed(3, bytes(4), flags=2),
    ]
    for each in messages:
        yield Script(b"", (Step(0, each),)).write()
    yield Script(b"", tuple(Step(0, each) for each in messages)).write()
    yield Script(b"", (Step(0, b"".join(messages)),)).write()


def _framed(kind: int, body: bytes, flags: int = 0) -> bytes:
    return (
        (16 + len(body)).to_bytes(4, "little")
        + kind.to_bytes(2, "little")
        + flags.to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + bytes(4)
        + body
    )


# The queue in C.

_NUMBER: Final = 2077
_PACKET: Final = 0x300
_FLOWS: Final = 4
_ASKS: Final = Prefilter(
    request=((Match(0, 8, ord("A")),), (Match(4, 8, 0x16), Match(8, 8, ord("b")))),
    reply=((Match(0, 8, ord("B")),),),
    answers=True,
)
_MESSAGE_LIMIT: Final = 60_000


def native(data: bytes) -> None:
    """The queue in C reads and sieves as the one in Python does.

    The steps of a script are datagrams of messages; where the flags have no 1 the
    first one's length is put right. What becomes of a packet that must be read: 2:
    nothing is left to inspect of its flow, 4: that has expectations, 8: it has ended,
    16: a second passes, 32: the packet is answered with another payload. 64: the
    datagram comes through the socket.
    """
    forget()
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernel:
        kernel.setblocking(False)
        ours.setblocking(False)
        _Twins(ours, kernel).run(Script.read(data, 0).steps)


class _Twins:
    """The queue in C, and what stands for it in Python.

    They are compared as long as the kernel could have said it all: what passes in C is
    not decoded to its depths, and so may differ from then on.
    """

    def __init__(self, ours: socket.socket, kernel: socket.socket) -> None:
        self._kernel = kernel
        self._queue = native_queue(ours.fileno(), _NUMBER, _FLOWS)
        self._sieve = Sieve(_FLOWS)
        self._sieve.filters({"sunrpc": _ASKS})
        self._queue.filters((("sunrpc", _ASKS.request, _ASKS.reply, _ASKS.answers),))
        self._whole = True

    def run(self, steps: Iterable[Step]) -> None:
        """Read, note and answer. Raises AssertionError: they differ."""
        for step in steps:
            datagram = step.payload[:_MESSAGE_LIMIT]
            if not step.flags & 1 and len(datagram) >= 4:
                datagram = len(datagram).to_bytes(4, sys.byteorder) + datagram[4:]
            found = self._read(datagram, through_socket=bool(step.flags & 64))
            wanted = self._decoded(datagram)
            if self._whole:
                assert [each.id for each in found] == [each.id for each in wanted]
                for packet, queued in zip(found, wanted, strict=True):
                    _compare(packet, queued)
                    self._note(packet, queued, step.flags)
            if step.flags & 16:
                touched = sorted(self._queue.touched()), sorted(self._sieve.touched())
                assert not self._whole or touched[0] == touched[1]
            self._answer(found, changed=bool(step.flags & 32))

    def _read(self, datagram: bytes, *, through_socket: bool) -> list[Packet]:
        if through_socket and datagram:
            self._kernel.send(datagram)
            return self._queue.read(64)
        return self._queue.inject(datagram)

    def _decoded(self, datagram: bytes) -> list[QueuedPacket]:
        """What must be read of a datagram, as Python has it."""
        wanted = []
        for frame in split(datagram):
            if frame.type != _PACKET:
                continue
            try:
                queued = decode(frame.data)
            except (Truncated, ValueError):
                self._whole = False
                continue
            self._whole = self._whole and _is_whole(queued, frame.data)
            if not self._sieve.passes(queued):
                wanted.append(queued)
        return wanted

    def _note(self, packet: Packet, queued: QueuedPacket, flags: int) -> None:
        entry = queued.conntrack
        if entry is None or not flags & 14:
            return
        if flags & 8:
            self._queue.forget(key_of(entry))
            self._sieve.forget(key_of(entry))
            return
        quiet, held = bool(flags & 2), bool(flags & 4)
        self._queue.note(packet, quiet, held)
        self._sieve.note(entry, quiet=quiet, held=held)

    def _answer(self, found: list[Packet], *, changed: bool) -> None:
        """Answer all; an id that came twice is one packet."""
        ids = list(dict.fromkeys(each.id for each in found))
        own = [
            verdict(_NUMBER, Verdict(id_, payload=b"changed")) if changed else None
            for id_ in ids
        ]
        with suppress(KeyError):
            self._queue.answer(ids, own)
        with suppress(BlockingIOError):
            while self._kernel.recv(1 << 17):
                pass


def _is_whole(queued: QueuedPacket, data: bytes) -> bool:
    """Whether the kernel could have said it: C need not decode a tuple to know it."""
    entry, segment = queued.conntrack, queued.segment
    if entry is None:
        return False
    if segment is not None and segment.transport is not entry.original.transport:
        return False
    return netlink.tuple_(netlink.TUPLE_ORIG, entry.original) in data


def _compare(packet: Packet, queued: QueuedPacket) -> None:
    assert packet.hook is queued.hook
    assert packet.direction is queued.direction
    assert packet.conntrack == queued.conntrack
    assert (packet.indev, packet.outdev) == (queued.indev, queued.outdev)
    assert bytes(packet.payload) == queued.payload
    if packet.segment is not None:
        assert packet.segment == queued.segment == locate(queued.payload)


def native_seeds() -> Iterator[bytes]:
    """Packets as a queue hands them out, each with all that may become of it."""
    datagrams = list(queue_seeds())
    for each in (b"A", b"B", b"xxxxbb", b""):
        payload = headers(
            *(UDP, (ip_address("192.0.2.1"), ip_address("198.51.100.2")), (5, 111)),
            (8 + len(each)).to_bytes(2) + b"\0\0" + each,
        )
        for info in (2, 5):
            datagrams.append(
                queue_messages.message(queue_messages.header())
                + netlink.attribute(queue_messages.CT, _udp_entry())
                + netlink.u32(queue_messages.CT_INFO, info)
                + netlink.attribute(queue_messages.PAYLOAD, payload)
            )
    datagrams = [each[:4] + b"\0\3" + each[6:] for each in datagrams]
    for flags in (0, 2, 4, 8, 16, 32, 64, 6 | 64):
        for each in datagrams:
            yield Script(b"", (Step(flags, each), Step(16, each))).write()
    yield Script(b"", tuple(Step(64, each) for each in datagrams)).write()


def _udp_entry() -> bytes:
    flow = netlink.flow(UDP, "192.0.2.1", "198.51.100.2")
    turned = netlink.flow(UDP, "198.51.100.2", "192.0.2.1")
    return (
        netlink.tuple_(netlink.TUPLE_ORIG, flow)
        + netlink.tuple_(netlink.TUPLE_REPLY, turned)
        + netlink.u32(netlink.STATUS, 0x2008)
        + netlink.attribute(netlink.HELP, netlink.attribute(1, b"sunrpc\0"))
        + netlink.u32(netlink.TIMEOUT, 30)
        + netlink.u32(netlink.ID, 0xCAFE0002)
    )
