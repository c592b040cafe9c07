# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine with helpers of the tests' own, a clock, and packets to hand it."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_network

import pytest

from cthelper.core.api import (
    DONE,
    ON_LINK,
    Address,
    Effects,
    Endpoint,
    ExpectationRefused,
    Helper,
    Malformed,
    Message,
    Network,
    OptionValue,
    Policy,
    Rewrite,
    Transport,
    Withdraw,
    expect,
)
from cthelper.core.config import HelperConfig
from cthelper.core.engine import Decision, Engine
from cthelper.core.grants import How, OnLink, Placed, Withdrawn
from cthelper.core.guard import Guard
from cthelper.core.outcome import Fault, Finished
from cthelper.core.reader import Watch
from cthelper.core.tuples import (
    ORIGINAL,
    TCP,
    UDP,
    Conntrack,
    Direction,
    Expectation,
)
from tests.core.builders import (
    CLIENT,
    SERVER,
    SERVER_PORT,
    conntrack,
    endpoint,
    flow_tuple,
    tcp,
    udp,
)

FIRST = 2**32 - 5
LINK = ip_network("192.0.2.0/24")
OTHER_LINK = ip_network("198.51.100.0/24")
CLIENT_ALONE = ip_network(CLIENT)
SERVER_ALONE = ip_network(SERVER)


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kernel:
    """Takes expectations, but not for ports that are `taken`, or where it is `full`."""

    def __init__(self, taken: Collection[int] = ()) -> None:
        self.taken = set(taken)
        self.present: list[Expectation] = []
        self.full = False

    def place(
        self, entry: Conntrack, expectations: Sequence[Expectation]
    ) -> Sequence[Placed] | None:
        """Take all, or none where one's port is taken (Placer)."""
        if self.full:
            raise ExpectationRefused("kernel-emfile", "the table is full")
        wanted = {each.destination.port for each in expectations}
        if wanted & self.taken:
            return None
        self.taken |= wanted
        self.present += expectations
        return [Placed(each, How.CREATED, 1) for each in expectations]

    def withdraw(self, placed: Sequence[Placed]) -> None:
        """Take them out again."""
        for each in placed:
            self.present.remove(each.expectation)
            self.taken.remove(each.expectation.destination.port)

    def revoke(self, entry: Conntrack, label: bytes) -> Sequence[Withdrawn]:
        """Take out what the flow has labelled."""
        revoked = [
            each
            for each in self.present
            if (each.master, each.label) == (entry.original, label)
        ]
        self.withdraw([Placed(each, How.CREATED, 1) for each in revoked])
        return [Withdrawn(each, 0) for each in revoked]


class Commands(Helper):
    """One command a message; OPEN PORT announces a port of the sender."""

    ports = (SERVER_PORT,)
    policies = (Policy("data", max_expected=2, timeout=60), Policy("chained"))
    message_limit = 32

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def on_message(self, message: Message) -> Effects:
        self.messages.append(message)
        own = message.source.address
        word, *arguments = message.payload.decode("latin-1").split() or [""]
        numbers = [int(each) for each in arguments if each.isdigit()]
        match word:
            case "OPEN":
                for port in numbers:
                    yield from expect(Endpoint(own, port), policy="data")
            case "TRY":
                for port in numbers:
                    with suppress(ExpectationRefused):
                        yield from expect(Endpoint(own, port), policy="data")
            case "GRANT":
                grant = yield from expect(Endpoint(own, numbers[0]), policy="data")
                yield Rewrite((6, 10), b"%d" % grant.endpoint.port)
            case "AGAIN":
                try:
                    yield from expect(Endpoint(own, numbers[0]), policy="data")
                except ExpectationRefused:
                    yield from expect(Endpoint(own, numbers[1]), policy="data")
            case "LABEL":
                own_end = Endpoint(own, numbers[0])
                label = arguments[1].encode()
                yield from expect(own_end, policy="data", label=label)
            case "WITHDRAW":
                yield Withdraw(arguments[0].encode())
            case "LINK":
                yield from expect(
                    Endpoint(own, numbers[0]), policy="data", source=ON_LINK
                )
            case "POLICY":
                yield from expect(Endpoint(own, 5000), policy=arguments[0])
            case "CHAIN":
                (name,) = arguments or ["line"]
                yield from expect(Endpoint(own, 5000), policy="chained", helper=name)
            case "OTHER":
                other = Endpoint(IPv6Address("2001:db8::1"), numbers[0])
                yield from expect(other, policy="data")
            case "REFUSE":
                raise ExpectationRefused("out-of-turn", "nobody asked")
            case "RAISE":
                raise {"bug": ZeroDivisionError, "assert": AssertionError}[
                    arguments[0]
                ]("in the helper")
            case "OPEN-RAISE":
                yield from expect(Endpoint(own, numbers[0]), policy="data")
                raise RuntimeError("after the expectation")
            case "REWRITE":
                yield Rewrite((8, 8 + len(arguments[0])), arguments[0].encode())
            case "CHANGE":
                yield Rewrite((0, 6), b"was")
                yield Rewrite((7, 7), b"and ")
            case "BEYOND":
                yield Rewrite((0, 100), b"x")
            case "DONE":
                yield DONE
            case "" | "NOTHING":
                pass
            case _:
                raise Malformed(f"command {word!r}")


