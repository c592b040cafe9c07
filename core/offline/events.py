# SPDX-License-Identifier: GPL-2.0-or-later
"""What a replay finds: values, and their records in JSON (one object a line).

Frames count from 1, as Wireshark counts them; times are seconds since the capture's
first frame. The records' keys and their order are a promise to programs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cthelper.core.api import (
    Direction,
    Effect,
    Expect,
    Source,
    Transport,
    Tuple,
)
from cthelper.core.grants import How
from cthelper.core.nearest import Pattern
from cthelper.core.records import Record, flow_record, network_text, pattern_record
from cthelper.core.tuples import Address, Expectation, Network, host_network

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Begin:
    """The first event of a capture. It has no record.

    `time` is that of its first frame, in nanoseconds since 1970.
    """

    time: int

    def utc(self, time: float) -> str | None:
        """When it was, `time` seconds later: RFC 3339 in UTC, with microseconds.

        As the daemon's log has it. None where no calendar has that year.
        """
        microseconds = (self.time + round(time * 1_000_000_000)) // 1000
        try:
            then = _EPOCH + timedelta(microseconds=microseconds)
        except OverflowError:
            return None
        return then.isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectationEvent:
    """A message in `direction` led to an expectation, which the kernel has.

    `how` and `flows` are those of `Placed`.
    """

    frame: int
    time: float
    helper: str
    direction: Direction
    expectation: Expectation
    how: How
    flows: int | None

    @property
    def admits(self) -> str:
        """`flows` in words."""
        match self.flows:
            case None:
                return "permanent"
            case 1:
                return "one flow"
            case flows:
                return f"{flows} flows"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelatedEvent:
    """The first packet of a flow met the expectation made in `expectation_frame`."""

    frame: int
    time: float
    expectation_frame: int
    helper: str
    flow: Tuple


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawnEvent:
    """A flow has taken back an expectation that it had announced.

    `flows` is how many may still come that it lets in, as others have asked for it: 0
    where the kernel has it no more; None: any number.
    """

    frame: int
    time: float
    helper: str
    expectation: Expectation
    flows: int | None

    @property
    def what(self) -> str:
        """The expectation, and what of it there is still for others."""
        match self.flows:
            case 0:
                return str(self.expectation)
            case None:
                left = "others' flows still come"
            case 1:
                left = "one flow of others' still comes"
            case flows:
                left = f"{flows} flows of others' still come"
        return f"{self.expectation} ({left})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedEvent:
    """An expectation was not made. `reason` is a code, `detail` says it in words.

    `wish` is what the helper asked for (None: it refused by itself), `peer` the address
    of the message's receiver, `transport` the message's.
    """

    frame: int
    time: float
    helper: str
    reason: str
    detail: str
    wish: Expect | None
    peer: Address
    transport: Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class MalformedEvent:
    """A message broke its protocol."""

    frame: int
    time: float
    helper: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultEvent:
    """The helper has a bug; `where` is the file and line. It has no record."""

    frame: int
    time: float
    helper: str
    error: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedEvent:
    """The helper reads `flow` no longer, though it was not done with it.

    `reason` is the code of the daemon's log, never ``done``; `detail` says it in words
    where there is more to say. A flow over TCP is one, too, that the capture begins
    with a segment of the server's: nothing tags it, since it counts as the server's.
    """

    frame: int
    time: float
    helper: str
    flow: Tuple
    reason: str
    detail: str

    @property
    def why(self) -> str:
        """The reason, and the detail where there is one."""
        return f"{self.reason}, {self.detail}" if self.detail else self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent:
    """A helper read a message; told only where replay watches. It has no record.

    `fields` is what the helper says about it, `effects` what it yielded.
    """

    frame: int
    time: float
    helper: str
    flow: Tuple
    direction: Direction
    payload: bytes
    fields: Mapping[str, str]
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEvent:
    """A control flow or an expected one has ended, or the capture has.

    Told only where replay watches. It has no record. `helper` is that of a control
    flow, else None; `packets` counts both directions; `finished` says why the helper
    stopped reading, or is None.
    """

    frame: int
    time: float
    last_frame: int
    last_time: float
    flow: Tuple
    helper: str | None
    packets: int
    finished: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The last event of a capture. Packets and flows are those of TCP and UDP."""

    packets: int = 0
    flows: int = 0
    expectations: int = 0
    related: int = 0
    refused: int = 0
    malformed: int = 0
    finished: int = 0


