# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``cthelper top`` is told, again and again, however much and however slowly."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cthelper.control import ControlError
from cthelper.core.cli.top_reading import Poller, Reader, Reading, Wanted
from cthelper.core.cli.top_rows import MOST, Kind, Order
from tests.core.cli.canned import Canned, records, serving
from tests.core.cli.top_scene import NOW, Clock, go_on, scene
from tests.core.control.controlled import controller


def helpers(found: Reading) -> list[str]:
    """Of what was refused, the latest first."""
    return [each.split()[1] for each in found.refused]


def test_reading_has_all_that_is_shown(tmp_path: Path) -> None:
    world, clock = scene(tmp_path / "socket"), Clock()
    reader = Reader(world.path, clock=clock)
    with controller(world):
        reader.read(Wanted())
        clock.now += 2.0
        go_on(world)
        found = reader.read(Wanted())
    assert (found.controls, found.expectations, found.flows) == (6, 4, 4)
    assert (found.rows, found.whole, found.counted) == (14, True, True)
    first = found.trees[0]
    assert (first.head.helper, first.head.state) == ("ftp", "inspected")
    assert [(each.kind, each.byte_rate) for each in first.rows] == [
        (Kind.EXPECTED, 11_800_000.0),
        (Kind.EXPECTS, None),
    ]
    assert found.refused == (
        "23:59:48 tns third-party-address tcp 10.77.9.10:1099, by tcp "
        "10.77.1.7:51002 > 10.77.2.9:1521",
        "23:58:37 ftp third-party-address tcp 10.77.9.9:22, by tcp "
        "10.77.1.30:40122 > 192.0.2.80:21",
    )


def test_refusal_is_told_once_and_those_of_the_filter_alone(tmp_path: Path) -> None:
    world, clock = scene(tmp_path / "socket"), Clock()
    reader = Reader(world.path, clock=clock)
    again = {"helper": "irc", "reason": "port", "flow": None}
    with controller(world):
        reader.read(Wanted())
        clock.now += 0.5
        world.server.recent.add(NOW - 0.2, "refused", "warning", again)
        assert helpers(reader.read(Wanted())) == ["irc", "tns", "ftp"]
        assert helpers(reader.read(Wanted())) == ["irc", "tns", "ftp"]
        found = reader.read(Wanted({"helper": "ftp"}))
        assert helpers(found) == ["ftp"]
        assert {each.head.helper for each in found.trees} == {"ftp"}
        assert len(reader.read(Wanted()).refused) == 3


@pytest.mark.parametrize(
    "answers",
    [
        {"status": b""},
        {"status": b'{"record":1}\n{"record":2}\n'},
        {"flows": b'{"record":{}}\n'},
        {"flows": b'{"record":7}\n'},
        {"status": records({"health": "ok"})},
        {"events": records({"event": "refused"})},
        {"flows": b"{"},
        {"events": b'{"error":{"reason":"busy","message":"busy"}}\n'},
    ],
)
def test_answer_that_makes_no_sense_is_an_error(
    tmp_path: Path, answers: dict[str, bytes]
) -> None:
    canned = Canned(tmp_path / "socket", **answers)
    with serving(canned), pytest.raises(ControlError):
        Reader(canned.path).read(Wanted())


def many(count: int) -> bytes:
    """So many control flows, as the daemon tells them."""
    one = {
        **{"gone": False, "flow": {}, "zone": 0, "id": 0, "helper": "sunrpc"},
        "reply": {"source": "10.9.9.9:111", "destination": "10.0.0.1:7"},
        **{"inspection": "inspected", "reason": None, "state": None},
        **{"answered": True, "timeout": 30, "packets": [1, 1], "bytes": [100, 100]},
        **{"expectations": [], "flows": []},
    }
    head, _, rest = json.dumps({"record": one}).partition('"flow": {}')
    before, _, after = rest.partition('"id": 0')
    ends = '{"transport":"udp","source":"10.%d.%d.%d:7","destination":"10.9.9.9:111"}'
    return "".join(
        f'{head}"flow":{ends % (at >> 16, at >> 8 & 255, at & 255)}{before}"id":{at}'
        f"{after}\n"
        for at in range(count)
    ).encode()


def test_very_many_flows_are_counted_and_few_are_kept(tmp_path: Path) -> None:
    canned = Canned(tmp_path / "socket", flows=many(100_000))
    with serving(canned):
        found = Reader(canned.path).read(Wanted(order=Order("flow")))
    assert (found.rows, found.whole) == (100_000, False)
    assert len(found.trees) == MOST
    assert found.trees[0].head.flow == "udp 10.0.0.0:7 > 10.9.9.9:111"


# Again and again.


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_readings_never_overlap_and_go_on_after_an_error(tmp_path: Path) -> None:
    canned = Canned(tmp_path / "socket", events=records())
    found: list[Reading | ControlError] = []
    poller = Poller(Reader(canned.path), Wanted(), 0.01, found.append)
    poller.start()
    try:
        await_(lambda: len(found) > 1)
        assert all(isinstance(each, ControlError) for each in found)
        with serving(canned):
            await_(lambda: isinstance(found[-1], Reading))
            canned.go_on.clear()
            count = len(canned.asked)
            await_(lambda: poller.late > 0.2)
            for _ in range(20):
                poller.want(Wanted(others=True), at_once=True)
                time.sleep(0.01)
            # One that is answered late is waited for.
            assert len(canned.asked) <= count + 3
            canned.go_on.set()
            await_(lambda: isinstance(found[-1], Reading) and found[-1].wanted.others)
            assert canned.most_at_once == 1
        await_(lambda: isinstance(found[-1], ControlError))
    finally:
        poller.end()
        poller.join(30)
    assert not poller.is_alive()


def test_nothing_is_asked_in_a_pause(tmp_path: Path) -> None:
    canned = Canned(tmp_path / "socket")
    found: list[object] = []
    with serving(canned):
        poller = Poller(Reader(canned.path), Wanted(), 0.01, found.append)
        poller.start()
        await_(lambda: len(found) > 1)
        poller.pause(True)
        await_(lambda: poller.late == 0)
        time.sleep(0.1)
        count = len(canned.asked)
        time.sleep(0.2)
        assert len(canned.asked) == count
        poller.pause(False)
        await_(lambda: len(canned.asked) > count)
        poller.pause(True)
        poller.end()
        poller.join(30)
        assert not poller.is_alive()
