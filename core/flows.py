# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow table: conntrack id and zone to the helper's instance and its streams."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from cthelper.core.accounts import Account
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
    host_number,
    key_of,
)

# Parts into which the flows that are not assured are divided by their sources.
_SHARES: Final = 64
_KEY: Final = 16  # bytes of the secret, and of an address
# Of so many parts of the table, flows that are not assured may always have one.
_PARTS: Final = 8
# Flows of a share of which the heaviest goes.
_LOOKED_AT: Final = 32
# What a flow takes in memory by itself, with its place in the table and its tuple.
_FLOW: Final = 1000
# What something that was rewritten takes.
_PATCH: Final = 300


@dataclass(slots=True)
class Side:
    """What the host keeps for one direction of a flow, which is TCP's.

    `stream` and `patches` (what was rewritten, if anything was). `parsed` turns false
    when a message was malformed: what follows in the stream says nothing any more.
    """

    stream: Stream | None
    patches: Patches | None
    parsed: bool

    def __init__(
        self,
        stream: Stream | None = None,
        patches: Patches | None = None,
        parsed: bool = True,
    ) -> None:
        self.stream = stream
        self.patches = patches
        self.parsed = parsed


# On UDP there is nothing to keep: all flows share this. A malformed datagram says
# nothing about the next one, and may be anybody's.
_UDP: Final = Side()


