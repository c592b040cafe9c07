# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: registers helpers, loads the ruleset, serves the queues until it is told.

The one rule (gate.py): every expectation is acknowledged by the kernel, or rides in the
verdict itself, before the packet is released. And traffic never suffers: before the
queues are let go, the kernel is told to queue no more and what waits is answered.
"""

import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Final, TypeVar

from cthelper import nft
from cthelper.core.config import Config
from cthelper.core.engine import Damaged, Engine, Event, Fault, Finished, Refused
from cthelper.core.errors import (
    CthelperError,
    QueueError,
    RestartNeeded,
)
from cthelper.core.flows import Flow
from cthelper.core.guard import Guard
from cthelper.core.live.cthelper import HelperTable, Registration, registrations
from cthelper.core.live.ctnetlink import Change, Ctnetlink, EntryGone, Events
from cthelper.core.live.gate import Gate
from cthelper.core.live.grace import wait_for_packets
from cthelper.core.live.library_queue import LibraryQueue
from cthelper.core.live.links import Links
from cthelper.core.live.log import Log, Value
from cthelper.core.live.queue import Queue, QueuedPacket, Verdict, bound_queues
from cthelper.core.live.setup import unregister
from cthelper.core.masters import Masters
from cthelper.core.tuples import Conntrack, Transport

_T = TypeVar("_T")

OpenQueue = Callable[[int, int], Queue]
"""Binds a queue: its number, and the bytes of its receive buffer."""

_BATCH: Final = 64
_TICK_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 2.0
_DRAIN_PAUSE: Final = 0.01


class Daemon:
    """Runs the configured helpers on live traffic.

    `read_config` reads the configuration again, for SIGHUP. Use `run`.
    """

    def __init__(
        self,
        config: Config,
        read_config: Callable[[], Config],
        *,
        keep_ruleset: bool = False,
        clock: Callable[[], float] = time.monotonic,
        open_queue: OpenQueue = LibraryQueue,
    ) -> None:
        self._config = config
        self._read_config = read_config
        self._keep_ruleset = keep_ruleset
        self._clock = clock
        self._open_queue = open_queue
        daemon = config.daemon
        self._log = Log(daemon.log_level, daemon.log_format, clock=clock)
        self._ctnetlink = Ctnetlink()
        self._helpers = HelperTable()
        self._events = Events()
        self._links = Links()
        self._masters = Masters(self._ctnetlink, self._log, clock)
        self._gate = Gate(
            self._ctnetlink, self._log, clock, lengthen=self._masters.lengthen
        )
        self._engine = Engine(
            config.by_kernel_name,
            guard=Guard(config.expectations_in_all),
            on_link=self._links.on_link,
            clock=clock,
            flow_limit=daemon.flow_limit,
            placer=self._gate,
        )
        self._queues: dict[int, Queue] = {}
        self._known: dict[tuple[str, int, Transport], Registration] = {}
        self._bypassed: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._packets = 0
        self._verdicts_refused = 0
        self._bypassed_before = 0
        self._overruns = 0
        self._due = clock()
        self._stopping = False
        self._reloading = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CthelperError where it cannot start."""
        ours, theirs = socket.socketpair()
        with self._selector as selector, ours, theirs:
            selector.register(self._events, selectors.EVENT_READ, self._read_events)
            selector.register(self._links, selectors.EVENT_READ, self._links.update)
            selector.register(ours, selectors.EVENT_READ, lambda: _empty(ours))
            self._waker = theirs
            self._catch_signals(ours, theirs)
            self._start()
            self._log.event(
                "started",
                helpers=",".join(self._config.helpers),
                queues=",".join(str(number) for number in sorted(self._queues)),
            )
            try:
                self._serve()
            finally:
                self._stop()
            self._log.event("stopped", "info", **self._totals())
            signal.set_wakeup_fd(-1)

    def _catch_signals(self, ours: socket.socket, theirs: socket.socket) -> None:
        ours.setblocking(False)
        theirs.setblocking(False)
        # Python's own handler writes here, so that a signal ends the wait.
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._reloading = True

    # Starting

    def _start(self) -> None:
        """Bind, register, load: in this order no packet is queued to nobody."""
        leavings = self._leavings()
        wanted = registrations(self._config.served, enabled=True)
        try:
            # Between binding a queue and setting its copy mode the kernel drops what
            # comes to it (nfqnl_enqueue_packet in nfnetlink_queue.c), while packets
            # for a queue that nobody has bound pass.
            self._put(replace(each, enabled=False) for each in leavings)
            for number in sorted(self._config.queues):
                self._bind(number)
            try:
                self._put(wanted)
            except RestartNeeded:
                # A daemon of another version left them, with other policies.
                nft.remove()
                unregister(self._helpers, leavings)
                self._put(wanted)
            nft.install(self._config)
        except CthelperError:
            present = {each.key for each in leavings}
            added = [each for key, each in self._known.items() if key not in present]
            self._try(lambda: unregister(self._helpers, added))
            for number in list(self._queues):
                self._unbind(number)
            raise

    def _leavings(self) -> list[Registration]:
        """What is registered for our queues already, by a daemon that was killed.

        Where a queue is bound its daemon lives, and `_bind` will say so.
        """
        free = self._config.queues - bound_queues().keys()
        return [each for each in self._helpers.list() if each.queue in free]

    def _bind(self, number: int) -> None:
        queue = self._open_queue(number, self._config.daemon.receive_buffer)
        self._queues[number] = queue
        self._bypassed[number] = 0
        self._selector.register(
            queue, selectors.EVENT_READ, lambda: self._read_queue(queue)
        )

    def _unbind(self, number: int) -> None:
        queue = self._queues.pop(number)
        self._packets += queue.statistics.received
        self._verdicts_refused += queue.statistics.refused
        self._bypassed_before += self._bypassed.pop(number)
        self._selector.unregister(queue)
        queue.close()

    def _put(self, wanted: Iterable[Registration]) -> None:
        """Register or update helpers; all of them are unregistered at the end."""
        for registration in wanted:
            self._helpers.put(registration)
            self._known[registration.key] = registration

    # Serving

    def _serve(self) -> None:
        while not self._stopping:
            self._turn()
            if self._reloading:
                self._reloading = False
                self._reload()

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        for key, _ in self._selector.select(max(0.0, self._due - self._clock())):
            key.data()
        if self._clock() >= self._due:
            self._due = self._clock() + _TICK_SECONDS
            self._masters.sweep()
            self._gate.give_up_waiting()
            self._report_bypassed()

    def _meanwhile(self, step: Callable[[], _T]) -> _T:
        """Do what takes its time and serve meanwhile. Raises what the step raises."""
        with ThreadPoolExecutor(max_workers=1) as worker:
            future = worker.submit(step)
            future.add_done_callback(lambda _: self._waker.send(b"\0"))
            while not future.done():
                self._turn()
        return future.result()

    def _read_queue(self, queue: Queue) -> None:
        packets = queue.read(_BATCH)
        if packets:
            passed: list[Conntrack] = []
            queue.answer([self._verdict(packet, passed) for packet in packets])
            for entry in passed:
                self._masters.passed(entry)

    def _verdict(self, packet: QueuedPacket, passed: list[Conntrack]) -> Verdict:
        """Decide on a packet, its expectations first; its flow goes into `passed`."""
        entry = packet.conntrack
        if entry is None:
            return Verdict(packet.id)
        passed.append(entry)
        verdict = self._gate.returned(packet, entry)
        if verdict is not None:
            return verdict
        decision = self._engine.handle(
            packet.payload,
            entry,
            packet.direction,
            forwarded=not self._links.is_local(entry.original.source.address),
        )
        flow = decision.flow
        if flow is None:
            return Verdict(packet.id)
        if decision.events:
            self._report(entry, flow, decision.events)
        if flow.finished is not None:
            self._masters.finish(entry, flow.name, flow.finished)
        made = decision.expectations + decision.placed
        timeout = self._masters.expect(entry, made) if made else None
        if timeout is not None:
            passed.pop()  # its verdict sees to it
        return self._gate.verdict(packet, entry, decision, timeout)

    def _report(self, entry: Conntrack, flow: Flow, events: tuple[Event, ...]) -> None:
        common = {"helper": flow.name, "flow": str(entry.original)}
        for event in events:
            match event:
                case Refused(reason, detail, wish):
                    self._log.event(
                        "refused",
                        reason=reason,
                        **common,
                        endpoint=None if wish is None else str(wish.endpoint),
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

    def _read_events(self) -> None:
        for event in self._events.read(expectations=self._gate.waits):
            if isinstance(event, EntryGone):
                self._engine.flows.remove(event.key)
                self._masters.forget(event.key)
            elif event.change is Change.NEW:
                self._gate.confirm(event.expectation)
        if self._events.overruns != self._overruns:
            self._overruns = self._events.overruns
            self._gate.give_up_waiting(forget=True)
            self._log.event("events-lost", "warning", overruns=self._overruns)

    def _report_bypassed(self) -> None:
        for number, queue in self._queues.items():
            statistics = queue.statistics
            if statistics.bypassed != self._bypassed[number]:
                self._log.event(
                    "overload",
                    "warning",
                    queue=number,
                    bypassed=statistics.bypassed - self._bypassed[number],
                    overruns=statistics.overruns,
                )
                self._bypassed[number] = statistics.bypassed

    # Reloading

    def _reload(self) -> None:
        """Take a new configuration, or refuse it and go on with the old one."""
        try:
            # Plugins are imported, and package metadata looked through.
            config = self._meanwhile(self._read_config)
            self._change(config)
        except CthelperError as error:
            self._log.event("reload-refused", "error", error=str(error))
            return
        self._log.event("reloaded", helpers=",".join(config.helpers))

    def _change(self, config: Config) -> None:
        old, new = self._config.daemon, config.daemon
        for key in ("workers", "receive_buffer", "flow_limit"):
            if getattr(old, key) != getattr(new, key):
                raise RestartNeeded(f"daemon.{key} has changed: restart cthelper")
        before = dict(self._known)
        wanted = registrations(config.served, enabled=True)
        keys = {each.key for each in wanted}
        bound = sorted(config.queues - self._queues.keys())
        try:
            for number in bound:
                self._bind(number)
            # The engine knows a helper before the kernel sends its packets.
            self._engine.helpers = {
                **self._config.by_kernel_name,
                **config.by_kernel_name,
            }
            self._put(wanted)
            self._meanwhile(lambda: nft.install(config))
            self._disable(each for key, each in before.items() if key not in keys)
        except CthelperError:
            self._engine.helpers = self._config.by_kernel_name
            self._try(lambda: self._put(before.values()))
            self._disable(
                each for key, each in self._known.items() if key not in before
            )
            for number in bound:
                if number in self._queues:
                    self._unbind(number)
            raise
        self._config = config
        self._engine.helpers = config.by_kernel_name
        self._engine.guard = Guard(config.expectations_in_all)
        self._engine.release()
        self._log.configure(new.log_level, new.log_format)
        unused = self._queues.keys() - config.queues
        self._drain(unused)
        for number in unused:
            self._unbind(number)

    def _disable(self, unwanted: Iterable[Registration]) -> None:
        """Have these helpers queue no more; they stay registered until the end.

        When a helper is unregistered the kernel drops every packet that waits in any
        queue (nf_ct_iterate_destroy in nf_conntrack_core.c).
        """
        for each in list(unwanted):
            self._try(partial(self._put, [replace(each, enabled=False)]))

    # Stopping

    def _stop(self) -> None:
        """Queue no more, answer what waits, leave nothing behind."""
        known = list(self._known.values())
        self._disable(known)
        self._try(lambda: self._drain(self._queues.keys()))
        if not self._keep_ruleset:
            self._try(nft.remove)
            self._try(lambda: unregister(self._helpers, known))
        self._report_bypassed()
        for number in list(self._queues):
            self._unbind(number)

    def _try(self, step: Callable[[], None]) -> None:
        """Take a step after which others are wanted even where it fails."""
        try:
            step()
        except CthelperError as error:
            self._log.event("step-failed", "error", detail=str(error))

    def _drain(self, numbers: Iterable[int]) -> None:
        """Answer all that waits in these queues, which no helper uses any more."""
        numbers = set(numbers)
        if not numbers:
            return
        wait_for_packets()
        deadline = self._clock() + _DRAIN_SECONDS
        while self._clock() < deadline:
            for queue in self._queues.values():
                self._read_queue(queue)
            rows = bound_queues()
            if not any(rows[each].waiting for each in numbers if each in rows):
                return
            time.sleep(_DRAIN_PAUSE)
        raise QueueError(f"queues {sorted(numbers)} did not run empty")

    def _totals(self) -> dict[str, Value]:
        """The counters of this run, for the last line of the log."""
        counters = self._log.counters
        return {
            "packets": self._packets,
            "bypassed": self._bypassed_before,
            "verdicts_refused": self._verdicts_refused,
            **{name: counters[name] for name in sorted(counters)},
        }


def _empty(source: socket.socket) -> None:
    try:
        while source.recv(256):
            pass
    except BlockingIOError:
        pass
