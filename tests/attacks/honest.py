# SPDX-License-Identifier: GPL-2.0-or-later
"""Honest sessions, one kind for each helper: what a user does while others attack.

Each has a number, which its ports come from. What is expected of it, and who opens the
flow that it announces, is written down here by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cthelper.core.tuples import TCP, UDP, Transport
from tests.attacks import wire
from tests.attacks.wire import (
    CONNECT,
    DHCPV6_GROUP,
    GATEWAY,
    GATEWAY_LOCAL6,
    HONEST,
    HONEST_SERVER,
    LINK,
    MDNS_GROUP,
    SLP_GROUP,
    Connection,
    datagram,
    udp_flow,
)

_OWN_PORT, _DATA, _OPENED_FROM = 50000, 40000, 45000
_NEIGHBOUR, _SERVER6 = "192.0.2.77", "2001:db8:1::53"


@dataclass(frozen=True, slots=True)
class Session:
    """One exchange, by number: its packets, what is expected, and who then comes."""

    transport: Transport
    packets: Callable[[int], list[bytes]]
    expects: Callable[[int], str]
    opens: Callable[[int], tuple[tuple[str, int], tuple[str, int]]]


def _tns(number: int) -> list[bytes]:
    line = Connection((HONEST, _OWN_PORT + number), (HONEST_SERVER, 1521))
    text = wire.address_of(HONEST_SERVER, _DATA + number)
    return [
        *line.opened(),
        *line.sent(CONNECT),
        *line.answered(wire.redirect(text)),
    ]


def _rpc(number: int) -> list[bytes]:
    way = udp_flow((HONEST, _OWN_PORT + number), (HONEST_SERVER, 111))
    answer = wire.reply(number, wire.xdr(_DATA + number))
    return [
        datagram(way, wire.getport(number)),
        datagram(wire.turned(way), answer),
    ]


def _ftp(number: int) -> list[bytes]:
    line = Connection((HONEST, _OWN_PORT + number), (HONEST_SERVER, 21))
    six = wire.six(HONEST_SERVER, _DATA + number)
    return [
        *line.opened(),
        *line.answered(b"220 ready\r\n"),
        *line.sent(b"USER u\r\n"),
        *line.answered(b"230 in\r\n"),
        *line.sent(b"PASV\r\n"),
        *line.answered(b"227 Entering (" + six + b")\r\n"),
    ]


def _sane(number: int) -> list[bytes]:
    line = Connection((HONEST, _OWN_PORT + number), (HONEST_SERVER, 6566))
    return [
        *line.opened(),
        *line.sent(wire.SANE_INIT),
        *line.answered(wire.SANE_HELLO),
        *line.sent(wire.SANE_START),
        *line.answered(wire.sane_start(_DATA + number)),
    ]


def _amanda(number: int) -> list[bytes]:
    way = udp_flow((HONEST, _OWN_PORT + number), (HONEST_SERVER, 10080))
    return [
        datagram(way, wire.amanda("REQ", number)),
        datagram(
            wire.turned(way),
            wire.amanda("REP", number, f"CONNECT DATA {_DATA + number}"),
        ),
    ]


def _mdns(number: int) -> list[bytes]:
    way = udp_flow((GATEWAY, _OWN_PORT + number), (MDNS_GROUP, 5353))
    return [datagram(way, wire.mdns_query())]


def _slp(number: int) -> list[bytes]:
    way = udp_flow((GATEWAY, _OWN_PORT + number), (SLP_GROUP, 427))
    return [datagram(way, wire.slp_request())]


def _tftp(number: int) -> list[bytes]:
    way = udp_flow((HONEST, _OWN_PORT + number), (HONEST_SERVER, 69))
    return [datagram(way, wire.tftp())]


def _dhcpv6(_number: int) -> list[bytes]:
    way = udp_flow((GATEWAY_LOCAL6, 546), (DHCPV6_GROUP, 547))
    return [datagram(way, wire.dhcpv6())]


def _to_server(number: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return (HONEST, _OPENED_FROM + number), (HONEST_SERVER, _DATA + number)


def _expects_server(number: int) -> str:
    return f"tcp {HONEST} > {HONEST_SERVER}:{_DATA + number}"


SESSIONS: Final = {
    "tns": Session(TCP, _tns, _expects_server, _to_server),
    "sunrpc": Session(TCP, _rpc, _expects_server, _to_server),
    "ftp": Session(TCP, _ftp, _expects_server, _to_server),
    "sane": Session(TCP, _sane, _expects_server, _to_server),
    "amanda": Session(TCP, _amanda, _expects_server, _to_server),
    "mdns": Session(
        UDP,
        _mdns,
        lambda number: f"udp {LINK} port 5353 > {GATEWAY}:{_OWN_PORT + number}",
        lambda number: ((_NEIGHBOUR, 5353), (GATEWAY, _OWN_PORT + number)),
    ),
    "slp": Session(
        UDP,
        _slp,
        lambda number: f"udp {LINK} port 427 > {GATEWAY}:{_OWN_PORT + number}",
        lambda number: ((_NEIGHBOUR, 427), (GATEWAY, _OWN_PORT + number)),
    ),
    "tftp": Session(
        UDP,
        _tftp,
        lambda number: f"udp {HONEST_SERVER} > {HONEST}:{_OWN_PORT + number}",
        lambda number: ((HONEST_SERVER, _DATA), (HONEST, _OWN_PORT + number)),
    ),
    "dhcpv6": Session(
        UDP,
        _dhcpv6,
        lambda _: f"udp any > [{GATEWAY_LOCAL6}]:546",
        lambda number: ((_SERVER6, 60000 + number), (GATEWAY_LOCAL6, 546)),
    ),
}
"""By helper."""
