# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks by real sockets: nothing wrong opens, and an honest session goes on.

tests/attacks has many more of them, without a kernel; bench.attacks plays these against
conntrackd, and measures how long honest clients wait beside a flood.
"""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.live.attacks import ATTACKS, EXPECT_MAX, FLOODS, Lab
from tests.live.daemon import Daemon
from tests.live.world import World

pytestmark = pytest.mark.live

_FLOOD_SECONDS = 3.0


@pytest.fixture(scope="module")
def lab(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The stage, and a daemon with all helpers."""
    folder = tmp_path_factory.mktemp("daemon")
    with closing(Lab(world)) as lab:
        lab.clear()
        with lab.limited(), Daemon(world.gateway, folder) as daemon:
            daemon.start()
            daemon.await_rest()
            lab.pids = daemon.processes
            yield lab
            assert daemon.stop() == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_opens_nothing_and_honest_sessions_go_on(lab: Lab, name: str) -> None:
    assert lab.honest()
    assert lab.opened(ATTACKS[name]) == []
    assert len(lab.expectations()) <= EXPECT_MAX * 3 // 4
    assert lab.honest()
    assert lab.alive


@pytest.mark.parametrize("name", FLOODS)
def test_honest_calls_are_answered_beside_a_flood(lab: Lab, name: str) -> None:
    lab.forget()
    with FLOODS[name](lab):
        trips = lab.trips(_FLOOD_SECONDS)
        assert lab.honest()
    assert trips[-1] < 5.0, "a call was not answered"
    assert len(lab.expectations()) <= EXPECT_MAX * 3 // 4
    assert lab.alive
