# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper that reads whatever two peers may say, through the engine.

Any bytes in any direction lead to effects, Malformed or ExpectationRefused. No other
exception: to the engine that is a fault, and here a finding. Each message leads to a
bounded number of effects. And all comes out the same where TCP's segments are cut in
another way (of a flow without NAT), and where nobody asks for a description.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Address,
    Direction,
    Effect,
    Endpoint,
    Helper,
    Hook,
    Malformed,
    Message,
    Network,
    Transport,
    Tuple,
    Withdraw,
)
from cthelper.core.config import Budget, HelperConfig, parse
from cthelper.core.engine import Engine
from cthelper.core.flows import FlowTable
from cthelper.core.guard import Guard
from cthelper.core.offline.events import MessageEvent
from cthelper.core.offline.replay import Replay
from cthelper.core.outcome import Damaged, Event, Fault
from cthelper.core.packet import locate
from cthelper.core.registry import register
from cthelper.core.tuples import Conntrack, Expectation, Status
from tests.fuzz.cost import WATCH
from tests.fuzz.script import Script, Step
from tests.fuzz.seeds import captures, frames

EFFECT_LIMIT: Final = 256
"""Effects of one message. The kernel keeps at most 255 expectations of a class."""

HEAD: Final = 38
"""Bytes before the steps, see `Scene.read`."""

_SECONDS: Final = (0.0, 1.0, 31.0, 400.0)
# Beyond it a payload does not fit an IPv4 packet.
_LONGEST: Final = 0xFF00
_TRANSLATED: Final[dict[int, Address]] = {
    4: IPv4Address("203.0.113.77"),
    6: IPv6Address("2001:db8:ffff::77"),
}
_PREFIX: Final = {4: 24, 6: 64}
# Near the end, so that most streams pass it.
_FIRST: Final = {ORIGINAL: 0xFFFFFF80, REPLY: 0xFFFFFFF0}


@dataclass(frozen=True, slots=True)
class Scene:
    """Who talks to whom, and what is configured."""

    entry: Conntrack
    config: HelperConfig
    forwarded: bool
    depth: int

    @classmethod
    def read(
        cls, head: bytes, transport: Transport, configs: tuple[HelperConfig, ...]
    ) -> "Scene":
        """The scene that the head of a script means.

        Flags (1: IPv6, 2: forwarded, 4: source NAT, 8: destination NAT; the upper four
        bits are the depth), the number of the configuration, the client's port and the
        server's, the client's address and the server's.
        """
        flags, number = head[0], head[1]
        client, server = _address(flags, head[6:22]), _address(flags, head[22:38])
        original = Tuple(
            transport,
            Endpoint(client, int.from_bytes(head[2:4])),
            Endpoint(server, int.from_bytes(head[4:6])),
        )
        translated = _TRANSLATED[client.version]
        reply = Tuple(
            transport,
            _moved(original.destination, translated, flags & 8),
            _moved(original.source, translated, flags & 4),
        )
        config = configs[number % len(configs)]
        depth = flags >> 4
        entry = Conntrack(
            id=1,
            original=original,
            reply=reply,
            status=Status.CONFIRMED | Status.SEEN_REPLY,
            helper=config.helper.name,
            master=original if depth else None,
        )
        return cls(entry, config, bool(flags & 2), depth)


def _address(flags: int, packed: bytes) -> Address:
    return IPv6Address(packed) if flags & 1 else IPv4Address(packed[:4])


def _moved(endpoint: Endpoint, address: Address, moved: int) -> Endpoint:
    return Endpoint(address, endpoint.port) if moved else endpoint


def head(flow: Tuple, number: int = 0, translated: int = 0) -> bytes:
    """The head of a script for a flow, with configuration `number`.

    `translated` is 0, or the flags of source NAT and destination NAT.
    """
    client, server = flow.source, flow.destination
    return (
        bytes([(client.address.version == 6) | translated, number])
        + client.port.to_bytes(2)
        + server.port.to_bytes(2)
        + client.address.packed.ljust(16, b"\0")
        + server.address.packed.ljust(16, b"\0")
    )


