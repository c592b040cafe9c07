# SPDX-License-Identifier: GPL-2.0-or-later
"""Conntrack entries with what a list shows: states of TCP, counters, and times."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cthelper.core.netlink.decoding import conntrack_entry, read, walk
from cthelper.core.tuples import TCP, Conntrack

# CTA_* of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
_PROTOINFO, _COUNTERS_ORIGINAL, _COUNTERS_REPLY, _TIMESTAMP = 4, 9, 10, 20
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_PACKETS, _BYTES = 1, 2
_START, _STOP = 1, 2

_U8 = struct.Struct("!B")
_U64 = struct.Struct("!Q")

TCP_STATES: Final = (
    *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT"),
    *("LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"),
)
"""States by number, as conntrack(8) names them (tcp_conntrack_names)."""


@dataclass(frozen=True, slots=True)
class Count:
    """Packets and bytes of a direction."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry as it is listed.

    `state` is TCP's, None for UDP. `sent` and `answered` are None where the kernel does
    not count (net.netfilter.nf_conntrack_acct). When it began and ended, in nanoseconds
    since 1970, is 0 where that is not known (net.netfilter.nf_conntrack_timestamp).
    """

    entry: Conntrack
    state: str | None
    sent: Count | None
    answered: Count | None
    began: int = 0
    ended: int = 0

    @property
    def packets(self) -> int:
        """Of both directions; 0 where they are not counted."""
        return sum(each.packets for each in (self.sent, self.answered) if each)

    @property
    def bytes(self) -> int:
        """Of both directions; 0 where they are not counted."""
        return sum(each.bytes for each in (self.sent, self.answered) if each)


def listed_entry(data: bytes, start: int) -> Listed | None:
    """The entry in the CTA_* attributes from `start` on.

    None where it is neither TCP's nor UDP's. Raises Truncated.
    """
    entry = conntrack_entry(data, start, len(data))
    if entry is None:
        return None
    state = sent = answered = None
    times = {_START: 0, _STOP: 0}
    for kind, first, last in walk(data, start, len(data)):
        if kind == _PROTOINFO and entry.original.transport is TCP:
            state = _state(data, first, last)
        elif kind == _COUNTERS_ORIGINAL:
            sent = _count(data, first, last)
        elif kind == _COUNTERS_REPLY:
            answered = _count(data, first, last)
        elif kind == _TIMESTAMP:
            times = _numbers(data, first, last, times)
    return Listed(entry, state, sent, answered, times[_START], times[_STOP])


def _state(data: bytes, start: int, stop: int) -> str | None:
    for kind, first, last in walk(data, start, stop):
        if kind == _PROTOINFO_TCP:
            for part, begin, end in walk(data, first, last):
                if part == _TCP_STATE:
                    number = read(_U8, data, begin, end)[0]
                    known = number < len(TCP_STATES)
                    return TCP_STATES[number] if known else str(number)
    return None


def _count(data: bytes, start: int, stop: int) -> Count:
    found = _numbers(data, start, stop, {_PACKETS: 0, _BYTES: 0})
    return Count(found[_PACKETS], found[_BYTES])


def _numbers(
    data: bytes, start: int, stop: int, plain: Mapping[int, int]
) -> dict[int, int]:
    """Numbers of 64 bits by attribute; those that are not there as they are given."""
    found = dict(plain)
    for kind, first, last in walk(data, start, stop):
        if kind in found:
            found[kind] = read(_U64, data, first, last)[0]
    return found
