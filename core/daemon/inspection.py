# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets of the queues in, their verdicts out: what a server is for.

The one rule: every expectation is acknowledged by the kernel before the
packet that announces it is released.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from cthelper.core import expecter, ledger
from cthelper.core.api import Prefilter
from cthelper.core.config import Config
from cthelper.core.daemon.gate import Gate, tell_refused
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import Kernel
from cthelper.core.daemon.progress import Progress
from cthelper.core.engine import Decision, Engine
from cthelper.core.expecter import Expecter
from cthelper.core.flows import Flow, FlowTable
from cthelper.core.guard import Guard
from cthelper.core.masters import Masters, Updater
from cthelper.core.netlink.ctnetlink import ExpectationMade, ExpectationMet
from cthelper.core.netlink.links import Links
from cthelper.core.outcome import Damaged, Event, Fault, Finished, Refused
from cthelper.core.quarantine import Quarantine
from cthelper.core.queue.protocol import Action, Packet, Queue, Verdict
from cthelper.core.tuples import ORIGINAL, Conntrack, Expectation, FlowKey

_BATCH: Final = 64
# Of a deadline, what packets wait at most for others of their batch.
_PARTS: Final = 8
_LOOPBACK: Final = 1
"""The interface lo in every namespace (LOOPBACK_IFINDEX in net/flow.h); 0 is none."""


class Requests(expecter.Kernel, Updater, Protocol):
    """What is asked of the kernel, see `Ctnetlink`."""

    @property
    def port(self) -> int:
        """What events name the asker by."""


class Table(Protocol):
    """What is asked of the table of expectations, see `ExpectationTable`."""

    def lives(self, expectation: Expectation) -> bool:
        """Whether one is in it."""

    def room(self) -> ledger.Room | None:
        """How many are in it, and how many there may be; None: nobody knows."""


