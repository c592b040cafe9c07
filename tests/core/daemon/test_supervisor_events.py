# SPDX-License-Identifier: GPL-2.0-or-later
"""The events' file of a supervisor: who writes it, opens it anew and takes it over."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cthelper.core.control import following
from cthelper.core.daemon import auxiliary, event_log
from tests.core.daemon.supervised import SECONDS, Running, pid_of, started


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake servers answer nobody, and who does not end is not waited for long."""
    monkeypatch.setattr(following, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(event_log, "_ENDING_SECONDS", 0.5)
    monkeypatch.setattr(auxiliary, "_PAUSE_SECONDS", 0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder / "events.json"


def settings(path: Path) -> str:
    return f'events.file = "{path}"\n'


def read(*paths: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in paths
        if path.exists()
        for line in path.read_text().splitlines()
    ]


def names(*paths: Path) -> list[str]:
    return [each["event"] for each in read(*paths)]


def until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def begun(running: Running, text: str) -> int:
    """Start it; the writer's process."""
    started(running, text)
    return pid_of(running.until("* writer-started")[-1])


def reload(running: Running, text: str, event: str = "* reloaded") -> None:
    running.configure(text)
    running.signal(signal.SIGHUP)
    running.until(event)


def ended(running: Running) -> None:
    running.signal(signal.SIGTERM)
    running.until("* stopped")
    os.waitpid(running.pid, 0)
    running.pid = 0


def test_file_is_opened_anew_at_each_sighup_also_where_the_reload_is_refused(
    running: Running, path: Path
) -> None:
    first = begun(running, settings(path))
    until(lambda: "writer-started" in names(path))
    old = [path.with_suffix(f".{each}") for each in (1, 2)]
    path.rename(old[0])
    reload(running, settings(path))
    second = pid_of(running.until("* writer-started")[-1])
    until(path.exists)
    path.rename(old[1])
    reload(running, settings(path) + "no = 1\n", "* reload-refused")
    running.until("* writer-started")
    until(path.exists)
    ended(running)
    assert first != second
    found = names(*old, path)
    # All, each once, in the order in which they happened.
    assert [each for each in found if "reload" in each or "started" in each] == [
        *("worker-started", "started", "writer-started"),
        *("reloaded", "writer-started", "reload-refused", "writer-started"),
    ]
    assert found[0] == "kernel"
    assert {each["worker"] for each in read(path)} == {"supervisor"}
    assert "events-missed" not in found
    assert "writer-died" not in found
    assert path.stat().st_mode & 0o137 == 0


def test_writer_that_is_killed_has_a_successor_that_goes_on(
    running: Running, path: Path
) -> None:
    writer = begun(running, settings(path))
    until(lambda: "writer-started" in names(path))
    os.kill(writer, signal.SIGKILL)
    assert pid_of(running.until("* writer-died")[-1]) == writer
    running.until("* writer-started")
    ended(running)
    found = names(path)
    assert found.count("started") == 1
    assert found[found.index("writer-started") :] == [
        *("writer-started", "writer-died", "writer-started")
    ]


def test_daemon_that_comes_after_appends(running: Running, path: Path) -> None:
    # A daemon that ends waits for its writer, but not long.
    begun(running, settings(path))
    until(lambda: names(path).count("writer-started") == 1)
    ended(running)
    begun(running, settings(path))
    until(lambda: names(path).count("writer-started") == 2)
    ended(running)
    assert names(path).count("started") == 2


def test_file_is_added_and_taken_away_by_a_reload(running: Running, path: Path) -> None:
    writer = begun(running, settings(path))
    reload(running, "")
    until(lambda: is_gone(writer))
    reload(running, settings(path))
    running.until("* writer-started")
    other = path.with_name("other.json")
    reload(running, settings(other))
    running.until("* writer-started")
    ended(running)
    found = names(path)
    # That it was taken away, and then changed; not what happened in between.
    assert found.count("started") == 1
    assert found.count("reloaded") == 2
    assert names(other)[-1] == "writer-started"


def test_file_in_another_folder_needs_a_restart(
    running: Running, path: Path, tmp_path: Path
) -> None:
    begun(running, settings(path))
    running.configure(settings(tmp_path / "elsewhere.json"))
    running.signal(signal.SIGHUP)
    refused = running.until("* reload-refused")[-1]
    assert "events.file is in another folder: restart cthelper" in refused
    running.until("* writer-started")


def test_file_that_cannot_be_opened_is_said_once_and_tried_again(
    running: Running, path: Path
) -> None:
    os.mkfifo(path)
    started(running, settings(path))
    said = running.until("* events-unavailable")[-1]
    assert said.endswith(f'detail="{path}: cannot be written: Not a regular file"')
    time.sleep(0.3)
    path.unlink()
    lines = running.until("* writer-started")
    assert not [each for each in lines if "events-unavailable" in each]
    ended(running)
    assert names(path)[0] == "kernel"


def test_writer_that_hangs_holds_nobody_up(running: Running, path: Path) -> None:
    writer = begun(running, settings(path))
    os.kill(writer, signal.SIGSTOP)
    began = time.monotonic()
    reload(running, settings(path))
    assert time.monotonic() - began < 0.4
    second = pid_of(running.until("* writer-started")[-1])
    assert second != writer
    until(lambda: "reloaded" in names(path))
    os.kill(second, signal.SIGSTOP)
    ended(running)


def test_writer_ends_with_its_supervisor(running: Running, path: Path) -> None:
    writer = begun(running, settings(path))
    running.signal(signal.SIGKILL)
    os.waitpid(running.pid, 0)
    running.pid = 0
    until(lambda: is_gone(writer))
