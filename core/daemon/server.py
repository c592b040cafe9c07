# SPDX-License-Identifier: GPL-2.0-or-later
"""A server: the process that reads packets, and does what the supervisor tells it.

The queues are bound by the supervisor, which holds their sockets, too. When a server
dies its flows pass, and the next one goes on with the same queues (supervisor.py).
Where the supervisor has died the server lets go of the queues without losing a packet,
and ends.
"""

import os
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol, TypeVar

from cthelper.core.config import Config
from cthelper.core.control.reports import Reporter
from cthelper.core.daemon.channel import (
    Channel,
    Gone,
    Message,
    Order,
    fingerprint,
    taken,
)
from cthelper.core.daemon.expectation_table import ExpectationTable
from cthelper.core.daemon.inspection import Inspection
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.memory_settings import settle, tidy
from cthelper.core.daemon.probe import Kernel
from cthelper.core.daemon.progress import Progress
from cthelper.core.daemon.signals import empty, waker_pair
from cthelper.core.errors import (
    CthelperError,
    NetlinkError,
    QueueError,
    RestartNeeded,
)
from cthelper.core.flows import Flow
from cthelper.core.netlink.ctnetlink import (
    Ctnetlink,
    EntryGone,
    Events,
    ExpectationMade,
    ExpectationMet,
)
from cthelper.core.netlink.links import Links
from cthelper.core.quarantine import Quarantine
from cthelper.core.queue.backends import choose
from cthelper.core.queue.binding import Binding, bound_queues, open_list
from cthelper.core.queue.protocol import Queue
from cthelper.core.records import Record

_T = TypeVar("_T")
_TICK_SECONDS: Final = 1.0
# Of what the kernel tells so much is taken in at a time, then packets have their turn.
_EVENTS: Final = 512
_EVENTS_SECONDS: Final = 0.005
_DRAIN_SECONDS: Final = 2.0
_DRAIN_PAUSE: Final = 0.01


class HasFileno(Protocol):
    """What a selector takes."""

    def fileno(self) -> int:
        """The descriptor."""


