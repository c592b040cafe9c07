# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts expectations into the kernel: as many flows get in as were announced.

The kernel keeps one expectation where several flows expect the same, and the first
flow uses a one-shot one up, whoever it was announced to. So one that is asked for again
while it lives becomes permanent; of the flows that it lets in the kernel tells, and
before the last of those that were announced it becomes one-shot again. Only while there
are such the events are followed.

What a flow has labelled it may take back. The kernel's expectation goes only where
nobody else has asked for it, as far as that is known: who has is counted from the first
that labels it on, by whom a flow was let in is not known, and so as many go on as
others have announced.
"""

import errno
import math
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count as counter
from itertools import takewhile
from typing import Final, NamedTuple, Protocol

from cthelper.core.errors import (
    AlreadyExists,
    Busy,
    ExpectationRefused,
    NetlinkError,
    NotFound,
)
from cthelper.core.grants import How, Placed, Withdrawn
from cthelper.core.masters import Masters, Reporter
from cthelper.core.nat import leads
from cthelper.core.tuples import (
    Conntrack,
    Endpoint,
    Expectation,
    FlowKey,
    Network,
    Transport,
    Tuple,
    key_of,
)

# An expectation may end, or another come, between two requests; not again and again.
_ATTEMPTS: Final = 3
# Flows of which what they have labelled is known, and how many of its latest. What is
# forgotten ends by its timeout.
_LABELLING: Final = 4096
_LABELLED: Final = 32


class Kernel(Protocol):
    """The kernel's table of expectations. Every method raises NetlinkError."""

    def get(self, original: Tuple, zone: int = 0) -> Conntrack:
        """The entry with this original tuple."""

    def expect(self, expectation: Expectation) -> None:
        """Put in an expectation; it is there when this returns.

        Raises AlreadyExists where one covers it, whoever's, and Busy where one overlaps
        it.
        """

    def covering(self, expectation: Expectation) -> Expectation:
        """The one in the table that covers this one; its timeout is what is left.

        Raises NotFound.
        """

    def towards(self, expectation: Expectation) -> list[Expectation]:
        """Those in the table that lead to the same destination; it takes long."""

    def renew(self, expectation: Expectation, seconds: int) -> None:
        """Set what is left of the life of the one that covers this one."""

    def replace_expectations(
        self, old: Sequence[Expectation], new: Expectation, seconds: int
    ) -> None:
        """Put in one for so many seconds in place of others, gone or not.

        No packet comes between. Raises NotFound where its master is gone.
        """

    def delete_expectation(self, expectation: Expectation) -> None:
        """Take one out. Raises NotFound."""


class _Where(NamedTuple):
    """Where expected flows lead to."""

    transport: Transport
    zone: int
    destination: Endpoint


@dataclass(slots=True, eq=False)
class _Shared:
    """A one-shot expectation that was asked for more than once.

    `expectation` is as the kernel has it, `ends` are the times at which the
    announcements of flows that have not come yet end, the first one first, and `lasts`
    when the kernel's ends, as it was set here. Until `open_until` it stays as it is,
    whoever comes: it was there, permanent, and nobody knows how many flows are still
    to come.
    """

    expectation: Expectation
    ends: list[float]
    lasts: float
    open_until: float = 0.0


@dataclass(slots=True)
class _Ticket:
    """An announcement that its flow may take back."""

    label: bytes
    number: int
    end: float
    expectation: Expectation


@dataclass(slots=True)
class _Needed:
    """Who has asked for an expectation of the kernel's, of which some are labelled.

    `master` is its, `ends` has when each announcement ends by itself, by its number,
    and `lasts` when the last of all that there ever were does.
    """

    master: Tuple
    ends: dict[int, float]
    lasts: float


# Not frozen, which would treble what it costs to make one for each packet.
@dataclass(slots=True)
class Answer:
    """What the kernel has taken of a packet's expectations, and what not and why.

    `timeout`, in seconds, is what the packet's entry must be given to outlive them;
    None: it does already.
    """

    placed: tuple[Placed, ...]
    refused: tuple[tuple[Expectation, NetlinkError], ...]
    timeout: int | None

    def __init__(
        self,
        placed: tuple[Placed, ...],
        refused: tuple[tuple[Expectation, NetlinkError], ...],
        timeout: int | None,
    ) -> None:
        self.placed = placed
        self.refused = refused
        self.timeout = timeout


