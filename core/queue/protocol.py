# SPDX-License-Identifier: GPL-2.0-or-later
"""What an NFQUEUE gives and takes: packets, verdicts, and who reads and answers."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cthelper.core.api import Prefilter
from cthelper.core.packet import Segment
from cthelper.core.tuples import Conntrack, Direction, FlowKey

Touched = tuple[FlowKey, int]
"""A flow, and its entry's timeout in seconds."""


class Hook(enum.IntEnum):
    """Where in the kernel the packet waits (NF_INET_*)."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class Action(enum.IntEnum):
    """What becomes of a packet (NF_*)."""

    DROP = 0
    ACCEPT = 1
    REPEAT = 4
    STOP = 5


class Packet(Protocol):
    """A packet that waits for its verdict.

    `payload` is the IP packet. `conntrack` is None where the kernel sent no entry for
    it or one that is neither TCP's nor UDP's. `indev` and `outdev` are interface
    indexes, 0 where there is none. `segment` is what `locate` finds in the packet,
    where the backend knows it.
    """

    @property
    def id(self) -> int: ...
    @property
    def hook(self) -> Hook: ...
    @property
    def payload(self) -> bytes | memoryview: ...
    @property
    def conntrack(self) -> Conntrack | None: ...
    @property
    def direction(self) -> Direction: ...
    @property
    def indev(self) -> int: ...
    @property
    def outdev(self) -> int: ...
    @property
    def segment(self) -> Segment | None: ...


# Not frozen, which would treble what it costs to make one for each packet.
@dataclass(slots=True)
class QueuedPacket:
    """A `Packet` with bytes of its own."""

    id: int
    hook: Hook
    payload: bytes
    conntrack: Conntrack | None
    direction: Direction
    indev: int
    outdev: int
    segment: Segment | None

    def __init__(
        self,
        id: int,
        hook: Hook,
        payload: bytes,
        conntrack: Conntrack | None,
        direction: Direction,
        indev: int,
        outdev: int,
        segment: Segment | None = None,
    ) -> None:
        self.id = id
        self.hook = hook
        self.payload = payload
        self.conntrack = conntrack
        self.direction = direction
        self.indev = indev
        self.outdev = outdev
        self.segment = segment


# Not frozen, see QueuedPacket.
@dataclass(slots=True)
class Verdict:
    """The answer to a queued packet.

    `payload` takes the place of the IP packet. `conntrack` holds what is to be changed
    of its entry (CTA_*): the kernel takes its timeout where it is confirmed, its mark,
    status, labels and helper (ctnetlink_glue_parse_ct in nf_conntrack_netlink.c).
    """

    id: int
    action: Action
    payload: bytes | None
    conntrack: bytes

    def __init__(
        self,
        id: int,
        action: Action = Action.ACCEPT,
        payload: bytes | None = None,
        conntrack: bytes = b"",
    ) -> None:
        self.id = id
        self.action = action
        self.payload = payload
        self.conntrack = conntrack

    @property
    def plain(self) -> bool:
        """Whether it says what becomes of the packet, and nothing else."""
        return self.payload is None and not self.conntrack


@dataclass(slots=True)
class Statistics:
    """What has gone through a queue, in packets.

    `bypassed` packets were not queued since the receive buffer was full: they passed,
    or where the queue fails closed were dropped; `overruns` is how often the kernel
    said so. `refused` counts verdicts that the kernel did not take. `passed` are those
    received that were accepted at once, without being given out (sieve.py).
    """

    received: int = 0
    answered: int = 0
    bypassed: int = 0
    overruns: int = 0
    refused: int = 0
    passed: int = 0


class Queue(Protocol):
    """What reads a bound NFQUEUE. All its methods raise QueueError and nothing else."""

    number: int

    @property
    def statistics(self) -> Statistics:
        """What has gone through it up to now."""

    def fileno(self) -> int:
        """The descriptor that becomes readable when a packet waits."""

    def read(self, limit: int) -> Sequence[Packet]:
        """At most `limit` packets that wait now and must be read; never waits itself.

        Those that need not be (sieve.py) go on at once, or with the next answer.
        """

    def answer(self, verdicts: Sequence[Verdict]) -> None:
        """Release packets; when it returns they have gone on."""

    def filters(self, filters: Mapping[str, Prefilter]) -> None:
        """Give out only the datagrams that these helpers read, by kernel name."""

    def note(self, packet: Packet, *, quiet: bool, held: bool) -> None:
        """What is known of a packet's flow, see `Sieve.note`."""

    def forget(self, key: FlowKey) -> None:
        """A flow has ended."""

    def touched(self) -> list[Touched]:
        """The held flows of which packets have passed unseen since the last call."""

    def close(self) -> None:
        """Read no more. The queue stays bound while another holds its socket."""
