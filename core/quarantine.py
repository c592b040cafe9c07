# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is not inspected for a while, since a helper faulted over what he sent.

The narrowest comes first: a fault ends its flow. A peer over whom a helper faults again
and again is left out, with that helper alone, and only where several peers that were
answered are does the helper rest: so that nobody can switch it off for others. Each is
for a while, longer each time that it comes again, and ends by itself.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cthelper.core.tuples import Address, Conntrack, FlowKey, key_of

WINDOW: Final = 60.0
"""Seconds within which faults count together."""
FAULTS: Final = 3
"""A peer over whom a helper faults this often within WINDOW is quarantined."""
PEERS: Final = 5
"""A helper that faults over so many peers that were answered rests."""
FIRST: Final = 10.0
"""Seconds of the first quarantine; each that follows is twice as long."""
LONGEST: Final = 600.0
"""Seconds of the longest one; and after so many without a fault it begins anew."""

# Peers and flows that are remembered; whoever forges more loses the oldest.
_LIMIT: Final = 1024

Peer = tuple[int, int]
"""An address as its IP version and number, of IPv6 that of its /64."""


@dataclass(slots=True)
class _Record:
    """Of a peer or a helper: when it faulted, and how long that has kept it out."""

    faults: deque[tuple[float, Peer]] = field(default_factory=deque)
    length: float = 0.0
    until: float = 0.0

    def quarantine(self, now: float) -> None:
        anew = now - self.until > LONGEST
        self.length = FIRST if anew else min(LONGEST, self.length * 2 or FIRST)
        self.until = now + self.length
        self.faults.clear()


class Quarantine:
    """Remembers faults. `clock` gives seconds and only moves forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Each peer for its answered flows, and for the others.
        self._peers: OrderedDict[tuple[str, Peer, bool], _Record] = OrderedDict()
        self._helpers: dict[str, _Record] = {}
        self._flows: OrderedDict[FlowKey, float] = OrderedDict()
        # When the last one ends: until then there is something to look up.
        self._ends = 0.0

    @property
    def empty(self) -> bool:
        """Whether nobody is in quarantine. To be asked first, for it is cheap."""
        return self._ends == 0.0

    @property
    def size(self) -> int:
        """How many peers and flows are remembered."""
        return len(self._peers) + len(self._flows)

    def holds(self, helper: str, entry: Conntrack) -> bool:
        """Whether a helper shall not read a flow, for either end's sake or its own."""
        now = self._clock()
        if self._ends <= now:
            self._ends = 0.0
            return False
        if self._flows.get(key_of(entry), 0.0) > now:
            return True
        records = [self._helpers.get(helper)]
        for end in (entry.original.source, entry.reply.source):
            peer = peer_of(end.address)
            records.append(self._peers.get((helper, peer, True)))
            if not entry.answered:
                records.append(self._peers.get((helper, peer, False)))
        return any(each is not None and each.until > now for each in records)

    def blame(
        self, helper: str, sender: Address, *, answered: bool, weight: int = 1
    ) -> str:
        """A helper faulted over what `sender` sent; who is in quarantine for it.

        That is ``peer``, ``helper`` or nobody: empty. `answered` is whether both ends
        of the flow have sent something, so that the sender is not merely forged.
        `weight` is as how many faults it counts, 1 to FAULTS.
        """
        now = self._clock()
        peer = peer_of(sender)
        key = helper, peer, answered
        record = self._peers.setdefault(key, _Record())
        self._peers.move_to_end(key)
        if len(self._peers) > _LIMIT:
            self._peers.popitem(last=False)
        held = ""
        _count(record, now, [peer] * weight)
        if len(record.faults) >= FAULTS:
            record.quarantine(now)
            self._ends = max(self._ends, record.until)
            held = "peer"
        if answered:
            whole = self._helpers.setdefault(helper, _Record())
            _count(whole, now, [peer])
            if len({each for _, each in whole.faults}) >= PEERS:
                whole.quarantine(now)
                self._ends = max(self._ends, whole.until)
                held = "helper"
        return held

    def hold_flow(self, key: FlowKey) -> None:
        """Leave one flow out for as long as the longest quarantine."""
        self._flows[key] = until = self._clock() + LONGEST
        self._flows.move_to_end(key)
        if len(self._flows) > _LIMIT:
            self._flows.popitem(last=False)
        self._ends = max(self._ends, until)

    def release(self) -> None:
        """End every quarantine, after helpers or configuration changed."""
        self._peers.clear()
        self._helpers.clear()
        self._flows.clear()
        self._ends = 0.0


def peer_of(address: Address) -> Peer:
    """Who has this address: one host may have any of a /64 of IPv6."""
    number = int(address)
    return address.version, number if address.version == 4 else number >> 64


def _count(record: _Record, now: float, peers: list[Peer]) -> None:
    """Add faults, and forget those that are too long ago or too many."""
    faults = record.faults
    faults.extend((now, each) for each in peers)
    while faults[0][0] <= now - WINDOW or len(faults) > _LIMIT:
        faults.popleft()
