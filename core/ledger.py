# SPDX-License-Identifier: GPL-2.0-or-later
"""How many expectations live, whose they are, and whether there may be more.

The kernel's table is small (nf_conntrack_expect_max), and its own helpers share it. So
whoever asks has an account, and so has the server that he asks, and all together. An
account that is full refuses what is new and gives up nothing that it has.

An expectation counts from the wish to its end: by its timeout, with its master, or
because the kernel has not taken it. That a one-shot one was met is not told. So an
account that is full asks the kernel for some of its own, the one-shot ones first, and
what is there no more no longer counts. Nobody is refused for what has ended, and who
keeps his account full has few questions answered in a second.
"""

import enum
import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import count as counter
from itertools import islice
from typing import Final, NamedTuple

from cthelper.core.errors import ExpectationRefused
from cthelper.core.tuples import (
    Address,
    Expectation,
    FlowKey,
    Identity,
    host_of,
    version_of,
)

LIVE_SOURCE: Final = 512
"""Live expectations of one source's flows."""
LIVE_SERVER: Final = 1024
"""Live expectations of flows to one server."""
LIVE_ALL: Final = 8192
"""Live expectations in all."""

# Seconds between two looks at the kernel's table, and in which an account that the
# kernel has nothing to say against is not asked for again.
_PAUSE: Final = 1.0
# What an account that is full looks at, and asks the kernel for, at a time: a question
# takes the kernel and us 50 us or so.
_LOOKED_AT: Final = 64
_ASKED: Final = 8
# Flows that may have asked for one and the same, each of which may be its master.
_FLOWS: Final = 8
# Seconds that one may live longer in the kernel than from the wish on: it gets its
# timeout when it is put in.
_MARGIN: Final = 1.0


class Standing(enum.IntEnum):
    """How sure it is that the source of a flow is who it says."""

    UNANSWERED = 0
    """Anybody may have sent its first packet."""
    ANSWERED = 1
    """A server has answered; a datagram that he answered may be forged."""
    PROVEN = 2
    """Its source has heard the answer (IPS_ASSURED), or is this host."""


class Room(NamedTuple):
    """The kernel's table: how many are in it, whoever's, and how many may be."""

    held: int
    most: int


Account = tuple[str | int, ...]
"""What tells one account from another."""


def network_of(address: Address) -> Account | None:
    """The /48 of an address, which one customer may have (RFC 6177); None: IPv4."""
    return None if version_of(address) == 4 else ("/48", int(address) >> 80)


@dataclass(slots=True, eq=False)
class Asker:
    """The flow that asks for expectations, and for whom.

    `server` is None where it goes to a group. `flow` is the master's key. `who` tells
    the source from others, `network` its /48. `accounts` are those that its
    expectations are on, the narrowest first; each begins with its kind.
    """

    helper: str
    source: Address
    server: Address | None
    standing: Standing
    flow: FlowKey
    who: Account
    network: Account | None
    accounts: tuple[Account, ...]

    def __init__(
        self,
        helper: str,
        source: Address,
        server: Address | None,
        standing: Standing,
        flow: FlowKey,
    ) -> None:
        self.helper = helper
        self.source = source
        self.server = server
        self.standing = standing
        self.flow = flow
        self.who = who = host_of(source)
        self.network = network = network_of(source)
        # What may be forged in the source's name gets a part of its account alone,
        # which leaves the source itself the rest.
        unanswered = standing is Standing.UNANSWERED
        unproven = standing is not Standing.PROVEN
        accounts: list[Account] = []
        if unproven:
            kind = "unanswered source" if unanswered else "answered source"
            accounts.append((kind, *who))
        accounts.append(("source", *who))
        if server is not None:
            number = int(server), version_of(server)
            if unanswered:
                accounts.append(("unanswered server", *number))
            if unproven:
                accounts.append(("unproven server", *number))
            accounts.append(("server", *number))
        if network is not None:
            accounts.append(network)
        if unanswered:
            accounts.append(("unanswered",))
        if unproven:
            accounts.append(("unproven",))
        accounts.append(("all",))
        self.accounts = tuple(accounts)


_KINDS: Final[dict[str | int, tuple[str, str]]] = {
    "unanswered source": ("live-source", "{0.source}, which may be forged, has"),
    "answered source": ("live-source", "{0.source}, which may be forged, has"),
    "source": ("live-source", "the flows of {0.source} have"),
    "unanswered server": (
        "live-server",
        "unanswered ones of the flows to {0.server} have",
    ),
    "unproven server": (
        "live-server",
        "those that may be forged of the flows to {0.server} have",
    ),
    "server": ("live-server", "the flows to {0.server} have"),
    "/48": ("live-network", "the /48 of {0.source} has"),
    "unanswered": ("live-unanswered", "unanswered flows have"),
    "unproven": ("live-unproven", "flows that may be forged have"),
    "all": ("live-all", "all flows have"),
}
"""By the kind of an account, the reason for a refusal, and whose it is in words."""


