# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's file, and the process that serves it."""

import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import NoReturn

import pytest

from cthelper.control import Control as Client
from cthelper.control import NotRunning
from cthelper.core.config import ControlConfig
from cthelper.core.control.reports import Answer
from cthelper.core.daemon import controlling
from cthelper.core.daemon.controlling import Control
from cthelper.core.daemon.log import Log
from cthelper.core.records import Record


class Confinement:
    """Confines nobody."""

    def confine_controller(self) -> None:
        pass


@pytest.fixture
def log() -> Log:
    return Log(clock=time.monotonic, output=StringIO())


@pytest.fixture
def control(log: Log) -> Iterator[Control]:
    state: Record = {"counters": {}}
    answers: dict[str, Answer] = {"state": lambda _: state}
    control = Control(log, 2, Confinement(), answers)  # type: ignore[arg-type]
    yield control
    control.close()


def test_socket_is_roots_alone_and_goes_at_the_end(
    control: Control, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "socket"
    control.open(ControlConfig(socket=path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert control.due is not None
    control.close()
    assert not path.exists()


def test_group_may_connect_where_there_is_one(
    control: Control, log: Log, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    control.open(ControlConfig(socket=path, group="root"))
    if os.geteuid() == 0:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    else:
        assert log.counters["control-unavailable"] == 1


@pytest.mark.parametrize(
    "config",
    [
        ControlConfig(socket=Path("/proc/cthelper/socket")),
        ControlConfig(socket=Path("/proc/socket"), group="no-such-group"),
        ControlConfig(socket=Path("/dev/null")),
    ],
)
def test_without_a_socket_all_else_goes_on(
    control: Control, log: Log, config: ControlConfig
) -> None:
    control.open(config)
    assert log.counters["control-unavailable"] == 1
    assert control.due is None


def test_none_is_made_where_none_is_wanted(control: Control, log: Log) -> None:
    control.open(ControlConfig(socket=None))
    assert control.due is None
    assert not log.counters


def test_what_a_daemon_has_left_is_replaced_and_one_that_lives_is_not(
    control: Control, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlling, "_LEAVING_SECONDS", 0.2)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen(1)
        control.open(ControlConfig(socket=path))
        assert log.counters["control-unavailable"] == 1
        control.close()
        assert path.exists()
    control.open(ControlConfig(socket=path))
    assert log.counters["control-unavailable"] == 1
    assert control.due is not None


def is_due(control: Control) -> bool:
    return control.due is not None


def become(serve: Callable[[], None]) -> NoReturn:
    try:
        serve()
    finally:
        os._exit(0)


def test_controller_that_dies_has_a_successor(
    control: Control, log: Log, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    reporter = control.open(ControlConfig(socket=path))
    for dead in (1, 2):
        life = control.start(become)
        assert not is_due(control)
        with Client(path) as client:
            # Nobody answers for the supervisor, nor for the servers: it says so.
            assert client.version
            os.kill(control._pid, 9)
            life.setblocking(True)
            assert life.recv(1) == b""
        control.died()
        assert is_due(control)
        assert log.counters["controller-started"] == dead
    control.start(become)
    control.close()
    with pytest.raises(NotRunning):
        Client(path)
    reporter.close()


def hang(_serve: Callable[[], None]) -> NoReturn:
    while True:
        signal.pause()


def test_no_more_are_started_while_those_that_were_killed_do_not_end(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = control.open(ControlConfig(socket=tmp_path / "socket"))
    kill, killed = os.kill, []
    # As of one that waits for a disk.
    monkeypatch.setattr(os, "kill", lambda pid, _number: killed.append(pid))
    for _ in range(3):
        control.start(hang)
        control.died()
    with pytest.raises(OSError, match="3 that were killed have not ended"):
        control.start(hang)
    assert is_due(control)
    for pid in killed:
        kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    control.start(hang)
    monkeypatch.undo()
    control.close()
    reporter.close()


def test_controller_that_may_not_be_nice_answers(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_increment: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "nice", refuse)
    path = tmp_path / "socket"
    control.open(ControlConfig(socket=path)).close()
    control.start(become)
    with Client(path) as client:
        assert client.version


def test_controller_has_memory_beside_what_it_came_with(
    control: Control, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    control.open(ControlConfig(socket=path)).close()
    # Counted as data, and never touched.
    much = bytearray(600 << 20)
    control.start(become)
    with Client(path) as client:
        assert client.version
    del much
