# SPDX-License-Identifier: GPL-2.0-or-later
"""Oracle's connect descriptors: nested groups in which the addresses of a server stand.

::

    (DESCRIPTION=(ADDRESS_LIST=
        (ADDRESS=(PROTOCOL=tcp)(HOST=192.0.2.1)(PORT=1521))
        (address = (port=1521) (host="2001:db8::1") (protocol=TCPS))))

Keys are written in any case and order, blanks may stand between all parts, and several
groups may follow one another. A value may be quoted, and then hold parentheses.
"""

import re
from dataclasses import dataclass, field, replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from cthelper.core.api import Address, Malformed

ADDRESS_LIMIT: Final = 8
_DEPTH_LIMIT: Final = 8
_NAME_LIMIT: Final = 253
# Groups, and ends of groups of groups: one for each 8 bytes that a descriptor may have,
# but for such as say nothing.
_PART_LIMIT: Final = 512

_QUOTED: Final = re.compile(rb"\"[^\"]*+\"|'[^']*+'")
# A group with a value, the beginning of a group of groups, or the end of one. Nothing
# is tried twice (++ and *+), so that time grows with the length of the text alone.
_PIECE: Final = re.compile(
    rb"""
    \s*+ (?:
        \( \s*+ (?P<key> [^()="'\s]++ ) \s*+ = \s*+
        (?: (?P<value> "[^"]*+" | '[^']*+' | [^()"']*+ ) \s*+ \) | (?=\() )
      | (?P<end> \) )
      | \Z
    )
    """,
    re.VERBOSE,
)
_NAME: Final = re.compile(r"[a-z0-9_-]++(?:\.[a-z0-9_-]++)*+\.?")
_PORT: Final = re.compile(rb"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is in the text, without quotes or brackets; its group's end."""

    start: int
    stop: int
    end: int


_Values = dict[bytes, tuple[bytes, Place]]


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens: `protocol` is tcp or tcps, `port` 0 to 65535.

    `host` is an address, or a name in lower case without a dot at its end. The places
    are where the two stand.
    """

    protocol: str
    host: Address | str
    port: int
    host_place: Place = field(compare=False)
    port_place: Place = field(compare=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else self.host
        return f"{self.protocol} {host}:{self.port}"


def parse_addresses(text: bytes) -> list[ServerAddress]:
    """The addresses in a descriptor that are reached by TCP, ADDRESS_LIMIT at most.

    Further ones are passed over, and so are those of other protocols. Raises Malformed.
    """
    if not text.lstrip().startswith(b"("):
        raise Malformed(f"no descriptor: {text[:40]!r}")
    addresses: list[ServerAddress] = []
    # Key and values of each group that has begun, the outermost first.
    groups: list[tuple[bytes, _Values]] = []
    position = parts = 0
    while position < len(text):
        parts += 1
        if parts > _PART_LIMIT:
            raise Malformed(f"descriptor of over {_PART_LIMIT} parts")
        piece = _PIECE.match(text, position)
        if piece is None:
            raise Malformed(f"descriptor: {text[position : position + 40]!r}")
        position = piece.end()
        if piece["end"] is not None:
            if not groups:
                raise Malformed("descriptor: a group ends that has not begun")
            name, values = groups.pop()
            if name == b"ADDRESS" and len(addresses) < ADDRESS_LIMIT:
                addresses += _addresses_of(values)
        elif piece["key"] is not None:
            if len(groups) == _DEPTH_LIMIT:
                raise Malformed(f"descriptor is nested over {_DEPTH_LIMIT} deep")
            key = piece["key"].upper()
            if piece["value"] is None:
                groups.append((key, {}))
            elif groups:
                _set(groups[-1][1], key, piece)
    if groups:
        raise Malformed(f"descriptor ends within {len(groups)} groups")
    return addresses


def is_whole(text: bytes) -> bool:
    """Whether no more text is needed to read the descriptor, or to know it is none."""
    bare = _QUOTED.sub(b"", text).strip()
    if not bare.startswith(b"("):
        return bool(bare)
    return bare.count(b"(") <= bare.count(b")")


def parse_host(text: str) -> Address | str:
    """An address, an IPv6 one with brackets or without, or a name in lower case.

    Raises Malformed.
    """
    bare = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    try:
        if ":" not in text:
            return IPv4Address(text)
        address = IPv6Address(bare)
        if address.scope_id is None:
            return address
    except AddressValueError:
        pass
    name = text.lower()
    # What ends in a number is an address that is written wrong, such as 300.1.1.1.
    if (
        len(name) > _NAME_LIMIT
        or not _NAME.fullmatch(name)
        or name.rstrip(".").rpartition(".")[2].isdigit()
    ):
        raise Malformed(f"host {text[:60]!r}")
    return name.rstrip(".")


def _set(values: _Values, key: bytes, piece: re.Match[bytes]) -> None:
    # Clients differ in which of two they take.
    if key in values:
        raise Malformed(f"descriptor has {key[:40]!r} twice in a group")
    value = piece["value"].rstrip()
    start = piece.start("value")
    stop = start + len(value)
    if _QUOTED.fullmatch(value):
        start, stop, value = start + 1, stop - 1, value[1:-1]
    values[key] = value, Place(start, stop, piece.end())


def _addresses_of(values: _Values) -> list[ServerAddress]:
    """The address of one group; none where it is not reached by TCP."""
    absent = b"", Place(0, 0, 0)
    protocol = values.get(b"PROTOCOL", absent)[0].lower().decode("latin-1")
    if protocol not in ("tcp", "tcps"):
        return []
    port, port_place = values.get(b"PORT", absent)
    if not _PORT.fullmatch(port) or int(port) > 0xFFFF:
        raise Malformed(f"port {port[:40]!r}")
    text, host_place = values.get(b"HOST", absent)
    host = parse_host(text.decode("latin-1"))
    if text.startswith(b"["):
        host_place = replace(
            host_place, start=host_place.start + 1, stop=host_place.stop - 1
        )
    return [ServerAddress(protocol, host, int(port), host_place, port_place)]
