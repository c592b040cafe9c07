# SPDX-License-Identifier: GPL-2.0-or-later
"""What a server is at, in memory that it shares with the supervisor.

The server writes and never waits; the supervisor looks. So it sees a server that does
not go on, and over which packet, whatever keeps the server: a loop, a wait, a signal.
"""

import mmap
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, NamedTuple

from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    Address,
    Conntrack,
    Direction,
    FlowKey,
    flow_key,
    version_of,
)

# Turns, and since when the packet in work is so; then what is known of it.
_TURNS: Final = 0
_SINCE: Final = 1
_SUBJECT: Final = struct.Struct("=IHBBB16s16s16s")
_SUBJECT_AT: Final = 16


class Mark(NamedTuple):
    """How far a server has come. One that differs later has gone on.

    `turns` grows with each turn and batch. `since`, in nanoseconds of the monotonic
    clock, is when the packet in work was begun; 0: none is.
    """

    turns: int
    since: int


NOT_BEGUN: Final = Mark(0, 0)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a server is at work on: a packet of a flow, and the flow's helper.

    `client` and `server` are the ends of the flow as the client knows them, `assured`
    is whether they are who they say.
    """

    key: FlowKey
    helper: str
    client: Address
    server: Address
    direction: Direction
    assured: bool

    @property
    def sender(self) -> Address:
        """Who sent the packet."""
        return self.server if self.direction is REPLY else self.client


class Progress:
    """The memory that both have, once the server was forked."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = memoryview(self._memory).cast("Q")

    def close(self) -> None:
        """Let go of it."""
        self._words.release()
        self._memory.close()

    # What the server says

    def turn(self) -> None:
        """It goes on, and no packet is in work."""
        self._words[_SINCE] = 0
        self._words[_TURNS] += 1

    def begin(self, entry: Conntrack, direction: Direction) -> None:
        """It begins with a packet of this flow."""
        client = entry.original.source.address
        _SUBJECT.pack_into(
            self._memory,
            _SUBJECT_AT,
            entry.id,
            entry.zone,
            version_of(client),
            direction is REPLY,
            entry.assured,
            client.packed,
            entry.original.destination.address.packed,
            (entry.helper or "").encode(),
        )
        self._words[_SINCE] = time.monotonic_ns()

    # What the supervisor sees

    @property
    def mark(self) -> Mark:
        """How far the server has come."""
        return Mark(self._words[_TURNS], self._words[_SINCE])

    @property
    def subject(self) -> Subject | None:
        """What it is at work on; None: on nothing.

        Only of a server that stands still is it all of one packet.
        """
        if not self._words[_SINCE]:
            return None
        id_, zone, version, reply, assured, client, server, helper = (
            _SUBJECT.unpack_from(self._memory, _SUBJECT_AT)
        )
        size = 4 if version == 4 else 16
        return Subject(
            flow_key(id_, zone),
            helper.rstrip(b"\0").decode(errors="replace"),
            ip_address(client[:size]),
            ip_address(server[:size]),
            REPLY if reply else ORIGINAL,
            bool(assured),
        )
