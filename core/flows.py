# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow table: conntrack id and zone to the helper's instance and its streams."""

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from cthelper.core.api import Helper
from cthelper.core.patches import Patches
from cthelper.core.stream import Stream
from cthelper.core.tuples import (
    ORIGINAL,
    TCP,
    Address,
    Conntrack,
    Direction,
    FlowKey,
    Tuple,
    key_of,
)

# Parts into which the flows that are not assured are divided by their sources.
_SHARES: Final = 64
# Of so many parts of the table, flows that are not assured may always have one.
_PARTS: Final = 8


@dataclass(slots=True)
class Side:
    """What the host keeps for one direction of a flow, which is TCP's.

    `stream` and `patches` (what was rewritten, if anything was). `parsed` turns false
    when a message was malformed: what follows in the stream says nothing any more.
    """

    stream: Stream | None = None
    patches: Patches | None = None
    parsed: bool = True


# On UDP there is nothing to keep: all flows share this. A malformed datagram says
# nothing about the next one, and may be anybody's.
_UDP: Final = Side()


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
        sent = answered = _UDP
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
        """What is kept for a direction; flows over UDP share it."""
        return self.sent if direction is ORIGINAL else self.answered

    def other_side(self, direction: Direction) -> Side:
        """What is kept for the opposite of a direction."""
        return self.answered if direction is ORIGINAL else self.sent

    def begin_anew(self) -> None:
        """Another connection has the same entry: forget what was read of this one.

        Its streams have begun anew already.
        """
        self.helper = None
        for side in (self.sent, self.answered):
            side.patches = None

    def count_damage(self, direction: Direction) -> None:
        """Something malformed came; over TCP the direction is not read any more."""
        side = self.side(direction)
        if side is _UDP:
            return
        side.parsed = False
        side.stream = None
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
            if side is not _UDP:
                side.stream = None


class FlowTable:
    """Flows by conntrack id and zone, at most `limit`.

    When it is full the least recently used one of some goes, and `evicted` counts it.
    As in the kernel (early_drop in nf_conntrack_core.c) these are the flows that are
    not assured, each of which anybody can begin by one packet with any source; and of
    those the ones whose sources have the most. Sources are told apart by hashing them,
    IPv6 by their /64. Assured flows go only where they would leave less than an eighth
    of the table to the others.

    A flow that was evicted and goes on is met again as new: on TCP in mid-stream, so
    that it is finished, on UDP with a fresh instance.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = max(1, limit // _PARTS)
        self._assured: OrderedDict[FlowKey, Flow] = OrderedDict()
        # The others, and which of the shares each is in.
        self._shares = [OrderedDict[FlowKey, Flow]() for _ in range(_SHARES)]
        self._share_of: dict[FlowKey, int] = {}
        # The most flows that a share has had since it was made: what it has room for.
        self._rooms = [0] * _SHARES
        # Nobody is to choose whom he shares with.
        self._secret = random.getrandbits(64)
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._assured) + len(self._share_of)

    def __iter__(self) -> Iterator[Flow]:
        return chain(
            self._assured.values(), *(share.values() for share in self._shares)
        )

    def find(self, entry: Conntrack) -> Flow | None:
        """The flow of `entry`, now the most recently used; None: not known.

        The kernel derives the id from the entry's address and tuple, so an id can
        come again: a flow whose original tuple differs is another one and is dropped.
        """
        key = key_of(entry)
        flow = self._assured.get(key)
        share = None
        if flow is None:
            number = self._share_of.get(key)
            if number is None:
                return None
            share = self._shares[number]
            flow = share[key]
        original = entry.original
        # Comparing is dear, and an entry that was decoded before is the same object.
        if flow.original is not original and flow.original != original:
            self.remove(key)
            return None
        if share is None:
            self._assured.move_to_end(key)
        elif entry.assured:
            self.remove(key)
            self._assured[key] = flow
        else:
            share.move_to_end(key)
        return flow

    def add(self, flow: Flow) -> None:
        """Put in a new flow, evicting another one if need be."""
        if len(self) >= self._limit:
            self._evict()
        number = self._share(flow.original.source.address)
        share = self._shares[number]
        share[flow.key] = flow
        self._share_of[flow.key] = number
        if len(share) > self._rooms[number]:
            self._rooms[number] = len(share)

    def remove(self, key: FlowKey) -> None:
        """Forget a flow, if it is known."""
        number = self._share_of.pop(key, None)
        if number is None:
            self._assured.pop(key, None)
            return
        share = self._shares[number]
        del share[key]
        # A dictionary keeps the room that it once needed: without this one source after
        # the other could fill each of the shares.
        if len(share) < self._rooms[number] // 4:
            self._shares[number] = OrderedDict(share)
            self._rooms[number] = len(share)

    def _share(self, source: Address) -> int:
        number = int(source)
        if source.version == 6:
            number >>= 64
        return hash((number, self._secret)) % _SHARES

    def _evict(self) -> None:
        self.evicted += 1
        if self._assured and len(self._share_of) < self._open:
            self._assured.popitem(last=False)
        else:
            fullest = max(self._shares, key=len)
            self.remove(next(iter(fullest)))
