# SPDX-License-Identifier: GPL-2.0-or-later
"""A server does what it is told, and ends well where nobody is left to tell it.

It runs in a thread and speaks through a real channel; queues and what reads the packets
are fakes that write down what is done.
"""

import errno
import gc
import os
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, suppress
from io import StringIO
from pathlib import Path
from threading import Semaphore, Thread
from typing import Protocol

import pytest

from cthelper.core.config import Config, parse
from cthelper.core.control import reports
from cthelper.core.control.reports import Asker
from cthelper.core.daemon import server
from cthelper.core.daemon.channel import (
    Channel,
    Gone,
    Message,
    Order,
    fingerprint,
    handed,
)
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import UNKNOWN
from cthelper.core.daemon.progress import Progress
from cthelper.core.daemon.server import Server
from cthelper.core.daemon.signals import waker_pair
from cthelper.core.declaration import declare, stand_in
from cthelper.core.errors import NetlinkError, QueueError, RestartNeeded
from cthelper.core.netlink.ctnetlink import EntryGone
from cthelper.core.quarantine import Quarantine
from cthelper.core.queue.backends import Backend
from cthelper.core.queue.binding import Binding, BoundQueue
from cthelper.core.queue.protocol import Statistics
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import flow_key

SECONDS = 10.0


def configured(settings: str = "") -> Config:
    return parse(settings, Path("test.toml"), builtin_helpers())


def declared() -> Config:
    """The same, where tns is known by what it declares."""
    helpers = builtin_helpers()
    helpers["tns"] = stand_in(declare(helpers["tns"], "", None))
    return parse("", Path("test.toml"), helpers)


DECLARED = declared()
MOVED = configured("helpers.tns.queue = 2090\n")
CLOSED = configured("helpers.tns = { queue = 2090, fail_closed = true }\n")


class FakeSource:
    """Events, or links, of which there are none."""

    overruns = 0

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def read(self, _most: int) -> Iterator[object]:
        return iter(())

    def update(self) -> None:
        """Nothing has changed."""


class FakeQueue:
    """Has packets waiting, of which each time that it is served one is answered."""

    def __init__(self, binding: Binding) -> None:
        self.number, self._socket = binding.number, binding.socket
        self.statistics = Statistics()
        self.waiting = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def filters(self, filters: object) -> None:
        self.filtered = filters

    def forget(self, _key: object) -> None:
        """It remembers none."""

    def close(self) -> None:
        self._socket.close()


class Cycle:
    """What only the collector frees."""

    itself: "Cycle"


class World:
    """A server in a thread, with its queues."""

    def __init__(self, config: Config, loaded: Config | None = None) -> None:
        self.loaded = loaded
        self.record: list[str] = []
        self.sources: list[bytes] = []
        self.left: list[weakref.ref[Cycle]] = []
        self.output = StringIO()
        self.queues: dict[int, FakeQueue] = {}
        self.channel, self.theirs = Channel.pair()
        asking, self.reports = reports.pair()
        self.controller = Asker(asking)
        self.config, self.new = config, config
        self.said: Message = {}
        numbers = sorted(config.queues_of(0))
        self.bindings = [FakeBinding(self.record, each) for each in numbers]
        # A server's own sockets end with its process.
        self.sockets = [
            end for each in self.bindings for end in (each.socket, each.other)
        ]
        self.sockets += (asking, self.reports)
        self.thread = Thread(target=self._run)

    def _run(self) -> None:
        with closing(self.theirs), suppress(QueueError):
            server = Server(
                *(0, self.config, self.bindings, self.configured, self.theirs),
                *(UNKNOWN, Progress(), Quarantine(time.monotonic)),
                [self.reports],
            )
            if self.loaded is not None:
                self.new = self.loaded
                try:
                    server.load(b"the file")
                except RestartNeeded as error:
                    self.theirs.send({"error": str(error)})
                    return
            server.run()

    def configured(self, sources: bytes) -> Config:
        """What a configuration that was handed to it comes to; it leaves a cycle."""
        self.sources.append(sources)
        cycle = Cycle()
        cycle.itself = cycle
        self.left.append(weakref.ref(cycle))
        return self.new

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ends = waker_pair()
        self.sockets += ends
        return ends

    def events_source(self) -> FakeSource:
        end, self.events = self.pair()
        return FakeSource(end)

    def read_queue(self, binding: Binding, _flows: int) -> FakeQueue:
        self.record.append(f"read {binding.number}")
        self.queues[binding.number] = FakeQueue(binding)
        return self.queues[binding.number]

    def bound(self) -> dict[int, BoundQueue]:
        return {
            number: BoundQueue(number, 1, each.waiting, 9)
            for number, each in self.queues.items()
        }

    def told(
        self, order: Order, *numbers: int, read: bytes | None = None, **details: object
    ) -> Message:
        """What it answers; the queues' sockets go with the order, and a file read."""
        pairs = [socket.socketpair() for _ in numbers]
        message = {"order": order, "queues": list(numbers), **details}
        files = [] if read is None else [handed(read)]
        self.channel.send(message, [ours.fileno() for ours, _ in pairs] + files)
        for file in files:
            os.close(file)
        for each in (end for pair in pairs for end in pair):
            each.close()
        return self.channel.receive(SECONDS)

    def prepared(self, config: Config, *numbers: int) -> Message:
        self.new = config
        details = {"config": fingerprint(config)}
        return self.told(Order.PREPARE, *numbers, read=b"the file", **details)

    def open(self) -> set[int]:
        """The queues whose sockets it has."""
        return {number for number, each in self.queues.items() if each.fileno() >= 0}

    def counted(self) -> dict[str, object]:
        """What it has counted, when it leaves."""
        totals = self.told(Order.LEAVE)["totals"]
        assert isinstance(totals, dict)
        return {name: number for name, number in totals.items() if number}


