# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said to the service manager, and to ``cthelper reload``."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread

import pytest

from cthelper.core.daemon import notify
from cthelper.core.daemon.notify import Notifier
from tests.cases import cases


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Manager:
    """The service manager's socket, and the environment that it gives."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        self._socket.bind(address.replace("@", "\0"))
        self.environment = {"NOTIFY_SOCKET": address, "HOME": "/root"}
        self.clock = Clock()
        self._notifiers: list[Notifier] = []

    def notifier(self, **variables: str) -> Notifier:
        """One for a service with these variables, too."""
        self.environment |= variables
        self._notifiers.append(Notifier(self.environment, self.clock))
        return self._notifiers[-1]

    @property
    def heard(self) -> list[str]:
        """The messages since the last time."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        for each in self._notifiers:
            each.close()
        self.end()

    def end(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = {"path": str(tmp_path / "notify"), "abstract": f"@{tmp_path}"}
    with closing(Manager(address[request.param])) as made:
        yield made


def test_states_are_said_as_the_protocol_has_them(manager: Manager) -> None:
    notifier = manager.notifier()
    notifier.status("1 of 2 workers\nserve")
    notifier.status("1 of 2 workers\nserve")
    notifier.ready()
    manager.clock.now = 1234.5
    notifier.reloading()
    notifier.status("2 of 2 workers serve")
    notifier.ready()
    notifier.stopping()
    assert manager.heard == [
        "STATUS=1 of 2 workers serve",
        "READY=1",
        "RELOADING=1\nMONOTONIC_USEC=1234500000",
        "STATUS=2 of 2 workers serve",
        "READY=1",
        "STOPPING=1",
    ]


def test_watchdog_hears_of_progress_three_times_in_its_interval(
    manager: Manager,
) -> None:
    notifier = manager.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    assert notifier.due == 1000.0
    said = []
    for second in range(41):
        manager.clock.now = 1000.0 + second
        notifier.alive()
        said += [second] * len(manager.heard)
        assert notifier.due is not None
        assert manager.clock.now < notifier.due <= manager.clock.now + 10
    assert said == [0, 10, 20, 30, 40]


@cases(
    "variables",
    {
        "no watchdog": {},
        "another process's": {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        "an interval of 0": {"WATCHDOG_USEC": "0"},
        "no number": {"WATCHDOG_USEC": "-1"},
    },
)
def test_watchdog_that_is_not_asked_for_hears_nothing(
    manager: Manager, variables: dict[str, str]
) -> None:
    notifier = manager.notifier(**variables)
    notifier.alive()
    assert notifier.due is None
    assert manager.heard == []


def test_processes_that_are_started_do_not_speak_for_the_daemon(
    manager: Manager,
) -> None:
    notifier = manager.notifier(WATCHDOG_USEC="1000000", WATCHDOG_PID=str(os.getpid()))
    assert manager.environment == {"HOME": "/root"}
    notifier.close()
    notifier.ready()
    notifier.alive()
    assert notifier.due is None
    assert manager.heard == []


def test_nobody_is_told_where_nobody_asked() -> None:
    environment = {"WATCHDOG_USEC": "1000000"}
    notifier = Notifier(environment, Clock())
    assert environment == {}
    for step in (notifier.ready, notifier.reloading, notifier.stopping, notifier.alive):
        step()
    notifier.status("it serves")
    notifier.reloaded(None)
    assert notifier.due is None


@cases(
    "address",
    {
        "nobody's": "/nonexistent/notify",
        "too long": "/" + "x" * 200,
        "no path": "vsock:2",
    },
)
def test_address_that_cannot_be_reached_is_no_error(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}, Clock())
    notifier.ready()
    notifier.alive()
    assert notifier.due is None


def test_manager_that_does_not_read_keeps_nobody_waiting(manager: Manager) -> None:
    notifier = manager.notifier()
    for number in range(5000):
        notifier.status(f"state {number}")
    heard = manager.heard
    assert 0 < len(heard) < 5000
    notifier.ready()
    assert manager.heard == ["READY=1"]
    # And one that has gone does not end the daemon.
    manager.end()
    notifier.ready()


# cthelper reload


class Daemon:
    """A process that answers SIGHUP as the daemon does: this one."""

    def __init__(self, folder: Path, answers: list[str | None]) -> None:
        self._notifier = Notifier({"RUNTIME_DIRECTORY": str(folder)}, Clock())
        self._answers = answers
        self._asked = Event()
        self._before = signal.signal(signal.SIGHUP, lambda *_: self._asked.set())
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        if self._asked.wait(10):
            for each in self._answers:
                self._notifier.reloaded(each)

    def close(self) -> None:
        self._asked.set()
        self._thread.join()
        signal.signal(signal.SIGHUP, self._before)


@cases(
    "answers,told",
    {
        "taken": ([None], ""),
        "refused": (["daemon.workers has changed"], "daemon.workers has changed"),
        "refused at length": (["x" * 100_000], "x" * 2048),
    },
)
def test_reload_waits_for_what_the_daemon_says(
    tmp_path: Path, answers: list[str | None], told: str
) -> None:
    # What one that was killed has left does no harm.
    (tmp_path / "reload").touch()
    with closing(Daemon(tmp_path, answers)):
        assert notify.reload(os.getpid(), tmp_path, 10.0) == told
    assert not list(tmp_path.iterdir())


def test_reload_gives_up_on_a_daemon_that_says_nothing(tmp_path: Path) -> None:
    with closing(Daemon(tmp_path, [])), pytest.raises(TimeoutError):
        notify.reload(os.getpid(), tmp_path, 0.05)
    assert not list(tmp_path.iterdir())


def test_reload_without_a_daemon_is_an_error(tmp_path: Path) -> None:
    # Above what a process's number can be (PID_MAX_LIMIT).
    with pytest.raises(ProcessLookupError):
        notify.reload(1 << 22 | 1, tmp_path, 10.0)
    assert not list(tmp_path.iterdir())
