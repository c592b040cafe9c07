# SPDX-License-Identifier: GPL-2.0-or-later
"""Oracle Net (TNS): a listener redirects the client to the address of a server.

There is no public specification; this is what Wireshark and the open-source drivers
read, and what the drivers and listeners send. A packet begins with a length of 16 bits,
a checksum, type, flags and a checksum of the header, 8 bytes in all::

    client: CONNECT, with its connect data or with DATA after it
    server: RESEND: the client sends its CONNECT again
            REFUSE
            ACCEPT: the session begins; its packets may have lengths of 32 bits
            REDIRECT: length of 16 bits, text: (ADDRESS=...) NUL connect data

The text of a REDIRECT stands in the packet, or in DATA packets after it, each with two
bytes of flags before the text, or partly here and partly there. Some listeners leave
the length 0, and the text ends with its last parenthesis. What follows NUL is for the
client to repeat. The client opens a new connection to one of the addresses, and may be
redirected again there, four times in all.

A flow that does not begin with a CONNECT, such as one with TLS (TCPS), is not read, and
no flow is after ACCEPT or REFUSE. Host names are never looked up: the configuration
tells their addresses.

Behind destination NAT a server names an address that the client does not know: host and
port are rewritten in the text, and with its length those of the packets and of the
redirect. Where the latter has gone on in a segment of its own, a shorter text is filled
up with blanks, and a longer one is refused. A host name stays as it is.
"""

import enum
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    TCP,
    Address,
    Cursor,
    Done,
    Effects,
    Endpoint,
    ExpectationRefused,
    Helper,
    Malformed,
    Message,
    Option,
    OptionValue,
    Oversized,
    Policy,
    Rewrite,
    RewriteRefused,
    expect,
)
from cthelper.helpers.tns_descriptor import (
    Place,
    ServerAddress,
    is_whole,
    parse_addresses,
    parse_host,
)

_HEADER: Final = 8
# Connect data begin at offset 34 or later, and clients put long ones into DATA. The
# limit lies below what the first bytes of TLS, 0x1603, would be as a length.
_CONNECT_LENGTHS: Final = range(34, 4097)
_TEXT_LIMIT: Final = 4096
# Listeners send one DATA packet, or one for each 512 bytes, the smallest size of a
# session's packets. What is waited for is read anew with each.
_PIECES: Final = 16
_CHAIN_LIMIT: Final = 4
# Packets of both sides until the server decides. A CONNECT, its data, a RESEND and a
# REDIRECT with its text are some twenty.
_PACKETS: Final = 64
# What these take in memory, in bytes.
_INSTANCE: Final = 400
_PIECE: Final = 200


class _Type(enum.IntEnum):
    """The type of a packet, its fifth byte."""

    CONNECT = 1
    ACCEPT = 2
    ACK = 3
    REFUSE = 4
    REDIRECT = 5
    DATA = 6
    NULL = 7
    ABORT = 9
    RESEND = 11
    MARKER = 12
    ATTENTION = 13
    CONTROL = 14


_NAMES: Final = {int(each): each.name for each in _Type}


@dataclass(frozen=True, slots=True)
class _HostLine:
    """A line of the option `hosts`."""

    address: Address
    names: frozenset[str]


def _host_line(value: object) -> _HostLine:
    allowed = 'must be a line such as "192.0.2.11 rac1 rac1.example.net"'
    if not isinstance(value, str):
        raise ValueError(allowed)
    try:
        hosts = [parse_host(word) for word in value.split()]
    except Malformed as error:
        raise ValueError(f"{allowed}: {error}") from None
    names = [each for each in hosts[1:] if isinstance(each, str)]
    if not names or len(names) < len(hosts) - 1 or isinstance(hosts[0], str):
        raise ValueError(f"{allowed}: an address, then names")
    return _HostLine(hosts[0], frozenset(names))


