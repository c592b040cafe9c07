# SPDX-License-Identifier: GPL-2.0-or-later
"""A ruleset that is taken away: it is told, put back, and not fought for."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from cthelper.core.config import Config, parse
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.ruleset_care import RulesetCare
from cthelper.core.errors import RulesetError
from cthelper.core.registry import builtin_helpers


def configured(settings: str = "") -> Config:
    helpers = {name: builtin_helpers()[name] for name in ("sunrpc", "tns")}
    return parse(settings, Path("test.toml"), helpers)


CONFIG = configured()
WARN = configured('daemon.lost_ruleset = "warn"\n')
CLOSED = configured("helpers.tns.fail_closed = true\n")


class Kernel:
    """What is loaded. `error` is raised once by what asks nft."""

    def __init__(self) -> None:
        self.there = True
        self.events = False
        self.error: Exception | None = None
        self.restored = 0

    def touched(self) -> bool:
        came, self.events = self.events, False
        return came

    def missing(self, _config: Config) -> bool:
        self._asked()
        return not self.there

    def restore(self, _config: Config) -> None:
        self._asked()
        self.restored += 1
        self.there = self.events = True

    def _asked(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error


class World:
    """A kernel and who cares for its ruleset."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.kernel = Kernel()
        self.output = io.StringIO()
        log = Log("info", "json", clock=lambda: self.now, output=self.output)
        self.care = RulesetCare(self.kernel, log, lambda: self.now)  # type: ignore[arg-type]

    def flush(self, config: Config = CONFIG) -> None:
        """Somebody takes it away."""
        self.kernel.there, self.kernel.events = False, True
        self.care.look(config)

    def wait(self, config: Config = CONFIG) -> float:
        """Until something is due, do it, and see what came of it; the seconds."""
        assert self.care.due is not None
        seconds = self.care.due - self.now
        self.now = self.care.due
        self.care.act(config)
        self.care.look(config)
        return seconds

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was logged since the last time."""
        lines = self.output.getvalue().splitlines()
        self.output.truncate(self.output.seek(0))
        return [json.loads(line) for line in lines]

    @property
    def names(self) -> list[str]:
        return [each["event"] for each in self.events]


@pytest.fixture
def world() -> World:
    return World()


def test_lost_ruleset_is_put_back_at_once(world: World) -> None:
    world.flush()
    assert world.wait() == 0
    assert world.kernel.there
    lost, back = world.events
    assert (lost["event"], lost["level"]) == ("ruleset-lost", "warning")
    assert (lost["action"], lost["seconds"]) == ("restore", 0)
    assert lost["uninspected"] == "sunrpc,tns"
    assert "fail_closed" not in lost
    assert "stop cthelper" in lost["detail"]
    assert (back["event"], back["seconds"]) == ("ruleset-restored", 0)
    # What was put back was touched by us.
    assert (world.care.due, world.kernel.restored) == (None, 1)


def test_gap_of_what_fails_closed_is_named(world: World) -> None:
    world.flush(CLOSED)
    (lost,) = world.events
    assert (lost["level"], lost["fail_closed"]) == ("error", "tns")
    world.now += 0.25
    world.care.act(CLOSED)
    assert world.events[0]["seconds"] == 0.25


def test_what_is_whole_is_left_alone_whoever_touches_it(world: World) -> None:
    for _ in range(3):
        world.kernel.events = True
        world.care.look(CONFIG)
    assert (world.names, world.care.due, world.kernel.restored) == ([], None, 0)


def test_events_of_other_tables_ask_for_nothing(world: World) -> None:
    world.kernel.error = AssertionError("nft is asked")
    world.care.look(CONFIG)
    assert world.names == []


def test_whoever_takes_it_away_again_and_again_is_not_fought(world: World) -> None:
    pauses = []
    for _ in range(2000):
        world.flush()
        pauses.append(world.wait())
    assert pauses[:8] == [0, 1, 2, 4, 8, 16, 32, 60]
    assert set(pauses[8:]) == {60}
    # Once it has been there for a while it is put back at once, as the first time.
    world.now += 61
    world.flush()
    assert world.wait() == 0


def test_it_is_told_once_until_it_is_back(world: World) -> None:
    for _ in range(3):
        world.flush(WARN)
    (lost,) = world.events
    assert lost["action"] == "warn"
    assert "seconds" not in lost
    assert "reload" in lost["detail"]
    assert world.care.due is None
    assert world.kernel.restored == 0
    # A reload, or `cthelper ruleset install`.
    world.kernel.there = world.kernel.events = True
    world.now += 7
    world.care.look(WARN)
    assert [(each["event"], each["seconds"]) for each in world.events] == [
        ("ruleset-restored", 7)
    ]
    world.flush(WARN)
    assert world.names == ["ruleset-lost"]


def test_it_is_not_put_back_where_somebody_else_did_so_meanwhile(world: World) -> None:
    for _ in range(2):
        world.flush()
        world.wait()
    world.flush()
    world.kernel.there = world.kernel.events = True
    world.care.look(CONFIG)
    assert (world.care.due, world.kernel.restored) == (None, 2)


def test_configuration_that_only_warns_from_now_on_is_heeded(world: World) -> None:
    world.flush()
    world.care.act(WARN)
    assert (world.care.due, world.kernel.restored) == (None, 0)


def test_ruleset_that_cannot_be_put_back_is_tried_again(world: World) -> None:
    world.flush()
    waited = []
    for _ in range(3):
        world.kernel.error = RulesetError("nft did not answer")
        waited.append(world.wait())
    assert waited == [0, 1, 2]
    assert world.wait() == 4
    assert world.kernel.there
    assert world.names == ["ruleset-lost", *["step-failed"] * 3, "ruleset-restored"]


def test_ruleset_of_which_nft_cannot_tell_is_asked_for_again(world: World) -> None:
    world.kernel.error = RulesetError("nft did not answer")
    world.flush()
    assert world.names == ["step-failed"]
    assert world.wait() == 1
    assert world.names == ["ruleset-lost"]
    assert world.wait() == 0
    assert world.names == ["ruleset-restored"]
