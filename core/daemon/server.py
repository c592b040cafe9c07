# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: registers helpers, loads the ruleset, serves the queues until it is told.

`Server` serves queues; a `Daemon` is one in a single process, with what the kernel must
hold for it. Where there are several, each is a server of its own (worker.py).

The one rule (gate.py): every expectation is acknowledged by the kernel, or rides in the
verdict itself, before the packet is released. And traffic never suffers: before the
queues are let go, the kernel is told to queue no more and what waits is answered.
"""

import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol, TypeVar

from cthelper.core.api import Prefilter
from cthelper.core.config import Config
from cthelper.core.daemon.gate import Gate
from cthelper.core.daemon.grace import wait_for_packets
from cthelper.core.daemon.installation import Installation
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.memory_settings import settle
from cthelper.core.daemon.ruleset import registrations
from cthelper.core.daemon.signals import Signals, empty, waker_pair
from cthelper.core.engine import Damaged, Engine, Event, Fault, Finished, Refused
from cthelper.core.errors import CthelperError, QueueError, RestartNeeded
from cthelper.core.flows import Flow
from cthelper.core.guard import Guard
from cthelper.core.masters import Masters
from cthelper.core.netlink.ctnetlink import Change, Ctnetlink, EntryGone, Events
from cthelper.core.netlink.links import Links
from cthelper.core.queue.backends import choose
from cthelper.core.queue.protocol import Action, Packet, Queue, Verdict, bound_queues
from cthelper.core.tuples import Conntrack

_T = TypeVar("_T")


class HasFileno(Protocol):
    """What a selector takes."""

    def fileno(self) -> int:
        """The descriptor."""


_BATCH: Final = 64
_TICK_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 2.0
_DRAIN_PAUSE: Final = 0.01


class Server:
    """Serves the queues of a configuration: a packet comes, and its verdict goes back.

    Call `turn` again and again. It waits for packets, for what `watch` tells it of, and
    for a byte written to `waker`.
    """

    def __init__(
        self,
        config: Config,
        log: Log,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.backend = choose(config.daemon.backend)
        self._log = log
        self._clock = clock
        self._ctnetlink = Ctnetlink()
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
            flow_limit=config.daemon.flow_limit,
            placer=self._gate,
        )
        self._prepared = config
        self._chained(config.marks)
        self._fresh: list[int] = []
        self._queues: dict[int, Queue] = {}
        self._bypassed: dict[int, int] = {}
        self._packets = 0
        self._verdicts_refused = 0
        self._missed: Counter[str] = Counter()
        self._overruns = 0
        self._due = clock()
        self._woken, self.waker = waker_pair()
        self._selector = selectors.EpollSelector()
        self.watch(self._events, self._read_events)
        self.watch(self._links, self._links.update)
        self.watch(self._woken, lambda: empty(self._woken))

    def watch(self, source: HasFileno, act: Callable[[], None]) -> None:
        """Have `turn` call `act` when there is something to read."""
        self._selector.register(source, selectors.EVENT_READ, act)

    @property
    def queues(self) -> list[int]:
        """The numbers of the queues that are bound, in order."""
        return sorted(self._queues)

    @property
    def names(self) -> set[str]:
        """The names under which helpers may be registered that queue to it."""
        return {*self.config.by_kernel_name, *self._prepared.by_kernel_name}

    def open(self) -> None:
        """Bind all queues, or raise QueueError and bind none."""
        settle()
        try:
            for number in sorted(self.config.queues):
                self._bind(number)
        except CthelperError:
            self.close()
            raise

    def close(self) -> None:
        """Unbind all queues; the kernel drops what still waits there."""
        self._report_bypassed()
        for number in self.queues:
            self._unbind(number)

    def _bind(self, number: int) -> None:
        daemon = self.config.daemon
        queue = self.backend.open(
            number,
            daemon.receive_buffer,
            daemon.flow_limit,
            fail_open=number not in self._prepared.closed_queues,
        )
        queue.filters(_prefilters(self._prepared))
        self._queues[number] = queue
        self._bypassed[number] = 0
        if self.backend.wait is None:
            self.watch(queue, lambda: self._read_queue(queue))

    def _unbind(self, number: int) -> None:
        queue = self._queues.pop(number)
        self._packets += queue.statistics.received
        self._verdicts_refused += queue.statistics.refused
        del self._bypassed[number]
        if self.backend.wait is None:
            self._selector.unregister(queue)
        queue.close()

    # Serving

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        self._wait(max(0.0, self._due - self._clock()))
        if self._clock() >= self._due:
            self._due = self._clock() + _TICK_SECONDS
            for queue in self._queues.values():
                for identity, zone, timeout in queue.touched():
                    self._masters.touched((identity, zone), timeout)
            self._masters.sweep()
            self._gate.give_up_waiting()
            self._events.follow(expectations=self._gate.waits)
            self._report_bypassed()

    def _wait(self, seconds: float) -> None:
        """Act on the first that comes, or the time that is over."""
        if self.backend.wait is not None:
            queues = list(self._queues.values())
            ready = self.backend.wait(queues, self._selector.fileno(), seconds)
            for queue in queues:
                self._read_queue(queue)
            if not ready:
                return
            seconds = 0.0
        for key, _ in self._selector.select(seconds):
            key.data()

    def meanwhile(self, step: Callable[[], _T]) -> _T:
        """Do what takes its time and serve meanwhile. Raises what the step raises."""
        with ThreadPoolExecutor(max_workers=1) as worker:
            future = worker.submit(step)
            future.add_done_callback(lambda _: self.waker.send(b"\0"))
            while not future.done():
                self.turn()
        return future.result()

    def _read_queue(self, queue: Queue) -> None:
        packets = queue.read(_BATCH)
        if packets:
            passed: list[Conntrack] = []
            verdicts = [self._verdict(queue, each, passed) for each in packets]
            if self._gate.waits:
                self._events.follow(expectations=True)
            queue.answer(verdicts)
            for entry in passed:
                self._masters.passed(entry)

    def _verdict(
        self, queue: Queue, packet: Packet, passed: list[Conntrack]
    ) -> Verdict:
        """Decide on a packet, its expectations first; its flow goes into `passed`."""
        entry = packet.conntrack
        if entry is None:
            return Verdict(packet.id)
        passed.append(entry)
        verdict = self._gate.returned(packet, entry)
        if verdict is not None:
            flow = self._engine.flows.find(entry)
            if flow is not None:
                self._note(queue, packet, flow)
            return verdict
        decision = self._engine.handle(
            packet.payload,
            entry,
            packet.direction,
            forwarded=not self._links.is_local(entry.original.source.address),
            segment=packet.segment,
        )
        flow = decision.flow
        if flow is None:
            return self._gate.accept(packet, entry)
        if decision.events:
            self._report(entry, flow, decision.events)
        if flow.finished is not None:
            self._masters.finish(entry, flow.name, flow.finished)
        made = decision.expectations + decision.placed
        timeout = self._masters.expect(entry, made) if made else None
        if timeout is not None:
            passed.pop()  # its verdict sees to it
        verdict = self._gate.verdict(packet, entry, decision, timeout)
        # A packet that comes back is looked for here.
        if verdict.action is not Action.REPEAT and (
            made or (decision.events and flow.quiet)
        ):
            self._note(queue, packet, flow)
        return verdict

    def _note(self, queue: Queue, packet: Packet, flow: Flow) -> None:
        held = self._masters.keeps(flow.key)
        queue.note(packet, quiet=flow.quiet, held=held)

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

    def _read_events(self) -> None:
        for event in self._events.read():
            if isinstance(event, EntryGone):
                self._engine.flows.remove(event.key)
                self._masters.forget(event.key)
                for queue in self._queues.values():
                    queue.forget(event.key)
            elif event.change is Change.NEW:
                self._gate.confirm(event.expectation)
        if self._events.overruns != self._overruns:
            self._overruns = self._events.overruns
            self._gate.give_up_waiting(forget=True)
            self._log.event("events-lost", "warning", overruns=self._overruns)

    def _report_bypassed(self) -> None:
        for number, queue in self._queues.items():
            statistics = queue.statistics
            missed = statistics.bypassed - self._bypassed[number]
            if missed:
                # Which queues fail closed does not change while they are bound.
                closed = self.config.closed_queues | self._prepared.closed_queues
                fate = "dropped" if number in closed else "bypassed"
                self._missed[fate] += missed
                self._log.event(
                    "overload",
                    "warning",
                    queue=number,
                    overruns=statistics.overruns,
                    **{fate: missed},
                )
                self._bypassed[number] = statistics.bypassed

    # Changing

    def prepare(self, config: Config) -> None:
        """Be ready for what the kernel will send once it has the new configuration.

        `commit` or `abort` follows. Raises CthelperError, and then nothing has changed.
        """
        self._prepared = config
        self._fresh = sorted(config.queues - self._queues.keys())
        try:
            for number in self._fresh:
                self._bind(number)
        except CthelperError:
            self.abort()
            raise
        self._engine.helpers = {**self.config.by_kernel_name, **config.by_kernel_name}
        self._chained({**self.config.marks, **config.marks})

    def abort(self) -> None:
        """Go on with the configuration of before; the kernel has it again."""
        self._prepared = self.config
        self._engine.helpers = self.config.by_kernel_name
        self._chained(self.config.marks)
        for number in self._fresh:
            if number in self._queues:
                self._unbind(number)
        self._fresh = []

    def _chained(self, marks: dict[str, int]) -> None:
        """These helpers are in chain mode, and this marks their finished flows."""
        self._masters.marks = self._gate.chained = marks

    def commit(self) -> None:
        """The kernel has the new configuration. Raises QueueError, and goes on."""
        config = self.config = self._prepared
        self._fresh = []
        self._engine.helpers = config.by_kernel_name
        self._chained(config.marks)
        self._engine.guard = Guard(config.expectations_in_all)
        self._engine.release()
        for queue in self._queues.values():
            queue.filters(_prefilters(config))
        self._log.configure(config.daemon.log_level, config.daemon.log_format)
        unused = self._queues.keys() - config.queues
        try:
            self._drain(unused)
        finally:
            for number in unused:
                self._unbind(number)

    def drain(self) -> None:
        """Answer all that waits, once no helper queues any more. Raises QueueError."""
        self._drain(self._queues.keys())

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

    @property
    def totals(self) -> dict[str, int]:
        """The counters of this run, once the queues are closed."""
        return {
            "packets": self._packets,
            "bypassed": self._missed["bypassed"],
            "dropped": self._missed["dropped"],
            "verdicts_refused": self._verdicts_refused,
        }


def _prefilters(config: Config) -> dict[str, Prefilter]:
    return {name: each.prefilter for name, each in config.by_kernel_name.items()}


class Daemon:
    """Runs the configured helpers on live traffic, in this process.

    `read_config` reads the configuration again, for SIGHUP. Use `run`.
    """

    def __init__(
        self,
        config: Config,
        read_config: Callable[[], Config],
        *,
        keep_ruleset: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_config = read_config
        self._keep_ruleset = keep_ruleset
        daemon = config.daemon
        self._log = Log(daemon.log_level, daemon.log_format, clock=clock)
        self._server = Server(config, self._log, clock=clock)
        self._installation = Installation(self._log)
        self._signals = Signals(self._server.waker)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CthelperError where it cannot start."""
        with self._signals:
            self._start()
            server = self._server
            self._log.event(
                "started",
                helpers=",".join(server.config.helpers),
                queues=",".join(map(str, server.queues)),
                backend=server.backend.name,
                because=server.backend.reason,
            )
            try:
                while not self._signals.stop:
                    server.turn()
                    if self._signals.taken_reload():
                        # Plugins are imported, and package metadata looked through.
                        read = partial(server.meanwhile, self._read_config)
                        reload(self._log, read, self._change)
            finally:
                self._stop()
            counters = self._log.counters
            self._log.event(
                "stopped",
                **server.totals,
                **{name: counters[name] for name in sorted(counters)},
            )

    def _start(self) -> None:
        """Bind, register, load: in this order no packet is queued to nobody."""
        config = self._server.config
        wanted = registrations(config.served, enabled=True)
        try:
            self._installation.take_over(config)
            self._server.open()
            self._installation.install(wanted, config)
        except CthelperError:
            self._installation.abandon()
            self._server.close()
            raise

    def _change(self, config: Config) -> None:
        server = self._server
        check_change(server.config, config)
        server.prepare(config)
        wanted = registrations(config.served, enabled=True)
        try:
            self._installation.change(wanted, config, server.meanwhile)
        except CthelperError:
            server.abort()
            raise
        self._installation.attempt(server.commit)

    def _stop(self) -> None:
        """Queue no more, answer what waits, leave nothing behind."""
        self._installation.stop(self._server.config)
        self._installation.attempt(self._server.drain)
        if not self._keep_ruleset:
            self._installation.remove()
        self._server.close()


def reload(
    log: Log, read: Callable[[], Config], change: Callable[[Config], None]
) -> None:
    """Take a new configuration, or refuse it and go on with the old one."""
    try:
        config = read()
        change(config)
    except CthelperError as error:
        log.event("reload-refused", "error", error=str(error))
        return
    log.event("reloaded", helpers=",".join(config.helpers))


def check_change(old: Config, new: Config) -> None:
    """Raise RestartNeeded where the new configuration cannot be taken at a reload."""
    for key in ("workers", "receive_buffer", "flow_limit", "backend", "mark"):
        if getattr(old.daemon, key) != getattr(new.daemon, key):
            raise RestartNeeded(f"daemon.{key} has changed: restart cthelper")
    for name in old.helpers.keys() & new.helpers.keys():
        before, after = old.helpers[name], new.helpers[name]
        # Between two ways of queueing packets would be queued twice, or not at all.
        if before.chained != after.chained:
            raise RestartNeeded(
                f"helpers.{name}.queueing has changed: restart cthelper"
            )
    for queue in (old.closed_queues ^ new.closed_queues) & old.queues & new.queues:
        raise RestartNeeded(
            f"queue {queue} would fail in another way: restart cthelper"
        )
