# SPDX-License-Identifier: GPL-2.0-or-later
"""The ruleset that the README shows does what the README says."""

import re
from pathlib import Path

import pytest

from tests.live.daemon import Daemon
from tests.live.world import World

pytestmark = pytest.mark.live

README = Path(__file__).parents[2] / "README.md"


def test_users_ruleset_admits_what_the_helpers_expect_and_nothing_else(
    world: World, daemon: Daemon
) -> None:
    found = re.search(r"```nft\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert found
    world.start_rpc()
    world.start_mdns()
    world.gateway.run("nft", "-f", "-", input=found[1], check=True)
    assert world.rpcinfo("tcp", timeout=3.5).returncode != 0
    assert world.mdns_query(4, timeout=1.5).source is None
    daemon.start()
    for netid in ("tcp", "udp", "tcp6", "udp6"):
        assert world.rpcinfo(netid).returncode == 0, netid
    for family in (4, 6):
        assert world.mdns_query(family).source is not None, family