_HOSTNAME: Final = Option(
    "hostname",
    "refuse",
    "refuse: an address whose host name is not in hosts opens nothing; same: such a "
    "name means the server that announces it",
    choices=("refuse", "same"),
)
_HOSTS: Final[Option[tuple[_HostLine, ...]]] = Option(
    "hosts",
    (),
    "addresses of the host names that servers announce, each a line as in /etc/hosts, "
    'such as "192.0.2.11 rac1 rac1.example.net"; what is not the announcing server\'s '
    "own address must be in the guard's allow_hosts, too",
    element=_host_line,
)
_CHAINED: Final = Option(
    "chained",
    False,
    "true: a server that a client was redirected to may redirect it further",
)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the text, from `start` on: it is in the packet of `size` bytes.

    `packet` and `at` count the server's bytes up to the packet and to the part.
    """

    start: int
    at: int
    packet: int
    size: int


@dataclass(frozen=True, slots=True)
class _Redirect:
    """As much as is there of a REDIRECT's text; `length` is 0 where it is not known.

    `length_at` counts the server's bytes up to it.
    """

    length: int
    length_at: int
    text: bytes = b""
    pieces: tuple[_Piece, ...] = ()

    def plus(self, more: bytes, packet: int, size: int) -> "_Redirect":
        """With the text at the end of a further packet, of `size` bytes.

        Raises Oversized where there are more than 16 of them.
        """
        if len(self.pieces) == _PIECES:
            raise Oversized(f"descriptor in over {_PIECES} packets")
        text = self.text + more
        piece = _Piece(len(self.text), packet + size - len(more), packet, size)
        return replace(
            self,
            text=text[: self.length] if self.length else text,
            pieces=(*self.pieces, piece),
        )

    def descriptor(self) -> bytes | None:
        """The text before NUL if it is whole; None: DATA follows. Raises Oversized."""
        text, nul, _ = self.text.partition(b"\0")
        if len(text) > _TEXT_LIMIT:
            raise Oversized(f"descriptor of over {_TEXT_LIMIT} bytes")
        if nul or (len(text) == self.length if self.length else is_whole(text)):
            return text
        return None

    def rewrites(self, changes: dict[Place, bytes], message: int) -> Iterator[Rewrite]:
        """What puts other values into the text; `message` counts bytes up to this one.

        Raises RewriteRefused: with reason ``fragmented`` where a value lies in two
        packets, and ``length`` where a length has no room for the longer text.
        """
        grown = dict.fromkeys(self.pieces, 0)
        for place, value in changes.items():
            piece = [each for each in self.pieces if each.start <= place.start][-1]
            start = piece.at + place.start - piece.start - message
            stop = start + place.stop - place.start
            if stop > piece.packet + piece.size - message:
                raise RewriteRefused("fragmented", "an address in two packets")
            grown[piece] += len(value) - (stop - start)
            yield Rewrite((start, stop), value)
        for piece, more in grown.items():
            if more:
                start = piece.packet - message
                yield Rewrite((start, start + 2), _length(piece.size + more))
        more = sum(grown.values())
        if more and self.length:
            start = self.length_at - message
            yield Rewrite((start, start + 2), _length(self.length + more))


class Tns(Helper):
    """Oracle Net (TNS): redirects from a listener to a server's address."""

    name = "tns"
    transports = frozenset({TCP})
    ports = (1521,)
    policies = (Policy("redirect", max_expected=8, timeout=60),)
    options = (_HOSTNAME, _HOSTS, _CHAINED)

    def __init__(self) -> None:
        self._connected = False
        self._packets = 0
        self._redirects = 0
        # The server's bytes before the message that is read.
        self._read = 0
        # The REDIRECT of which more text must come in DATA.
        self._pending: _Redirect | None = None

    @classmethod
    def tags_expected(cls, options: Mapping[str, OptionValue]) -> bool:
        """Whether redirects to redirects are followed."""
        return bool(options[_CHAINED.name])

    def footprint(self) -> int:
        """What the text of a REDIRECT takes."""
        pending = self._pending
        if pending is None:
            return _INSTANCE
        return _INSTANCE + len(pending.text) + _PIECE * len(pending.pieces)

    def frame(self, data: memoryview) -> int | None:
        """Length of one packet; of a flow that is not TNS only what tells so."""
        if len(data) < _HEADER:
            return None
        if not self._connected and not _is_connect(data):
            return _HEADER
        length = int.from_bytes(data[:2])
        if length < _HEADER:
            raise Malformed(f"packet of {length} bytes")
        return length if length <= len(data) else None

    def on_message(self, message: Message) -> Effects:
        """Expect flows to the addresses of a REDIRECT, until the server decides."""
        if not self._begins(message):
            yield Done("it is no TNS")
            return
        self._connected = True
        self._packets += 1
        if self._packets > _PACKETS:
            yield Done(f"over {_PACKETS} packets, and no ACCEPT", "nothing-announced")
            return
        cursor, kind = _read_header(message)
        if message.direction is ORIGINAL:
            if kind == _Type.REDIRECT:
                raise Malformed("REDIRECT in original direction")
            return
        if kind in (_Type.ACCEPT, _Type.REFUSE):
            yield Done(f"the server's {_Type(kind).name}")
            return
        if kind == _Type.RESEND:
            self._pending = None
        redirect = self._redirect(kind, cursor, message)
        start = self._read
        self._read += len(message.payload)
        if redirect is None:
            return
        text = redirect.descriptor()
        self._pending = redirect if text is None else None
        if text is not None:
            self._count(message.depth)
            yield from _follow(redirect, parse_addresses(text), start, message)

    def describe(self, message: Message) -> dict[str, str]:
        """Type and lengths of a packet, and the addresses of a REDIRECT."""
        if not self._begins(message):
            return {"type": "not TNS"}
        cursor, kind = _read_header(message)
        fields = {
            "type": f"{_NAMES.get(kind, 'unknown')} ({kind})",
            "length": str(len(message.payload)),
        }
        if message.direction is ORIGINAL:
            return fields
        redirect = self._redirect(kind, cursor, message)
        if redirect is None:
            return fields
        fields["redirect data"] = f"{len(redirect.text)} of {redirect.length or '?'}"
        text = redirect.descriptor()
        fields["redirects to"] = (
            "what DATA will say"
            if text is None
            else ", ".join(map(str, parse_addresses(text))) or "nothing over TCP"
        )
        return fields

    def _begins(self, message: Message) -> bool:
        """Whether the flow has begun as TNS, this message at the latest."""
        return self._connected or (
            message.direction is ORIGINAL and _is_connect(message.payload)
        )

    def _redirect(
        self, kind: int, cursor: Cursor, message: Message
    ) -> _Redirect | None:
        """The REDIRECT with the text of a server's packet; None: it adds none."""
        size = len(message.payload)
        if kind == _Type.REDIRECT:
            begun = _Redirect(cursor.u16(), self._read + _HEADER)
            return begun.plus(cursor.take(cursor.remaining), self._read, size)
        if kind == _Type.DATA and self._pending is not None:
            cursor.skip(2)
            more = cursor.take(cursor.remaining)
            return self._pending.plus(more, self._read, size) if more else None
        return None

    def _count(self, depth: int) -> None:
        """One more redirect, after `depth` of other flows."""
        self._redirects += 1
        count = depth + self._redirects
        if count > _CHAIN_LIMIT:
            raise ExpectationRefused(
                "redirect-chain", f"redirect {count}, the limit is {_CHAIN_LIMIT}"
            )


