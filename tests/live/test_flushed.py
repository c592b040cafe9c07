# SPDX-License-Identifier: GPL-2.0-or-later
"""The ruleset is taken away while the daemon runs, as Debian's nftables.service does.

Its unit has ``nft -f /etc/nftables.conf`` for start and reload, where the file begins
with ``flush ruleset``, and ``nft flush ruleset`` for a stop.
"""

import signal
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.live.daemon import Daemon, only
from tests.live.gateway import ctnetlink, entry_of, registered, tables
from tests.live.netlink_lab import until
from tests.live.traffic import (
    PORT,
    Echo,
    Pinger,
    asker,
    call,
    getport,
    getport_call,
    wait_for,
)
from tests.live.world import World

pytestmark = pytest.mark.live

OTHERS: Final = only("sunrpc", "tns")
SUNRPC: Final = f"[helpers.sunrpc]\nports = [111, {PORT}]\n"
CONFIG: Final = f"{OTHERS}{SUNRPC}[helpers.tns]\nfail_closed = true\n"
OURS: Final = "table inet cthelper\n"
USERS: Final = "table inet filter\n"
# /etc/nftables.conf as the package has it.
NFTABLES_CONF: Final = """\
#!/usr/sbin/nft -f

flush ruleset

table inet filter {
	chain input {
		type filter hook input priority filter;
	}
	chain forward {
		type filter hook forward priority filter;
	}
	chain output {
		type filter hook output priority filter;
	}
}
"""


@pytest.fixture
def conf(tmp_path: Path) -> str:
    file = tmp_path / "nftables.conf"
    file.write_text(NFTABLES_CONF)
    return str(file)


def test_reload_of_nftables_costs_a_moment_and_no_flow(
    world: World, daemon: Daemon, conf: str
) -> None:
    daemon.start(f"[daemon]\nworkers = 2\n{CONFIG}")
    with Echo(world.server):
        flow, announced = getport(world)
        with flow, asker(world) as other:
            call(other)
            # ExecReload.
            world.gateway.run("/usr/sbin/nft", "-f", conf, check=True)
            back = daemon.await_event("ruleset-restored")
            assert sorted(tables(world).splitlines(keepends=True)) == [OURS, USERS]
            (lost,) = daemon.events("ruleset-lost")
            assert (lost["level"], lost["action"]) == ("error", "restore")
            assert lost["uninspected"] == "sunrpc,tns"
            assert lost["fail_closed"] == "tns"
            assert lost["seconds"] == 0
            assert back["seconds"] < 30
            # What was expected is so still, and both flows go on to be read.
            with ctnetlink(world) as kernel:
                ports = {each.destination.port for each in kernel.expectations()}
            assert announced in ports
            assert entry_of(world, flow).helper == "sunrpc"
            for each, before in ((flow, 1), (other, 0)):
                each.send(getport_call(9))
                assert each.recv(100)
                until(partial(made, daemon, each.getsockname()[1], before + 1))
    with Echo(world.server), Pinger(world.client, 20.0) as pinger:
        wait_for(pinger, 10)
        # A restart: ExecStop, and ExecStart soon after.
        world.gateway.run("/usr/sbin/nft", "flush", "ruleset", check=True)
        world.gateway.run("/usr/sbin/nft", "-f", conf, check=True)
        daemon.await_event("ruleset-restored", 2)
        assert sorted(tables(world).splitlines(keepends=True)) == [OURS, USERS]
        assert daemon.events("ruleset-lost")[1]["seconds"] == 1
        wait_for(pinger, 10)
    # A base chain that goes takes along what waits in a queue, one call at most each.
    assert pinger.lost <= 2
    assert daemon.stop() == 0
    assert tables(world) == USERS
    assert registered(world) == []
    assert daemon.events("step-failed") == []


def made(daemon: Daemon, port: int, count: int) -> bool:
    """Whether the flow from this port of a client's has had so many expectations."""
    found = daemon.events("expectation")
    return sum(f":{port} > " in each["flow"] for each in found) == count


def test_lost_ruleset_is_told_alone_where_it_is_configured(
    world: World, daemon: Daemon, conf: str
) -> None:
    warn = f'[daemon]\nlost_ruleset = "warn"\n{CONFIG}'
    daemon.start(warn)
    # Other tables are nobody's concern.
    world.gateway.run("nft", "-f", "-", input="table inet other {}\n", check=True)
    world.gateway.run("nft", "delete", "table", "inet", "other", check=True)
    world.gateway.run("/usr/sbin/nft", "-f", conf, check=True)
    lost = daemon.await_event("ruleset-lost")
    assert lost["action"] == "warn"
    assert OURS not in tables(world)
    told = daemon.cthelper("doctor").stdout
    assert "table inet cthelper is not loaded, though a daemon serves" in told
    reload(daemon, 1)
    daemon.await_event("ruleset-restored")
    assert OURS in tables(world)
    assert "ok       table inet cthelper is loaded" in daemon.cthelper("doctor").stdout
    # A part of it is enough.
    world.gateway.run("nft", "flush", "chain", "inet", "cthelper", "inspected")
    daemon.await_event("ruleset-lost", 2)
    reload(daemon, 2)
    daemon.await_event("ruleset-restored", 2)
    assert daemon.stop() == 0


def reload(daemon: Daemon, count: int) -> None:
    daemon.send_signal(signal.SIGHUP)
    daemon.await_event("reloaded", count)


def test_own_commands_beside_the_daemon_are_no_loss_or_said_to_be_one(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    reload(daemon, 1)
    assert daemon.cthelper("ruleset", "check").returncode == 0
    assert daemon.cthelper("ruleset", "install").returncode == 0
    assert daemon.events("ruleset-lost") == []
    # Whoever wants it gone is told how: the daemon puts it back.
    removed = daemon.cthelper("ruleset", "remove")
    assert removed.returncode == 0
    assert "a daemon" in removed.stderr
    daemon.await_event("ruleset-restored")
    assert "stop cthelper" in daemon.events("ruleset-lost")[0]["detail"]
    assert tables(world) == OURS
    assert daemon.stop() == 0
    assert tables(world) == ""
    assert registered(world) == []
