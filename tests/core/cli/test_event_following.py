# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of one daemon after the other, and the file that they are written to."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cthelper.control import NotRunning
from cthelper.core.cli import event_following, main
from cthelper.core.cli.event_following import forever


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


def test_clock_that_is_set_back_hides_nothing() -> None:
    ahead = {"time": "2100-01-01T00:00:00.000+00:00", "event": "ahead"}
    answers = [[ahead], [at(1), at(2)]]

    class Enough(Exception):
        pass

    def ask(_since: float | None) -> Iterator[dict[str, Any]]:
        if not answers:
            raise Enough
        yield from answers.pop(0)

    found: list[object] = []
    with suppress(Enough):
        for each in forever(ask, 0.0, lambda _: None, lambda _: None):
            found.append(each["event"])
    assert found == ["ahead", "1", "2"]


def test_output_has_no_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("events", "--since", "9", "--no-follow", "--output", str(tmp_path / "x"))
    assert main(words) == 2
    assert "--output goes on for ever" in capsys.readouterr().err


def test_output_is_opened_anew_at_sighup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "events.json", tmp_path / "events.json.1"

    class Enough(Exception):
        pass

    def events(*_: object) -> Iterator[dict[str, Any]]:
        yield at(1)
        path.rename(old)
        os.kill(os.getpid(), signal.SIGHUP)
        yield at(2)
        raise Enough

    monkeypatch.setattr(event_following, "forever", events)
    before = signal.getsignal(signal.SIGHUP)
    try:
        with suppress(Enough):
            main(["events", "--output", str(path)])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [json.loads(each.read_text()) for each in (old, path)] == [at(1), at(2)]