class Expecter:
    """Takes what is granted to the kernel.

    `log` is told what fails, `clock` gives seconds and only moves forward. `follow` is
    called with True while flows are to be counted: it has `met` and `renewed` called
    for what has happened by now, and for nothing that happened before the first such
    call; with False when none are to be counted any longer.
    """

    def __init__(
        self,
        kernel: Kernel,
        masters: Masters,
        log: Reporter,
        clock: Callable[[], float],
        follow: Callable[[bool], None],
    ) -> None:
        self._kernel = kernel
        self._masters = masters
        self._log = log
        self._clock = clock
        self._follow = follow
        self._shared: dict[_Where, list[_Shared]] = {}
        self._tickets: OrderedDict[FlowKey, deque[_Ticket]] = OrderedDict()
        self._needed: OrderedDict[_Identity, _Needed] = OrderedDict()
        self._number = counter()

    @property
    def counts(self) -> bool:
        """Whether there are flows to be counted."""
        return bool(self._shared)

    @property
    def labels(self) -> int:
        """How many flows have something that they may take back."""
        return len(self._tickets)

    def carry_out(
        self,
        entry: Conntrack,
        expectations: Sequence[Expectation],
        before: Sequence[Placed] = (),
    ) -> Answer:
        """Put in what a packet of a confirmed flow announces, each by itself.

        Its flow is kept as long as these live, and those that were placed `before`.
        """
        placed = list(before)
        refused: list[tuple[Expectation, NetlinkError]] = []
        for expectation in expectations:
            try:
                placed.append(self._put(entry, expectation, widens=True))
            except NetlinkError as error:
                refused.append((expectation, error))
        made = [each.expectation for each in placed]
        timeout = self._masters.expect(entry, made) if made else None
        return Answer(tuple(placed), tuple(refused), timeout)

    def place(
        self, entry: Conntrack, expectations: Sequence[Expectation]
    ) -> list[Placed] | None:
        """Put in all of these, or none; None: another that leads elsewhere is there.

        So it is where one would take the place of others: who is placed can be told
        another port. Raises ExpectationRefused where the kernel refuses for another
        reason.
        """
        placed: list[Placed] = []
        try:
            for expectation in expectations:
                placed.append(self._put(entry, expectation, widens=False))
        except NetlinkError as error:
            self.withdraw(placed)
            if isinstance(error, Busy):
                return None
            raise ExpectationRefused(error.reason, str(error)) from None
        return placed

    def withdraw(self, placed: Sequence[Placed]) -> None:
        """Take back what was placed just now, and of which nobody was told."""
        for each in placed:
            if each.how is How.CREATED:
                self._delete(each.expectation)
                continue
            shared = self._find(each.expectation)
            if shared is not None and shared.ends and not each.expectation.permanent:
                end = self._clock() + each.expectation.timeout
                shared.ends.remove(min(shared.ends, key=lambda at: abs(at - end)))
                self._adjust(shared)

    def revoke(self, entry: Conntrack, label: bytes) -> list[Withdrawn]:
        """Take back what a flow has labelled, as far as it is there still.

        What was used up, or has ended, is passed over, and what the kernel refuses is
        told to the log.
        """
        tickets = self._tickets.get(key_of(entry))
        if tickets is None:
            return []
        self._catch_up()
        withdrawn: list[Withdrawn] = []
        for ticket in list(tickets):
            # The kernel may give a key to another flow.
            if ticket.label == label and ticket.expectation.master == entry.original:
                tickets.remove(ticket)
                try:
                    taken = self._take_back(ticket)
                except NetlinkError as error:
                    self._tell(error)
                    continue
                if taken is not None:
                    withdrawn.append(taken)
        return withdrawn

    def forget(self, key: FlowKey) -> None:
        """A flow has ended, and the kernel has let go of what it expected."""
        self._tickets.pop(key, None)

    def met(self, flow: Tuple, master: Tuple, zone: int) -> None:
        """A flow has begun that `master` expected; both are original tuples."""
        where = _Where(flow.transport, zone, flow.destination)
        for shared in self._shared.get(where, ()):
            expectation = shared.expectation
            if expectation.master == master and _lets_in(expectation, flow.source):
                if shared.ends:
                    shared.ends.pop(0)
                self._adjust(shared)
                return

    def renewed(self, expectation: Expectation) -> None:
        """Another server has asked for it, too."""
        shared = self._find(expectation)
        if shared is None or not expectation.permanent:
            return
        if shared.expectation.permanent:
            insort(shared.ends, self._clock() + expectation.timeout)
        else:
            # It counts the last one of ours with its own.
            self._forget(shared)

    def sweep(self) -> None:
        """Forget the announcements that nobody has followed in time.

        Call it every second.
        """
        now = self._clock()
        for shared in [each for found in self._shared.values() for each in found]:
            late = [each for each in shared.ends if each <= now]
            del shared.ends[: len(late)]
            if late or 0.0 < shared.open_until <= now:
                self._adjust(shared)
        needed, tickets = self._needed, self._tickets
        for place in list(takewhile(lambda each: needed[each].lasts <= now, needed)):
            del needed[place]
        for key in list(takewhile(lambda each: _over(tickets[each], now), tickets)):
            del tickets[key]

    def _put(self, entry: Conntrack, wanted: Expectation, *, widens: bool) -> Placed:
        """Put in an expectation of `entry`, or have one that is there do.

        With `widens` it takes the place of those that it covers. Raises NetlinkError;
        Busy where one that is there leads elsewhere.
        """
        for _ in range(_ATTEMPTS):
            try:
                self._kernel.expect(wanted)
            except AlreadyExists:
                self._catch_up()
                try:
                    return self._join(entry, wanted, self._kernel.covering(wanted))
                except NotFound:
                    continue
            except Busy:
                if not widens:
                    raise
                self._catch_up()
                return self._widen(entry, wanted)
            shared = self._find(wanted)
            if shared is not None:
                self._forget(shared)  # it has ended
            if self._needed:
                # Whoever has asked for one that was there had that one.
                self._needed.pop(_identity(wanted), None)
            self._need(entry, wanted, wanted, {})
            return Placed(wanted, How.CREATED, None if wanted.permanent else 1)
        raise _busy(wanted)

    def _join(
        self, entry: Conntrack, wanted: Expectation, present: Expectation
    ) -> Placed:
        """Have one that covers the wanted one do for both.

        Raises NetlinkError; NotFound where it has ended.
        """
        if not self._leads_alike(entry, wanted, present):
            raise _busy(wanted)
        now = self._clock()
        seconds = max(present.timeout, wanted.timeout)
        lasting = _anew(entry, wanted, present, permanent=True)
        shared = self._find(present)
        if shared is not None and not _same(shared.expectation, present):
            self._forget(shared)  # another has taken its place
            shared = None
        others = self._others(wanted, present, shared)
        flows = None
        if wanted.permanent:
            if present.permanent:
                self._kernel.renew(wanted, seconds)
            else:
                self._replace(entry, [present], lasting, seconds)
            if shared is not None:
                self._forget(shared)
        elif present.permanent and shared is None and present.helper != entry.helper:
            # Another helper's, which is for any number of flows.
            self._kernel.renew(wanted, seconds)
        else:
            if shared is None:
                self._follow(True)
            if shared is not None and present.permanent and shared.open_until <= now:
                self._kernel.renew(wanted, seconds)
            else:
                # Where it is permanent already another server counts, or did: that is
                # told of each new one (`renewed`).
                self._replace(entry, [present], lasting, seconds)
            if shared is None:
                until = now + present.timeout
                shared = self._count(lasting, [] if present.permanent else [until])
                shared.open_until = until if present.permanent else 0.0
            shared.expectation = lasting
            shared.lasts = now + seconds
            insort(shared.ends, now + wanted.timeout)
            flows = len(shared.ends) if shared.open_until <= now else None
        self._need(entry, wanted, present, others)
        if present.master == wanted.master:
            return Placed(wanted, How.RENEWED, flows)
        self._masters.lengthen(present.master, wanted)
        return Placed(wanted, How.SHARED, flows)

    def _widen(self, entry: Conntrack, wanted: Expectation) -> Placed:
        """Have the wanted one do for all that it covers, too. Raises NetlinkError."""
        now = self._clock()
        others = [
            each for each in self._kernel.towards(wanted) if _overlap(each, wanted)
        ]
        for each in others:
            if not (_covers(wanted, each) and self._leads_alike(entry, wanted, each)):
                raise _busy(wanted)
        ends = [now + wanted.timeout]
        permanent = wanted.permanent
        before = []
        needed: dict[int, float] = {}
        for each in others:
            shared = self._find(each)
            needed |= self._others(wanted, each, shared)
            self._needed.pop(_identity(each), None)
            if shared is not None and _same(shared.expectation, each):
                ends += shared.ends
                before.append(shared)
            elif each.permanent:
                permanent = True
            else:
                ends.append(now + each.timeout)
        several = not permanent and len(ends) > 1
        if several:
            self._follow(True)
        lasting = replace(wanted, permanent=permanent or several)
        seconds = max(each.timeout for each in (wanted, *others))
        self._replace(entry, others, lasting, seconds)
        if several:
            self._count(lasting, sorted(ends)).lasts = now + seconds
        for shared in before:
            self._forget(shared)
        self._need(entry, wanted, wanted, needed)
        alone = all(each.master == wanted.master for each in others)
        how = How.RENEWED if alone else How.SHARED
        return Placed(wanted, how, None if permanent else len(ends))

    def _replace(
        self,
        entry: Conntrack,
        old: Sequence[Expectation],
        new: Expectation,
        seconds: int,
    ) -> None:
        """Put in one in place of others. Raises NetlinkError; then they are there."""
        try:
            self._kernel.replace_expectations(old, new, seconds)
        except NetlinkError:
            for each in old:
                again = _anew(entry, new, each, permanent=each.permanent)
                try:
                    self._kernel.expect(again)
                    self._kernel.renew(again, each.timeout)
                except NetlinkError as error:
                    self._tell(error)
            raise

    def _leads_alike(
        self, entry: Conntrack, wanted: Expectation, present: Expectation
    ) -> bool:
        """Whether an expectation that is there leads to where the wanted one would.

        The expected flow goes to its own port, and is translated as its master is.
        Raises NetlinkError.
        """
        translation = wanted.translation
        if present.translation != translation:
            return False
        if translation is None or present.master == wanted.master:
            return True
        other = self._kernel.get(present.master, present.zone)
        ours = leads(translation, entry.original, entry.reply)
        return ours == leads(translation, other.original, other.reply)

    # Those that may be taken back

    def _others(
        self, wanted: Expectation, present: Expectation, shared: _Shared | None
    ) -> dict[int, float]:
        """Who has asked for one that is there: when each ends, by its number."""
        needed = self._needed.get(_identity(present)) if self._needed else None
        if needed is not None:
            return needed.ends
        if wanted.label is None:
            return {}
        ends = [self._clock() + present.timeout] if shared is None else shared.ends
        return {next(self._number): each for each in ends}

    def _need(
        self,
        entry: Conntrack,
        wanted: Expectation,
        present: Expectation,
        others: dict[int, float],
    ) -> None:
        """Keep in mind who needs one that is there, where some may take it back."""
        if not (others or wanted.label):
            return
        number, end = next(self._number), self._clock() + wanted.timeout
        place = _identity(present)
        ends = {**others, number: end}
        before = self._needed.pop(place, None)
        lasts = max(ends.values()) if before is None else max(before.lasts, end)
        self._needed[place] = _Needed(present.master, ends, lasts)
        if wanted.label is None:
            return
        key = key_of(entry)
        tickets = self._tickets.setdefault(key, deque(maxlen=_LABELLED))
        tickets.append(_Ticket(wanted.label, number, end, wanted))
        self._tickets.move_to_end(key)
        if len(self._tickets) > _LABELLING:
            self._tickets.popitem(last=False)

    def _take_back(self, ticket: _Ticket) -> Withdrawn | None:
        """Take back an announcement; None: another has taken the place of what it was.

        Raises NetlinkError; NotFound where it has ended.
        """
        wanted, now = ticket.expectation, self._clock()
        present = self._kernel.covering(wanted)
        needed = self._needed.get(_identity(present))
        if needed is None or needed.ends.pop(ticket.number, None) is None:
            return None
        needed.ends = {each: end for each, end in needed.ends.items() if end > now}
        shared = self._find(present)
        if shared is not None:
            if len(shared.ends) <= len(needed.ends):
                return None  # as many have come as are not needed
            end = ticket.end
            shared.ends.remove(min(shared.ends, key=lambda at: abs(at - end)))
            self._adjust(shared)
            is_open = shared.open_until > now
            return Withdrawn(wanted, None if is_open else len(shared.ends))
        if needed.ends:
            return Withdrawn(wanted, None)
        # Another server has made it last longer, or for any number of flows.
        longer = present.timeout > needed.lasts - now + 1
        if longer or present.permanent is not wanted.permanent:
            return None
        if present.master != needed.master:
            return None
        self._kernel.delete_expectation(present)
        return Withdrawn(wanted, 0)

    # Those that are counted

    def _find(self, expectation: Expectation) -> _Shared | None:
        """The shared one that covers an expectation; they do not overlap."""
        if not self._shared:
            return None
        for shared in self._shared.get(_where(expectation), ()):
            if _covers(shared.expectation, expectation):
                return shared
        return None

    def _catch_up(self) -> None:
        """Have flows counted that have come, and of which nobody has read yet."""
        if self._shared:
            self._follow(True)

    def _count(self, expectation: Expectation, ends: list[float]) -> _Shared:
        """Count the flows of an expectation, since the events are followed."""
        shared = _Shared(expectation, ends, lasts=0.0)
        self._shared.setdefault(_where(expectation), []).append(shared)
        return shared

    def _forget(self, shared: _Shared) -> None:
        where = _where(shared.expectation)
        found = self._shared[where]
        found.remove(shared)
        if not found:
            del self._shared[where]
        if not self._shared:
            try:
                self._follow(False)
            except NetlinkError as error:
                self._tell(error)

    def _adjust(self, shared: _Shared) -> None:
        """Let in as many flows as are still to come."""
        expectation = shared.expectation
        count, now = len(shared.ends), self._clock()
        if count > 1 or (count and not expectation.permanent):
            return
        if shared.open_until > now:
            return
        once = replace(expectation, permanent=False)
        try:
            present = self._kernel.covering(expectation)
            # It may have ended with its master, or another have taken its place.
            if not _same(present, expectation):
                raise NotFound.of(errno.ENOENT, f"get expectation {expectation}")
            if present.permanent and present.timeout > shared.lasts - now + 1:
                # Another server has lengthened it, and counts as well.
                shared.open_until = shared.lasts = now + present.timeout
            elif count:
                seconds = max(1, math.ceil(shared.ends[0] - now))
                self._kernel.replace_expectations([expectation], once, seconds)
                shared.expectation = once
                shared.lasts = now + seconds
            else:
                self._kernel.delete_expectation(expectation)
                self._forget(shared)
        except NetlinkError as error:
            self._forget(shared)
            self._tell(error)

    def _delete(self, expectation: Expectation) -> None:
        try:
            self._kernel.delete_expectation(expectation)
        except NetlinkError as error:
            self._tell(error)

    def _tell(self, error: NetlinkError) -> None:
        """Nobody waits for what failed; that something has ended is no failure."""
        if not isinstance(error, NotFound):
            self._log.event(
                "step-failed", "warning", reason=error.reason, detail=str(error)
            )


