# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers and supervisor of a daemon that root starts have no more than they need."""

import os
import signal
from pathlib import Path

import pytest

from cthelper.core.daemon.capabilities import Capability, mask
from tests.live.daemon import CTHELPER, Daemon, only
from tests.live.gateway import tables
from tests.live.traffic import PORT, Echo, expected
from tests.live.world import World, until

pytestmark = pytest.mark.live

CONFIG = only("sunrpc") + f"[helpers.sunrpc]\nports = [111, {PORT}]\n"
NOBODY = "65534"
NET_ADMIN = mask([Capability.CAP_NET_ADMIN])
KEPT = mask(set(Capability) - {Capability.CAP_DAC_READ_SEARCH})
PLUGIN = """from cthelper.core.api import Effects, Helper, Message, Policy, Transport


class Answer(Helper):
    name = "answer"
    transports = frozenset({Transport.UDP})
    ports = (PORT,)
    policies = (Policy("one", 1, 30),)

    def on_message(self, message: Message) -> Effects:
        yield from ()
"""


def status(pid: int) -> dict[str, str]:
    """What the kernel tells of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: " ".join(value.split()) for name, _, value in pairs}


def rights(pid: int) -> tuple[str, str, str, int, int, str, str]:
    """Whose it is, its groups, its capabilities, and what holds it."""
    found = status(pid)
    return (
        *(found["Uid"], found["Gid"], found["Groups"]),
        *(int(found["CapEff"], 16), int(found["CapBnd"], 16)),
        *(found["NoNewPrivs"], found["Seccomp"]),
    )


def test_daemon_of_roots_keeps_what_it_needs_and_reloads_what_is_roots_alone(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o700)
    plugin = folder / "answer.py"
    text = f'{CONFIG}[plugins]\nfolder = "{folder}"\n[daemon]\nuser = "nobody"\n'
    text += f'[events]\nfile = "{tmp_path}/events.json"\n'
    daemon.configure(text)
    daemon.config.chmod(0o600)
    daemon.start(text)
    (told,) = daemon.events("privileges")
    assert told["servers"] == "nobody"
    assert told["landlock"] >= 2
    assert told["seccomp"] is True
    # Where the tree is closed to other users that is said.
    kept = [each["detail"] for each in daemon.events("privileges-kept")]
    assert [each for each in kept if "servers cannot read" not in each] == []
    supervisor, server = daemon.processes
    ids = " ".join([NOBODY] * 4)
    assert rights(server) == (ids, ids, "", NET_ADMIN, NET_ADMIN, "1", "2")
    controller = int(daemon.await_event("controller-started")["pid"])
    assert until(lambda: rights(controller) == rights(server), 30)
    writer = int(daemon.await_event("writer-started")["pid"])
    assert until(lambda: rights(writer) == (ids, ids, "", 0, 0, "1", "2"), 30)
    root = " ".join("0000")
    groups = status(os.getpid())["Groups"]
    assert rights(supervisor) == (root, root, groups, KEPT, KEPT, "1", "0")
    for port in (4201, 4202):
        plugin.write_text(PLUGIN.replace("PORT", str(port)))
        plugin.chmod(0o600)
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded", count=port - 4200)
        listing = world.gateway.run("nft", "list", "table", "inet", "cthelper").stdout
        assert f"udp dport {port}" in listing
    with Echo(world.server, announce=7996):
        assert expected(world, daemon)["expects"].endswith(":7996")
    os.kill(server, signal.SIGKILL)
    daemon.await_event("worker-started", count=2)
    assert rights(daemon.processes[1])[0] == ids
    assert daemon.stop() == 0
    assert daemon.events("step-failed") == []
    assert daemon.events("reload-refused") == []
    assert tables(world) == ""


def test_user_that_is_not_there_is_a_wrong_configuration(
    world: World, daemon: Daemon
) -> None:
    daemon.launch(f'{CONFIG}[daemon]\nuser = "no-such-user"\n')
    assert daemon.wait() == 2
    assert daemon.text == (
        f'cthelper: {daemon.config}: daemon.user = "no-such-user": there is no user '
        "no-such-user: adduser --system --group no-such-user\n"
    )


def test_root_of_a_container_is_told_what_it_lacks(
    world: World, daemon: Daemon
) -> None:
    daemon.configure(CONFIG)
    run = (*CTHELPER, "run", "--config", str(daemon.config))
    done = world.gateway.run("setpriv", "--bounding-set=-net_admin", *run, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "(EPERM): needs CAP_NET_ADMIN, which root does not have here: give it to the "
        "container or service\n"
    )


def test_root_with_the_one_capability_serves_and_says_what_it_keeps(
    world: World, daemon: Daemon
) -> None:
    daemon.command = ("setpriv", "--bounding-set=-all,+net_admin", *CTHELPER)
    daemon.start(CONFIG)
    kept = [each["detail"] for each in daemon.events("privileges-kept")]
    assert "workers stay root's: needs CAP_SETUID, CAP_SETGID, CAP_KILL" in kept
    root = " ".join("0000")
    for pid, filters in zip(daemon.processes, ("0", "2"), strict=True):
        user, _, _, effective, bound, *held = rights(pid)
        assert (user, effective, bound) == (root, NET_ADMIN, NET_ADMIN)
        assert held == ["1", filters]
    with Echo(world.server, announce=7995):
        assert expected(world, daemon)["expects"].endswith(":7995")
    daemon.send_signal(signal.SIGHUP)
    daemon.await_event("reloaded")
    assert daemon.stop() == 0
    assert daemon.events("step-failed") == []