@dataclass(slots=True)
class _Live:
    """One expectation, on the accounts of who asked first.

    `end` is when it has certainly ended, `placed` whether the kernel has had it. One of
    the `flows` is its master, or was that of one like it; None: too many have asked.
    """

    expectation: Expectation
    accounts: tuple[Account, ...]
    end: float
    placed: bool
    flows: set[FlowKey] | None

    def __init__(
        self,
        expectation: Expectation,
        accounts: tuple[Account, ...],
        end: float,
        placed: bool,
        flows: set[FlowKey] | None,
    ) -> None:
        self.expectation = expectation
        self.accounts = accounts
        self.end = end
        self.placed = placed
        self.flows = flows


class Ledger:
    """The live expectations, within limits; 0 is none.

    `lives` asks the kernel whether it has an expectation, or one that covers it; None:
    it is not asked. `room` looks at the kernel's table, of which a quarter is left to
    others; None, or one that returns None: nobody knows it. Of the rest one of
    `workers` has its share.
    """

    def __init__(
        self,
        source: int,
        server: int,
        in_all: int,
        *,
        lives: Callable[[Expectation], bool] | None = None,
        room: Callable[[], Room | None] | None = None,
        workers: int = 1,
    ) -> None:
        self._lives = lives
        self._look = room
        self._workers = workers
        self._looked = -_PAUSE
        # How many of the kernel's table are ours at most, and how many of these are
        # free until the next look; None: not known.
        self._usable: int | None = None
        self._free: int | None = None
        self.limit(source, server, in_all)
        self._live: dict[Identity, _Live] = {}
        self._members: dict[Account, dict[Identity, None]] = {}
        self._of_flow: dict[FlowKey, set[Identity]] = {}
        # Some have moved on, or are gone, when their time comes.
        self._ends: list[tuple[float, int, Identity]] = []
        self._number = counter()
        self._asked: dict[Account, float] = {}

    def __len__(self) -> int:
        """How many live, or may."""
        return len(self._live)

    def limit(self, source: int, server: int, in_all: int) -> None:
        """Set the limits anew; what lives beyond them goes on."""
        self._source, self._server, self._in_all = source, server, in_all
        self._share_out()

    def _share_out(self) -> None:
        """Find out the limit of each kind of account."""
        usable = self._usable
        source, server, in_all = (
            _lower(limit, None if usable is None else usable * eighths // 8)
            for limit, eighths in (
                (self._source, 3),
                (self._server, 4),
                (self._in_all, 8),
            )
        )
        self._most: dict[str | int, int] = {
            "unanswered source": part(source, 1, 6),
            "answered source": part(source, 4, 6),
            "source": source,
            "unanswered server": part(server, 1, 2),
            "unproven server": part(server, 3, 4),
            "server": server,
            "/48": part(in_all, 3, 4),
            "unanswered": part(in_all, 1, 2),
            "unproven": part(in_all, 3, 4),
            "all": in_all,
        }

    def check(
        self, now: float, asker: Asker, wanted: Sequence[Expectation], *, moves: bool
    ) -> None:
        """Raise ExpectationRefused where these would be too many.

        With `moves` they may be given other ports: then all count as new.
        """
        self._expire(now)
        if now - self._looked >= _PAUSE:
            self._look_at_table(now)
        keys = {each.identity for each in wanted}
        count = len(wanted) if moves else sum([each not in self._live for each in keys])
        if count:
            self._check(now, asker, keys, count)
        if self._free is None:
            return
        # A one-shot one that is wished again may have been met, and then it is new.
        may_be_new = len(wanted) if moves else sum(map(self._may_be_new, wanted))
        if self._free < may_be_new:
            raise ExpectationRefused(
                "live-all",
                "a quarter of the kernel's table is left to others "
                "(nf_conntrack_expect_max)",
            )

    def _check(
        self, now: float, asker: Asker, wanted: Collection[Identity], count: int
    ) -> None:
        for account in asker.accounts:
            most = self._most[account[0]]
            if not most or self._count(account) + count <= most:
                continue
            self._ask(now, account, wanted)
            if self._count(account) + count > most:
                reason, whose = _KINDS[account[0]]
                raise ExpectationRefused(
                    reason, f"{whose.format(asker)} {most} live expectations"
                )

    def _may_be_new(self, expectation: Expectation) -> bool:
        return not expectation.permanent or expectation.identity not in self._live

    def enter(
        self,
        now: float,
        asker: Asker,
        expectations: Iterable[Expectation],
        *,
        placed: bool,
    ) -> None:
        """Count these, which may be there already. `placed`: the kernel has them."""
        accounts = asker.accounts
        for expectation in expectations:
            identity = expectation.identity
            end = now + expectation.timeout + _MARGIN
            if self._free is not None and self._may_be_new(expectation):
                self._free -= 1
            live = self._live.get(identity)
            if live is not None:
                live.end = max(live.end, end)
                live.placed |= placed
                self._join(identity, live, asker.flow)
                continue
            live = _Live(expectation, accounts, end, placed, set())
            self._live[identity] = live
            self._join(identity, live, asker.flow)
            for account in accounts:
                self._members.setdefault(account, {})[identity] = None
            heapq.heappush(self._ends, (end, next(self._number), identity))

    def confirm(self, expectations: Iterable[Expectation]) -> None:
        """The kernel has taken these."""
        for expectation in expectations:
            live = self._live.get(expectation.identity)
            if live is not None:
                live.placed = True

    def cancel(self, expectations: Iterable[Expectation]) -> None:
        """The kernel has not taken these; what it took before stays."""
        for expectation in expectations:
            identity = expectation.identity
            live = self._live.get(identity)
            if live is not None and not live.placed:
                self._remove(identity)

    def remove(self, expectations: Iterable[Expectation]) -> None:
        """These were taken out of the kernel."""
        for expectation in expectations:
            self._remove(expectation.identity)

    def forget(self, flow: FlowKey) -> None:
        """A flow has ended, and with it what it expected."""
        for identity in self._of_flow.pop(flow, ()):
            flows = self._live[identity].flows
            if flows is not None:
                flows.discard(flow)
                if not flows:
                    self._remove(identity)

    def _join(self, identity: Identity, live: _Live, flow: FlowKey) -> None:
        """A flow has asked, and the kernel does not say if it is the master now."""
        if live.flows is None:
            return
        if len(live.flows) >= _FLOWS and flow not in live.flows:
            self._part_from_flows(identity, live)
            live.flows = None
            return
        live.flows.add(flow)
        self._of_flow.setdefault(flow, set()).add(identity)

    def _part_from_flows(self, identity: Identity, live: _Live) -> None:
        for flow in live.flows or ():
            own = self._of_flow[flow]
            own.discard(identity)
            if not own:
                del self._of_flow[flow]

    def _count(self, account: Account) -> int:
        return len(self._members.get(account, ()))

    def _remove(self, identity: Identity) -> None:
        live = self._live.pop(identity, None)
        if live is None:
            return
        for account in live.accounts:
            members = self._members[account]
            del members[identity]
            if not members:
                del self._members[account]
                self._asked.pop(account, None)
        self._part_from_flows(identity, live)
        if len(self._ends) > 2 * len(self._live) + _LOOKED_AT:
            self._ends = [
                (each.end, next(self._number), key) for key, each in self._live.items()
            ]
            heapq.heapify(self._ends)

    def _expire(self, now: float) -> None:
        """Let go of those whose time is over."""
        while self._ends and self._ends[0][0] <= now:
            _, number, identity = heapq.heappop(self._ends)
            live = self._live.get(identity)
            if live is None:
                continue
            if live.end > now:
                heapq.heappush(self._ends, (live.end, number, identity))
            else:
                self._remove(identity)

    def _ask(self, now: float, account: Account, wanted: Collection[Identity]) -> None:
        """Let go of some that the kernel has no more, of none that are `wanted`."""
        members = self._members.get(account)
        if self._lives is None or members is None:
            return
        if now - self._asked.get(account, -_PAUSE) < _PAUSE:
            return
        front = list(islice(members, _LOOKED_AT))
        for identity in front:
            # The next time it is others' turn.
            members[identity] = members.pop(identity)
        placed = [
            each for each in front if self._live[each].placed and each not in wanted
        ]
        placed.sort(key=lambda each: self._live[each].expectation.permanent)
        gone = [
            each
            for each in placed[:_ASKED]
            if not self._lives(self._live[each].expectation)
        ]
        for identity in gone:
            self._remove(identity)
        if not gone:
            self._asked[account] = now

    def _look_at_table(self, now: float) -> None:
        self._looked = now
        room = None if self._look is None else self._look()
        if room is None:
            self._usable = self._free = None
        else:
            usable = room.most * 3 // 4
            self._usable = max(1, usable // self._workers)
            self._free = max(0, usable - room.held) // self._workers
        self._share_out()


def _lower(limit: int, other: int | None) -> int:
    """The lower of two limits, of which the first one is none where it is 0."""
    if other is None:
        return limit
    return min(limit, max(1, other)) if limit else max(1, other)


def part(limit: int, count: int, parts: int) -> int:
    """A part of a limit, at least 1; 0, none, of none."""
    return max(1, limit * count // parts) if limit else 0
