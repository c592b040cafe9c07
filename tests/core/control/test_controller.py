# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions at a real socket: many, slow, idle, and such as make no sense."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread, active_count

import pytest

from cthelper.control import Control, ControlError, NotRunning
from cthelper.core.control import controller as module
from tests.core.control.controlled import World, controller


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "socket")
    with controller(world):
        yield world


def connected(world: World) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(world.path))
    connection.settimeout(10)
    return connection


def rest(connection: socket.socket) -> bytes:
    data = b""
    # So it ends where not all was read that was sent.
    with suppress(ConnectionResetError):
        while more := connection.recv(1 << 16):
            data += more
    return data


def test_one_session_has_several_answers(world: World) -> None:
    with Control(world.path) as control:
        assert control.version == "9"
        assert control.status()["health"] == "ok"
        assert list(control.flows()) == []
        with pytest.raises(ControlError, match="there is no command nothing") as caught:
            list(control.request("nothing"))
        assert caught.value.reason == "unknown-command"
        assert list(control.expectations(helper="line")) == []


@pytest.mark.parametrize(
    "data",
    [b"[]\n", b"x\n", b"\xff\xff\n", b'{"command": "' + b"x" * 20_000, b"[" * 9999],
)
def test_what_makes_no_sense_ends_the_session_with_a_word(
    world: World, data: bytes
) -> None:
    with connected(world) as connection:
        with suppress(BrokenPipeError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        assert b'"error":{"reason":"unreadable"' in rest(connection)
    with Control(world.path) as control:
        assert control.status()["health"] == "ok"


def test_there_are_so_many_sessions_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = module._SESSIONS if os.geteuid() == 0 else module._OTHERS
    sessions = [connected(world) for _ in range(most)]
    for each in sessions:
        assert each.recv(100).startswith(b'{"cthelper"')
    with pytest.raises(ControlError, match="too many sessions: try again"):
        Control(world.path)
    sessions.pop().close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            Control(world.path).close()
            break
        except ControlError:
            time.sleep(0.01)
    else:
        pytest.fail("a session that ended makes no room")
    for each in sessions:
        each.close()


def test_session_that_is_idle_or_does_not_read_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(module, "_SEND_SECONDS", 0.1)
    before = active_count()
    with connected(world) as idle:
        assert rest(idle).count(b"\n") == 1
    with connected(world) as slow:
        slow.settimeout(0.2)
        with suppress(OSError):
            while True:
                slow.sendall(b'{"command": "status"}\n' * 100)
    deadline = time.monotonic() + 10
    while active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert active_count() <= before


def test_who_follows_events_and_leaves_is_forgotten(world: World) -> None:
    before = active_count()
    with Control(world.path) as control:
        following = control.events(since=10)
        world.server.recent.add(time.time(), "refused", "info", {})
        assert next(following)["event"] == "refused"
        assert active_count() == before + 1
    deadline = time.monotonic() + 10
    while active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert active_count() == before


def test_who_left_something_unread_has_left_all_the_same(world: World) -> None:
    before = active_count()
    for _ in range(3):
        with connected(world) as connection:
            connection.sendall(b'{"command": "events", "follow": true}\nx')
            assert connection.recv(1000)
    deadline = time.monotonic() + 20
    while active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_client_says_that_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(
        NotRunning, match=r"no daemon answers: is `cthelper run` running"
    ):
        Control(tmp_path / "socket")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotRunning):
        Control(tmp_path / "file")


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b'{"cthelper":"7","protocol":2}\n', "protocol"),
        (b"SSH-2.0\r\n", "unreadable"),
        (b"", "gone"),
    ],
)
def test_client_says_what_it_does_not_understand(
    tmp_path: Path, greeting: bytes, reason: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen(1)

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(greeting)

        thread = Thread(target=answer)
        thread.start()
        with pytest.raises(ControlError) as caught:
            Control(tmp_path / "socket")
        thread.join()
        assert caught.value.reason == reason
