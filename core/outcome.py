# SPDX-License-Identifier: GPL-2.0-or-later
"""What one packet of a flow leads to: grants, patches, and events to be told."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cthelper.core.api import Expect
from cthelper.core.errors import RewriteRefused
from cthelper.core.grants import Granted, Placed, Withdrawn
from cthelper.core.packet import Segment
from cthelper.core.patches import Patch
from cthelper.core.tuples import Conntrack, Direction, Expectation


@dataclass(frozen=True, slots=True)
class Refused:
    """An expectation was not made. `reason` is a code, `detail` says it in words.

    `wish` is what the helper asked for; None where it refused by itself.
    """

    reason: str
    detail: str
    wish: Expect | None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A message or a packet was malformed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The helper broke its contract; `where` is the file and line.

    `quarantined` is who is left out for a while: ``peer``, ``helper`` or nobody, empty.
    """

    error: str
    where: str
    quarantined: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The flow is not inspected any longer. `reason` is a code.

    `detail` says it in words, where there is more to say.
    """

    reason: str
    detail: str = field(default="", compare=False)


Event = Refused | Damaged | Fault | Finished


@dataclass(slots=True)
class Outcome:
    """What one packet leads to, while it is collected.

    `unwritten` is why a message cannot be rewritten as it must be; None: all can.
    `packet` is the one that was rewritten, `finish` says in words why the flow is
    inspected no longer.
    """

    granted: list[Granted]
    withdrawn: list[Withdrawn]
    patches: list[Patch]
    events: list[Event]
    unwritten: RewriteRefused | None
    packet: bytes | None
    finish: str

    def __init__(
        self,
        unwritten: RewriteRefused | None = None,
        packet: bytes | None = None,
        finish: str = "",
    ) -> None:
        self.granted = []
        self.withdrawn = []
        self.patches = []
        self.events = []
        self.unwritten = unwritten
        self.packet = packet
        self.finish = finish

    @property
    def empty(self) -> bool:
        """Whether it leads to nothing but another packet."""
        return not (self.granted or self.withdrawn or self.events)

    @property
    def expectations(self) -> tuple[Expectation, ...]:
        """Those that the kernel has not got yet."""
        found: list[Expectation] = []
        for granted in self.granted:
            found += granted.wanted
        return tuple(found)

    @property
    def placed(self) -> tuple[Placed, ...]:
        """Those that the kernel has."""
        found: list[Placed] = []
        for granted in self.granted:
            found += granted.placed
        return tuple(found)


@dataclass(slots=True)
class Located:
    """A packet of a flow, and where its payload is.

    `came` are the parts of the payload that went on in earlier segments.
    """

    data: bytes | memoryview
    segment: Segment
    entry: Conntrack
    direction: Direction
    forwarded: bool
    came: Sequence[tuple[int, int]]

    def __init__(
        self,
        data: bytes | memoryview,
        segment: Segment,
        entry: Conntrack,
        direction: Direction,
        forwarded: bool,
        came: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.data = data
        self.segment = segment
        self.entry = entry
        self.direction = direction
        self.forwarded = forwarded
        self.came = came

    @property
    def payload(self) -> bytes:
        """What the transport carries."""
        return bytes(self.data[self.segment.start : self.segment.stop])

    @property
    def sequence(self) -> int:
        """The number of the payload's first byte; 0 in a datagram."""
        return self.segment.sequence + self.segment.syn
