# SPDX-License-Identifier: GPL-2.0-or-later
"""A client and a server with a translating gateway between them, for tests.

What each side shows of a packet is written down here once more, by hand.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from cthelper.core import tuples
from cthelper.core.api import (
    Effects,
    Endpoint,
    Helper,
    Message,
    Policy,
    Rewrite,
    expect,
)
from cthelper.core.config import Config, parse
from cthelper.core.offline.events import (
    Event,
    ExpectationEvent,
    RefusedEvent,
    RelatedEvent,
)
from cthelper.core.offline.nat import Nat, Side
from cthelper.core.offline.replay import Replay
from cthelper.core.packet import locate
from cthelper.core.registry import register
from cthelper.core.tuples import Expectation, Tuple
from tests.core.builders import flow_tuple

CONTROL, OPENED_FROM, DATA = 7000, 41000, 5000


@dataclass(frozen=True, slots=True)
class Gateway:
    """Addresses as text: the hosts' own, and what the other one knows each by."""

    client: str
    client_known: str
    server_known: str
    server: str

    def client_on(self, side: Side) -> str:
        """The client's address in a packet on this side."""
        return self.client if side is Side.CLIENT else self.client_known

    def server_on(self, side: Side) -> str:
        """The server's address in a packet on this side."""
        return self.server_known if side is Side.CLIENT else self.server

    def nat(self, side: Side) -> Nat:
        """What replay is told."""
        sources, destinations = {}, {}
        if self.client != self.client_known:
            sources[ip_address(self.client)] = ip_address(self.client_known)
        if self.server != self.server_known:
            destinations[ip_address(self.server_known)] = ip_address(self.server)
        return Nat(sources=sources, destinations=destinations, side=side)


def _gateways(
    client: str, client_known: str, server_known: str, server: str
) -> list[Gateway]:
    return [
        Gateway(client, client_known, server, server),
        Gateway(client, client, server_known, server),
        Gateway(client, client_known, server_known, server),
    ]


# Source NAT, destination NAT, and both, with addresses of several lengths as text.
GATEWAYS4: Final = _gateways("10.77.1.2", "203.0.113.201", "203.0.113.80", "10.0.0.2")
GATEWAYS6: Final = _gateways("fd77:1::2", "2001:db8:c::201", "2001:db8::80", "fd77::2")


def flow(source: tuple[str, int], to: tuple[str, int]) -> Tuple:
    return flow_tuple(tuples.UDP, source, to)


class Announcer(Helper):
    """OPEN ADDRESS PORT, from either side: the other one will send to there."""

    name = "announcer"
    transports = frozenset({tuples.UDP})
    ports = (CONTROL,)
    policies = (Policy("data", max_expected=4, timeout=100),)

    def on_message(self, message: Message) -> Effects:
        found = re.fullmatch(
            rb"(?P<word>OPEN|PAIR) (?P<end>(\S+) (\d+))", message.payload
        )
        if found is not None:
            address, port = ip_address(found[3].decode()), int(found[4])
            grant = yield from expect(
                Endpoint(address, port), policy="data", pair=found["word"] == b"PAIR"
            )
            text = f"{grant.endpoint.address} {grant.endpoint.port}"
            yield Rewrite(found.span("end"), text.encode())


CONFIG: Final[Config] = parse("", Path("test.toml"), register([Announcer]))


def datagram(payload: bytes, source: tuple[str, int], to: tuple[str, int]) -> bytes:
    ip = IP if ip_address(source[0]).version == 4 else IPv6
    header = ip(src=source[0], dst=to[0])
    return bytes(header / UDP(sport=source[1], dport=to[1]) / payload)


@dataclass
class Played:
    """What a replay says, and the payloads that go on."""

    events: list[Event]
    passed: list[bytes]

    @property
    def made(self) -> list[Expectation]:
        return [
            each.expectation
            for each in self.events
            if isinstance(each, ExpectationEvent)
        ]

    @property
    def met(self) -> list[Tuple]:
        return [each.flow for each in self.events if isinstance(each, RelatedEvent)]

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in self.events if isinstance(each, RefusedEvent)]


def payload_of(packet: bytes) -> bytes:
    segment = locate(packet)
    assert segment is not None
    return packet[segment.start : segment.stop]


def play(packets: Sequence[bytes], nat: Nat | None, config: Config = CONFIG) -> Played:
    runner = Replay(config, nat=nat, warn=pytest.fail, watch=True)
    played = Played([], [])
    for number, packet in enumerate(packets, 1):
        _, decision, events = runner.step(number, number / 10, packet, 0)
        played.events += events
        replaced = None if decision is None else decision.packet
        played.passed.append(payload_of(packet if replaced is None else replaced))
    return played


@dataclass(frozen=True)
class Cell:
    """One way to be translated, to announce, and to look at it."""

    gateway: Gateway
    opens: Side
    side: Side

    def __str__(self) -> str:
        gateway = self.gateway
        nat = [
            *(["snat"] if gateway.client != gateway.client_known else []),
            *(["dnat"] if gateway.server != gateway.server_known else []),
        ]
        family = ip_address(gateway.client).version
        return f"{'+'.join(nat)}-{family}-{self.opens.value}-opens-{self.side.value}"

    @property
    def announcer(self) -> str:
        """The own address of the side that announces."""
        server = self.opens is Side.CLIENT
        return self.gateway.server if server else self.gateway.client

    @property
    def told(self) -> str:
        """The address that the opener knows the announcer by."""
        gateway = self.gateway
        server = self.opens is Side.CLIENT
        return gateway.server_known if server else gateway.client_known

    @property
    def opener(self) -> str:
        """The own address of the side that opens the data flow."""
        client = self.opens is Side.CLIENT
        return self.gateway.client if client else self.gateway.server

    @property
    def announcer_shown(self) -> str:
        """The announcer's address in the capture."""
        server = self.opens is Side.CLIENT
        gateway = self.gateway
        return (gateway.server_on if server else gateway.client_on)(self.side)

    def packets(
        self, announced: bytes, data: int = DATA, *, confirmed: bool = True
    ) -> list[bytes]:
        """A control flow, the announcement, and a data flow as this side shows them.

        Unless `confirmed` the announcement is the first packet, and so the client's.
        """
        client = self.gateway.client_on(self.side)
        server = self.gateway.server_on(self.side)
        control = (client, 40000), (server, CONTROL)
        greeting = [
            datagram(b"HELLO", *control),
            datagram(b"HELLO", *control[::-1]),
        ]
        if self.opens is Side.CLIENT:
            ends = (client, OPENED_FROM), (server, data)
            control = control[::-1]
        else:
            ends = (server, OPENED_FROM), (client, data)
        return [
            *(greeting if confirmed else []),
            datagram(announced, *control),
            datagram(b"x", *ends),
        ]


CELLS: Final = [
    Cell(gateway, opens, side)
    for gateway in (*GATEWAYS4, *GATEWAYS6)
    for opens in Side
    for side in Side
]


def announcement(address: str, port: int = DATA) -> bytes:
    return f"OPEN {address} {port}".encode()
