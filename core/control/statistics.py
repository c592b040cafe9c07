# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of what helpers announced: flows, packets, bytes, and how long it took.

Counted by helper, and by peer and service: who asked, and where he asked. Nothing here
grows without bound; what is left out is counted, too.
"""

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cthelper.core.control.bounded import keep
from cthelper.core.control.tree import Place
from cthelper.core.nearest import Pattern
from cthelper.core.netlink.listing import Listed
from cthelper.core.records import Record
from cthelper.core.tuples import (
    Address,
    Endpoint,
    Expectation,
    FlowKey,
    Transport,
    key_of,
)

BOUNDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Seconds up to which a set-up belongs to each class; one more is above them all."""

_ENDS: Final = (*BOUNDS, None)

# Pairs of a peer and a service; control flows; announcements that nobody has met; data
# flows. About 200 bytes each.
_ROWS: Final = 4096
_MASTERS: Final = 65536
_ANNOUNCED: Final = 65536
# Of these of one control flow.
_EACH: Final = 1024
_LIVE: Final = 262_144


@dataclass(slots=True)
class Tally:
    """What is counted.

    `announced` are expectations that were put in, `flows` those that were expected,
    `live` of them are there; `packets` and `bytes` of those that have ended.
    """

    announced: int = 0
    flows: int = 0
    live: int = 0
    packets: int = 0
    bytes: int = 0
    setups: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    classes: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def set_up(self, seconds: float) -> None:
        """Count the first flow that met an announcement, so long after it."""
        self.setups += 1
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)
        self.classes[bisect_left(BOUNDS, seconds)] += 1

    def record(self) -> Record:
        """For JSON."""
        return {
            "announced": self.announced,
            "flows": self.flows,
            "live": self.live,
            "packets": self.packets,
            "bytes": self.bytes,
            "setup": {
                "count": self.setups,
                "seconds": self.seconds,
                "slowest": self.slowest,
                "classes": list(map(list, zip(_ENDS, self.classes, strict=True))),
            },
        }


class Key(NamedTuple):
    """A helper, a host that asks, and where it asks."""

    helper: str
    peer: Address
    service: tuple[Transport, Endpoint]


@dataclass(slots=True)
class Row:
    """What is counted of a helper's peer and service."""

    key: Key
    tally: Tally = field(default_factory=Tally)

    def record(self) -> Record:
        """For JSON."""
        transport, destination = self.key.service
        return {
            "helper": self.key.helper,
            "peer": str(self.key.peer),
            "service": {
                "transport": str(transport),
                "destination": str(destination),
            },
            **self.tally.record(),
        }


@dataclass(frozen=True, slots=True)
class _Announced:
    expectation: Expectation
    time: float

    @property
    def end(self) -> float:
        """When it is over, unless it was renewed, which nobody is told of."""
        return self.time + self.expectation.timeout