class Inspection:
    """Runs the helpers of a configuration over the packets of queues.

    `clock` gives seconds and only moves forward, and so does `timer`, which is asked
    around each packet. `follow` has `told` be called, or no more (`Expecter`). `kernel`
    is what this one does. `progress` is told of each packet that a helper may read,
    `quarantine` is of servers before this one. Methods raise QueueError.
    """

    def __init__(
        self,
        config: Config,
        links: Links,
        log: Log,
        clock: Callable[[], float],
        follow: Callable[[bool], None],
        kernel: Kernel,
        progress: Progress,
        quarantine: Quarantine,
        ctnetlink: Requests,
        table: Table,
        timer: Callable[[], float],
    ) -> None:
        self._config = self._prepared = config
        self._links = links
        self._log = log
        self._clock = clock
        self._progress = progress
        self._quarantine = quarantine
        self._ctnetlink = ctnetlink
        self._masters = Masters(ctnetlink, log, clock, mark=config.daemon.mark)
        self._expecter = Expecter(ctnetlink, self._masters, log, clock, follow)
        self._gate = Gate(log, clock, self._give_up, adjusts_twice=kernel.adjusts_twice)
        self._engine = Engine(
            config.helpers,
            guard=Guard(
                config.limits,
                lives=table.lives,
                room=table.room,
                workers=config.daemon.workers,
            ),
            on_link=links.on_link,
            clock=clock,
            flow_limit=config.daemon.flow_limit,
            placer=self._expecter,
            quarantine=quarantine,
            budget=config.budget,
            timer=timer,
        )
        self._evicted: Counter[str] = Counter()

    @property
    def prefilters(self) -> dict[str, Prefilter]:
        """The datagrams that helpers read, by helper, once what is prepared is so."""
        return {name: each.prefilter for name, each in self._prepared.helpers.items()}

    @property
    def flows(self) -> FlowTable:
        """The flows that are followed."""
        return self._engine.flows

    @property
    def state(self) -> dict[str, object]:
        """What budgets have been spent, and who is left out (core/control/health)."""
        flows, daemon = self._engine.flows, self._config.daemon
        return {
            "flows": {"used": len(flows), "most": daemon.flow_limit},
            "memory": {"used": flows.weight, "most": self._config.budget.memory},
            "evicted": dict(flows.evicted),
            "expectations": len(self._engine.guard.ledger),
            "quarantined": self._quarantine.helpers,
        }

    def serve(self, queue: Queue) -> None:
        """Answer packets that wait in a queue; never waits itself."""
        packets = queue.read(_BATCH)
        if packets:
            released: list[Conntrack] = []
            verdicts: list[Verdict] = []
            answered = 0
            deadline = self._config.budget.deadline / 1000
            now = self._clock()
            late, end = now + deadline / _PARTS, now + deadline / 2
            try:
                for each in packets:
                    if now > end:
                        break
                    try:
                        verdict = self._verdict(queue, each, released)
                    except MemoryError:
                        verdict = self._failed(queue, each, released, "memory")
                    except BaseException:  # a helper may raise SystemExit
                        verdict = self._failed(queue, each, released, "fault")
                    verdicts.append(verdict)
                    # Those that are decided do not wait for all the others.
                    now = self._clock()
                    if now > late:
                        answered += len(verdicts)
                        decided, verdicts = verdicts, []
                        queue.answer(decided)
                        late = now + deadline / _PARTS
            finally:
                # Whatever has ended this, no packet is left without a verdict.
                rest = packets[answered + len(verdicts) :]
                # What fails from here on is no packet's fault.
                self._progress.turn()
                queue.answer(verdicts + [self._unread(queue, each) for each in rest])
            if rest:
                count = len(rest)
                self._log.several(
                    "uninspected", count, "warning", reason="deadline", packets=count
                )
            for entry in released:
                self._masters.passed(entry)

    def _failed(
        self, queue: Queue, packet: Packet, released: list[Conntrack], finished: str
    ) -> Verdict:
        """The verdict for a packet of a bug, or for want of memory.

        It is being handled, and ends the inspection of the packet's flow, by reason
        `finished`, and nothing else.
        """
        entry = packet.conntrack
        self._log.event(
            "step-failed",
            "error",
            reason="inspection",
            flow=None if entry is None else entry.original,
            detail=traceback.format_exc(),
        )
        flow = None if entry is None else self._engine.flows.find(entry)
        if entry is not None and flow is not None:
            flow.finish(finished)
            self._engine.flows.weigh(flow)
            self._masters.finish(entry, flow.name, finished)
            released.append(entry)
        return self._unread(queue, packet)

    def _unread(self, queue: Queue, packet: Packet) -> Verdict:
        """The verdict for a packet that cannot be inspected."""
        closed = self._config.closed_queues | self._prepared.closed_queues
        if queue.number in closed:
            return Verdict(packet.id, Action.DROP)
        if packet.conntrack is None:
            return Verdict(packet.id)
        return self._gate.accept(packet, packet.conntrack)

    def _verdict(
        self, queue: Queue, packet: Packet, released: list[Conntrack]
    ) -> Verdict:
        """Decide on a packet, its expectations first.

        Its flow goes into `released` where its timeout is still to be looked after.
        """
        entry = packet.conntrack
        if entry is None:
            return Verdict(packet.id)
        local = self._links.is_local(entry.original.source.address)
        if local and packet.indev > _LOOPBACK and packet.direction is ORIGINAL:
            # What this host sends comes in through no link: it is forged, or a group's
            # copy of what was read on its way out. (The kernel drops such over IPv4.)
            return self._gate.accept(packet, entry)
        self._progress.begin(entry, packet.direction)
        decision = self._gate.returned(packet, entry)
        if decision is None:
            decision = self._engine.handle(
                packet.payload,
                entry,
                packet.direction,
                forwarded=not local,
                segment=packet.segment,
            )
            if decision.events and decision.flow is not None:
                self._report(entry, decision.flow, decision.events)
            if self._gate.sends_round(entry, decision):
                return self._gate.send_round(packet, entry, decision)
        flow = decision.flow
        if flow is None:
            released.append(entry)
            return self._gate.accept(packet, entry)
        if flow.finished is not None:
            self._masters.finish(entry, flow.name, flow.finished)
        made, timeout = False, None
        for each in decision.withdrawn:
            self._log.event(
                "expectation-withdrawn",
                helper=flow.name,
                policy=each.expectation.policy,
                flow=entry.original,
                expects=each.expectation,
                flows=each.flows,
            )
        if decision.expectations or decision.placed:
            made, timeout = self._expect(entry, flow, decision)
        if timeout is None:
            released.append(entry)
        verdict = self._gate.verdict(packet, entry, decision, timeout)
        if made or (decision.events and flow.quiet):
            held = self._masters.keeps(flow.key)
            queue.note(packet, quiet=flow.quiet, held=held)
        return verdict

    def _expect(
        self, entry: Conntrack, flow: Flow, decision: Decision
    ) -> tuple[bool, int | None]:
        """Have the kernel expect what a packet announces.

        Whether it does of anything, and what the flow's timeout must be set to.
        """
        answer = self._expecter.carry_out(entry, decision.expectations, decision.placed)
        ledger = self._engine.guard.ledger
        ledger.confirm([placed.expectation for placed in answer.placed])
        if answer.refused:
            ledger.cancel([expectation for expectation, _ in answer.refused])
        for placed in answer.placed:
            expectation = placed.expectation
            self._log.event(
                "expectation",
                helper=flow.name,
                policy=expectation.policy,
                flow=expectation.master,
                expects=expectation,
                permanent=expectation.permanent,
                timeout=expectation.timeout,
                how=placed.how,
                flows=placed.flows,
            )
        for refused, error in answer.refused:
            tell_refused(self._log, refused, flow.name, error.reason, str(error))
        return bool(answer.placed), answer.timeout

    def _give_up(self, expectations: Sequence[Expectation]) -> None:
        """What was granted does not go in any more."""
        self._engine.guard.ledger.cancel(expectations)

    def _report(self, entry: Conntrack, flow: Flow, events: tuple[Event, ...]) -> None:
        common: dict[str, object] = {"helper": flow.name, "flow": entry.original}
        for event in events:
            match event:
                case Refused(reason, detail, wish):
                    over = entry.original.transport
                    if wish is not None and wish.transport is not None:
                        over = wish.transport
                    self._log.event(
                        "refused",
                        reason=reason,
                        **common,
                        endpoint=None if wish is None else wish.endpoint,
                        transport=None if wish is None else str(over),
                        detail=detail,
                    )
                case Damaged(reason):
                    self._log.event("malformed", **common, detail=reason)
                case Fault(error, where, quarantined):
                    self._log.event(
                        "helper-fault",
                        "error",
                        **common,
                        error=error,
                        at=where,
                        **({"quarantined": quarantined} if quarantined else {}),
                    )
                case Finished(reason, detail):
                    self._log.event(
                        "finished", "debug", reason=reason, **common, detail=detail
                    )

    def tick(self, queues: Iterable[Queue]) -> None:
        """Do what is due every second."""
        for queue in queues:
            for key, timeout in queue.touched():
                self._masters.touched(key, timeout)
        self._masters.sweep()
        self._expecter.sweep()
        self._gate.give_up_waiting()
        self._tell_spent()

    def _tell_spent(self) -> None:
        """Log what budgets were spent, and what that was for, since the last time."""
        evicted = Counter(self._engine.flows.evicted)
        for reason, flows in (evicted - self._evicted).items():
            self._log.several("evicted", flows, "warning", reason=reason, flows=flows)
        self._evicted = evicted
        accounts = self._engine.accounts
        if accounts is None:
            return
        while accounts.told:
            told = accounts.told.popleft()
            self._log.event(
                "overspent", "warning", reason=told.reason, detail=told.detail
            )
        for reason, packets in accounts.refused.items():
            self._log.several("uninspected", packets, reason=reason, packets=packets)
        accounts.refused.clear()

    def told(self, event: ExpectationMade | ExpectationMet) -> None:
        """The kernel tells of an expectation, while they are followed."""
        if isinstance(event, ExpectationMet):
            self._expecter.met(event.flow, event.master, event.zone)
        elif event.port != self._ctnetlink.port:
            self._expecter.renewed(event.expectation)

    def forget(self, key: FlowKey) -> None:
        """A flow's entry is gone."""
        self._engine.flows.remove(key)
        self._engine.guard.ledger.forget(key)
        self._masters.forget(key)
        self._expecter.forget(key)

    # Changing

    def load(self, config: Config) -> None:
        """Have the helpers in the place of their stand-ins; all else is the same.

        What servers before this one died of is kept from these, too.
        """
        self._config = self._prepared = config
        self._engine.helpers = config.helpers

    def prepare(self, config: Config) -> None:
        """Be ready for flows of another configuration; `commit` or `abort` follows."""
        self._prepared = config
        self._engine.helpers = {**self._config.helpers, **config.helpers}

    def abort(self) -> None:
        """Go on with the configuration of before; the kernel has it again."""
        self._prepared = self._config
        self._engine.helpers = self._config.helpers

    def commit(self) -> None:
        """The kernel has the configuration that was prepared."""
        config = self._config = self._prepared
        self._engine.helpers = config.helpers
        self._engine.guard.limit(config.limits)
        self._engine.budget = config.budget
        self._engine.release()
