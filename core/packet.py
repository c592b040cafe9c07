# SPDX-License-Identifier: GPL-2.0-or-later
"""IPv4 and IPv6 packets: where the transport payload is, and putting in another.

RFC 791, RFC 8200 (extension headers: section 4), RFC 9293 (TCP), RFC 768 (UDP).
Checksums of received packets are not verified: conntrack has done so for packets from
the wire (nf_conntrack_checksum), and local ones may not have theirs yet (offload).
"""

import struct
from dataclasses import dataclass
from typing import Final

from cthelper.core.errors import Malformed, Truncated
from cthelper.core.tuples import TCP, UDP, Transport

_IPV4_LENGTH: Final = 2
_IPV4_FRAGMENT: Final = 6
_IPV4_PROTOCOL: Final = 9
_IPV4_CHECKSUM: Final = 10
_IPV4_SOURCE: Final = 12
_IPV4_HEADER: Final = 20
_MORE_FRAGMENTS_OR_OFFSET: Final = 0x3FFF

_IPV6_LENGTH: Final = 4
_IPV6_NEXT_HEADER: Final = 6
_IPV6_SOURCE: Final = 8
_IPV6_HEADER: Final = 40

_ROUTING: Final = 43
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
# Hop-by-hop, routing, destination options, mobility, HIP, shim6: all of them begin
# with the next header and a length in units of 8 bytes that leaves out the first 8.
_OPTION_HEADERS: Final = frozenset({0, 43, 60, 135, 139, 140})

_TCP_SEQUENCE: Final = 4
_TCP_ACKNOWLEDGED: Final = 8
_TCP_DATA_OFFSET: Final = 12
_TCP_FLAGS: Final = 13
_TCP_CHECKSUM: Final = 16
_TCP_HEADER: Final = 20
_UDP_LENGTH: Final = 4
_UDP_CHECKSUM: Final = 6
_UDP_HEADER: Final = 8

COPIED: Final = 0xFFFF - 4
"""The most bytes of a packet that a queue gives or takes (NFQNL_MAX_COPY_RANGE in
nfnetlink_queue.c): with its header an attribute has 65,535. Packets may be longer, over
IPv6 up to 65,575 bytes."""

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


_SYN: Final = 0x02
_RST: Final = 0x04
_ACK: Final = 0x10


@dataclass(slots=True)
class Segment:
    """Where the transport header and the payload of one packet lie.

    `header` is the offset of the transport header, ``start`` and ``stop`` bound the
    payload. `sequence` and `syn` are TCP's. One is made for each packet, and a named
    tuple costs a third of a frozen dataclass.
    """

    transport: Transport
    header: int
    start: int
    stop: int
    sequence: int
    syn: bool

    def __init__(
        self,
        transport: Transport,
        header: int,
        start: int,
        stop: int,
        sequence: int = 0,
        syn: bool = False,
    ) -> None:
        self.transport = transport
        self.header = header
        self.start = start
        self.stop = stop
        self.sequence = sequence
        self.syn = syn


def locate(packet: bytes | memoryview) -> Segment | None:
    """The TCP segment or UDP datagram in an IP packet.

    None where there is none to read: another protocol, a fragment, a jumbogram, a
    routing header that is not yet used up, a datagram of which the queue has copied a
    part (COPIED); of such a segment it is that part. Raises Malformed where the
    headers contradict the packet's length.
    """
    if not packet:
        raise Truncated("empty packet")
    version = packet[0] >> 4
    if version == 4:
        place = _ipv4_payload(packet)
    elif version == 6:
        place = _ipv6_payload(packet)
    else:
        raise Malformed(f"IP version {version}")
    if place is None:
        return None
    protocol, header, stop = place
    if stop > len(packet):
        if protocol != TCP:
            return None
        stop = len(packet)
    if protocol == UDP:
        return _udp(packet, header, stop)
    if protocol == TCP:
        return _tcp(packet, header, stop)
    return None


def _ipv4_payload(packet: bytes | memoryview) -> tuple[int, int, int] | None:
    """Protocol, where its header begins, where the packet ends by its own account."""
    if len(packet) < _IPV4_HEADER:
        raise Truncated(f"IPv4 packet of {len(packet)} bytes")
    header = (packet[0] & 0x0F) * 4
    (length,) = _U16.unpack_from(packet, _IPV4_LENGTH)
    if not _IPV4_HEADER <= header <= length or length > len(packet) < COPIED:
        raise Malformed(
            f"IPv4 header of {header} and length {length} in {len(packet)} bytes"
        )
    (fragment,) = _U16.unpack_from(packet, _IPV4_FRAGMENT)
    if fragment & _MORE_FRAGMENTS_OR_OFFSET:
        return None
    return packet[_IPV4_PROTOCOL], header, length


def _ipv6_payload(packet: bytes | memoryview) -> tuple[int, int, int] | None:
    if len(packet) < _IPV6_HEADER:
        raise Truncated(f"IPv6 packet of {len(packet)} bytes")
    (length,) = _U16.unpack_from(packet, _IPV6_LENGTH)
    end = _IPV6_HEADER + length
    if end > len(packet) < COPIED:
        raise Truncated(f"IPv6 payload of {length} in {len(packet)} bytes")
    stop = min(end, len(packet))
    protocol = packet[_IPV6_NEXT_HEADER]
    if length == 0:
        return None
    offset = _IPV6_HEADER
    while protocol in _OPTION_HEADERS or protocol in (_FRAGMENT, _AUTHENTICATION):
        if offset + 8 > stop:
            raise Truncated(f"IPv6 extension header {protocol} at offset {offset}")
        if protocol == _FRAGMENT:
            (fragment,) = _U16.unpack_from(packet, offset + 2)
            # The low 3 bits are two reserved ones and "more fragments": an atomic
            # fragment (RFC 6946) is a whole packet.
            if fragment & 0xFFF9:
                return None
            size = 8
        elif protocol == _AUTHENTICATION:
            size = (packet[offset + 1] + 2) * 4
        else:
            # On its way the packet's destination is a router, not the flow's.
            if protocol == _ROUTING and packet[offset + 3]:
                return None
            size = (packet[offset + 1] + 1) * 8
        protocol = packet[offset]
        offset += size
    if offset > stop:
        raise Truncated(f"IPv6 extension headers end at {offset}, the packet at {stop}")
    return protocol, offset, end


