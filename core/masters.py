# SPDX-License-Identifier: GPL-2.0-or-later
"""Care for master flows: kept while they have expectations, marked when finished.

An expectation dies with its master, and every packet sets the master's timeout anew: a
UDP flow's to 30 or 120 s, a closing TCP flow's to 10 to 120 s. The verdict of the
packet that announced something lengthens it. Later packets that pass the queue are told
of, and for these it is enough that the next sweep puts the timeout right. Those that a
prefilter hides are not: UDP masters are looked after without being told.
(IPS_FIXED_TIMEOUT would need no second look, but it cannot be taken back from a flow
that goes on.)

A bit of a finished flow's mark says that it is no longer inspected. It is set a moment
after the flow's last expectation has ended, since a master whose packets nobody sees
would not be kept.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, Protocol

from cthelper.core.errors import NetlinkError, NotFound
from cthelper.core.tuples import (
    UDP,
    Conntrack,
    Expectation,
    FlowKey,
    Status,
    Tuple,
    key_of,
    zone_of,
)

# Seconds that a master outlives its expectations, and in which the first packet of an
# expected flow passes the filter rules.
_MARGIN: Final = 1
# A timeout below this, in seconds, does not wait for the next sweep.
_SOON: Final = 5
# Half as long as an entry may live whose packets are not seen, in seconds: by default a
# UDP flow's lives for 30 s after a packet (nf_conntrack_udp_timeout).
_UNSEEN: Final = 15
# Flows that are forgotten when they end; this bounds them where the news is lost.
_LEFT: Final = 65536


class Reporter(Protocol):
    """Is told what became of a flow."""

    def event(self, event: str, level: str = "info", /, **fields: object) -> None:
        """Something has happened; `fields` say to which flow and why."""


class Updater(Protocol):
    """Reads and changes conntrack entries in the kernel."""

    def get(self, original: Tuple, zone: int = 0) -> Conntrack:
        """The entry with this original tuple. Raises NetlinkError."""

    def update(
        self,
        original: Tuple,
        zone: int = 0,
        *,
        timeout: int | None = None,
        mark: tuple[int, int] | None = None,
    ) -> None:
        """Change an entry; a mark is value and mask. Raises NetlinkError."""


@dataclass(frozen=True, slots=True)
class _Leaving:
    original: Tuple
    helper: str
    reason: str


# Not frozen, which would treble what it costs to make one for each packet.
@dataclass(slots=True)
class _Kept:
    """A master: when its last expectation ends, and its entry as it was last known."""

    until: float
    entry: Conntrack

    def __init__(self, until: float, entry: Conntrack) -> None:
        self.until = until
        self.entry = entry


class Masters:
    """The master flows that have expectations, and the finished flows.

    `mark` is the bit of the mark that ends inspection, 0 for none: then packets of
    finished flows stay queued, unread.
    """

    def __init__(
        self,
        updater: Updater,
        log: Reporter,
        clock: Callable[[], float],
        *,
        mark: int,
    ) -> None:
        self._mark = mark
        self._updater = updater
        self._log = log
        self._clock = clock
        self._kept: dict[FlowKey, _Kept] = {}
        # When masters that have packets unseen are to be kept again, in this order.
        self._unseen: dict[FlowKey, float] = {}
        # The entries of masters that had packets since the last sweep.
        self._passed: dict[FlowKey, Conntrack] = {}
        self._leaving: dict[FlowKey, _Leaving] = {}
        # What became of these is told; packets of theirs may still come.
        self._left: dict[FlowKey, Tuple] = {}

    def expect(
        self, entry: Conntrack, expectations: Iterable[Expectation]
    ) -> int | None:
        """The flow of `entry` is the master of these from now on.

        The timeout in seconds that it needs, where it is confirmed and its is shorter.
        """
        key = key_of(entry)
        until = self._clock() + max([each.timeout for each in expectations])
        if key in self._kept:
            until = max(self._kept[key].until, until)
        self._kept[key] = _Kept(until, entry)
        if entry.original.transport is UDP:
            self._unseen.setdefault(key, self._clock() + _UNSEEN)
        wanted = self._wanted(until)
        return wanted if entry.confirmed and entry.timeout < wanted else None

    def lengthen(self, original: Tuple, expectation: Expectation) -> None:
        """The flow with this original tuple is the master of another's expectation.

        Two clients of one service, or one client that asks twice, get one expectation
        in the kernel: the first one's, refreshed.
        """
        try:
            entry = self._updater.get(original, expectation.zone)
        except NotFound:
            return
        except NetlinkError as error:
            self._failed("keep-failed", error)
            return
        self.expect(entry, [expectation])
        self._keep(key_of(entry), entry)

    def finish(self, entry: Conntrack, helper: str, reason: str) -> None:
        """The flow of `entry` is no longer inspected; mark it when it can be."""
        key = key_of(entry)
        # The kernel may give a key to another flow.
        if self._left.get(key) != entry.original:
            leaving = _Leaving(entry.original, helper, reason)
            self._leaving.setdefault(key, leaving)

    def forget(self, key: FlowKey) -> None:
        """The entry is gone."""
        self._kept.pop(key, None)
        self._unseen.pop(key, None)
        self._passed.pop(key, None)
        self._leaving.pop(key, None)
        self._left.pop(key, None)

    def passed(self, entry: Conntrack) -> None:
        """A packet of the flow was released; `entry` is as it came with the packet."""
        key = key_of(entry)
        if key in self._kept:
            # The timeout of an entry that was not confirmed yet is not to be relied on.
            if entry.confirmed and entry.timeout >= _SOON:
                self._passed[key] = entry
            else:
                self._keep(key, entry)
        if key in self._leaving:
            self._let_go(key)

    @property
    def busy(self) -> bool:
        """Whether a sweep would find anything to look after."""
        return bool(self._kept or self._leaving)

    def keeps(self, key: FlowKey) -> bool:
        """Whether the flow has expectations, so that its packets must be told of."""
        return key in self._kept

    def touched(self, key: FlowKey, timeout: int) -> None:
        """Packets of a flow have passed unseen; its timeout was so many seconds."""
        kept = self._kept.get(key)
        if kept is not None:
            status = kept.entry.status | Status.CONFIRMED
            self._passed[key] = replace(kept.entry, timeout=timeout, status=status)

    def sweep(self) -> None:
        """Keep the masters that had packets; mark the finished flows that can be.

        Call it every second.
        """
        while self._passed:
            self._keep(*self._passed.popitem())
        now = self._clock()
        due = takewhile(lambda each: each[1] <= now, self._unseen.items())
        for key, _ in list(due):
            del self._unseen[key]
            kept = self._kept.get(key)
            if kept is not None:
                self._unseen[key] = now + _UNSEEN
                self._look_at(key, kept.entry.original)
        for key in list(self._leaving):
            self._let_go(key)

    def _look_at(self, key: FlowKey, original: Tuple) -> None:
        """Keep a master whose packets are not seen, as it is in the kernel now."""
        try:
            entry = self._updater.get(original, zone_of(key))
        except NotFound:
            self.forget(key)
        except NetlinkError as error:
            self._failed("keep-failed", error)
        else:
            self._keep(key, entry)

    def _keep(self, key: FlowKey, entry: Conntrack) -> None:
        """See to it that the entry outlives its expectations."""
        kept = self._kept.get(key)
        if kept is None:
            return
        wanted = self._wanted(kept.until)
        if wanted <= 0:
            del self._kept[key]
            return
        if entry.confirmed and entry.timeout >= wanted:
            return
        try:
            self._updater.update(entry.original, entry.zone, timeout=wanted)
        except NotFound:
            self.forget(key)
        except NetlinkError as error:
            self._failed("keep-failed", error)

    def _wanted(self, until: float) -> int:
        """The timeout in seconds of a master whose expectations last until then."""
        return math.ceil(until - self._clock()) + _MARGIN

    def _let_go(self, key: FlowKey) -> None:
        kept = self._kept.get(key)
        if kept is not None and kept.until + _MARGIN > self._clock():
            return
        leaving = self._leaving.pop(key)
        self._kept.pop(key, None)
        if self._mark:
            try:
                self._updater.update(
                    leaving.original, zone_of(key), mark=(self._mark, self._mark)
                )
            except NotFound:
                return  # it has ended
            except NetlinkError as error:
                self._failed("mark-failed", error)
                return
        self._left[key] = leaving.original
        if len(self._left) > _LEFT:
            del self._left[next(iter(self._left))]
        self._log.event(
            "marked" if self._mark else "kept",
            reason=leaving.reason,
            helper=leaving.helper,
            flow=leaving.original,
        )

    def _failed(self, event: str, error: NetlinkError) -> None:
        # The error's text names the flow: as a reason it would make a counter of each.
        self._log.event(event, "warning", reason=error.reason, detail=error)
