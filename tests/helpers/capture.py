# SPDX-License-Identifier: GPL-2.0-or-later
"""Drives the engine over a capture, with the least of conntrack that it takes.

The direction of a packet is that of its 5-tuple relative to the first packet of the
flow; an entry is confirmed once its first packet has passed; a flow's helper goes by
the port that it was opened to. No NAT, no zones, no timeouts of flows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from scapy.utils import RawPcapReader

from cthelper.core.config import Config, parse
from cthelper.core.engine import Engine, Event
from cthelper.core.guard import Guard
from cthelper.core.packet import locate
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    Address,
    Conntrack,
    Direction,
    Endpoint,
    Expectation,
    Network,
    Status,
    Tuple,
    collapsed,
)

PCAPS: Final = Path(__file__).parents[2] / "pcaps"
HELPER_OF_PORT: Final = {111: "sunrpc", 5353: "mdns"}

_ETHERNET: Final = 14
_IP_TYPES: Final = frozenset({0x0800, 0x86DD})
_LINK_LOCAL: Final = IPv6Network("fe80::/10")


@dataclass(frozen=True, slots=True)
class Frame:
    """An IP packet of a capture. Frames count from 1, `time` is in seconds."""

    number: int
    time: float
    packet: bytes


@dataclass(frozen=True, slots=True)
class Announced:
    """An expectation and the frame that it was made for."""

    frame: int
    expectation: Expectation


@dataclass(frozen=True, slots=True)
class Related:
    """The first packet of a flow that was expected, and the frame that announced it."""

    frame: int
    announced_in: int
    flow: Tuple


@dataclass(frozen=True, slots=True)
class Report:
    """All that came of a capture. `opened` maps each flow to its first frame."""

    announced: tuple[Announced, ...]
    related: tuple[Related, ...]
    events: tuple[tuple[int, Event], ...]
    opened: Mapping[Tuple, int]

    @property
    def texts(self) -> list[tuple[int, str]]:
        """Frame and text of each expectation."""
        return [(each.frame, str(each.expectation)) for each in self.announced]


def replay(
    path: Path,
    *,
    own: frozenset[Address] = frozenset(),
    settings: str = "",
) -> Report:
    """Run the built-in helpers over the capture at `path`.

    `own` are the gateway's own addresses: packets from others came in through an
    interface. `settings` is a configuration in TOML.
    """
    config = parse(settings, Path("capture.toml"), builtin_helpers())
    return _Replay(config, own).run(read(path))


def read(path: Path) -> Iterator[Frame]:
    """The IP packets of a capture of Ethernet frames."""
    with RawPcapReader(str(path)) as reader:
        assert reader.linktype == 1, f"{path} is not of Ethernet"
        for number, (data, metadata) in enumerate(reader, 1):
            if int.from_bytes(data[12:_ETHERNET]) in _IP_TYPES:
                time = metadata.sec + metadata.usec / 1e6
                yield Frame(number, time, data[_ETHERNET:])


def tuple_of(packet: bytes) -> Tuple | None:
    """The 5-tuple of a TCP or UDP packet; None for any other."""
    segment = locate(packet)
    if segment is None:
        return None
    source: Address
    destination: Address
    if packet[0] >> 4 == 4:
        source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    else:
        source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    ports = packet[segment.header : segment.header + 4]
    return Tuple(
        segment.transport,
        Endpoint(source, int.from_bytes(ports[:2])),
        Endpoint(destination, int.from_bytes(ports[2:])),
    )


def matches(expectation: Expectation, flow: Tuple) -> bool:
    """Whether the kernel would take the first packet of `flow` for the expected one."""
    return (
        flow.transport is expectation.transport
        and flow.destination == expectation.destination
        and (expectation.source is None or flow.source.address in expectation.source)
        and expectation.source_port in (None, flow.source.port)
    )


def on_link(address: Address) -> tuple[Network, ...]:
    """The /24 or the /64 around an address, and over IPv6 the link-local network."""
    if address.version == 4:
        return (ip_network(f"{address}/24", strict=False),)
    around = ip_network(f"{address}/64", strict=False)
    return collapsed([around, _LINK_LOCAL], 6)


class _Replay:
    def __init__(self, config: Config, own: frozenset[Address]) -> None:
        self._own = own
        self._now = 0.0
        self._engine = Engine(
            config.helpers,
            guard=Guard(config.denied_ports),
            on_link=on_link,
            clock=lambda: self._now,
            flow_limit=config.daemon.flow_limit,
        )
        self._ids: dict[Tuple, int] = {}
        self._opened: dict[Tuple, int] = {}
        self._live: list[tuple[float, Announced]] = []
        self._announced: list[Announced] = []
        self._related: list[Related] = []
        self._events: list[tuple[int, Event]] = []

    def run(self, frames: Iterator[Frame]) -> Report:
        for frame in frames:
            self._now = frame.time
            flow = tuple_of(frame.packet)
            if flow is not None:
                self._pass(frame, flow)
        return Report(
            tuple(self._announced),
            tuple(self._related),
            tuple(self._events),
            self._opened,
        )

    def _pass(self, frame: Frame, flow: Tuple) -> None:
        entry, direction = self._track(frame, flow)
        decision = self._engine.handle(
            frame.packet,
            entry,
            direction,
            forwarded=bool(self._own)
            and entry.original.source.address not in self._own,
        )
        self._events += [(frame.number, event) for event in decision.events]
        for expectation in decision.expectations:
            announced = Announced(frame.number, expectation)
            self._announced.append(announced)
            self._live.append((frame.time + expectation.timeout, announced))

    def _track(self, frame: Frame, flow: Tuple) -> tuple[Conntrack, Direction]:
        reply = Tuple(flow.transport, flow.destination, flow.source)
        if reply in self._ids:
            return _entry(self._ids[reply], reply, flow, confirmed=True), REPLY
        known = flow in self._ids
        if not known:
            self._ids[flow] = len(self._ids) + 1
            self._opened[flow] = frame.number
            self._meet(frame, flow)
        return _entry(self._ids[flow], flow, reply, confirmed=known), ORIGINAL

    def _meet(self, frame: Frame, flow: Tuple) -> None:
        for item in self._live:
            until, announced = item
            expectation = announced.expectation
            if frame.time <= until and matches(expectation, flow):
                self._related.append(Related(frame.number, announced.frame, flow))
                if not expectation.permanent:
                    self._live.remove(item)
                return


def _entry(id_: int, original: Tuple, reply: Tuple, *, confirmed: bool) -> Conntrack:
    return Conntrack(
        id=id_,
        original=original,
        reply=reply,
        status=Status.CONFIRMED if confirmed else Status(0),
        helper=HELPER_OF_PORT.get(original.destination.port),
    )
