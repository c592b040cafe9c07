# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the live tests: one world for the whole run, daemons on its gateway."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cthelper.core.daemon.ruleset import unregister
from tests.live.daemon import Daemon
from tests.live.gateway import helper_table, registered
from tests.live.world import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Client, gateway and server; what a test leaves on the gateway it removes."""
    with World() as world:
        yield world


@pytest.fixture
def daemon(world: World, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon for the gateway, not started yet; the gateway has no rules.

    Nor has it helpers, which a daemon that was killed leaves behind.
    """
    world.reset()
    with helper_table(world) as table:
        unregister(table, registered(world))
    with Daemon(world.gateway, tmp_path) as daemon:
        yield daemon
