# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers that stand still: processes of the tests, and queues that are told of."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cthelper.core.daemon import watchdog
from cthelper.core.daemon.interruption import SIGNAL
from cthelper.core.daemon.progress import NOT_BEGUN, Progress, Subject
from cthelper.core.daemon.watchdog import REPLACED, Standing, Watchdog
from cthelper.core.errors import QueueError
from cthelper.core.queue.binding import Binding, BoundQueue
from cthelper.core.tuples import ORIGINAL, REPLY, key_of
from tests.core.builders import conntrack
from tests.core.host import Clock

NUMBER = 3
QUEUE = 2080
DEADLINE = 0.25
LOOK = DEADLINE / 6
ENTRY = conntrack(helper="tns")


class FakeBinding(Binding):
    """Writes down what is done to the queue."""

    def __init__(self) -> None:
        one, self.other = socket.socketpair()
        super().__init__(QUEUE, one, fail_open=True)
        self.record: list[str] = []
        self.broken = False

    def pause(self) -> None:
        if self.broken:
            raise QueueError("no queue")
        self.record.append("pause")

    def release(self) -> None:
        self.record.append("release")


@dataclass
class Process:
    """A server that loops, sleeps or is stopped."""

    pid: int
    number: int = NUMBER
    progress: Progress = field(default_factory=Progress)
    standing: Standing = field(default_factory=Standing)


def looping() -> None:
    while True:
        pass


def sleeping() -> None:
    while True:
        time.sleep(3600)


