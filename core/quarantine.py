# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is not inspected for a while, since a helper faulted over what he sent.

The narrowest comes first: a fault ends its flow. A peer over whom a helper faults again
and again is left out, with that helper alone, and only where several peers are does the
helper rest: so that nobody can switch it off for others. Each is for a while, longer
each time that it comes again, and ends by itself. A flow that is not assured may be
forged, also where a server has answered: what comes in one leaves out its peer's flows
of that kind alone. What a server sends leaves it out for that client alone.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cthelper.core.tuples import (
    REPLY,
    Address,
    Conntrack,
    Direction,
    FlowKey,
    host_of,
    key_of,
)

WINDOW: Final = 60.0
"""Seconds within which faults count together."""
FAULTS: Final = 3
"""A peer over whom a helper faults this often within WINDOW is quarantined."""
PEERS: Final = 5
"""A helper that faults over so many peers, in flows that are assured, rests."""
FIRST: Final = 10.0
"""Seconds of the first quarantine; each that follows is twice as long."""
LONGEST: Final = 600.0
"""Seconds of the longest one; and after so many without a fault it begins anew."""

# Peers of assured flows, those of others, and flows: so many of each are remembered.
# Whoever forges more loses the oldest of his kind.
_LIMIT: Final = 1024

Peer = tuple[int, int]
"""An address as its IP version and number, of IPv6 that of its /64."""

_Key = tuple[str, Peer, Peer | None]
"""Helper, sender and, where that is a server, its client."""


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
        self._assured: OrderedDict[_Key, _Record] = OrderedDict()
        self._others: OrderedDict[_Key, _Record] = OrderedDict()
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
        return len(self._assured) + len(self._others) + len(self._flows)

    @property
    def helpers(self) -> list[str]:
        """The helpers that read nothing, for everybody's sake."""
        now = self._clock()
        return [name for name, each in self._helpers.items() if each.until > now]

    def holds(self, helper: str, entry: Conntrack) -> bool:
        """Whether a helper shall not read a flow, for either end's sake or its own."""
        now = self._clock()
        if self._ends <= now:
            self._ends = 0.0
            return False
        if self._flows.get(key_of(entry), 0.0) > now:
            return True
        client = host_of(entry.original.source.address)
        server = host_of(entry.original.destination.address)
        records = [self._helpers.get(helper)]
        for key in ((helper, client, None), (helper, server, client)):
            records.append(self._assured.get(key))
            if not entry.assured:
                records.append(self._others.get(key))
        return any(each is not None and each.until > now for each in records)

    def blame(
        self,
        helper: str,
        client: Address,
        server: Address,
        direction: Direction,
        *,
        assured: bool,
        weight: int = 1,
    ) -> str:
        """A helper faulted over what was sent in a flow; who is in quarantine for it.

        That is ``peer``, ``helper`` or nobody: empty. `client` and `server` are the
        flow's ends as the client knows them, `assured` is whether it is: that both are
        who they say. `weight` is as how many faults it counts, 1 to FAULTS.
        """
        now = self._clock()
        sender = host_of(client)
        key: _Key = helper, sender, None
        if direction is REPLY:
            sender = host_of(server)
            key = helper, sender, host_of(client)
        records = self._assured if assured else self._others
        record = records.setdefault(key, _Record())
        records.move_to_end(key)
        if len(records) > _LIMIT:
            records.popitem(last=False)
        held = ""
        _count(record, now, [sender] * weight)
        if len(record.faults) >= FAULTS:
            record.quarantine(now)
            self._ends = max(self._ends, record.until)
            held = "peer"
        if assured:
            whole = self._helpers.setdefault(helper, _Record())
            _count(whole, now, [sender])
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
        self._assured.clear()
        self._others.clear()
        self._helpers.clear()
        self._flows.clear()
        self._ends = 0.0


def _count(record: _Record, now: float, peers: list[Peer]) -> None:
    """Add faults, and forget those that are too long ago or too many."""
    faults = record.faults
    faults.extend((now, each) for each in peers)
    while faults[0][0] <= now - WINDOW or len(faults) > _LIMIT:
        faults.popleft()