def _length(value: int) -> bytes:
    """A length of 16 bits. Raises RewriteRefused."""
    if value > 0xFFFF:
        raise RewriteRefused("length", f"a length of {value}")
    return value.to_bytes(2)


def _is_connect(packet: bytes | memoryview) -> bool:
    """Whether a packet, of which the header must be there, is a CONNECT."""
    return (
        len(packet) >= _HEADER
        and packet[4] == _Type.CONNECT
        and int.from_bytes(packet[:2]) in _CONNECT_LENGTHS
    )


def _read_header(message: Message) -> tuple[Cursor, int]:
    """What reads on after the header, and the packet's type."""
    cursor = Cursor(message.payload)
    cursor.skip(4)
    kind = cursor.u8()
    cursor.skip(3)
    return cursor, kind


def _follow(
    redirect: _Redirect, addresses: list[ServerAddress], start: int, message: Message
) -> Effects:
    """Expect a flow to each address, and then refuse those that cannot be told.

    `start` counts the server's bytes before the message.
    """
    places: dict[Endpoint, list[ServerAddress]] = {}
    unknown = []
    for each in addresses:
        host = _address_of(each.host, message)
        if host is None:
            unknown.append(str(each))
        else:
            places.setdefault(Endpoint(host, each.port), []).append(each)
    changes: dict[Place, bytes] = {}
    for endpoint, alike in places.items():
        # What TCPS carries cannot be read.
        follow = _CHAINED.of(message) and alike[0].protocol == "tcp"
        # One that is refused, which the engine has counted, does not end the others.
        with suppress(ExpectationRefused):
            grant = yield from expect(
                endpoint, policy="redirect", helper=Tns.name if follow else None
            )
            for each in alike:
                changes |= _changes(each, grant.endpoint)
    if redirect.length and start - redirect.length_at > message.preceding:
        changes = _filled_up(changes)
    yield from redirect.rewrites(changes, start)
    if unknown:
        raise ExpectationRefused("unknown-host", f"{', '.join(unknown)}: not in hosts")


def _changes(address: ServerAddress, told: Endpoint) -> dict[Place, bytes]:
    """The values that are to be others for the client to go to `told`."""
    changes = {}
    if not isinstance(address.host, str) and address.host != told.address:
        changes[address.host_place] = str(told.address).encode()
    if address.port != told.port:
        changes[address.port_place] = b"%d" % told.port
    return changes


def _filled_up(changes: dict[Place, bytes]) -> dict[Place, bytes]:
    """The changes, and as many blanks behind a group as the text gets shorter."""
    old = sum(place.stop - place.start for place in changes)
    missing = old - sum(map(len, changes.values()))
    if missing <= 0:
        return changes
    end = min(place.end for place in changes)
    return changes | {Place(end, end, end): b" " * missing}


def _address_of(host: Address | str, message: Message) -> Address | None:
    """The host's address of the flow's IP version; None: the name is not known."""
    if not isinstance(host, str):
        return host
    server = message.source.address
    for line in _HOSTS.of(message):
        if host in line.names and line.address.version == server.version:
            return line.address
    return server if _HOSTNAME.of(message) == "same" else None