def _udp(packet: bytes | memoryview, header: int, stop: int) -> Segment:
    if header + _UDP_HEADER > stop:
        raise Truncated(f"UDP header in {stop - header} bytes")
    (length,) = _U16.unpack_from(packet, header + _UDP_LENGTH)
    if not _UDP_HEADER <= length <= stop - header:
        raise Malformed(f"UDP length {length} in {stop - header} bytes")
    return Segment(UDP, header, header + _UDP_HEADER, header + length)


def _tcp(packet: bytes | memoryview, header: int, stop: int) -> Segment:
    if header + _TCP_HEADER > stop:
        raise Truncated(f"TCP header in {stop - header} bytes")
    size = (packet[header + _TCP_DATA_OFFSET] >> 4) * 4
    if not _TCP_HEADER <= size <= stop - header:
        raise Malformed(f"TCP header of {size} in {stop - header} bytes")
    (sequence,) = _U32.unpack_from(packet, header + _TCP_SEQUENCE)
    syn = bool(packet[header + _TCP_FLAGS] & _SYN)
    return Segment(TCP, header, header + size, stop, sequence, syn)


@dataclass(slots=True)
class Control:
    """What a TCP header says of its place in the connection.

    `acknowledged` is the number of the byte that is expected next from the other side;
    None: it does not say.
    """

    sequence: int
    acknowledged: int | None
    syn: bool
    rst: bool

    def __init__(
        self,
        sequence: int,
        acknowledged: int | None,
        syn: bool,
        rst: bool,
    ) -> None:
        self.sequence = sequence
        self.acknowledged = acknowledged
        self.syn = syn
        self.rst = rst


def has_ack_alone(packet: bytes | memoryview, segment: Segment) -> bool:
    """Whether a TCP segment has ACK, and neither SYN nor RST."""
    return packet[segment.header + _TCP_FLAGS] & (_SYN | _RST | _ACK) == _ACK


def read_control(packet: bytes | memoryview, segment: Segment) -> Control:
    """What the header of `segment`, which `locate` has found, says of its place."""
    flags = packet[segment.header + _TCP_FLAGS]
    acknowledged = None
    if flags & _ACK:
        (acknowledged,) = _U32.unpack_from(packet, segment.header + _TCP_ACKNOWLEDGED)
    return Control(segment.sequence, acknowledged, segment.syn, bool(flags & _RST))


def replace_payload(packet: bytes, segment: Segment, payload: bytes) -> bytes:
    """The packet with another payload; its lengths and checksums are right.

    `segment` is what `locate` found in `packet`. Raises ValueError where the result
    would not fit an IP packet. A UDP datagram over IPv4 that came without a checksum
    stays without one.
    """
    head = bytearray(packet[: segment.start])
    length = len(head) + len(payload)
    if packet[0] >> 4 == 4:
        if length > 0xFFFF:
            raise ValueError(f"IPv4 packet of {length} bytes")
        _U16.pack_into(head, _IPV4_LENGTH, length)
        _U16.pack_into(head, _IPV4_CHECKSUM, 0)
        ip_header = (packet[0] & 0x0F) * 4
        _U16.pack_into(head, _IPV4_CHECKSUM, checksum(bytes(head[:ip_header])))
        addresses = packet[_IPV4_SOURCE:_IPV4_HEADER]
    else:
        if length - _IPV6_HEADER > 0xFFFF:
            raise ValueError(f"IPv6 payload of {length - _IPV6_HEADER} bytes")
        _U16.pack_into(head, _IPV6_LENGTH, length - _IPV6_HEADER)
        addresses = packet[_IPV6_SOURCE:_IPV6_HEADER]
    at = segment.header
    if segment.transport is UDP:
        _U16.pack_into(head, at + _UDP_LENGTH, length - at)
        field = at + _UDP_CHECKSUM
        if packet[0] >> 4 == 4 and packet[field : field + 2] == b"\0\0":
            return bytes(head) + payload
    else:
        field = at + _TCP_CHECKSUM
    _U16.pack_into(head, field, 0)
    pseudo = addresses + struct.pack("!II", length - at, segment.transport)
    value = checksum(pseudo + head[at:] + payload)
    if segment.transport is UDP:
        # 0 on the wire means "no checksum" (RFC 768); 0xffff is the same sum.
        value = value or 0xFFFF
    _U16.pack_into(head, field, value)
    return bytes(head) + payload


def checksum(data: bytes) -> int:
    """The Internet checksum of `data` (RFC 1071), 0 to 65535."""
    if len(data) % 2:
        data += b"\0"
    # 65536 is 1 modulo 65535, so the sum of the 16-bit words in ones' complement is
    # the whole number modulo 65535; a sum of 65535 is not 0 there but its own value.
    number = int.from_bytes(data)
    total = number % 0xFFFF or (0xFFFF if number else 0)
    return total ^ 0xFFFF
