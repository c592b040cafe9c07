# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages to and from an NFQUEUE (include/uapi/linux/netfilter/nfnetlink_queue.h).

This is the hot path: every packet of a tagged flow is decoded here, by hand and
bounds-checked, into values.
"""

import socket
import struct
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Final

from cthelper.core.errors import Malformed, Truncated
from cthelper.core.netlink.decoding import conntrack_entry, read, read_u32, walk
from cthelper.core.netlink.encoding import attribute
from cthelper.core.packet import Segment, locate
from cthelper.core.queue.protocol import Action, Hook, QueuedPacket, Verdict
from cthelper.core.tuples import ORIGINAL, REPLY, Conntrack

_SUBSYSTEM: Final = 3 << 8
VERDICT: Final = _SUBSYSTEM | 1
CONFIG: Final = _SUBSYSTEM | 2
VERDICT_BATCH: Final = _SUBSYSTEM | 3
_REQUEST: Final = 1
_ACK: Final = 4
_NESTED: Final = 0x8000
_HEADERS: Final = 20  # nlmsghdr and nfgenmsg

_PACKET_HEADER, _VERDICT_HEADER, _INPUT, _OUTPUT = 1, 2, 5, 6
_PAYLOAD, _CT, _CT_INFO = 10, 11, 12

_IS_REPLY: Final = 3  # IP_CT_IS_REPLY: this and above are of the reply direction

_CFG_COMMAND, _CFG_PARAMS, _CFG_LENGTH, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_BIND: Final = 1
_COPY_PACKET: Final = 2
_FAIL_OPEN: Final = 1
_CONNTRACK: Final = 2

_ATTRIBUTE = struct.Struct("=HH")
_ANSWER = struct.Struct("!II")
_U32 = struct.Struct("!I")
_PACKET = struct.Struct("!IHB")
_MESSAGE = struct.Struct("=IHHIIBBH")
# Where the kernel writes a packet's id: first, in the first attribute.
_ID, _ID_END = _HEADERS + _ATTRIBUTE.size, _HEADERS + _ATTRIBUTE.size + 4
_FIRST = _ATTRIBUTE.pack(_ATTRIBUTE.size + _PACKET.size, _PACKET_HEADER)
# Flows whose messages are known again; each takes half a KiB.
_KNOWN: Final = 4096


def bind(number: int) -> bytes:
    """The message that binds queue `number`; it asks for an acknowledgement."""
    command = struct.pack("!BxH", _BIND, socket.AF_UNSPEC)
    return _message(CONFIG, number, attribute(_CFG_COMMAND, command), _ACK)


def length(number: int, packets: int) -> bytes:
    """The message that lets so many packets wait in queue `number`."""
    return _message(CONFIG, number, attribute(_CFG_LENGTH, _U32.pack(packets)))


def parameters(number: int, *, fail_open: bool) -> bytes:
    """The message that has queue `number` copy whole packets with their conntrack.

    With `fail_open` packets pass that find the queue full (NFQA_CFG_F_FAIL_OPEN), else
    they are dropped.
    """
    flags = _CONNTRACK | (_FAIL_OPEN if fail_open else 0)
    return _message(
        CONFIG,
        number,
        attribute(_CFG_PARAMS, struct.pack("!IB", 0xFFFF, _COPY_PACKET))
        + attribute(_CFG_FLAGS, _U32.pack(flags))
        + attribute(_CFG_MASK, _U32.pack(_CONNTRACK | _FAIL_OPEN)),
    )


def batch(number: int, action: Action, last: int) -> bytes:
    """The message that answers every packet that waits, up to the id `last`."""
    header = _ANSWER.pack(action, last)
    return _message(VERDICT_BATCH, number, attribute(_VERDICT_HEADER, header))


def verdict(number: int, answer: Verdict) -> bytes:
    """The message that answers a packet of queue `number`."""
    attributes = attribute(_VERDICT_HEADER, _ANSWER.pack(answer.action, answer.id))
    if answer.payload is not None:
        attributes += attribute(_PAYLOAD, answer.payload)
    if not answer.plain:
        # Without a conntrack attribute, be it empty, the kernel sets up no sequence
        # adjustment (nfqnl_recv_verdict).
        attributes += attribute(_CT | _NESTED, answer.conntrack)
    return _message(VERDICT, number, attributes)


def decode(data: bytes) -> QueuedPacket:
    """The packet in a message from the queue. Raises Truncated, ValueError."""
    header: tuple[int, ...] | None = None
    payload = b""
    entry: Conntrack | None = None
    direction = ORIGINAL
    indev = outdev = 0
    for kind, start, stop in walk(data, _HEADERS, len(data)):
        if kind == _PAYLOAD:
            payload = data[start:stop]
        elif kind == _CT:
            entry = entry_of(data[start:stop])
        elif kind == _PACKET_HEADER:
            header = read(_PACKET, data, start, stop)
        elif kind == _CT_INFO:
            info = read_u32(data, start, stop)
            direction = REPLY if info >= _IS_REPLY else ORIGINAL
        elif kind == _INPUT:
            indev = read_u32(data, start, stop)
        elif kind == _OUTPUT:
            outdev = read_u32(data, start, stop)
    if header is None:
        raise Truncated("queue message without a packet header")
    return QueuedPacket(
        *(header[0], Hook(header[2]), payload, entry, direction, indev, outdev),
        _segment(payload),
    )


class Decoder:
    """Decodes messages, and knows again the first part of those that came before.

    The kernel puts the packet last (nfqnl_build_packet_message in nfnetlink_queue.c),
    and what stands before it is the same for all packets of a flow in one direction,
    but for the packet's id.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, QueuedPacket] = {}
        # Where the packet began in the messages that are known.
        self._starts: list[int] = []

    def decode(self, data: bytes) -> QueuedPacket:
        """The packet in a message from the queue. Raises Truncated, ValueError."""
        if data[_HEADERS:_ID] == _FIRST:
            for start in self._starts:
                known = self._known.get(data[_ID_END:start])
                if known is not None and _packet_is_last(data, start):
                    payload = data[start + _ATTRIBUTE.size :]
                    return QueuedPacket(
                        int.from_bytes(data[_ID:_ID_END]),
                        known.hook,
                        payload,
                        known.conntrack,
                        known.direction,
                        known.indev,
                        known.outdev,
                        _segment(payload),
                    )
        packet = decode(data)
        start = len(data) - len(packet.payload) - _ATTRIBUTE.size
        if (
            packet.payload
            and data[_HEADERS:_ID] == _FIRST
            and _packet_is_last(data, start)
        ):
            if len(self._known) >= _KNOWN:
                self._known.clear()
                self._starts.clear()
            known = replace(packet, payload=b"", segment=None)
            self._known[data[_ID_END:start]] = known
            if start not in self._starts:
                self._starts.append(start)
        return packet