def _over(tickets: Sequence[_Ticket], now: float) -> bool:
    """Whether all that a flow has labelled has ended."""
    return not tickets or tickets[-1].end <= now


_Identity = tuple[_Where, Network | None, int | None]
"""What tells one expectation in the kernel from another."""


def _identity(expectation: Expectation) -> _Identity:
    return _where(expectation), expectation.source, expectation.source_port


def _where(expectation: Expectation) -> _Where:
    return _Where(expectation.transport, expectation.zone, expectation.destination)


def _busy(wanted: Expectation) -> NetlinkError:
    return Busy.of(errno.EBUSY, f"expect {wanted}")


def _anew(
    entry: Conntrack, wanted: Expectation, present: Expectation, *, permanent: bool
) -> Expectation:
    """An expectation that is there, as it is to be put in again.

    The kernel does not tell the helper of the expected flow (it tells the master's),
    but flows of one helper expect what they expect alike.
    """
    if present.helper != entry.helper:
        return replace(present, permanent=permanent, helper=None)
    return replace(
        wanted,
        master=present.master,
        source=present.source,
        source_port=present.source_port,
        permanent=permanent,
    )


def _same(one: Expectation, other: Expectation) -> bool:
    """Whether one is the other as the kernel tells it."""
    return (
        one.master == other.master
        and one.permanent is other.permanent
        and _covers(one, other)
        and _covers(other, one)
    )


def _covers(wide: Expectation, narrow: Expectation) -> bool:
    """Whether every flow that meets `narrow` meets `wide`; their ends are equal."""
    return _holds(wide.source, narrow.source) and wide.source_port in (
        None,
        narrow.source_port,
    )


def _overlap(one: Expectation, other: Expectation) -> bool:
    """Whether a flow could meet both, their ends being equal (expect_clash)."""
    ports = {one.source_port, other.source_port} - {None}
    nested = _holds(one.source, other.source) or _holds(other.source, one.source)
    return nested and len(ports) < 2


def _holds(wide: Network | None, narrow: Network | None) -> bool:
    if wide is None or narrow is None:
        return wide is None
    return wide.prefixlen <= narrow.prefixlen and narrow.network_address in wide


def _lets_in(expectation: Expectation, source: Endpoint) -> bool:
    """Whether a flow from there meets an expectation to where it goes."""
    network = expectation.source
    return (network is None or source.address in network) and (
        expectation.source_port in (None, source.port)
    )
