# SPDX-License-Identifier: GPL-2.0-or-later
"""Link layers: where the IP header is in a frame.

The types are those of https://www.tcpdump.org/linktypes.html. A frame is looked at in
place: it stands in `data` from `begin` to before `stop`, and nothing beyond is read.
"""

import struct
from collections.abc import Callable
from typing import Final

Finder = Callable[[bytes, int, int], int]
"""Of `data`, `begin` and `stop` the place of the IP header; -1: there is none."""

NFLOG: Final = 239
"""Its frames hold the packet in an attribute: see `logged`."""
ETHERNET: Final = 1

# The EtherTypes of IPv4 and IPv6, with those of VLANs, and of PPPoE sessions.
IP: Final = frozenset({b"\x08\x00", b"\x86\xdd"})
_VLAN: Final = frozenset({b"\x81\x00", b"\x88\xa8", b"\x91\x00"})
_PPPOE: Final = b"\x88\x64"
_PPP_IP: Final = frozenset({b"\x00\x21", b"\x00\x57"})
# Of one byte where the link has agreed on it (RFC 1661, section 6.5).
_PPP_IP_SHORT: Final = frozenset({0x21, 0x57})
# Address and control of PPP in HDLC-like framing (RFC 1662, section 3.1), which a link
# may agree to leave out, and of Cisco's framing, unicast and multicast, where an
# EtherType follows.
_PPP_FRAMED: Final = b"\xff\x03"
_CISCO_FRAMED: Final = frozenset({b"\x0f\x00", b"\x8f\x00"})

_NFLOG_HEADER: Final = 4
# NFULA_PAYLOAD (linux/netfilter/nfnetlink_log.h).
_NFLOG_PAYLOAD: Final = 9
# AF_INET and AF_INET6 of Linux: whatever hook of a table ip, ip6 or inet logs.
_NFLOG_IP: Final = frozenset({2, 10})
# AF_INET of all systems; AF_INET6 of Linux, NetBSD, FreeBSD and macOS.
_FAMILIES: Final = frozenset(
    family.to_bytes(4, order)
    for family in (2, 10, 24, 28, 30)
    for order in ("little", "big")
)

_IPV4_LENGTH: Final = 2
_IPV6_LENGTH: Final = 4
_IPV6_HEADER: Final = 40


def nowhere(data: bytes, begin: int, stop: int) -> int:
    """A frame of a link type that is not known."""
    return -1


def _behind_type(data: bytes, at: int, stop: int) -> int:
    """The place of the IP header, where an EtherType is at `at`."""
    kind = data[at : at + 2]
    while kind in _VLAN and at + 6 <= stop:
        at += 4
        kind = data[at : at + 2]
    if kind in IP:
        at += 2
    elif kind == _PPPOE and data[at + 8 : at + 10] in _PPP_IP:
        at += 10
    else:
        return -1
    # What was read beyond the frame leads beyond it.
    return at if at < stop else -1


def _ethernet(data: bytes, begin: int, stop: int) -> int:
    return _behind_type(data, begin + 12, stop)


def _cooked(data: bytes, begin: int, stop: int) -> int:
    return _behind_type(data, begin + 14, stop)


def _cooked2(data: bytes, begin: int, stop: int) -> int:
    # The type comes first here; what it says begins behind the whole header.
    kind = data[begin : begin + 2]
    at = begin + 20
    if kind in _VLAN:
        return _behind_type(data, begin + 22, stop)
    if kind == _PPPOE and data[begin + 26 : begin + 28] in _PPP_IP:
        at += 8
    elif kind not in IP:
        return -1
    return at if at < stop else -1


def _raw(data: bytes, begin: int, stop: int) -> int:
    return begin if begin < stop and data[begin] >> 4 in (4, 6) else -1


def _ppp(data: bytes, begin: int, stop: int) -> int:
    at = begin
    if data[at : at + 2] == _PPP_FRAMED:
        at += 2
    if data[at : at + 2] in _PPP_IP:
        at += 2
    elif at < stop and data[at] in _PPP_IP_SHORT:
        at += 1
    else:
        return -1
    return at if at < stop else -1


def _ppp_hdlc(data: bytes, begin: int, stop: int) -> int:
    if data[begin : begin + 2] in _CISCO_FRAMED:
        return _behind_type(data, begin + 2, stop)
    return _ppp(data, begin, stop)


def _ppp_ether(data: bytes, begin: int, stop: int) -> int:
    # Six bytes of PPPoE (RFC 2516, section 4); code 0 is a session's.
    return -1 if data[begin + 1 : begin + 2] != b"\0" else _ppp(data, begin + 6, stop)


def _loopback(data: bytes, begin: int, stop: int) -> int:
    # Its byte order is the capturing machine's (NULL) or the network's (LOOP).
    at = begin + 4
    return at if data[begin:at] in _FAMILIES and at < stop else -1


FINDERS: Final[dict[int, Finder]] = {
    0: _loopback,
    ETHERNET: _ethernet,
    9: _ppp,
    12: _raw,
    14: _raw,
    50: _ppp_hdlc,
    51: _ppp_ether,
    101: _raw,
    108: _loopback,
    113: _cooked,
    228: _raw,
    229: _raw,
    NFLOG: _raw,
    276: _cooked2,
}
"""By link type. Of NFLOG it is for the packet that `logged` has found."""


def logged(data: bytes, begin: int, stop: int, order: str) -> tuple[int, int]:
    """Where the packet that was logged stands in a frame of NFLOG; (-1, -1): nowhere.

    Lengths and types are in the file's byte order, `order` as struct has it. The kernel
    gives the packet from its network header on (__build_packet_message in
    net/netfilter/nfnetlink_log.c).
    """
    if begin >= stop or data[begin] not in _NFLOG_IP:
        return -1, -1
    at = begin + _NFLOG_HEADER
    while at + 4 <= stop:
        length, kind = struct.unpack_from(order + "HH", data, at)
        if length < 4:
            break
        if kind == _NFLOG_PAYLOAD:
            # What pads it must not make up for what was cut.
            return at + 4, min(at + length, stop)
        at += length + -length % 4
    return -1, -1


def said_length(data: bytes, begin: int, stop: int) -> int:
    """How long the packet is by its IP header; 0 where that does not say it."""
    version = data[begin] >> 4 if begin < stop else 0
    at = begin + (_IPV4_LENGTH if version == 4 else _IPV6_LENGTH)
    if version not in (4, 6) or at + 2 > stop:
        return 0
    length = int.from_bytes(data[at : at + 2], "big")
    return length if version == 4 else _IPV6_HEADER + length