def _packet_is_last(data: bytes, start: int) -> bool:
    """Whether the attribute with the packet begins at `start` and ends the message."""
    if len(data) < start + _ATTRIBUTE.size:
        return False
    header: tuple[int, int] = _ATTRIBUTE.unpack_from(data, start)
    return header == (len(data) - start, _PAYLOAD)


def id_of(data: bytes) -> int | None:
    """The id of the packet in a message that cannot be decoded; None: not to be had."""
    if data[_HEADERS:_ID] == _FIRST and len(data) >= _ID_END:
        return int.from_bytes(data[_ID:_ID_END])
    return None


def _segment(payload: bytes) -> Segment | None:
    """What `locate` finds; None where it is no packet, as whoever reads it is told."""
    with suppress(Malformed):
        return locate(payload)
    return None


# A flow's packets bring the same bytes again and again: each has put the entry's
# timeout back to the same value.
@lru_cache(maxsize=8192)
def entry_of(data: bytes) -> Conntrack | None:
    """The entry in NFQA_CT, see `conntrack_entry`. Raises Truncated."""
    return conntrack_entry(data, 0, len(data))


def _message(kind: int, number: int, attributes: bytes, flags: int = 0) -> bytes:
    size = _HEADERS + len(attributes)
    queue = socket.htons(number)
    flags |= _REQUEST
    header = _MESSAGE.pack(size, kind, flags, 0, 0, socket.AF_UNSPEC, 0, queue)
    return header + attributes
