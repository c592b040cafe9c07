# SPDX-License-Identifier: GPL-2.0-or-later
"""Service Location Protocol (RFC 2608): requests to a group, answered by unicast.

Requests for services, their attributes and their types go to port 427 of a multicast
group, or of the broadcast address. Conntrack matches the answers to no flow, since they
come from the responders' own addresses. They go to the port that asked (section 6.1);
OpenSLP sends them from port 427, which the protocol does not demand. The asker repeats
its request for up to 15 s (CONFIG_MC_MAX), OpenSLP each time from a new port, and so
each request opens its own.

Port 427 itself is never opened: whoever asks from it listens there, and needs a static
rule; a service open to all on that port amplifies attacks (CVE-2023-29552). Unicast
requests, registrations, answers and advertisements open nothing.

IPv6 (RFC 3111) has groups for requests, for directory agents, and 1024 by service type,
within scopes up to site-local; those of organization-local scope are taken, too.
Version 1 (RFC 2165) is read where it is configured.

An answer that does not fit a datagram has the overflow flag set, and the asker may come
back to the responder's port over TCP. With option overflow the answers are read, too,
and that connection is expected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    TCP,
    Cursor,
    Done,
    Effects,
    Endpoint,
    Malformed,
    Message,
    Option,
    OptionValue,
    Policy,
    expect,
)
from cthelper.helpers.discovery import RESPONDERS, GroupQuery, any_sport

_PORT: Final = 427
# Version 2, and version 1 at large and for its directory agents.
_GROUPS: Final = frozenset(
    map(IPv4Address, ("239.255.255.253", "224.0.1.22", "224.0.1.35"))
)
# RFC 3111, section 4.1: requests, directory agents, and groups by service type.
_GROUP_IDS: Final = frozenset({0x116, 0x123, *range(0x11000, 0x11400)})
_SCOPES: Final = frozenset({2, 3, 4, 5, 8})

_LANGUAGE_LIMIT: Final = 32
_OVERFLOW_1: Final = 0x80
_OVERFLOW_2: Final = 0x8000
_MULTICAST_2: Final = 0x2000
# A length that means no string, and so all naming authorities (section 10.1).
_ALL: Final = 0xFFFF

_FUNCTIONS: Final = (
    *("SrvRqst", "SrvRply", "SrvReg", "SrvDereg", "SrvAck", "AttrRqst", "AttrRply"),
    *("DAAdvert", "SrvTypeRqst", "SrvTypeRply", "SAAdvert"),
)
# By version; the first lacks the last function.
_LAST_FUNCTION: Final = {1: 10, 2: 11}
_REPLIES: Final = frozenset({2, 7, 10})

# The strings of each request by version and function: RFC 2608, sections 8.1, 10.3 and
# 10.1, and RFC 2165, sections 5, 13 and 7.
_RESPONDERS: Final = "previous responders"
_AUTHORITY: Final = "naming authority"
_REQUESTS: Final = {
    (2, 1): (_RESPONDERS, "service type", "scopes", "predicate", "SPI"),
    (2, 6): (_RESPONDERS, "URL", "scopes", "tags", "SPI"),
    (2, 9): (_RESPONDERS, _AUTHORITY, "scopes"),
    (1, 1): (_RESPONDERS, "predicate"),
    (1, 6): (_RESPONDERS, "URL", "scopes", "tags"),
    (1, 9): (_RESPONDERS, _AUTHORITY, "scopes"),
}

_V1: Final = Option("v1", False, "true: requests of version 1 open the port, too")
_OVERFLOW: Final = Option(
    "overflow",
    False,
    "true: answers are read, too, and one with the overflow flag lets the asker come "
    "back to the responder over TCP",
)


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    function: int
    overflow: bool
    multicast: bool
    xid: int
    language: bytes


class Slp(GroupQuery):
    """Requests of the Service Location Protocol to a group."""

    name = "slp"
    ports = (_PORT,)
    # A second more than an asker repeats its request (RFC 2608, section 13). One
    # request takes an expectation for each on-link prefix.
    policies = (Policy("answer", max_expected=8, timeout=16),)
    options = (RESPONDERS, any_sport(_PORT), _V1, _OVERFLOW)
    lowest_port = _PORT

    @classmethod
    def tags_expected(cls, options: Mapping[str, OptionValue]) -> bool:
        """Whether the answers are to be read."""
        return options[_OVERFLOW.name] is True

    def on_message(self, message: Message) -> Effects:
        """Expect the answers to a request, and what follows one that overflows."""
        if message.depth:
            yield from _follow(message)
        elif message.direction is not ORIGINAL:
            return
        elif message.source.port == _PORT:
            yield Done(f"port {_PORT} itself is never opened")
        elif not self.reached(message):
            yield Done("it goes to no group, and is answered in the flow itself")
        elif (endpoint := self.asks(message)) is not None:
            goes_on = self.name if _OVERFLOW.of(message) else None
            yield from self.answers(message, endpoint, helper=goes_on)

    def reached(self, message: Message) -> bool:
        """Whether the destination is a group of this protocol, or a broadcast address.

        Most groups are no networks of a few: the ruleset tags all destinations.
        """
        address = message.destination.address
        if isinstance(address, IPv6Address):
            packed = address.packed
            return (
                packed[0] == 0xFF
                and packed[1] in _SCOPES
                and int.from_bytes(packed[2:]) in _GROUP_IDS
            )
        if address.is_multicast:
            return address in _GROUPS
        return message.group

    def asks(self, message: Message) -> Endpoint | None:
        """The port that asked, if this is a request of a version that is served."""
        cursor = Cursor(message.payload)
        header = _read_header(cursor)
        if header.version == 1 and not _V1.of(message):
            return None
        return message.source if _read_strings(cursor, header) else None

    def describe(self, message: Message) -> dict[str, str]:
        """The header, and the strings of a request."""
        cursor = Cursor(message.payload)
        header = _read_header(cursor)
        function = _FUNCTIONS[header.function - 1]
        fields = {
            "type": f"{function} ({header.function}), version {header.version}",
            "xid": str(header.xid),
            "language": _text(header.language),
        }
        if header.overflow:
            fields["overflow"] = "the whole of it is to be had over TCP"
        if header.multicast:
            fields["sent"] = "by multicast or broadcast"
        strings = _read_strings(cursor, header)
        return fields | {name: _text(value) for name, value in strings.items()}


def _follow(message: Message) -> Effects:
    """Expect the connection that an answer with the overflow flag leads to.

    The flow is the answer's own, so that it announces the port that it came from.
    """
    if not _OVERFLOW.of(message):
        yield Done("answers are read with option overflow only")
    elif message.direction is ORIGINAL:
        header = _read_header(Cursor(message.payload))
        if header.overflow and header.function in _REPLIES:
            yield from expect(message.source, policy="answer", transport=TCP)


def _read_header(cursor: Cursor) -> _Header:
    """The header of a whole message: RFC 2608, section 8, and RFC 2165, section 4.

    Raises Malformed.
    """
    size = cursor.remaining
    version, function = cursor.u8(), cursor.u8()
    if not 1 <= function <= _LAST_FUNCTION.get(version, 0):
        raise Malformed(f"version {version}, function {function}")
    if version == 1:
        length, flags, _dialect = cursor.u16(), cursor.u8(), cursor.u8()
        language, _encoding, xid = cursor.take(2), cursor.u16(), cursor.u16()
        overflow, multicast = flags & _OVERFLOW_1, 0
    else:
        length, flags = int.from_bytes(cursor.take(3)), cursor.u16()
        cursor.skip(3)  # offset of the extensions, which nothing here needs
        xid, tag_length = cursor.u16(), cursor.u16()
        if tag_length > _LANGUAGE_LIMIT:
            raise Malformed(f"language tag of {tag_length} bytes")
        language = cursor.take(tag_length)
        overflow, multicast = flags & _OVERFLOW_2, flags & _MULTICAST_2
    if length != size:
        raise Malformed(f"length {length} in a datagram of {size} bytes")
    return _Header(version, function, bool(overflow), bool(multicast), xid, language)


def _read_strings(cursor: Cursor, header: _Header) -> dict[str, bytes]:
    """The strings of a request by their names; empty for all else. Raises Truncated."""
    strings = {}
    for name in _REQUESTS.get((header.version, header.function), ()):
        length = cursor.u16()
        if name == _AUTHORITY and length == _ALL:
            length = 0
        strings[name] = cursor.take(length)
    return strings


def _text(value: bytes) -> str:
    return repr(value.decode("utf-8", "backslashreplace"))
