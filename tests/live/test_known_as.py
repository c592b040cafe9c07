# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers that are known by another name: in the kernel's tables, rules and the log."""

import signal

import pytest

from tests.live.daemon import Daemon, only
from tests.live.gateway import registered
from tests.live.scene import module
from tests.live.traffic import PORT, Echo, expected
from tests.live.world import World

pytestmark = pytest.mark.live

CONFIG = only("sunrpc") + f"[helpers.sunrpc]\nports = [111, {PORT}]\n"
MODULE = "nf_conntrack_netbios_ns"
NETBIOS = "[helpers.netbios-ns]\nenabled = true\n"


def names(world: World) -> set[str]:
    return {each.name for each in registered(world)}


def test_helper_is_known_as_the_configuration_says(
    world: World, daemon: Daemon
) -> None:
    daemon.start(f'{CONFIG}known_as = "rpc-of-ours"\n')
    assert names(world) == {"rpc-of-ours"}
    listed = world.gateway.run("nft", "list", "table", "inet", "cthelper").stdout
    assert 'ct helper set "rpc-of-ours-udp"' in listed
    with Echo(world.server, announce=7994):
        told = expected(world, daemon)
        assert (told["helper"], told["expects"][-5:]) == ("rpc-of-ours", ":7994")
        listed = world.gateway.run("conntrack", "-L", "expect").stdout
        assert "helper=rpc-of-ours" in listed
    assert 'type "rpc-of-ours"' in daemon.cthelper("ruleset", "show").stdout
    assert daemon.stop() == 0
    assert (names(world), daemon.events("step-failed")) == (set(), [])


def test_helper_whose_name_a_module_has_is_known_as_another(
    world: World, daemon: Daemon
) -> None:
    with module(MODULE):
        daemon.start(CONFIG + NETBIOS)
        assert names(world) == {"sunrpc", "netbios-ns-u"}
        (warning,) = daemon.events("config-warning")
        assert MODULE in warning["detail"]
        shown = daemon.cthelper("ruleset", "show")
        assert 'type "netbios-ns-u" protocol udp' in shown.stdout
        assert 'ct helper "netbios-ns-u"' in shown.stderr
        # What is said of it while it runs.
        found = daemon.cthelper("doctor").stdout
        assert "helper netbios-ns is known as netbios-ns-u" in found
        # The same of a reload, and with no module.
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded")
    daemon.send_signal(signal.SIGHUP)
    told = daemon.await_event("reloaded", 2)
    assert told["helpers"] == "netbios-ns,sunrpc"
    assert names(world) >= {"sunrpc", "netbios-ns"}
    with Echo(world.server, announce=7994):
        assert expected(world, daemon)["expects"].endswith(":7994")
    assert daemon.stop() == 0
    assert (names(world), daemon.events("step-failed")) == (set(), [])


def test_rules_that_mean_the_kernels_helper_are_found(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG + NETBIOS + 'known_as = "netbios-ns-u"\n')
    rule = 'add rule inet mine forward ct helper { "ftp", "netbios-ns" } accept'
    chain = "{ type filter hook forward priority 5; }"
    for line in ("add table inet mine", f"add chain inet mine forward {chain}", rule):
        world.gateway.run("nft", line, check=True)
    with module(MODULE):
        found = daemon.cthelper("doctor").stdout
    assert 'matches ct helper "netbios-ns", which is the helper of' in found
    assert daemon.stop() == 0