class FakeBinding(Binding):
    """Writes down what is sent."""

    def __init__(self, record: list[str], number: int) -> None:
        self.other, end = socket.socketpair()
        super().__init__(number, end, fail_open=True)
        self._record = record

    def pause(self) -> None:
        self._record.append(f"pause {self.number}")


class FakeInspection:
    """Answers a packet of the queue that it is to serve."""

    prefilters: dict[str, object] = {}  # noqa: RUF012 - it stays as it is

    def __init__(self, world: World, *_: object) -> None:
        self._record = world.record

    def serve(self, queue: FakeQueue) -> None:
        if queue.waiting:
            queue.waiting -= 1
            self._record.append(f"serve {queue.number}")

    def tick(self, _queues: object) -> None:
        """Nothing is due."""

    def forget(self, _key: object) -> None:
        """It has none."""

    def load(self, config: Config) -> None:
        self._record.append(f"load {','.join(map(str, sorted(config.queues)))}")

    def prepare(self, config: Config) -> None:
        self._record.append(f"prepare {','.join(map(str, sorted(config.queues)))}")

    def abort(self) -> None:
        self._record.append("abort")

    def commit(self) -> None:
        self._record.append("commit")


class Begin(Protocol):
    """Has a server begin, after it has imported its plugins if it has some."""

    def __call__(self, config: Config, loaded: Config | None = None) -> World:
        """The server, and what is around it."""


