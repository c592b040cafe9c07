# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper on one flow, in an engine: what passes, and what is opened or refused.

A kernel's table stands beside it, which takes what is expected of a translated flow.
"""

from collections.abc import Collection
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from cthelper.core.api import Helper, Transport
from cthelper.core.config import HelperConfig, parse
from cthelper.core.engine import Engine
from cthelper.core.errors import ExpectationRefused
from cthelper.core.grants import OnLink, Placer
from cthelper.core.guard import Guard
from cthelper.core.outcome import Event, Finished, Refused
from cthelper.core.packet import locate
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    Address,
    Conntrack,
    Direction,
    Expectation,
    Network,
)
from tests.core.builders import CLIENT, SERVER, conntrack, flow_tuple, tcp, udp
from tests.core.host import Kernel

LINK: Final = {4: ("192.0.2.0/24",), 6: ("fe80::/10", "2001:db8::/64")}
"""The networks on the clients' link, by IP version."""


def on_link(address: Address) -> tuple[Network, ...]:
    """The networks of the clients' link, for who is there."""
    networks = tuple(map(ip_network, LINK[address.version]))
    if not any(address in each for each in networks):
        raise ExpectationRefused("off-link", f"{address} is on no link")
    return networks


def nobody(address: Address) -> tuple[Network, ...]:
    """For helpers that do not ask who is on the link."""
    raise AssertionError(f"somebody asked for the link of {address}")


def configured(helper: type[Helper], *lines: str) -> HelperConfig:
    """A helper's configuration, with these lines in its table."""
    text = "".join(f"helpers.{helper.name}.{line}\n" for line in lines)
    return parse(text, Path("test.toml"), {helper.name: helper}).helpers[helper.name]


def engine_with(
    config: HelperConfig,
    *,
    on_link: OnLink = nobody,
    placer: Placer | None = None,
) -> Engine:
    """An engine with one helper, in which no time passes."""
    return Engine(
        {config.helper.name: config},
        guard=Guard(),
        on_link=on_link,
        clock=lambda: 0.0,
        flow_limit=8,
        placer=placer,
    )


def entry_of(
    helper: type[Helper],
    client: tuple[str, int] = (CLIENT, 40000),
    server: str = SERVER,
    *,
    transport: Transport | None = None,
    seen_as: tuple[str, int] | None = None,
    inside: str | None = None,
) -> Conntrack:
    """The entry of a flow to the helper's port, over its only transport unless told.

    `seen_as` is what the server takes for the client, `inside` the server's own
    address, where they are translated.
    """
    if transport is None:
        (transport,) = helper.transports
    (port, *_) = helper.ports
    return conntrack(
        flow_tuple(transport, client, (server, port)),
        flow_tuple(transport, (inside or server, port), seen_as or client),
        helper=helper.name,
    )


class Inspected:
    """The flow of `entry`; on TCP, after the handshake.

    `lines` stand in the helper's table of the configuration, and `taken` are ports that
    others have in the kernel.
    """

    def __init__(
        self,
        helper: type[Helper],
        entry: Conntrack,
        *lines: str,
        taken: Collection[int] = (),
    ) -> None:
        self.kernel = Kernel(taken)
        self._engine = engine_with(configured(helper, *lines), placer=self.kernel)
        self.entry = entry
        self.events: list[Event] = []
        # Those that go to the kernel with the packet, which need not be placed.
        self.collected: list[Expectation] = []
        self._tcp = entry.original.transport is TCP
        self._next = dict.fromkeys(Direction, 1)
        if self._tcp:
            self._segment(b"", 0, ORIGINAL, flags="S")
            self._segment(b"", 0, REPLY, flags="SA")

    def sent(self, *payloads: bytes) -> bytes:
        """The client sends these, a packet each; what the server gets."""
        return b"".join(self._pass(each, ORIGINAL) for each in payloads)

    def answered(self, *payloads: bytes) -> bytes:
        """The server sends these, a packet each; what the client gets."""
        return b"".join(self._pass(each, REPLY) for each in payloads)

    @property
    def expectations(self) -> list[Expectation]:
        """All that was expected."""
        return self.collected + self.kernel.present

    @property
    def refused(self) -> list[str]:
        """The reasons of refusals; nothing else went wrong."""
        assert all(isinstance(each, Refused | Finished) for each in self.events)
        return [each.reason for each in self.events if isinstance(each, Refused)]

    def _pass(self, payload: bytes, direction: Direction) -> bytes:
        if self._tcp:
            sequence = self._next[direction]
            self._next[direction] += len(payload)
            packet = self._segment(payload, sequence, direction)
        else:
            version = self.entry.original.source.address.version
            packet = udp(payload, direction=direction, version=version)
            packet = self._handle(packet, direction)
        segment = locate(packet)
        assert segment is not None
        return packet[segment.start : segment.stop]

    def _segment(
        self, payload: bytes, sequence: int, direction: Direction, flags: str = "PA"
    ) -> bytes:
        version = self.entry.original.source.address.version
        packet = tcp(
            payload, sequence, flags=flags, direction=direction, version=version
        )
        return self._handle(packet, direction)

    def _handle(self, packet: bytes, direction: Direction) -> bytes:
        """Have the engine inspect a packet; what goes on in its place."""
        handled = self._engine.handle(packet, self.entry, direction)
        self.collected += handled.expectations
        self.events += handled.events
        assert handled.packet is None or self.entry.translated
        return handled.packet or packet