@dataclass(frozen=True, slots=True)
class Conversations:
    """The target of one helper over one transport.

    `settings` are configurations in TOML; `folder` holds the captures in pcaps/, and
    `spoken` gives conversations that none of them holds.
    """

    helper: type[Helper]
    transport: Transport
    folder: str
    settings: tuple[str, ...] = ("",)
    spoken: Callable[[], Iterable[Script]] = tuple

    def __call__(self, data: bytes) -> None:
        """Have the helper read the script in `data`. Raises AssertionError."""
        script = Script.read(data, HEAD)
        scene = Scene.read(script.head, self.transport, self.configs())
        once = _converse(scene, script.steps, describe=True, cut=False)
        again = _converse(scene, script.steps, describe=False, cut=True)
        if scene.entry.translated and self.transport is TCP:
            # What has gone on cannot be rewritten: there the pieces do matter.
            again = _converse(scene, script.steps, describe=False, cut=False)
        assert once == again, f"at once {once}, in pieces {again}"

    def configs(self) -> tuple[HelperConfig, ...]:
        """What the settings say."""
        if self not in _CONFIGS:
            _CONFIGS[self] = tuple(_config(self.helper, text) for text in self.settings)
        return _CONFIGS[self]

    def seeds(self) -> Iterator[bytes]:
        """The flows of the captures, with each of the configurations.

        And each datagram by itself: what is short is read often in the same time.
        """
        seeds = dict.fromkeys(
            Script(head(flow, number, translated), steps).write()
            for capture in captures(self.folder)
            for flow, whole in self._flows(capture)
            for steps in (whole, *self._datagrams(whole))
            for number in range(len(self.settings))
            for translated in (0, 4, 8)
        )
        yield from seeds
        for script in self.spoken():
            yield script.write()

    def _datagrams(self, steps: tuple[Step, ...]) -> list[tuple[Step]]:
        return [(step,) for step in steps] if self.transport is UDP else []

    def _flows(self, capture: Path) -> Iterator[tuple[Tuple, tuple[Step, ...]]]:
        config = parse(self.settings[0], Path("settings"), register([self.helper]))
        replay = Replay(config, warn=_ignore, watch=True)
        flows: dict[Tuple, list[Step]] = {}
        for event in replay.run(frames(capture)):
            if isinstance(event, MessageEvent):
                step = Step(event.direction is REPLY, event.payload)
                flows.setdefault(event.flow, []).append(step)
        for flow, steps in flows.items():
            if flow.transport is self.transport:
                yield flow, tuple(steps)


_CONFIGS: Final[dict[Conversations, tuple[HelperConfig, ...]]] = {}


def _config(helper: type[Helper], settings: str) -> HelperConfig:
    config = parse(settings, Path("settings"), register([helper]))
    return config.helpers[helper.name]


