# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay says what was taken back: as text, as JSON, step by step and on the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.config import parse
from cthelper.core.offline.events import Event, WithdrawnEvent, record
from cthelper.core.offline.explain import explain
from cthelper.core.offline.page import render
from cthelper.core.offline.report import line
from cthelper.core.registry import register
from cthelper.core.tuples import TCP
from cthelper.helpers.ftp import Ftp
from cthelper.testing import (
    Line,
    expectations,
    related,
    replay,
    withdrawn,
    write_capture,
)

SERVER: Final = "198.51.100.2"
ONE: Final = Line.between(TCP, "192.0.2.1:40000", f"{SERVER}:21")
TWO: Final = Line.between(TCP, "192.0.2.1:40001", f"{SERVER}:21")
DATA: Final = Line.between(TCP, f"{SERVER}:20", "192.0.2.1:40000")
OPENED: Final = f"tcp {SERVER} > 192.0.2.1:40000"


def port(flow: Line) -> list[object]:
    return [flow.answered(b"220 ready\r\n"), flow.sent(b"PORT 192,0,2,1,156,64\r\n")]


def refused(flow: Line) -> list[object]:
    return [flow.answered(b"500 no\r\n")]


@pytest.fixture
def capture(tmp_path: Path, talk: Sequence[object]) -> Path:
    path = tmp_path / "test.pcap"
    write_capture(path, talk)  # type: ignore[arg-type]
    return path


def told(events: Sequence[Event]) -> WithdrawnEvent:
    (event,) = [each for each in events if isinstance(each, WithdrawnEvent)]
    return event


ALONE: Final = [*port(ONE), *refused(ONE), DATA.sent(b"late")]


@pytest.mark.parametrize("talk", [ALONE])
def test_withdrawal_is_told_everywhere(capture: Path) -> None:
    events = replay(capture, Ftp)
    ((made, _),) = expectations(events)
    ((frame, text),) = withdrawn(events)
    assert text == OPENED
    assert related(events) == []
    event = told(events)
    assert (line(event) or "").split(maxsplit=4)[2:] == ["withdrawn", "ftp", OPENED]
    found = record(event, "a.pcap")
    assert found is not None
    assert [found[key] for key in ("event", "frame", "policy", "flows")] == [
        *("withdrawn", frame, "data", 0)
    ]
    assert list(found) == [
        *("event", "capture", "frame", "time", "helper", "policy", "flow", "expects"),
        "flows",
    ]
    config = parse("", Path("test.toml"), register([Ftp]))

    def why(number: int) -> str:
        return "\n".join(explain(capture, number, config, warn=pytest.fail))

    assert f"later      frame {frame} withdrew it: {OPENED}" in why(made)
    assert f"kernel     lets go of {OPENED}" in why(frame)
    assert f"it was withdrawn in frame {frame}" in why(frame + 2)
    assert '"kind":"withdrawn"' in render([("a.pcap", events)])


BOTH: Final = [*port(ONE), *port(TWO), *refused(ONE), DATA.sent(b"in")]


@pytest.mark.parametrize("talk", [BOTH])
def test_what_another_flow_still_needs_is_left(capture: Path) -> None:
    events = replay(capture, Ftp)
    event = told(events)
    assert event.what == f"{OPENED} (one flow of others' still comes)"
    assert len(related(events)) == 1


FORGED: Final = [
    *port(ONE),
    TWO.answered(b"220 x\r\n"),
    *refused(TWO),
    DATA.sent(b"in"),
]


@pytest.mark.parametrize("talk", [FORGED])
def test_reply_of_another_flow_takes_nothing_back(capture: Path) -> None:
    events = replay(capture, Ftp)
    assert withdrawn(events) == []
    assert len(related(events)) == 1