class Lines(Commands):
    """The commands over TCP, each ended by a line feed."""

    name = "line"
    transports = frozenset({TCP})

    def frame(self, data: memoryview) -> int | None:
        text = bytes(data)
        if text[:1] == b"!":
            rest = data[1:]
            raise Malformed(f"{len(rest)} bytes behind a !")
        if text[:1] == b"#":
            return int(text[1:4])
        return text.find(b"\n") + 1 or None


class Datagrams(Commands):
    """The commands over UDP."""

    name = "datagram"
    transports = frozenset({UDP})


def on_link(address: Address) -> tuple[Network, ...]:
    if address == endpoint(CLIENT, 0).address:
        return LINK, OTHER_LINK
    raise ExpectationRefused("off-link", f"{address} is on-link with no network")


def configured(
    helper: type[Helper], options: Mapping[str, OptionValue] | None = None
) -> HelperConfig:
    return HelperConfig(
        helper=helper,
        queue=0,
        ports=helper.ports,
        policies=helper.policies,
        options=options or {},
    )


class Host:
    """An engine and one flow through it."""

    def __init__(
        self,
        helper: type[Helper],
        watch: Watch | None = None,
        on_link: OnLink = on_link,
    ) -> None:
        (transport,) = helper.transports
        self.clock = Clock()
        self.engine = Engine(
            {helper.name: configured(helper, {"strict": True})},
            guard=Guard(),
            on_link=on_link,
            clock=self.clock,
            flow_limit=16,
            watch=watch,
        )
        self.transport: Transport = transport
        self.entry = conntrack(flow_tuple(transport), helper=helper.name)
        self._sent: dict[Direction, int] = {}

    def handle(self, packet: bytes, direction: Direction = ORIGINAL) -> Decision:
        return self.engine.handle(packet, self.entry, direction)

    def send(self, payload: bytes, direction: Direction = ORIGINAL) -> Decision:
        """The next bytes of the direction, after a handshake on TCP."""
        if self.transport is UDP:
            return self.handle(udp(payload, direction=direction), direction)
        if direction not in self._sent:
            syn = tcp(b"", FIRST - 1, flags="S", direction=direction)
            assert self.handle(syn, direction).events == ()
            self._sent[direction] = 0
        offset = self._sent[direction]
        self._sent[direction] += len(payload)
        return self.segment(offset, payload, direction)

    def segment(
        self, offset: int, payload: bytes, direction: Direction = ORIGINAL
    ) -> Decision:
        packet = tcp(payload, FIRST + offset, direction=direction)
        return self.handle(packet, direction)

    def next_flow(self) -> None:
        """Go on with another flow, which has another conntrack id."""
        original = self.entry.original
        self.entry = conntrack(
            original, id_=self.entry.id + 1, helper=self.entry.helper
        )
        self._sent.clear()

    @property
    def messages(self) -> list[Message]:
        """What the helper of the flow has read."""
        flow = self.engine.flows.find(self.entry)
        assert flow is not None
        assert isinstance(flow.helper, Commands)
        return flow.helper.messages


def expectation(
    host: Host,
    port: int,
    *,
    source: Network | None = SERVER_ALONE,
    address: str = CLIENT,
) -> Expectation:
    """What the client gets when it announces `port`, unless told."""
    return Expectation(
        master=host.entry.original,
        transport=host.transport,
        source=source,
        source_port=None,
        destination=endpoint(address, port),
        policy="data",
        timeout=60,
    )


BOTH = pytest.mark.parametrize("helper", [Lines, Datagrams], ids=["TCP", "UDP"])


def fault_of(decision: Decision) -> Fault:
    """The fault, after a look at what else a fault means."""
    assert decision.flow is not None
    assert decision.flow.finished == "fault"
    assert (decision.expectations, decision.packet) == ((), None)
    fault, finished = decision.events
    assert finished == Finished("fault")
    assert isinstance(fault, Fault)
    return fault
