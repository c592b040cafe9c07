# SPDX-License-Identifier: GPL-2.0-or-later
"""Events in a file: one daemon after the other, rotated, and with a full disk."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cthelper.control import NotRunning
from cthelper.core.cli import main
from cthelper.core.cli.event_file import EventFile, forever
from cthelper.core.errors import CthelperError


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_file_is_opened_anew_when_it_was_moved(tmp_path: Path) -> None:
    path, old = tmp_path / "events.json", tmp_path / "events.json.1"
    file = EventFile(path)
    file.write({"event": "one"})
    path.rename(old)
    file.write({"event": "two"})
    os.kill(os.getpid(), signal.SIGHUP)
    file.write({"event": "three"})
    assert read(old) == [{"event": "one"}, {"event": "two"}]
    assert read(path) == [{"event": "three"}]
    assert path.stat().st_mode & 0o137 == 0
    # Where that cannot be, what is open goes on.
    path.rename(old)
    path.mkdir()
    os.kill(os.getpid(), signal.SIGHUP)
    file.write({"event": "four"})
    assert read(old) == [{"event": "three"}, {"event": "four"}]


def test_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    file = EventFile(Path("/dev/full"))
    file.write({"event": "one"})
    file.write({"event": "two"})
    path = tmp_path / "events.json"
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), file._file)
    file.write({"event": "three"})
    assert read(path) == [{"event": "events-unwritten", "count": 2}, {"event": "three"}]


def test_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(CthelperError, match=r"cannot be written: Is a directory"):
        EventFile(tmp_path)


def at(second: int) -> dict[str, Any]:
    return {"time": f"2026-01-01T00:00:{second:02}.000+00:00", "event": str(second)}


def test_daemon_that_comes_after_goes_on_where_the_last_one_was() -> None:
    answers: list[list[dict[str, Any]] | None] = [
        *([at(1), at(2), at(2)], None, None),
        [at(1), at(2), at(3), at(3)],
    ]
    asked: list[float | None] = []
    told: list[str] = []

    class Enough(Exception):
        pass

    def ask(since: float | None) -> Iterator[dict[str, Any]]:
        asked.append(since)
        if not answers:
            raise Enough
        answer = answers.pop(0)
        if answer is None:
            raise NotRunning("nobody")
        yield from answer

    found: list[object] = []
    events = forever(ask, 600.0, told.append, lambda _: None)
    with suppress(Enough):
        found.extend(each["event"] for each in events)
    assert found == ["1", "2", "2", "3", "3"]
    assert told == ["nobody"]
    assert asked[0] == 600.0
    assert all(each is not None and each > 600 for each in asked[1:])


def test_output_has_no_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("events", "--since", "9", "--no-follow", "--output", str(tmp_path / "x"))
    assert main(words) == 2
    assert "--output goes on for ever" in capsys.readouterr().err