CHANGED = {
    "error": "the configuration, or a helper of an installed distribution, has changed "
    "meanwhile: reload again, or restart cthelper"
}


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Has a server begin."""
    worlds: list[World] = []

    def begun(config: Config, loaded: Config | None = None) -> World:
        world = World(config, loaded)
        backend = Backend("fake", "it is a test", None, world.read_queue)  # type: ignore[arg-type]
        fakes: dict[str, object] = {
            "choose": lambda _: backend,
            "Events": world.events_source,
            "Links": lambda: FakeSource(world.pair()[0]),
            "waker_pair": world.pair,
            "Inspection": lambda *given: FakeInspection(world, *given[:-3]),
            "Ctnetlink": lambda: world,
            "ExpectationTable": lambda asked: asked,
            "Log": lambda *given, **more: Log(*given, **more, output=world.output),
            "open_list": lambda: None,
            "bound_queues": lambda _: world.bound(),
            "settle": lambda: None,
            "_DRAIN_SECONDS": 0.2,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(server, name, fake)
        worlds.append(world)
        world.thread.start()
        world.said = world.channel.receive(SECONDS)
        return world

    yield begun
    for world in worlds:
        world.channel.close()
        world.thread.join(SECONDS)
        assert not world.thread.is_alive()
        for each in world.sockets:
            each.close()
        for queue in world.queues.values():
            queue.close()


def test_new_queue_is_read_before_the_old_one_is_drained_and_closed(
    begin: Begin,
) -> None:
    world = begin(MOVED)
    newer = configured("helpers.tns.queue = 2091\n")
    assert world.prepared(newer, 2091) == {}
    assert world.sources == [b"the file"]
    assert world.open() == {2077, 2090, 2091}
    world.queues[2090].waiting = 2
    assert world.told(Order.COMMIT) == {}
    assert world.open() == {2077, 2091}
    assert world.record == [
        *("read 2077", "read 2090", "prepare 2077,2091", "read 2091"),
        *("commit", "serve 2090", "serve 2090"),
    ]


@pytest.mark.parametrize("config", [MOVED, configured()], ids=["taken", "refused"])
def test_what_reading_a_configuration_leaves_is_freed_at_once(
    begin: Begin, config: Config
) -> None:
    world = begin(configured())
    gc.disable()
    try:
        world.new = config
        world.told(Order.PREPARE, 2090, read=b"", config=fingerprint(MOVED))
        assert [each() for each in world.left] == [None]
    finally:
        gc.enable()


def test_aborted_change_leaves_the_queues_of_before(begin: Begin) -> None:
    world = begin(configured())
    assert world.prepared(MOVED, 2090) == {}
    assert world.told(Order.ABORT) == {}
    assert world.open() == {2077}
    assert world.record[-1] == "abort"
    # And it can be had once more.
    assert world.prepared(MOVED, 2090) == {}
    assert world.told(Order.COMMIT) == {}
    assert world.open() == {2077, 2090}


def test_other_configuration_than_the_supervisors_is_refused(begin: Begin) -> None:
    world = begin(configured())
    told = world.told(Order.PREPARE, 2090, read=b"", config=fingerprint(MOVED))
    assert told == CHANGED
    assert world.told(Order.ABORT) == {}
    assert world.record == ["read 2077", "abort"]


def test_plugins_are_imported_before_it_says_that_it_serves(begin: Begin) -> None:
    world = begin(DECLARED, configured())
    assert world.said == {}
    assert world.sources == [b"the file"]
    assert world.record == ["read 2077", "load 2077"]
    assert world.queues[2077].filtered is FakeInspection.prefilters


def test_plugin_that_is_another_one_than_was_examined_is_refused(begin: Begin) -> None:
    assert begin(DECLARED, MOVED).said == CHANGED


@pytest.mark.parametrize(("waiting", "answer"), [(3, {}), (10**9, None)])
def test_draining_answers_what_waits_and_gives_up_in_the_end(
    begin: Begin, waiting: int, answer: Message | None
) -> None:
    world = begin(configured())
    world.queues[2077].waiting = waiting
    error = {"error": "queues [2077] did not run empty"}
    assert world.told(Order.DRAIN) == (error if answer is None else answer)
    assert (world.queues[2077].waiting == 0) is (answer is not None)


@pytest.mark.parametrize(("config", "fate"), [(MOVED, "bypassed"), (CLOSED, "dropped")])
def test_packets_of_a_full_queue_are_counted_by_what_became_of_them(
    begin: Begin, config: Config, fate: str
) -> None:
    world = begin(config)
    world.queues[2090].statistics = Statistics(received=5, bypassed=3, refused=1)
    counted = {"packets": 5, fate: 3, "verdicts_refused": 1, "overload": 1}
    assert world.counted() == counted
    assert world.open() == set()


@pytest.mark.parametrize("drains", [True, False])
def test_server_whose_supervisor_has_died_leaves_no_packet_behind(
    begin: Begin, drains: bool
) -> None:
    world = begin(MOVED)
    world.queues[2090].waiting = 2 if drains else 10**9
    world.channel.close()
    world.thread.join(SECONDS)
    pauses = ["pause 2077", "pause 2090", "serve 2090", "serve 2090"]
    assert world.record[2:6] == pauses
    assert world.open() == set()
    events = [each.split("event=")[1] for each in world.output.getvalue().splitlines()]
    assert events[-1].startswith("withdrawn reason=supervisor-died ")
    assert len(events) == (1 if drains else 2)


def test_addresses_that_cannot_be_read_are_asked_for_again_and_end_nothing(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Semaphore(0)

    def fails(_links: FakeSource) -> None:
        asked.release()
        raise NetlinkError.of(errno.ENOBUFS, "list addresses")

    monkeypatch.setattr(FakeSource, "update", fails)
    monkeypatch.setattr(server, "_TICK_SECONDS", 0.01)
    world = begin(configured())
    for _ in range(3):
        assert asked.acquire(timeout=SECONDS)
    assert world.told(Order.DRAIN) == {}
    failed = world.counted()["step-failed"]
    assert isinstance(failed, int)
    assert failed >= 3


@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_events_without_end_do_not_keep_anything_waiting(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    read = []

    def without_end(_events: FakeSource, most: int) -> Iterator[EntryGone]:
        for number in range(most):
            read.append(number)
            time.sleep(seconds)
            yield EntryGone(flow_key(number, 0))

    monkeypatch.setattr(FakeSource, "read", without_end)
    world = begin(configured())
    world.events.send(b"more than is ever read")
    for _ in range(3):
        world.queues[2077].waiting = 2
        assert world.told(Order.DRAIN) == {}
    # It went on in turns, of so many events or so much time.
    assert read.count(0) > 1
    assert max(read) < (1000 if seconds == 0 else 100)


def test_queue_that_cannot_be_read_is_the_servers_end(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_inspection: FakeInspection, _queue: FakeQueue) -> None:
        raise QueueError("cannot read queue 2077")

    monkeypatch.setattr(FakeInspection, "serve", fails)
    world = begin(configured())
    world.bindings[0].other.send(b"packet")
    with pytest.raises(Gone):
        world.channel.receive(SECONDS)
    assert world.output.getvalue().endswith('detail="cannot read queue 2077"\n')
