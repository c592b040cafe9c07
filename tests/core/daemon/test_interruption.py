# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers that do not come back are interrupted; nothing else ever is."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import pytest

from cthelper.core.api import Effects, Helper, Message
from cthelper.core.daemon import interruption
from cthelper.core.engine import Decision
from cthelper.core.errors import Overrun
from cthelper.core.outcome import Fault, Finished
from tests.core.host import Datagrams, Host

SOON = 0.05


@pytest.fixture(autouse=True)
def interrupted() -> Iterator[None]:
    """Interruptions come from now on, again and again, and from another process."""
    before = signal.getsignal(interruption.SIGNAL)
    interruption.allow()
    own, pid = os.getpid(), os.fork()
    if pid == 0:
        while os.getppid() == own:
            time.sleep(SOON)
            os.kill(own, interruption.SIGNAL)
        os._exit(0)
    yield
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    signal.signal(interruption.SIGNAL, before)


def loop() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(3600)


def catastrophe() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def huge() -> None:
    pow(3, 10**9)


def endless() -> None:
    for _ in count():
        pass


def hoard() -> None:
    sum(1 for _ in iter(int, 1))


def locked() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def catching() -> None:
    while True:
        with suppress(Exception):
            time.sleep(3600)


class Hanging(Datagrams):
    """Does not come back."""

    step: Callable[[], None] = staticmethod(loop)

    def on_message(self, message: Message) -> Effects:
        self.step()
        yield from super().on_message(message)


class HangingLater(Hanging):
    """Has yielded before."""

    def on_message(self, message: Message) -> Effects:
        yield from Datagrams.on_message(self, message)
        self.step()


class HangingFrame(Hanging):
    """Does not come back with a length."""

    def frame(self, data: memoryview) -> int | None:
        self.step()
        return len(data)


class HangingAtOnce(Hanging):
    """Does not come back with an instance."""

    def __init__(self) -> None:
        super().__init__()
        self.step()


def overrun(decision: Decision) -> Fault:
    """That it was interrupted, and its flow is inspected no longer."""
    fault, finished = decision.events
    assert isinstance(fault, Fault)
    assert fault.error.startswith("Overrun: ")
    assert finished == Finished("deadline")
    return fault


STEPS = [loop, sleep, catastrophe, huge, endless, hoard, locked, catching]


@pytest.mark.parametrize("step", STEPS, ids=lambda each: each.__name__)
def test_helper_that_does_not_come_back_is_interrupted(
    step: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hanging, "step", staticmethod(step))
    host = Host(Hanging)
    decision = host.send(b"OPEN 5000")
    fault = overrun(decision)
    assert fault.where.startswith("test_interruption.py:")
    assert decision.flow is not None
    assert decision.flow.finished == "deadline"
    assert host.send(b"OPEN 5000") == Decision(decision.flow)


@pytest.mark.parametrize("helper", [HangingLater, HangingAtOnce])
def test_what_it_had_announced_is_taken_back(helper: type[Helper]) -> None:
    decision = Host(helper).send(b"OPEN 5000")
    overrun(decision)
    assert decision.expectations == ()


def test_nothing_but_a_helper_is_interrupted() -> None:
    before = time.monotonic()
    with suppress(Overrun):
        while time.monotonic() - before < 4 * SOON:
            pass
        return
    pytest.fail("a test was interrupted")


@pytest.mark.interpreted
def test_cthelper_is_not_interrupted_while_a_helper_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host(Datagrams)
    check = host.engine.guard.check

    def slow(*arguments: object) -> None:
        time.sleep(4 * SOON)
        check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(host.engine.guard, "check", slow)
    assert len(host.send(b"OPEN 5000").expectations) == 1


def test_death_of_its_parent_interrupts_it_too() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            interruption.allow()
            try:
                os.write(
                    write, overrun(Host(Hanging).send(b"OPEN 5000")).error.encode()
                )
            finally:
                os._exit(0)
        time.sleep(4 * SOON)
        os._exit(0)
    os.waitpid(parent, 0)
    os.close(write)
    with open(read, "rb") as told:
        assert told.read().startswith(b"Overrun: ")
