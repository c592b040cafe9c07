# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets of the queues in, their verdicts out: what a server is for.

The one rule (gate.py): every expectation is acknowledged by the kernel before the
packet that announces it is released.
"""

from collections.abc import Callable, Iterable
from typing import Final

from cthelper.core.api import Prefilter
from cthelper.core.config import Config
from cthelper.core.daemon.gate import Gate
from cthelper.core.daemon.log import Log
from cthelper.core.engine import Engine
from cthelper.core.flows import Flow
from cthelper.core.guard import Guard
from cthelper.core.masters import Masters
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.links import Links
from cthelper.core.outcome import Damaged, Event, Fault, Finished, Refused
from cthelper.core.queue.protocol import Packet, Queue, Verdict
from cthelper.core.tuples import Conntrack, FlowKey

_BATCH: Final = 64


class Inspection:
    """Runs the helpers of a configuration over the packets of queues.

    `clock` gives seconds and only moves forward. Methods raise QueueError.
    """

    def __init__(
        self, config: Config, links: Links, log: Log, clock: Callable[[], float]
    ) -> None:
        self._config = self._prepared = config
        self._links = links
        self._log = log
        ctnetlink = Ctnetlink()
        self._masters = Masters(ctnetlink, log, clock, mark=config.daemon.mark)
        self._gate = Gate(ctnetlink, log, clock, lengthen=self._masters.lengthen)
        self._engine = Engine(
            config.helpers,
            guard=Guard(config.expectations_in_all),
            on_link=links.on_link,
            clock=clock,
            flow_limit=config.daemon.flow_limit,
            placer=self._gate,
        )

    @property
    def prefilters(self) -> dict[str, Prefilter]:
        """The datagrams that helpers read, by helper, once what is prepared is so."""
        return {name: each.prefilter for name, each in self._prepared.helpers.items()}

    def serve(self, queue: Queue) -> None:
        """Answer packets that wait in a queue; never waits itself."""
        packets = queue.read(_BATCH)
        if packets:
            released: list[Conntrack] = []
            queue.answer([self._verdict(queue, each, released) for each in packets])
            for entry in released:
                self._masters.passed(entry)

    def _verdict(
        self, queue: Queue, packet: Packet, released: list[Conntrack]
    ) -> Verdict:
        """Decide on a packet, its expectations first.

        Its flow goes into `released` where its timeout is still to be looked after.
        """
        entry = packet.conntrack
        if entry is None:
            return Verdict(packet.id)
        decision = self._gate.returned(packet, entry)
        if decision is None:
            decision = self._engine.handle(
                packet.payload,
                entry,
                packet.direction,
                forwarded=not self._links.is_local(entry.original.source.address),
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
        made = decision.expectations + decision.placed
        timeout = self._masters.expect(entry, made) if made else None
        if timeout is None:
            released.append(entry)
        verdict = self._gate.verdict(packet, entry, decision, timeout)
        if made or (decision.events and flow.quiet):
            held = self._masters.keeps(flow.key)
            queue.note(packet, quiet=flow.quiet, held=held)
        return verdict

    def _report(self, entry: Conntrack, flow: Flow, events: tuple[Event, ...]) -> None:
        common: dict[str, object] = {"helper": flow.name, "flow": entry.original}
        for event in events:
            match event:
                case Refused(reason, detail, wish):
                    self._log.event(
                        "refused",
                        reason=reason,
                        **common,
                        endpoint=None if wish is None else wish.endpoint,
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
                        quarantined=quarantined,
                    )
                case Finished(reason):
                    self._log.event("finished", "debug", reason=reason, **common)

    def tick(self, queues: Iterable[Queue]) -> None:
        """Do what is due every second."""
        for queue in queues:
            for identity, zone, timeout in queue.touched():
                self._masters.touched((identity, zone), timeout)
        self._masters.sweep()
        self._gate.give_up_waiting()

    def forget(self, key: FlowKey) -> None:
        """A flow's entry is gone."""
        self._engine.flows.remove(key)
        self._masters.forget(key)

    # Changing

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
        self._engine.guard = Guard(config.expectations_in_all)
        self._engine.release()
