# SPDX-License-Identifier: GPL-2.0-or-later
"""One packet in, one Decision out. No I/O: the daemon and replay share this.

Every packet is accepted. What a helper asks for comes out as expectations, which the
caller puts into the kernel before it releases the packet, and what went wrong comes
out as events, which it counts and logs.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cthelper.core.accounts import NARROW, Account, Accounts
from cthelper.core.config import Budget, HelperConfig
from cthelper.core.errors import ExpectationRefused, Malformed
from cthelper.core.flows import Flow, FlowTable
from cthelper.core.grants import Grants, OnLink, Placed, Placer, Withdrawn
from cthelper.core.guard import Guard
from cthelper.core.outcome import Damaged, Event, Finished, Located, Outcome
from cthelper.core.packet import Segment, locate
from cthelper.core.quarantine import Quarantine
from cthelper.core.reader import Reader, Watch
from cthelper.core.tuples import (
    ORIGINAL,
    TCP,
    Conntrack,
    Direction,
    Expectation,
    Network,
    is_group,
    may_be_broadcast,
)


@dataclass(slots=True)
class Decision:
    """What to do with one packet.

    The `expectations` go in before the packet goes on, in this order; those of `placed`
    are in, and those of `withdrawn` were taken back. `packet` is the whole IP packet to
    send in place of the received one, or None: as it came. It goes on in any case but
    one: with `drop` it cannot be rewritten as it must be, and the configuration has
    such packets dropped. `flow` is None where no helper of ours inspects the packet.
    """

    flow: Flow | None
    expectations: tuple[Expectation, ...]
    packet: bytes | None
    events: tuple[Event, ...]
    placed: tuple[Placed, ...]
    withdrawn: tuple[Withdrawn, ...]
    drop: bool

    def __init__(
        self,
        flow: Flow | None = None,
        expectations: tuple[Expectation, ...] = (),
        packet: bytes | None = None,
        events: tuple[Event, ...] = (),
        placed: tuple[Placed, ...] = (),
        withdrawn: tuple[Withdrawn, ...] = (),
        drop: bool = False,
    ) -> None:
        self.flow = flow
        self.expectations = expectations
        self.packet = packet
        self.events = events
        self.placed = placed
        self.withdrawn = withdrawn
        self.drop = drop


NOTHING: Final = Decision()

_WHOLE: Final = 100
"""Percent of a core that are no limit."""


class Engine:
    """Runs helpers over packets.

    `helpers` maps the names that conntrack entries carry to what is configured for
    them; it may be replaced at any time, and flows begun before keep their instance.
    `clock` gives seconds and only moves forward. At most `flow_limit` flows are kept,
    and no more is spent on them than `budget` says: of CPU only with `timer`, which
    gives seconds as `clock` does and is asked around each packet. `watch` is told of
    every message and effect. `quarantine` may hold already what another engine met.
    """

    def __init__(
        self,
        helpers: Mapping[str, HelperConfig],
        *,
        guard: Guard,
        on_link: OnLink,
        clock: Callable[[], float],
        flow_limit: int,
        placer: Placer | None = None,
        watch: Watch | None = None,
        quarantine: Quarantine | None = None,
        budget: Budget | None = None,
        timer: Callable[[], float] | None = None,
    ) -> None:
        self.helpers = helpers
        self.flows = FlowTable(flow_limit, (budget or Budget()).memory)
        self._grants = Grants(guard, on_link, placer)
        self._on_link = on_link
        self._quarantine = quarantine or Quarantine(clock)
        self._reader = Reader(self._grants, clock, watch, self._quarantine)
        self._timer = timer
        self._accounts: Accounts | None = None
        self.budget = budget or Budget()

    @property
    def budget(self) -> Budget:
        """What inspection may cost; it may be replaced at any time."""
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._budget = budget
        # A helper that takes longer is interrupted.
        self._longest = budget.deadline / 1000 / 2
        self._reader.messages = budget.messages
        self.flows.memory = budget.memory
        self._accounts = None
        if self._timer is not None and budget.source_cpu < _WHOLE:
            self._accounts = Accounts(budget.source_cpu, self._timer)
        for flow in self.flows:
            flow.asking = flow.answering = None

    @property
    def accounts(self) -> Accounts | None:
        """What each source has spent of CPU; None: it is not accounted for."""
        return self._accounts

    @property
    def guard(self) -> Guard:
        """What expectations may open; it may be replaced at any time."""
        return self._grants.guard

    @guard.setter
    def guard(self, guard: Guard) -> None:
        self._grants.guard = guard

    def handle(
        self,
        packet: bytes | memoryview,
        entry: Conntrack,
        direction: Direction,
        *,
        forwarded: bool = False,
        segment: Segment | None = None,
    ) -> Decision:
        """Inspect one IP packet of the flow that `entry` describes.

        `forwarded` is whether the packet came in through an interface. `segment` is
        what `locate` finds in the packet, where that is known already.
        """
        accounts = self._accounts
        began = 0.0 if accounts is None else accounts.timer()
        flow = self.flows.find(entry)
        if flow is None:
            config = self.helpers.get(entry.helper or "")
            if config is None:
                return NOTHING
            payer = None
            if accounts is not None:
                payer = accounts.of(entry.original, direction, assured=entry.assured)
                if accounts.overspent(payer, entry.original):
                    return NOTHING
            flow = Flow.begin(entry, config.helper, config.name)
            flow.depth = self._grants.depth(entry)
            flow.group = self._to_group(entry)
            self.flows.add(flow)
            if direction is ORIGINAL:
                flow.asking = payer
            else:
                flow.answering = payer
        # Of a finished flow, what was rewritten may be sent again.
        elif flow.finished is not None and flow.side(direction).patches is None:
            return Decision(flow)
        else:
            payer = flow.asking if direction is ORIGINAL else flow.answering
        if accounts is None:
            return self._inspect(packet, flow, entry, direction, forwarded, segment)
        if payer is None:
            payer = accounts.of(entry.original, direction, assured=entry.assured)
            if direction is ORIGINAL:
                flow.asking = payer
            else:
                flow.answering = payer
        over = None
        account: Account | None = payer
        # Without calls: every packet comes by.
        while account is not None:
            if account.left < 0:
                over = accounts.overspent(payer, entry.original)
                break
            account = account.wider
        try:
            return self._inspect(
                packet, flow, entry, direction, forwarded, segment, over
            )
        finally:
            # Not what the machine, or whoever stopped this process, has taken.
            spent = min(accounts.timer() - began, self._longest)
            account = payer
            while account is not None:
                account.left -= spent
                account = account.wider

    def _inspect(
        self,
        packet: bytes | memoryview,
        flow: Flow,
        entry: Conntrack,
        direction: Direction,
        forwarded: bool,
        segment: Segment | None,
        over: Account | None = None,
    ) -> Decision:
        """As `handle`, of a known flow. `over` is the account that has nothing left."""
        config = self.helpers.get(flow.name)
        over_tcp = flow.original.transport is TCP
        side = flow.side(direction)
        inspected = flow.finished is None
        outcome = Outcome()
        if inspected and config is None:
            flow.finish("helper-removed")
        elif (
            inspected
            and not self._quarantine.empty
            and self._quarantine.holds(flow.name, entry)
        ):
            flow.finish("quarantine")
        elif over is not None and (over.reason == NARROW or over_tcp):
            flow.finish(over.reason)
            outcome.finish = over.detail
        # What is not read of a datagram's flow is not missed by what comes later.
        readable = flow.finished is None and side.parsed and over is None
        located = None
        if readable or side.patches is not None:
            try:
                if segment is None:
                    segment = locate(packet)
                if segment is not None:
                    located = Located(packet, segment, entry, direction, forwarded)
            except Malformed as error:
                # The kernel knows no flow of such a packet (tcp_error, udp_error): it
                # changes nothing.
                if readable:
                    outcome.events.append(Damaged(str(error)))
        if located is not None and readable and config is not None:
            self._reader.read(located, flow, config, outcome)
        elif located is not None:
            self._reader.repeat(located, side, outcome)
        self.flows.weigh(flow)
        if inspected and flow.finished is not None:
            outcome.events.append(Finished(flow.finished, outcome.finish))
        if outcome.packet is None and outcome.empty:
            return Decision(flow)
        return Decision(
            flow,
            outcome.expectations,
            outcome.packet,
            tuple(outcome.events),
            outcome.placed,
            tuple(outcome.withdrawn),
            drop=outcome.unwritten is not None
            and config is not None
            and config.nat.drop_unrewritable,
        )

    def release(self) -> None:
        """End every quarantine, after helpers or configuration changed."""
        self._quarantine.release()

    def _to_group(self, entry: Conntrack) -> bool:
        """Whether the flow goes to a group, as `Message.group` has it."""
        if entry.original.transport is TCP:
            return False
        source = entry.original.source.address
        destination = entry.original.destination.address
        networks: tuple[Network, ...] = ()
        if may_be_broadcast(source, destination):
            # Nothing on-link is nothing to broadcast to.
            with suppress(ExpectationRefused):
                networks = self._on_link(source)
        return is_group(destination, networks)
