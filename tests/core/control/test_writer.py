# SPDX-License-Identifier: GPL-2.0-or-later
"""The writer of events: one after the other, each of which may die anywhere."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.control.event_file import EventFile
from cthelper.core.control.following import SUPERVISOR
from cthelper.core.control.recent import KEPT
from cthelper.core.control.reports import Asker
from cthelper.core.control.writer import Position, Writer
from cthelper.core.records import Record
from tests.core.control.controlled import Process


class Died(Exception):
    """A writer was killed."""


class Another(Process):
    """A process that is another one to who asks it."""

    def ask(self, what: str, _seconds: float, **details: object) -> Record | None:
        pid = os.getpid() if details["pid"] == "new" else None
        answer = super().ask(what, _seconds, **{**details, "pid": pid})
        return None if answer is None else {**answer, "pid": "new"}


class Scene:
    """Processes that have events, and the file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.json"
        self.position = Position()
        self.processes = {SUPERVISOR: Process({}), 0: Process({})}
        self.number = 0

    def happen(self, times: int = 1, process: int = 0) -> None:
        """So many events."""
        for _ in range(times):
            self.number += 1
            number = self.number
            self.processes[process].recent.add(number, f"{number}", "info", {})

    def tell(self, data: bytes) -> None:
        self.position = Position.unpacked(data)

    def write(
        self,
        ends: Callable[[float], bool] = lambda _: True,
        tell: Callable[[bytes], object] | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Be a writer."""
        file = EventFile(self.path, self.position.unwritten)
        try:
            Writer(
                file,
                cast(Mapping[int, Asker], self.processes),
                0.0,
                self.position,
                tell or self.tell,
                ends,
                clock,
            ).run()
        finally:
            os.close(file._file)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def events(self) -> list[str]:
        return [each["event"] for each in self.lines()]


def test_all_that_has_happened_is_written_before_it_ends(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.happen(250)
    scene.happen(3, SUPERVISOR)
    scene.write()
    assert sorted(map(int, scene.events())) == list(range(1, 254))
    (last,) = [each for each in scene.lines() if each["event"] == "253"]
    assert (last["worker"], last["level"]) == ("supervisor", "info")
    scene.happen(2)
    scene.write()
    assert scene.events()[253:] == ["254", "255"]


def test_it_ends_though_events_do_not(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    seconds = 0.0

    def clock() -> float:
        nonlocal seconds
        scene.happen(500)
        seconds += 0.3
        return seconds

    scene.write(clock=clock)
    assert len(scene.events()) == 400


def test_what_is_forgotten_before_it_is_written_is_said(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.happen(1)
    scene.write()
    scene.happen(KEPT + 7)
    scene.write()
    missed = [each for each in scene.lines() if each["event"] == "events-missed"]
    assert [each["count"] for each in missed] == [7]
    assert len(scene.events()) == 2 + KEPT


def test_what_came_before_a_process_was_replaced_is_not_written_again(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path)
    scene.happen(3)
    scene.write()
    scene.processes[0] = Another({})
    scene.happen(2)
    scene.write()
    assert scene.events() == ["1", "2", "3", "4", "5"]


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 6)), max_size=6))
def test_whoever_dies_anywhere_nothing_is_twice_and_what_is_not_there_is_counted(
    lives: list[tuple[int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        for happened, steps in lives:
            scene.happen(happened)
            left = steps

            def tell(data: bytes) -> None:
                nonlocal left
                if left == 0:
                    # Before it writes, or after that.
                    raise Died
                left -= 1
                scene.tell(data)

            with suppress(Died):
                scene.write(tell=tell)
        scene.happen()
        scene.write()
        found = scene.lines()
    missed = sum(each["count"] for each in found if each["event"] == "events-missed")
    there = [int(each["event"]) for each in found if each["event"] != "events-missed"]
    assert there == sorted(set(there))
    assert there[-1] == scene.number
    assert scene.position.unsure == 0
    # Those that were written though nobody knows are counted, too.
    assert len(there) <= scene.number <= len(there) + missed