def _ignore(text: str) -> None:
    """Nobody reads what Replay warns of here."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """All that came of a conversation. `refused` are codes, and why reading ended."""

    expectations: list[Expectation]
    events: list[str]
    payloads: list[bytes]


class _Watch:
    """Has messages described, counts their effects, and takes back what they do."""

    def __init__(self, outcome: _Outcome, *, describe: bool) -> None:
        self._outcome = outcome
        self._describe = describe
        self._effects = 0

    def message(self, helper: Helper, message: Message) -> None:
        self._effects = 0
        if not self._describe:
            return
        try:
            fields = helper.describe(message)
        except Malformed:
            return
        for name, value in fields.items():
            assert isinstance(name, str), name
            assert isinstance(value, str), value

    def effect(self, effect: Effect) -> None:
        self._effects += 1
        assert self._effects <= EFFECT_LIMIT, f"more than {EFFECT_LIMIT} effects"
        if isinstance(effect, Withdraw):
            # The engine knows of what the same packet announces alone.
            kept = self._outcome.expectations
            kept[:] = [each for each in kept if each.label != effect.label]


def _converse(
    scene: Scene, steps: tuple[Step, ...], *, describe: bool, cut: bool
) -> _Outcome:
    now = 0.0
    entry = scene.entry
    outcome = _Outcome([], [], [])
    engine = Engine(
        {scene.config.helper.name: scene.config},
        guard=Guard(),
        on_link=_on_link,
        clock=lambda: now,
        flow_limit=1,
        watch=_Watch(outcome, describe=describe),
        # How many are in a packet hangs on how it is cut.
        budget=Budget(messages=1 << 16),
    )
    sequences = dict(_FIRST)
    if entry.original.transport is TCP:
        for direction, sequence in _FIRST.items():
            _handle(engine, scene, direction, _syn(sequence - 1), outcome)
    _deepen(engine.flows, scene.depth)
    for step in steps:
        direction = REPLY if step.flags & 1 else ORIGINAL
        now += _SECONDS[step.flags >> 1 & 3]
        payload = step.payload[:_LONGEST]
        if entry.original.transport is UDP:
            _handle(engine, scene, direction, _datagram(payload), outcome)
            _deepen(engine.flows, scene.depth)
            continue
        for piece in _pieces(payload, step.flags >> 3) if cut else [payload]:
            packet = _segment(sequences[direction], piece)
            sequences[direction] = (sequences[direction] + len(piece)) % (1 << 32)
            _handle(engine, scene, direction, packet, outcome)
    return outcome


def _handle(
    engine: Engine,
    scene: Scene,
    direction: Direction,
    packet: bytes,
    outcome: _Outcome,
) -> None:
    decision = WATCH.measure(
        lambda: engine.handle(packet, scene.entry, direction, forwarded=scene.forwarded)
    )
    placed = (each.expectation for each in decision.placed)
    expectations = (*decision.expectations, *placed)
    for expectation in expectations:
        _check(expectation, scene)
    outcome.expectations.extend(expectations)
    outcome.events.extend(map(_summary, decision.events))
    if decision.packet is not None:
        segment = locate(decision.packet)
        assert segment is not None
        outcome.payloads.append(decision.packet[segment.start : segment.stop])


def _deepen(flows: FlowTable, depth: int) -> None:
    """Have flows be as deep as the scene says: the engine has met no master."""
    if depth:
        for flow in flows:
            flow.depth = depth


def _summary(event: Event) -> str:
    match event:
        case Fault():
            raise AssertionError(f"fault: {event.error} at {event.where}")
        case Damaged():
            # How much there was of what is too large depends on the segments.
            return "damaged"
        case _:
            return str(event)


def _check(expectation: Expectation, scene: Scene) -> None:
    """What holds for every expectation, whatever was said."""
    rules = scene.config.guard
    address, port = expectation.destination.address, expectation.destination.port
    tuples = scene.entry.original, scene.entry.reply
    ends = {end.address for each in tuples for end in (each.source, each.destination)}
    allowed = any(rules.names(each, address) for each in ends)
    assert address in ends or allowed, f"third party: {expectation}"
    assert port >= rules.lowest_port, f"low port: {expectation}"
    assert port not in rules.denied_ports, f"denied port: {expectation}"
    opener = not scene.depth and Hook.PREROUTING not in scene.config.hooks
    assert not (scene.forwarded and opener), f"of another host: {expectation}"


def _on_link(address: Address) -> tuple[Network, ...]:
    prefix = _PREFIX[address.version]
    return (
        ip_network((int(address) >> 8 << 8, prefix), strict=False)
        if address.version == 4
        else ip_network(f"{ip_address(address)}/{prefix}", strict=False),
    )


def _pieces(payload: bytes, seed: int) -> Iterator[bytes]:
    """`payload` in pieces of various sizes, 16 or so where it is long."""
    unit = 1 + len(payload) // 256
    start = 0
    while start < len(payload):
        # Goes through all 32 values.
        seed = (seed * 5 + 3) % 32
        stop = start + (seed + 1) * unit
        yield payload[start:stop]
        start = stop


def _syn(sequence: int) -> bytes:
    return _packet(6, sequence.to_bytes(4) + b"\0\0\0\0\x50\x02" + bytes(6))


def _segment(sequence: int, payload: bytes) -> bytes:
    return _packet(6, sequence.to_bytes(4) + b"\0\0\0\0\x50\x18" + bytes(6) + payload)


def _datagram(payload: bytes) -> bytes:
    return _packet(17, (len(payload) + 8).to_bytes(2) + b"\0\0" + payload)


def _packet(protocol: int, behind_ports: bytes) -> bytes:
    """An IPv4 packet. The engine takes addresses and ports from the entry alone."""
    length = 24 + len(behind_ports)
    return (
        b"\x45\0"
        + length.to_bytes(2)
        + b"\0\0\0\0\x40"
        + bytes([protocol])
        + bytes(14)
        + behind_ports
    )
