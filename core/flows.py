# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow table: conntrack id and zone to the helper's instance and its streams."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cthelper.core.api import Helper
from cthelper.core.patches import Patches
from cthelper.core.stream import Stream
from cthelper.core.tuples import (
    ORIGINAL,
    TCP,
    Conntrack,
    Direction,
    FlowKey,
    Tuple,
    key_of,
)

MALFORMED_IN_A_ROW: Final = 8
"""Datagrams. A malformed datagram says nothing about the next one, unlike a malformed
message in a stream; but a direction that brings nothing else is not the protocol's."""


@dataclass(slots=True)
class Side:
    """What the host keeps for one direction of a flow.

    `stream`, `pending` (bytes of a message that is not complete) and `patches` (what
    was rewritten, if anything was) are TCP's; `malformed` counts the malformed
    datagrams in a row of UDP. `parsed` turns false for good when the direction is no
    longer worth reading.
    """

    stream: Stream | None = None
    pending: bytearray | bytes = b""
    patches: Patches | None = None
    malformed: int = 0
    parsed: bool = True


# On UDP there is nothing to keep unless a datagram is malformed: all flows share this.
_NO_DAMAGE: Final = Side()


@dataclass(slots=True)
class Flow:
    """A flow that a helper inspects. There may be a hundred thousand of them.

    `name` is the helper's; its instance, `helper`, is made for the first packet that is
    read. `depth` and `group` are what its messages say. `finished` says why the flow is
    no longer inspected.
    """

    key: FlowKey
    original: Tuple
    name: str
    sent: Side
    answered: Side
    helper: Helper | None = None
    depth: int = 0
    group: bool = False
    finished: str | None = None

    @classmethod
    def begin(cls, entry: Conntrack, helper: type[Helper]) -> "Flow":
        """A flow of which nothing has been read yet."""
        sent = answered = _NO_DAMAGE
        if entry.original.transport is TCP:
            limit = helper.message_limit
            sent, answered = Side(Stream(limit)), Side(Stream(limit))
        return cls(
            key_of(entry),
            entry.original,
            helper.name,
            sent,
            answered,
        )

    def side(self, direction: Direction) -> Side:
        """What is kept for a direction; flows over UDP may share it."""
        return self.sent if direction is ORIGINAL else self.answered

    def count_damage(self, direction: Direction) -> None:
        """Something malformed came; the direction may not be worth reading any more."""
        side = self.side(direction)
        if side is _NO_DAMAGE:
            side = Side()
            if direction is ORIGINAL:
                self.sent = side
            else:
                self.answered = side
        side.malformed += 1
        if self.original.transport is TCP or side.malformed >= MALFORMED_IN_A_ROW:
            side.parsed = False
            # Not cleared: the exception's frames may hold views of the bytes.
            side.pending = b""
        if not (self.sent.parsed or self.answered.parsed):
            self.finish("malformed")

    @property
    def quiet(self) -> bool:
        """Whether its packets need no look any more.

        What was rewritten may be sent again, and then must be rewritten again.
        """
        return (
            self.finished is not None
            and self.sent.patches is None
            and self.answered.patches is None
        )

    def finish(self, reason: str) -> None:
        """Stop inspecting the flow, and let go of its bytes and of the helper."""
        self.finished = self.finished or reason
        self.helper = None
        for side in (self.sent, self.answered):
            if side is not _NO_DAMAGE:
                side.stream = None
                side.pending = b""


class FlowTable:
    """Flows by conntrack id and zone; the least recently used go when it is full.

    A flow that was evicted and goes on is met again as new: on TCP in mid-stream, so
    that it is finished, on UDP with a fresh instance. `evicted` counts them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._flows: OrderedDict[FlowKey, Flow] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def find(self, entry: Conntrack) -> Flow | None:
        """The flow of `entry`, now the most recently used; None: not known.

        The kernel derives the id from the entry's address and tuple, so an id can
        come again: a flow whose original tuple differs is another one and is dropped.
        """
        key = key_of(entry)
        flow = self._flows.get(key)
        if flow is None:
            return None
        original = entry.original
        # Comparing is dear, and an entry that was decoded before is the same object.
        if flow.original is not original and flow.original != original:
            del self._flows[key]
            return None
        self._flows.move_to_end(key)
        return flow

    def add(self, flow: Flow) -> None:
        """Put in a new flow, evicting the least recently used one if need be."""
        self._flows[flow.key] = flow
        if len(self._flows) > self._limit:
            self._flows.popitem(last=False)
            self.evicted += 1

    def remove(self, key: FlowKey) -> None:
        """Forget a flow, if it is known."""
        self._flows.pop(key, None)
