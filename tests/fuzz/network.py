# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine with several flows at once, behind NAT, and a kernel that says no.

Any packets in any order lead to no fault of a helper, and nothing opens that the guard
forbids (`tests.fuzz.oracle`). Every packet goes on, but where the configuration says
otherwise, and one that is rewritten is whole. What was placed and is not announced is
taken back. No packet takes long, and little is kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    Address,
    Direction,
    Endpoint,
    ExpectationRefused,
    Helper,
    Network,
    Transport,
    Tuple,
)
from cthelper.core.config import HelperConfig, parse
from cthelper.core.engine import Decision, Engine
from cthelper.core.grants import How, Placed, Withdrawn
from cthelper.core.guard import Guard
from cthelper.core.outcome import Fault
from cthelper.core.registry import register
from cthelper.core.tuples import Conntrack, Expectation, Status, key_of
from tests.fuzz.cost import WATCH, kept
from tests.fuzz.oracle import Announcement, check_packet, headers
from tests.fuzz.script import Script, Step

HEAD: Final = 42
"""Bytes before the steps, see `Scene.read`."""
FLOWS: Final = 4

FLOW_LIMIT: Final = 160 * 1024
"""Bytes that are kept of a flow at most."""
BASE: Final = 8192
"""Bytes that a flow takes of which little came; and then AMPLIFIED for each byte."""
AMPLIFIED: Final = 24

_SECONDS: Final = (0.0, 0.5, 31.0, 400.0)
_LONGEST: Final = 0xF000
_OURS: Final[dict[int, Address]] = {
    4: IPv4Address("203.0.113.77"),
    6: IPv6Address("2001:db8:ffff::77"),
}
_THEIRS: Final[dict[int, Address]] = {
    4: IPv4Address("203.0.113.80"),
    6: IPv6Address("2001:db8:ffff::80"),
}
_MOVED_PORT: Final = 61000
# Near the end, so that most streams pass it.
_FIRST: Final = {ORIGINAL: 0xFFFFFF80, REPLY: 0xFFFFFFF0}
_MODULUS: Final = 1 << 32
_NORMAL, _LYING, _AGAIN, _OVERLAPPING = range(4)
_LIES: Final = 6