def added(one: Summary, other: Summary) -> Summary:
    """The summary of two captures."""
    counts = asdict(other)
    return Summary(**{name: each + counts[name] for name, each in asdict(one).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A line for the user. It has no record.

    `failed`: the capture could not be replayed.
    """

    text: str
    failed: bool = False


Told = (
    ExpectationEvent
    | RelatedEvent
    | WithdrawnEvent
    | RefusedEvent
    | MalformedEvent
    | FinishedEvent
)
"""What a helper led to in a frame, and has a record."""

Event = Begin | Told | FaultEvent | MessageEvent | FlowEvent | Summary | Notice


def wished(event: RefusedEvent) -> Pattern | None:
    """The flows that the helper asked for; None: it refused by itself."""
    wish = event.wish
    if wish is None:
        return None
    source: Network | None
    match wish.source:
        case Source.PEER:
            source = host_network(event.peer)
        case Source():
            source = None
        case network:
            source = network
    transport = wish.transport or event.transport
    return Pattern(transport, source, wish.source_port, wish.endpoint)


def record(event: Event, capture: str, begin: Begin | None = None) -> Record | None:
    """The record of `event`, or None for an event that has none.

    With `begin` it says the time in UTC, too.
    """
    match event:
        case ExpectationEvent():
            wanted = event.expectation
            return {
                **_head("expectation", capture, event, begin),
                "helper": event.helper,
                "policy": wanted.policy,
                "flow": flow_record(wanted.master),
                "direction": event.direction.value,
                "expects": _expects(Pattern.of(wanted)),
                "permanent": wanted.permanent,
                "timeout": wanted.timeout,
                "how": event.how.value,
                "flows": event.flows,
            }
        case RelatedEvent():
            return {
                **_head("related", capture, event, begin),
                "expectation_frame": event.expectation_frame,
                "helper": event.helper,
                "flow": flow_record(event.flow),
            }
        case WithdrawnEvent():
            wanted = event.expectation
            return {
                **_head("withdrawn", capture, event, begin),
                "helper": event.helper,
                "policy": wanted.policy,
                "flow": flow_record(wanted.master),
                "expects": _expects(Pattern.of(wanted)),
                "flows": event.flows,
            }
        case RefusedEvent():
            asked = wished(event)
            return {
                **_head("refused", capture, event, begin),
                "helper": event.helper,
                "reason": event.reason,
                "expects": None if asked is None else _expects(asked),
            }
        case MalformedEvent():
            return {
                **_head("malformed", capture, event, begin),
                "helper": event.helper,
                "reason": event.reason,
            }
        case FinishedEvent():
            return {
                **_head("finished", capture, event, begin),
                "helper": event.helper,
                "flow": flow_record(event.flow),
                "reason": event.reason,
            }
        case Summary():
            return {
                "event": "summary",
                "capture": capture,
                "packets": event.packets,
                "flows": event.flows,
                "expectations": event.expectations,
                "related": event.related,
                "refused": event.refused,
                "malformed": event.malformed,
                "finished": event.finished,
            }
        case _:
            return None


def _head(name: str, capture: str, event: Told, begin: Begin | None) -> Record:
    return {
        "event": name,
        "capture": capture,
        "frame": event.frame,
        "time": round(event.time, 6),
        **({} if begin is None else {"utc": begin.utc(event.time)}),
    }


def _expects(flows: Pattern) -> Record:
    source = None if flows.source is None else source_text(flows.source)
    return pattern_record(flows.transport, source, flows.source_port, flows.destination)


def source_text(source: Source | Network) -> str:
    """Who may open a flow: in a word, an address, or a network of more than one."""
    if isinstance(source, Source):
        return source.value
    return network_text(source)