class Server:
    """Serves the bound queues of server `number`, until it is told to leave.

    `config` may have stand-ins of helpers; `configure` makes a configuration of what
    the supervisor has read, and imports them. `progress` shows the supervisor that it
    goes on, `quarantine` holds what servers before it have died of, and at `reports`
    the controller and the writer of events ask. Use `load` where there are stand-ins,
    then `run`; all that needs more than CAP_NET_ADMIN is opened before.
    """

    def __init__(
        self,
        number: int,
        config: Config,
        bindings: Sequence[Binding],
        configure: Callable[[bytes], Config],
        channel: Channel,
        kernel: Kernel,
        progress: Progress,
        quarantine: Quarantine,
        reports: Iterable[socket.socket],
    ) -> None:
        self._number = number
        self._config = self._prepared = config
        self._configure = configure
        self._channel = channel
        daemon = config.daemon
        self._log = Log(
            *(daemon.log_level, daemon.log_format),
            clock=time.monotonic,
            common={"worker": number} if daemon.workers > 1 else {},
        )
        self._backend = choose(daemon.backend)
        self._links = Links()
        self._events = Events()
        self._progress = progress
        self._list = open_list()
        ctnetlink = Ctnetlink()
        self._inspection = Inspection(
            config,
            self._links,
            self._log,
            time.monotonic,
            self._follow,
            kernel,
            progress,
            quarantine,
            ctnetlink,
            ExpectationTable(ctnetlink),
            time.perf_counter,
        )
        self._overruns = 0
        self._bindings: dict[int, Binding] = {}
        self._queues: dict[int, Queue] = {}
        self._fresh: list[int] = []
        self._totals: Counter[str] = Counter()
        self._missed: Counter[int] = Counter()
        self._orders: deque[Message] = deque()
        self._alone = self._left = False
        self._due = time.monotonic()
        self._woken, self._waker = waker_pair()
        self._selector = selectors.EpollSelector()
        self._watch(self._events, self._read_events)
        self._watch(self._links, self._follow_links)
        self._watch(self._woken, lambda: empty(self._woken))
        self._watch(channel, self._listen)
        self._listed: list[Flow] = []
        answers = {
            "state": lambda _: self._state(),
            "events": self._log.recent.answer,
            "flows": self._page,
        }
        for end in reports:
            reporter = Reporter(end, answers)
            self._watch(reporter, partial(self._report, reporter))
        for binding in bindings:
            self._open(binding)

    def load(self, sources: bytes) -> None:
        """Import the helpers that stand-ins are there for. Raises CthelperError.

        It is code of others: this process must be confined.
        """
        config = self._configure(sources)
        _agree(config, fingerprint(self._config))
        self._config = self._prepared = config
        self._inspection.load(config)
        for queue in self._queues.values():
            queue.filters(self._inspection.prefilters)

    def run(self) -> None:
        """Say that it serves, and do so. Raises CthelperError, which is logged."""
        settle()
        try:
            self._channel.send({})
            while not (self._left or self._alone):
                self._turn()
                while self._orders:
                    self._channel.send(self._obey(self._orders.popleft()))
        except Gone:
            self._alone = True
        except CthelperError as error:
            self._log.event("step-failed", "error", detail=str(error))
            raise
        if self._alone:
            self._withdraw()

    def _watch(self, source: HasFileno, act: Callable[[], None]) -> None:
        """Have `_turn` call `act` when there is something to read."""
        self._selector.register(source, selectors.EVENT_READ, act)

    def _open(self, binding: Binding) -> None:
        """Read a bound queue from now on."""
        queue = self._backend.read(binding, self._config.daemon.flow_limit)
        queue.filters(self._inspection.prefilters)
        self._bindings[binding.number] = binding
        self._queues[binding.number] = queue
        if self._backend.wait is None:
            self._watch(queue, lambda: self._inspection.serve(queue))

    def _close(self, number: int) -> None:
        queue = self._queues.pop(number)
        del self._bindings[number]
        self._totals["packets"] += queue.statistics.received
        self._totals["verdicts_refused"] += queue.statistics.refused
        self._missed.pop(number, None)
        if self._backend.wait is None:
            self._selector.unregister(queue)
        queue.close()

    # Serving

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        self._progress.turn()
        self._wait(max(0.0, self._due - time.monotonic()))
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _TICK_SECONDS
            self._inspection.tick(self._queues.values())
            self._report_missed()
            self._follow_links()

    def _wait(self, seconds: float) -> None:
        """Act on the first that comes, or the time that is over."""
        if self._backend.wait is not None:
            queues = list(self._queues.values())
            ready = self._backend.wait(queues, self._selector.fileno(), seconds)
            for queue in queues:
                self._inspection.serve(queue)
            if not ready:
                return
            seconds = 0.0
        for key, _ in self._selector.select(seconds):
            key.data()

    def _meanwhile(self, step: Callable[[], _T]) -> _T:
        """Do what takes its time and serve meanwhile. Raises what the step raises."""
        with ThreadPoolExecutor(max_workers=1) as worker:
            future = worker.submit(step)
            future.add_done_callback(lambda _: self._waker.send(b"\0"))
            while not future.done():
                self._turn()
        return future.result()

    def _follow_links(self) -> None:
        """Take in addresses that have changed; what fails is tried again."""
        try:
            self._links.update()
        except NetlinkError as error:
            self._log.event("step-failed", "error", detail=str(error))

    def _read_events(self) -> None:
        """Take in some events; while there are more the next turn comes at once."""
        until = time.monotonic() + _EVENTS_SECONDS
        for event in self._events.read(_EVENTS):
            self._take_in(event)
            if time.monotonic() > until:
                break
        if self._events.overruns != self._overruns:
            self._overruns = self._events.overruns
            self._log.event("events-lost", "warning", overruns=self._overruns)

    def _take_in(self, event: EntryGone | ExpectationMade | ExpectationMet) -> None:
        if isinstance(event, EntryGone):
            self._inspection.forget(event.key)
            for queue in self._queues.values():
                queue.forget(event.key)
        else:
            self._inspection.told(event)

    def _follow(self, expectations: bool) -> None:
        """Have what becomes of expectations told from now on, or no more."""
        if expectations:
            # What has happened before is not to be taken for what is to come: all that
            # waits is taken in, which is as much as the socket holds and no more.
            for event in self._events.read():
                self._take_in(event)
        self._events.follow(expectations=expectations)

    def _report_missed(self) -> None:
        """Count the packets that found a queue full."""
        closed = self._config.closed_queues
        for number, queue in self._queues.items():
            statistics = queue.statistics
            missed = statistics.bypassed - self._missed[number]
            if missed:
                self._missed[number] = statistics.bypassed
                fate = "dropped" if number in closed else "bypassed"
                self._totals[fate] += missed
                self._log.event(
                    "overload",
                    "warning",
                    queue=number,
                    overruns=statistics.overruns,
                    **{fate: missed},
                )

    # What the controller and the writer ask

    def _report(self, reporter: Reporter) -> None:
        """Answer one question; the next packets come first."""
        if not reporter.serve():
            self._selector.unregister(reporter)

    def _state(self) -> Record:
        totals = self._log.counters + self._totals
        for queue in self._queues.values():
            totals["packets"] += queue.statistics.received
            totals["verdicts_refused"] += queue.statistics.refused
        return {"pid": os.getpid(), "counters": totals, **self._inspection.state}

    def _page(self, question: Record) -> Record:
        """Some of the flows, from the one with number `at` on, of those at `at` 0."""
        at, most = question["at"], question["most"]
        if not isinstance(at, int) or not isinstance(most, int):
            raise TypeError
        if at == 0:
            self._listed = list(self._inspection.flows)
        flows = self._listed[at : at + most]
        if not flows:
            self._listed = []
        return {"flows": [[each.key, each.finished] for each in flows]}

    # Orders

    def _listen(self) -> None:
        """Take an order; it is done after this turn, since it may take turns itself."""
        if self._alone:
            return
        try:
            self._orders.append(self._channel.receive(0.0, files=True))
        except TimeoutError:
            return
        except Gone:
            self._alone = True

    def _obey(self, message: Message) -> Message:
        """Do what an order says; the answer."""
        try:
            match message["order"]:
                case Order.PREPARE:
                    self._prepare(message)
                case Order.COMMIT:
                    self._commit()
                case Order.ABORT:
                    self._abort()
                case Order.DRAIN:
                    self._drain(self._queues.keys())
                case Order.LEAVE:
                    self._left = True
                    return {"totals": self._leave()}
        except CthelperError as error:
            return {"error": str(error)}
        return {}

    def _prepare(self, message: Message) -> None:
        """Be ready for what the kernel will send once it has the new configuration.

        The message brings the sockets of the queues that are new, and a file with what
        the supervisor has read. Commit or abort follows. Raises CthelperError.
        """
        numbers, descriptors = message["queues"], message.get("descriptors", [])
        assert isinstance(numbers, list)  # noqa: S101 - as the supervisor sends it
        assert isinstance(descriptors, list)  # noqa: S101
        *ends, read = descriptors
        sockets = [socket.socket(fileno=each) for each in ends]
        try:
            sources = taken(read)
            # Plugins are imported, and package metadata looked through.
            config = self._meanwhile(lambda: self._configure(sources))
            _agree(config, message["config"])
        except CthelperError:
            for each in sockets:
                each.close()
            raise
        finally:
            tidy()
        self._prepared = config
        self._inspection.prepare(config)
        for number, end in zip(numbers, sockets, strict=True):
            fail_open = number not in config.closed_queues
            self._open(Binding(number, end, fail_open=fail_open))
            self._fresh.append(number)

    def _abort(self) -> None:
        """Go on with the configuration of before; the kernel has it again."""
        self._prepared = self._config
        self._inspection.abort()
        for number in self._fresh:
            self._close(number)
        self._fresh = []

    def _commit(self) -> None:
        """The kernel has the new configuration. Raises QueueError, and goes on."""
        self._report_missed()
        config = self._config = self._prepared
        self._fresh = []
        self._inspection.commit()
        for queue in self._queues.values():
            queue.filters(self._inspection.prefilters)
        self._log.configure(config.daemon.log_level, config.daemon.log_format)
        unused = self._queues.keys() - config.queues_of(self._number)
        try:
            self._drain(unused)
        finally:
            for number in unused:
                self._close(number)

    def _drain(self, numbers: Iterable[int]) -> None:
        """Answer all that waits in these queues, which are paused.

        Raises QueueError.
        """
        numbers = set(numbers)
        deadline = time.monotonic() + _DRAIN_SECONDS
        while numbers:
            self._progress.turn()
            for queue in list(self._queues.values()):
                self._inspection.serve(queue)
            rows = bound_queues(self._list)
            if not any(rows[each].waiting for each in numbers if each in rows):
                return
            if time.monotonic() > deadline:
                raise QueueError(f"queues {sorted(numbers)} did not run empty")
            time.sleep(_DRAIN_PAUSE)

    def _leave(self) -> dict[str, int]:
        """Close all queues; the counters of this run."""
        self._report_missed()
        for number in list(self._queues):
            self._close(number)
        names = ("packets", "bypassed", "dropped", "verdicts_refused")
        return {**{name: self._totals[name] for name in names}, **self._log.counters}

    def _withdraw(self) -> None:
        """Leave without being told, and no packet behind."""
        try:
            for binding in self._bindings.values():
                binding.pause()
            self._drain(self._queues.keys())
        except CthelperError as error:
            self._log.event("step-failed", "error", detail=str(error))
        totals = self._leave()
        self._log.event("withdrawn", "error", reason="supervisor-died", **totals)


def _agree(config: Config, expected: object) -> None:
    """Raise RestartNeeded where the supervisor has another configuration."""
    if fingerprint(config) != expected:
        raise RestartNeeded(
            "the configuration, or a helper of an installed distribution, has changed "
            "meanwhile: reload again, or restart cthelper"
        )