class Kernel:
    """Places expectations, or says that it has no room, or that a port is taken.

    `live` are those that were placed since the last packet and not taken back.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed
        self.live: list[Placed] = []

    def place(
        self, entry: Conntrack, expectations: Sequence[Expectation]
    ) -> Sequence[Placed] | None:
        """Place all, or none; see `Placer`."""
        self._state = (self._state * 1103515245 + 12345) % (1 << 31)
        answer = self._state >> 16 & 7
        if answer == 0:
            raise ExpectationRefused("kernel-emfile", "the table is full")
        if answer < 3:
            return None
        how = How.SHARED if answer == 3 else How.CREATED
        placed = [
            Placed(each, how, None if answer == 4 else 1) for each in expectations
        ]
        self.live += placed
        return placed

    def withdraw(self, placed: Sequence[Placed]) -> None:
        """Take back what was placed. Raises AssertionError: it was not."""
        for each in placed:
            assert each in self.live, f"was not placed: {each}"
            self.live.remove(each)

    def revoke(self, entry: Conntrack, label: bytes) -> Sequence[Withdrawn]:
        """Take back what was labelled since the last packet, and is told of to nobody.

        What went before it is not known here.
        """
        revoked = [
            each.expectation
            for each in self.live
            if (each.expectation.master, each.expectation.label)
            == (entry.original, label)
        ]
        self.live = [each for each in self.live if each.expectation not in revoked]
        return [Withdrawn(each, 0) for each in revoked]


@dataclass(slots=True)
class _Flow:
    """A flow, and how far each side has sent; `last` is what each sent last."""

    announcer: dict[Direction, Announcement]
    entry: Conntrack
    sequences: dict[Direction, int]
    last: dict[Direction, bytes]
    wire: int = 0

    def packet(self, direction: Direction, payload: bytes, back: int = 0) -> bytes:
        """The next packet, or a segment that begins so many bytes before that."""
        tuple_ = self.entry.original if direction is ORIGINAL else self.entry.reply
        transport = tuple_.transport
        if transport is TCP:
            other = REPLY if direction is ORIGINAL else ORIGINAL
            behind = (
                ((self.sequences[direction] - back) % _MODULUS).to_bytes(4)
                + self.sequences[other].to_bytes(4)
                + b"\x50\x18\xff\xff\0\0\0\0"
                + payload
            )
        else:
            behind = (len(payload) + 8).to_bytes(2) + b"\0\0" + payload
        return _packet(tuple_, behind)

    def sent(self, direction: Direction, payload: bytes) -> None:
        """The side has sent this, and goes on behind it."""
        self.last[direction] = payload
        self.sequences[direction] += len(payload)
        self.sequences[direction] %= _MODULUS


def _packet(tuple_: Tuple, behind: bytes) -> bytes:
    source, destination = tuple_.source, tuple_.destination
    return headers(
        tuple_.transport,
        (source.address, destination.address),
        (source.port, destination.port),
        behind,
    )


Served = tuple[type[Helper], Transport]
"""A helper, over one of its transports."""


@dataclass(frozen=True, slots=True)
class Networks:
    """The target: helpers, eight at most, and options of some in TOML, by name."""

    helpers: tuple[Served, ...]
    own: tuple[tuple[str, str], ...]

    def __call__(self, data: bytes) -> None:
        """Have the engine handle the script in `data`. Raises AssertionError."""
        script = Script.read(data, HEAD)
        scene = _Scene(script.head, self)
        for step in script.steps:
            scene.take(step)
        scene.check_memory()

    def configs(self, number: int) -> dict[str, HelperConfig]:
        """What is configured: 1: addresses outside, 2: all hosts, 4: packets drop."""
        return _configs(self, number & 7)

    def seeds(
        self, conversations: Iterable[tuple[str, Iterable[bytes]]]
    ) -> Iterator[bytes]:
        """Conversations with one helper each, with and without NAT.

        They come as the name of the helper and the transport, and scripts of
        `tests.fuzz.conversation`, whose heads say less.
        """
        served = [f"{helper.name}-{transport}" for helper, transport in self.helpers]
        for name, scripts in conversations:
            number = served.index(name)
            for count, each in enumerate(scripts):
                yield self._seed(each, number, count)

    def _seed(self, conversation: bytes, number: int, count: int) -> bytes:
        script = Script.read(conversation, 38)
        flags, ports, addresses = script.head[0], script.head[2:6], script.head[6:38]
        nat = count % 4
        own = bytes([(flags & 1) | 8 | (count % 8) << 4, count % 256])
        flows = bytes([number | nat << 3, number | nat << 3 | 32, number, number | 192])
        head = own + flows + addresses + ports
        steps = tuple(
            Step((each.flags & 1) << 2, each.payload) for each in script.steps
        )
        return Script(head, steps).write()


@cache
def _configs(networks: Networks, number: int) -> dict[str, HelperConfig]:
    """The configuration of this number, parsed once."""
    helpers = register(dict.fromkeys(helper for helper, _ in networks.helpers))
    own = dict(networks.own)
    text = []
    for name, helper in helpers.items():
        text.append(f"[helpers.{name}]\n" + own.get(name, ""))
        if number & 1 and helper.nat:
            text.append(
                'nat.outside = ["192.0.2.11 203.0.113.11", '
                '"2001:db8::11 2001:db8:ffff::11"]\n'
            )
        if number & 2:
            text.append('guard.allow_hosts = ["0.0.0.0/0", "::/0"]\n')
        if number & 4 and helper.nat:
            text.append('nat.unrewritable = "drop"\n')
    config = parse("".join(text), Path("settings"), helpers)
    return dict(config.helpers)


class _Scene:
    """Who talks to whom, the engine between them, and what it must not do.

    The head of a script has flags (1: IPv6, 2: forwarded, 4: the flows were expected,
    8: a kernel that places; 16, 32 and 64: what is configured; 128: room for two
    flows), the kernel's seed, a byte for each of the flows (its helper in three bits,
    8: source NAT, 16: destination NAT, 32: another client, 64: not confirmed, 128: the
    client's port is translated, too), the client's address and the server's, of 16
    bytes each, and the client's port and the server's.
    """

    def __init__(self, head: bytes, networks: Networks) -> None:
        flags = head[0]
        self._forwarded = bool(flags & 2)
        self._now = 0.0
        self._kernel = Kernel(head[1])
        self._configs = networks.configs(flags >> 4)
        self._engine = Engine(
            self._configs,
            guard=Guard(),
            on_link=_on_link,
            clock=lambda: self._now,
            flow_limit=2 if flags & 128 else FLOWS,
            placer=self._kernel if flags & 8 else None,
        )
        self._head = head
        self._helpers = networks.helpers
        self._flows: dict[int, _Flow] = {}

    def _flow(self, number: int) -> _Flow:
        """The flow of this number, which begins where it was not there."""
        if number not in self._flows:
            self._flows[number] = self._begin(number)
        return self._flows[number]

    def _begin(self, number: int) -> _Flow:
        head, helpers = self._head, self._helpers
        version = 6 if head[0] & 1 else 4
        kind = head[2 + number]
        helper, transport = helpers[(kind & 7) % len(helpers)]
        client, server = _address(version, head[6:22]), _address(version, head[22:38])
        if kind & 32:
            client = _address(version, bytes(each ^ 1 for each in head[6:22]))
        port = int.from_bytes(head[38:40]) ^ number
        ours = Endpoint(client, port)
        theirs = Endpoint(server, int.from_bytes(head[40:42]))
        shown = ours
        if kind & 8:
            shown = Endpoint(_OURS[version], _MOVED_PORT if kind & 128 else port)
        known = Endpoint(_THEIRS[version], theirs.port) if kind & 16 else theirs
        original = Tuple(transport, ours, known)
        status = Status.SEEN_REPLY | Status.HELPER
        if not kind & 64:
            status |= Status.CONFIRMED
        expected = bool(head[0] & 4)
        entry = Conntrack(
            id=number + 1,
            original=original,
            reply=Tuple(transport, theirs, shown),
            status=status,
            helper=helper.name,
            master=original if expected else None,
        )
        announcer = {
            direction: Announcement(
                entry,
                direction,
                self._configs[helper.name],
                self._forwarded,
                int(expected),
            )
            for direction in (ORIGINAL, REPLY)
        }
        flow = _Flow(announcer, entry, dict(_FIRST), {ORIGINAL: b"", REPLY: b""})
        if transport is TCP:
            self._shake_hands(flow)
        return flow

    def _shake_hands(self, flow: _Flow) -> None:
        ours, theirs = _FIRST[ORIGINAL] - 1, _FIRST[REPLY] - 1
        rest = b"\xff\xff\0\0\0\0"
        syn = ours.to_bytes(4) + bytes(4) + b"\x50\x02" + rest
        answer = theirs.to_bytes(4) + _FIRST[ORIGINAL].to_bytes(4) + b"\x50\x12" + rest
        self._handle(flow, ORIGINAL, _packet(flow.entry.original, syn))
        self._handle(flow, REPLY, _packet(flow.entry.reply, answer))

    def take(self, step: Step) -> None:
        """Send what a step says.

        Its flags: the flow in two bits, 4: the reply direction, the kind in two bits
        (as it is; with lies; twice; as a segment that repeats the last one), the
        seconds that pass in two bits, 128: in two packets, over TCP the second first.
        """
        flow = self._flow(step.flags & 3)
        direction = REPLY if step.flags & 4 else ORIGINAL
        kind = step.flags >> 3 & 3
        self._now += _SECONDS[step.flags >> 5 & 3]
        payload = step.payload[:_LONGEST]
        if kind == _LYING:
            lies, payload = payload[:_LIES], payload[_LIES:]
            self._handle(flow, direction, _lie(flow.packet(direction, payload), lies))
            return
        over_tcp = flow.entry.original.transport is TCP
        if kind == _OVERLAPPING and over_tcp:
            whole = flow.last[direction] + payload
            back = len(flow.last[direction])
            self._handle(flow, direction, flow.packet(direction, whole, back))
            flow.sent(direction, payload)
            return
        packets = [flow.packet(direction, payload)]
        if step.flags & 128:
            half = len(payload) // 2
            first, second = payload[:half], payload[half:]
            packets = [
                flow.packet(direction, second, -half if over_tcp else 0),
                flow.packet(direction, first),
            ]
        for packet in packets:
            decision = self._handle(flow, direction, packet)
            if kind == _AGAIN:
                again = self._handle(flow, direction, packet)
                if over_tcp:
                    _check_again(packet, decision, again)
        flow.sent(direction, payload)

    def _handle(self, flow: _Flow, direction: Direction, packet: bytes) -> Decision:
        entry, kernel = flow.entry, self._kernel
        kernel.live.clear()
        flow.wire += len(packet)
        decision = WATCH.measure(
            lambda: self._engine.handle(
                packet, entry, direction, forwarded=self._forwarded
            )
        )
        for event in decision.events:
            if isinstance(event, Fault):
                raise AssertionError(f"fault: {event.error} at {event.where}")
        assert kernel.live == list(decision.placed), "placed, and neither told nor back"
        announcer = flow.announcer[direction]
        expectations = [each.expectation for each in decision.placed]
        expectations += decision.expectations
        for each in expectations:
            announcer.check(each)
        if decision.drop:
            assert announcer.config.nat.drop_unrewritable
            assert not expectations, f"dropped, yet expected: {expectations}"
        if decision.packet is not None:
            assert decision.packet != packet
            check_packet(decision.packet, packet)
        return decision

    def check_memory(self) -> None:
        """Little is kept of each flow, beside what came of it."""
        shared = [
            *self._configs.values(),
            *(each.entry for each in self._flows.values()),
        ]
        shared += [each.entry.original for each in self._flows.values()]
        wires = {key_of(each.entry): each.wire for each in self._flows.values()}
        for flow in self._engine.flows:
            table = [flow.share, flow.older, flow.newer]
            size = kept([flow], [*shared, *table])
            wire = wires[flow.key]
            limit = min(FLOW_LIMIT, BASE + AMPLIFIED * wire)
            assert size <= limit, f"{size} bytes are kept of {wire}"


def _check_again(packet: bytes, decision: Decision, again: Decision) -> None:
    """What is sent again leads to the same bytes, and to nothing else."""
    sent = decision.packet or packet
    assert decision.drop or again.drop or (again.packet or packet) == sent, (
        "was rewritten in another way"
    )
    assert not again.expectations, "what was sent again is expected again"
    assert not again.placed, "what was sent again is placed again"


def _lie(packet: bytes, lies: bytes) -> bytes:
    """The packet with other bytes in its headers: pairs of a place and what is there.

    Place 255 cuts so many bytes off the end, 254 has more follow.
    """
    lied = bytearray(packet)
    for place, value in zip(lies[::2], lies[1::2], strict=False):
        if place == 255:
            del lied[max(1, len(lied) - value) :]
        elif place == 254:
            lied += bytes(value)
        else:
            lied[place % min(len(lied), 80)] = value
    return bytes(lied)


def _address(version: int, packed: bytes) -> Address:
    return IPv6Address(packed) if version == 6 else IPv4Address(packed[:4])


def _on_link(address: Address) -> tuple[Network, ...]:
    prefix = 24 if address.version == 4 else 64
    return (ip_network(f"{address}/{prefix}", strict=False),)
