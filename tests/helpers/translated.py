# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper on one flow behind NAT, in an engine, with a kernel's table beside it."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from cthelper.core.api import Helper, Transport
from cthelper.core.config import parse
from cthelper.core.engine import Decision, Engine
from cthelper.core.errors import ExpectationRefused
from cthelper.core.guard import Guard, Rules
from cthelper.core.outcome import Finished, Refused
from cthelper.core.packet import locate
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    Address,
    Conntrack,
    Direction,
    Endpoint,
    Expectation,
    Network,
)
from tests.core.builders import conntrack, flow_tuple, tcp, udp

# The client's own address, what the server knows it by; what the client knows the
# server by, and the server's own address, by IP version.
CLIENT: Final = {4: "192.0.2.1", 6: "2001:db8:1::1"}
MASQUERADED: Final = {4: "203.0.113.9", 6: "2001:db8:9::9"}
PUBLIC: Final = {4: "203.0.113.80", 6: "2001:db8:9::80"}
SERVER: Final = {4: "10.0.0.2", 6: "fd00::2"}

NATS: Final = ("snat", "dnat", "both")


def entry_of(
    transport: Transport,
    helper: type[Helper],
    version: int = 4,
    nat: str = "dnat",
    *,
    server: str | None = None,
    public: str | None = None,
) -> Conntrack:
    """A flow's entry; `nat` says which side is translated."""
    (port, *_) = helper.ports
    server = server or SERVER[version]
    public = server if nat == "snat" else public or PUBLIC[version]
    known = (CLIENT if nat == "dnat" else MASQUERADED)[version]
    return conntrack(
        flow_tuple(transport, (CLIENT[version], 650), (public, port)),
        flow_tuple(transport, (server, port), (known, 650)),
        helper=helper.name,
    )


def is_a_hosts(address: Address) -> bool:
    """Whether the guard takes it for the address of a host."""
    try:
        Guard().check(Endpoint(address, 5000), address, Rules())
    except ExpectationRefused:
        return False
    return True


class Kernel:
    """Takes expectations, but not for ports that are taken (Placer)."""

    def __init__(self, taken: Collection[int]) -> None:
        self._taken = set(taken)
        self.present: list[Expectation] = []

    def place(
        self, entry: Conntrack, helper: str, expectations: Sequence[Expectation]
    ) -> Sequence[Expectation] | None:
        """Take all, or none where one's port is taken."""
        ports = {each.destination.port for each in expectations}
        if ports & self._taken:
            return None
        self.present += expectations
        return expectations

    def withdraw(self, expectations: Sequence[Expectation]) -> None:
        """Take them out again."""
        for each in expectations:
            self.present.remove(each)


class Translated:
    """The flow. `taken` are ports that others have in the kernel."""

    def __init__(
        self,
        helper: type[Helper],
        entry: Conntrack,
        settings: str = "",
        taken: Collection[int] = (),
    ) -> None:
        def nowhere(address: object) -> tuple[Network, ...]:
            raise ExpectationRefused("off-link", f"{address}")

        self.kernel = Kernel(taken)
        self._entry = entry
        self._transport = entry.original.transport
        self._engine = Engine(
            parse(settings, Path("nat"), {helper.name: helper}).helpers,
            guard=Guard(),
            on_link=nowhere,
            clock=lambda: 0.0,
            flow_limit=4,
            placer=self.kernel,
        )
        self._next = dict.fromkeys(Direction, 1)
        self.refused: list[str] = []
        # Those that go to the kernel with the packet, which need not be placed.
        self.collected: list[Expectation] = []
        if self._transport is TCP:
            for direction in Direction:
                self._handle(tcp(b"", 0, flags="S", direction=direction), direction)

    def sent(self, payload: bytes) -> bytes:
        """The client sends this in one packet; what the server gets."""
        return self._pass(payload, ORIGINAL)

    def answered(self, payload: bytes) -> bytes:
        """The server sends this in one packet; what the client gets."""
        return self._pass(payload, REPLY)

    def _pass(self, payload: bytes, direction: Direction) -> bytes:
        if self._transport is TCP:
            packet = tcp(payload, self._next[direction], direction=direction)
            self._next[direction] += len(payload)
        else:
            packet = udp(payload, direction=direction)
        decision = self._handle(packet, direction)
        if decision.packet is None:
            return payload
        segment = locate(decision.packet)
        assert segment is not None
        return decision.packet[segment.start : segment.stop]

    def _handle(self, packet: bytes, direction: Direction) -> Decision:
        decision = self._engine.handle(packet, self._entry, direction)
        self.collected += decision.expectations
        for each in decision.events:
            if isinstance(each, Refused):
                self.refused.append(each.reason)
            else:
                assert isinstance(each, Finished), each
        return decision