class World:
    """One server, its queue, and a clock that goes on with the real one or jumps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.binding = FakeBinding()
        self.waiting = 0
        self.processes: list[Process] = []
        self.clock = Clock()
        self.signals: list[tuple[int, int]] = []
        self.watchdog = Watchdog(
            lambda: self.processes,
            lambda number: [self.binding] if number == NUMBER else [],
            lambda: DEADLINE,
            self.clock,
        )
        monkeypatch.setattr(watchdog, "bound_queues", self.bound)
        kill = os.kill

        def tell(pid: int, number: int) -> None:
            self.signals.append((pid, number))
            kill(pid, number)

        monkeypatch.setattr(os, "kill", tell)
        # Whoever would run does.
        self.cpu = watchdog._cpu
        monkeypatch.setattr(watchdog, "_cpu", lambda _: self.clock.now)

    def bound(self, _opened: int | None) -> dict[int, BoundQueue]:
        return {QUEUE: BoundQueue(QUEUE, 1, self.waiting, 9), 1: BoundQueue(1, 1, 5, 9)}

    def start(self, act: Callable[[], None]) -> Process:
        """A server that is in work on a packet."""
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        pid = os.fork()
        if pid == 0:
            act()
        signal.signal(signal.SIGUSR1, before)
        process = Process(pid)
        self.processes.append(process)
        return process

    def looks(self, times: int) -> None:
        """Look so many times, with its share of a deadline before each."""
        for _ in range(times):
            self.clock.now += LOOK
            self.watchdog.look()

    def end(self) -> None:
        for each in self.processes:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(each.pid, 0)
        self.binding.socket.close()
        self.binding.other.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.end()


def killed(process: Process) -> bool:
    """Whether it was, by now or in a moment."""
    for _ in range(100):
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            return True
        time.sleep(0.01)
    return False


def test_progress_tells_of_a_packet_until_the_next_turn() -> None:
    progress = Progress()
    before = progress.mark, progress.subject
    progress.begin(ENTRY, REPLY)
    begun = progress.mark, progress.subject
    progress.turn()
    assert before == (NOT_BEGUN, None)
    assert begun[0].since > 0
    ends = ENTRY.original.source.address, ENTRY.original.destination.address
    subject = Subject(key_of(ENTRY), "tns", *ends, REPLY, assured=False)
    assert begun[1] == subject
    assert subject.sender == ends[1]
    assert (progress.mark, progress.subject) == ((1, 0), None)
    progress.close()


def test_idle_server_is_left_alone(world: World) -> None:
    process = world.start(sleeping)
    world.looks(20)
    assert world.binding.record == []
    assert world.watchdog.stuck == []
    assert not process.standing.killed


def test_server_that_goes_on_is_left_alone_however_much_waits(world: World) -> None:
    process = world.start(sleeping)
    world.waiting = 1000
    for _ in range(20):
        process.progress.turn()
        world.looks(1)
        process.progress.begin(ENTRY, ORIGINAL)
        world.looks(1)
    assert world.binding.record == []


@pytest.mark.parametrize("act", [looping, sleeping])
def test_what_waits_is_released_within_the_deadline(
    world: World, act: Callable[[], None]
) -> None:
    process = world.start(act)
    # Begun just after a look, at worst.
    process.progress.begin(ENTRY, ORIGINAL)
    began = world.clock.now
    world.looks(4)
    assert (process.pid, SIGNAL) in world.signals
    assert world.watchdog.stuck == []
    while not world.watchdog.stuck:
        world.looks(1)
    assert world.clock.now - began <= DEADLINE + 0.001
    assert world.binding.record == ["pause", "release"]
    (stuck,) = world.watchdog.stuck
    assert (stuck.number, stuck.pid) == (NUMBER, process.pid)
    assert stuck.subject is not None
    assert stuck.subject.helper == "tns"


@pytest.mark.parametrize("act", [looping, sleeping])
def test_after_two_seconds_it_is_killed(world: World, act: Callable[[], None]) -> None:
    process = world.start(act)
    process.progress.begin(ENTRY, ORIGINAL)
    world.looks(int(REPLACED / LOOK))
    before = replace(process.standing)
    world.looks(3)
    assert (before.killed, process.standing.killed) == (False, True)
    assert not process.standing.stopped
    assert killed(process)
    assert world.binding.record == ["pause", "release"]


def test_server_that_is_stopped_while_packets_wait_is_replaced(world: World) -> None:
    process = world.start(sleeping)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    world.looks(10)
    assert world.binding.record == []
    world.waiting = 1
    world.looks(7)
    assert world.binding.record == ["pause", "release"]
    world.waiting = 0
    world.looks(int(REPLACED / LOOK) + 2)
    assert process.standing.stopped
    assert killed(process)


def test_server_that_goes_on_in_time_is_to_serve_again(world: World) -> None:
    process = world.start(sleeping)
    process.progress.begin(ENTRY, ORIGINAL)
    world.looks(8)
    assert world.watchdog.recovered == []
    process.progress.turn()
    world.looks(1)
    assert world.watchdog.recovered == [NUMBER]
    world.looks(int(REPLACED / LOOK) + 2)
    assert not process.standing.killed
    assert world.watchdog.recovered == [NUMBER]
    # And is looked after as before.
    process.progress.begin(ENTRY, ORIGINAL)
    world.looks(8)
    assert world.binding.record == ["pause", "release"] * 2


def test_machine_that_stood_still_blames_nobody(world: World) -> None:
    process = world.start(sleeping)
    process.progress.begin(ENTRY, ORIGINAL)
    world.looks(2)
    world.clock.now += 60
    world.looks(1)
    process.progress.turn()
    world.looks(1)
    assert (process.pid, SIGNAL) not in world.signals
    assert world.binding.record == []
    assert not process.standing.killed


def test_time_that_a_process_has_had_is_its_own(world: World) -> None:
    idle, busy = world.start(sleeping), world.start(looping)
    deadline = time.monotonic() + 10
    while world.cpu(busy.pid) < 0.05:
        assert time.monotonic() < deadline
    assert world.cpu(idle.pid) < world.cpu(busy.pid)


def test_server_that_is_kept_from_running_is_not_at_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_cpu", lambda _: 0.0)
    process = world.start(looping)
    process.progress.begin(ENTRY, ORIGINAL)
    world.looks(int(REPLACED / LOOK) + 4)
    # Its packets do not wait for it all the same.
    assert world.binding.record == ["pause", "release"]
    assert (process.pid, SIGNAL) not in world.signals
    assert not process.standing.killed


def test_server_whose_state_cannot_be_seen_is_looked_after_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = world.start(sleeping)
    monkeypatch.setattr(watchdog, "Path", lambda _: Path("/proc/nothing"))
    process.progress.begin(ENTRY, ORIGINAL)
    world.looks(int(REPLACED / LOOK) + 4)
    assert world.watchdog.failures == []
    assert world.binding.record == ["pause", "release"]
    assert (process.pid, SIGNAL) in world.signals
    assert process.standing.killed
    assert not process.standing.stopped


def test_what_fails_is_told_and_ends_nothing(world: World) -> None:
    world.start(sleeping).progress.begin(ENTRY, ORIGINAL)
    world.binding.broken = True
    world.looks(8)
    assert set(world.watchdog.failures) == {"no queue"}
    assert set(world.binding.record) == {"release"}
    assert len(world.watchdog.stuck) == 1
    # It is tried again.
    world.binding.broken = False
    world.looks(2)
    assert world.binding.record[-2:] == ["pause", "release"]


def test_it_looks_by_itself_whatever_goes_on(world: World) -> None:
    process = world.start(sleeping)
    process.progress.begin(ENTRY, ORIGINAL)
    world.watchdog.clock = time.monotonic
    with world.watchdog:
        before = time.monotonic()
        while not world.watchdog.stuck and time.monotonic() - before < 10 * DEADLINE:
            pass
    assert world.binding.record == ["pause", "release"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