@dataclass(slots=True)
class Flow:
    """A flow that a helper inspects. There may be a hundred thousand of them.

    `name` is the helper's; its instance, `helper`, is made for the first packet that is
    read, and takes `kept` bytes. `depth` and `group` are what its messages say.
    `finished` says why the flow is no longer inspected. What its packets cost is paid
    from `asking` and, for the reply direction, `answering`; None: by whom is to be
    found out, as the flow is new or has become assured. `weight`, in bytes, `share`,
    and the neighbours there, `older` and `newer`, are the table's.
    """

    key: FlowKey
    original: Tuple
    name: str
    sent: Side
    answered: Side
    helper: Helper | None
    depth: int
    group: bool
    finished: str | None
    kept: int
    asking: Account | None
    answering: Account | None
    weight: int = field(compare=False)
    share: "_Share" = field(init=False, repr=False, compare=False)
    older: "Flow | None" = field(init=False, repr=False, compare=False)
    newer: "Flow | None" = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        key: FlowKey,
        original: Tuple,
        name: str,
        sent: Side,
        answered: Side,
        helper: Helper | None = None,
        depth: int = 0,
        group: bool = False,
        finished: str | None = None,
        kept: int = 0,
        asking: Account | None = None,
        answering: Account | None = None,
        weight: int = 0,
    ) -> None:
        self.key = key
        self.original = original
        self.name = name
        self.sent = sent
        self.answered = answered
        self.helper = helper
        self.depth = depth
        self.group = group
        self.finished = finished
        self.kept = kept
        self.asking = asking
        self.answering = answering
        self.weight = weight
        self.older = self.newer = None

    @classmethod
    def begin(cls, entry: Conntrack, helper: type[Helper], name: str) -> "Flow":
        """A flow of which nothing has been read yet; `name` is its helper's."""
        sent = answered = _UDP
        if entry.original.transport is TCP:
            limit = helper.message_limit
            sent, answered = Side(Stream(limit)), Side(Stream(limit))
        return cls(
            key_of(entry),
            entry.original,
            name,
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
        self.kept = 0
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
    def measured(self) -> int:
        """Bytes of memory that it takes, about."""
        size = _FLOW + self.kept
        if self.sent is not _UDP:
            for side in (self.sent, self.answered):
                if side.stream is not None:
                    size += side.stream.held
                if side.patches is not None:
                    size += _PATCH * len(side.patches)
        return size

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
        self.kept = 0
        for side in (self.sent, self.answered):
            if side is not _UDP:
                side.stream = None


class _Share:
    """The flows of some sources, a list by when they were used, and their weight.

    That is in bytes. The flows hold the list: each is there already, and there may be
    a hundred thousand.
    """

    __slots__ = ("_newest", "assured", "count", "oldest", "weight")

    def __init__(self, *, assured: bool) -> None:
        self.assured = assured
        self.count = 0
        self.weight = 0
        self.oldest: Flow | None = None
        self._newest: Flow | None = None

    def __iter__(self) -> Iterator[Flow]:
        """From the one that was not used for longest."""
        flow = self.oldest
        while flow is not None:
            yield flow
            flow = flow.newer

    def add(self, flow: Flow) -> None:
        """Put in a flow that is in no list, as the one that was used last."""
        newest = self._newest
        flow.older = newest
        if newest is None:
            self.oldest = flow
        else:
            newest.newer = flow
        self._newest = flow
        self.count += 1

    def remove(self, flow: Flow) -> None:
        """Take out one of its flows."""
        older, newer = flow.older, flow.newer
        if older is None:
            self.oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self._newest = older
        else:
            newer.older = older
        flow.older = flow.newer = None
        self.count -= 1

    def use(self, flow: Flow) -> None:
        """One of its flows is used now."""
        if flow is not self._newest:
            self.remove(flow)
            self.add(flow)

    def heaviest(self) -> Flow | None:
        """The heaviest of some that were not used for long; None: it has none."""
        some = islice(self, _LOOKED_AT)
        return max(some, key=lambda each: each.weight, default=None)


class FlowTable:
    """Flows by conntrack id and zone, at most `limit`, of `memory` bytes in all.

    When it is full others go, and `evicted` counts them: by ``flows`` where there are
    too many, by ``memory`` where they weigh too much. As in the kernel (early_drop in
    nf_conntrack_core.c) these are the flows that are not assured, each of which anybody
    can begin by one packet with any source; and of those the ones whose sources have
    the most. Sources are told apart by hashing them, IPv6 by their /64. Assured flows
    go, by the same rule, only where they would leave less than an eighth of the table
    to the others. The least recently used goes, or for memory the heaviest of some that
    were not used for long.

    A flow that was evicted and goes on is met again as new: on TCP in mid-stream, so
    that it is finished, on UDP with a fresh instance.
    """

    def __init__(self, limit: int, memory: int) -> None:
        self.memory = memory
        self.weight = 0
        self.evicted: Counter[str] = Counter()
        self._limit = limit
        self._flows: dict[FlowKey, Flow] = {}
        self._assured = [_Share(assured=True) for _ in range(_SHARES)]
        self._others = [_Share(assured=False) for _ in range(_SHARES)]
        self._beginning = 0
        self._beginning_weight = 0
        # Nobody is to choose whom he shares with.
        self._secret = random.randbytes(_KEY)

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
            self.remove(key)
            return None
        share = flow.share
        if share.assured or not entry.assured:
            share.use(flow)
        else:
            self.remove(key)
            self._put(flow, self._assured)
            flow.asking = flow.answering = None
        return flow

    def add(self, flow: Flow) -> None:
        """Put in a new flow, evicting others if need be."""
        if len(self._flows) >= self._limit:
            self._evict_one()
        self._put(flow, self._others)
        self._shrink()

    def weigh(self, flow: Flow) -> None:
        """Take account of what a flow keeps now, evicting others or it if need be."""
        weight = flow.measured
        more = weight - flow.weight
        if more and flow.key in self._flows:
            flow.weight = weight
            self._account(flow.share, more)
            if more > 0:
                self._shrink()

    def remove(self, key: FlowKey) -> None:
        """Forget a flow, if it is known."""
        flow = self._flows.pop(key, None)
        if flow is None:
            return
        share = flow.share
        share.remove(flow)
        self._account(share, -flow.weight)
        if not share.assured:
            self._beginning -= 1

    def _put(self, flow: Flow, shares: list[_Share]) -> None:
        share = flow.share = shares[self._number(flow.original.source.address)]
        self._flows[flow.key] = flow
        share.add(flow)
        flow.weight = flow.measured
        self._account(share, flow.weight)
        self._beginning += not share.assured

    def _account(self, share: _Share, more: int) -> None:
        self.weight += more
        share.weight += more
        if not share.assured:
            self._beginning_weight += more

    def _number(self, source: Address) -> int:
        # Of bytes, for which the hash is a keyed one; of a tuple of numbers it is not.
        return hash(self._secret + host_number(source).to_bytes(_KEY)) % _SHARES

    def _evict_one(self) -> None:
        """Make room for a flow."""
        spared = max(1, self._limit // _PARTS)
        spare = self._beginning < min(spared, len(self._flows))
        shares = self._assured if spare else self._others
        oldest = max(shares, key=lambda each: each.count).oldest
        if oldest is not None:
            self.remove(oldest.key)
            self.evicted["flows"] += 1

    def _shrink(self) -> None:
        """Make room for what is weighed already."""
        while self.weight > self.memory:
            spared = max(1, self.memory // _PARTS)
            spare = self._beginning_weight < min(spared, self.weight)
            shares = self._assured if spare else self._others
            heaviest = max(shares, key=lambda each: each.weight).heaviest()
            if heaviest is None:
                return
            self.remove(heaviest.key)
            self.evicted["memory"] += 1
