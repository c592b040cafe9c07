# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/control.md shows a record of each kind with the keys that it has."""

import json
from pathlib import Path
from typing import Any, Final

from cthelper.core.control.statistics import Statistics
from cthelper.core.queue.binding import BoundQueue
from cthelper.core.tuples import flow_key
from tests.core.control.controlled import World
from tests.core.control.test_statistics import data
from tests.core.control.test_tree import expectation, listed, tuple_of
from tests.pages import blocks

PAGE: Final = Path(__file__).parents[3] / "docs" / "control.md"


def records(path: Path) -> list[Any]:
    """What a gateway answers that has a control flow and what came of it."""
    world = World(path)
    world.kernel.table = [listed(1, helper="line"), listed(10, master=tuple_of(1))]
    world.kernel.expected = [expectation(1, 7001)]
    world.server.flows = [[flow_key(1, 0), None]]
    world.queues = {2077: BoundQueue(2077, 1, 4, 9, 5)}
    assert world.supervisor.state is not None
    world.supervisor.state["queues"] = [2077]
    fields = {"helper": "line", "flow": tuple_of(1), "reason": "done"}
    world.server.recent.add(1.5e9, "finished", "debug", fields)
    statistics = Statistics(1.5e9)
    statistics.announced(expectation(1, 7001), 1.5e9)
    statistics.begun(data(10, 1), 1.5e9 + 0.25)
    status = world.run("status")
    world.collect(statistics)
    return [
        *status,
        *world.run("flows"),
        *world.run("expectations"),
        *world.run("events", since=1e12),
        *world.run("stats"),
    ]


def keys(record: object) -> object:
    """Its keys, and those of what it holds; names of helpers and events are keys."""
    if isinstance(record, dict):
        return {key: keys(value) for key, value in record.items()}
    if isinstance(record, list):
        return [keys(each) for each in record]
    return None


def test_records_have_the_keys_that_are_shown(tmp_path: Path) -> None:
    (shown,) = blocks(PAGE.read_text("utf-8"), "json")
    found = records(tmp_path / "socket")
    assert [keys(json.loads(each)) for each in shown.splitlines()] == keys(found)