class Statistics:
    """The statistics since `since`, in seconds since 1970.

    Times of events are seconds that only grow.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self.left_out: Counter[str] = Counter()
        self._helpers: dict[str, Tally] = {}
        # The ones that were looked at last are at the end.
        self._rows: OrderedDict[Key, Row] = OrderedDict()
        self._masters: OrderedDict[Place, str] = OrderedDict()
        self._announced: OrderedDict[Place, dict[Pattern, _Announced]] = OrderedDict()
        self._waiting = 0
        self._live: dict[FlowKey, Row] = {}

    def totals(self) -> Record:
        """What is counted of each helper, and what is left out; for JSON."""
        return {
            "since": self.since,
            "left_out": dict(self.left_out),
            "helpers": {name: each.record() for name, each in self._helpers.items()},
        }

    def rows(self) -> tuple[dict[Key, Record], dict[FlowKey, Key]]:
        """What is counted of each peer and service, and whose each flow is there."""
        rows = {key: row.record() for key, row in self._rows.items()}
        return rows, {flow: row.key for flow, row in self._live.items()}

    def announced(self, expectation: Expectation, now: float) -> None:
        """An expectation was put in."""
        if expectation.helper is None:
            return
        place = expectation.master, expectation.zone
        self._remember(place, expectation.helper)
        for tally in self._tallies(self._row(place, expectation.helper)):
            tally.announced += 1
        waiting = self._announced.setdefault(place, {})
        self._announced.move_to_end(place)
        # One like it that was there before is not any more.
        pattern = Pattern.of(expectation)
        kept = {
            key: each
            for key, each in waiting.items()
            if each.end > now and key != pattern
        }
        if len(kept) >= _EACH:
            del kept[next(iter(kept))]
            self.left_out["announced"] += 1
        self._waiting += len(kept) + 1 - len(waiting)
        self._announced[place] = {**kept, pattern: _Announced(expectation, now)}
        while self._waiting > _ANNOUNCED:
            _, dropped = self._announced.popitem(last=False)
            self._waiting -= len(dropped)
            lost = sum(each.end > now for each in dropped.values())
            if lost:
                self.left_out["announced"] += lost

    def begun(self, listed: Listed, now: float) -> None:
        """A flow has begun that was expected."""
        entry = listed.entry
        if entry.master is None:
            return
        place = entry.master, entry.zone
        helper = self._masters.get(place)
        if helper is None:
            self.left_out["flows"] += 1
            return
        row = self._row(place, helper)
        self._add(key_of(entry), row)
        waiting = self._announced.get(place, {})
        for pattern, each in waiting.items():
            if each.expectation.admits(entry.original):
                # Only the first flow says how long it took.
                del waiting[pattern]
                self._waiting -= 1
                if not waiting:
                    del self._announced[place]
                for tally in self._tallies(row):
                    tally.set_up(max(0.0, now - each.time))
                return

    def ended(self, listed: Listed) -> None:
        """A flow has ended; those that nobody expected are left alone."""
        row = self._live.pop(key_of(listed.entry), None)
        if row is None:
            return
        if listed.sent is None:
            self.left_out["packets"] += 1
        for tally in self._tallies(row):
            tally.live -= 1
            tally.packets += listed.packets
            tally.bytes += listed.bytes

    def compare(self, table: Iterable[Listed]) -> None:
        """Take in what the kernel lists, at the beginning and where events were lost.

        Of a flow that has ended meanwhile nobody knows its packets any more.
        """
        children = []
        there = set()
        for each in table:
            entry = each.entry
            if entry.helper is not None:
                self._remember((entry.original, entry.zone), entry.helper)
            if entry.master is not None:
                children.append(entry)
                there.add(key_of(entry))
        for key in self._live.keys() - there:
            for tally in self._tallies(self._live.pop(key)):
                tally.live -= 1
            self.left_out["ends"] += 1
        for entry in children:
            assert entry.master is not None  # noqa: S101 - as they were chosen
            place = entry.master, entry.zone
            helper = self._masters.get(place)
            if helper is not None:
                self._add(key_of(entry), self._row(place, helper))

    def _add(self, key: FlowKey, row: Row) -> None:
        if key in self._live:
            return  # it was listed as well as told of
        if len(self._live) >= _LIVE:
            self.left_out["flows"] += 1
            return
        self._live[key] = row
        for tally in self._tallies(row):
            tally.flows += 1
            tally.live += 1

    def _remember(self, place: Place, helper: str) -> None:
        """Of flows that are expected the kernel names the master alone."""
        keep(self._masters, place, helper, _MASTERS)

    def _row(self, place: Place, helper: str) -> Row:
        """The row of a control flow, made where there is none."""
        original, _ = place
        service = original.transport, original.destination
        key = Key(helper, original.source.address, service)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Row(key)
            if len(self._rows) > _ROWS:
                # Of one with live flows it would not be known what they carry.
                idle = (each for each, row in self._rows.items() if not row.tally.live)
                victim = next(idle)
                del self._rows[next(iter(self._rows)) if victim == key else victim]
                self.left_out["rows"] += 1
        self._rows.move_to_end(key)
        return row

    def _tallies(self, row: Row) -> Iterator[Tally]:
        yield row.tally
        yield self._helpers.setdefault(row.key.helper, Tally())
