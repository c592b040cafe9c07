# SPDX-License-Identifier: GPL-2.0-or-later
"""Statistics and events of entries: held against conntrack(8) beside them."""

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from typing import Any, Final

import pytest

from cthelper.control import Control
from tests.live.daemon import CTHELPER, Daemon
from tests.live.test_control import ANNOUNCED, CONFIG, ends, meet, place
from tests.live.traffic import PORT, Echo, getport
from tests.live.world import CLIENT, SERVER, World, until

pytestmark = pytest.mark.live

# What conntrack(8) prints of an event: [NEW] udp 17 30 src=... dst=... sport=...
EVENT: Final = re.compile(
    r"\[(NEW|UPDATE|DESTROY)\]\s+(tcp|udp)\s.*?"
    r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"
)


@pytest.fixture(scope="module")
def serving(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that keeps statistics, of a kernel that counts packets."""
    world.reset()
    names = ("nf_conntrack_acct", "nf_conntrack_timestamp")
    with (
        Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon,
        Echo(world.server, ANNOUNCED),
    ):
        for name in names:
            world.gateway.run("sysctl", "-qw", f"net.netfilter.{name}=1", check=True)
        daemon.start(f"{CONFIG}statistics = true\n")
        daemon.await_event("controller-started")
        yield daemon
        assert daemon.stop() == 0
        for name in names:
            world.gateway.run("sysctl", "-qw", f"net.netfilter.{name}=0", check=True)


def row(daemon: Daemon) -> dict[str, Any]:
    """What is counted of the client at its server; empty where nothing is."""
    with Control(place(daemon)) as control:
        _, *rows = control.stats(source=CLIENT, helper="sunrpc", dport=PORT)
    return rows[0] if rows else {}


def counted(world: World, port: int) -> tuple[int, int]:
    """Packets and bytes of the flows to a port, by conntrack(8)."""
    text = world.conntrack("-L", "-p", "udp", "-d", SERVER, "--dport", str(port))
    packets = [int(each) for each in re.findall(r"packets=(\d+)", text)]
    return sum(packets), sum(int(each) for each in re.findall(r"bytes=(\d+)", text))


def test_what_came_of_announcements_is_counted(world: World, serving: Daemon) -> None:
    assert row(serving) == {}
    flow, port = getport(world)
    with flow, meet(world, port):
        assert until(lambda: row(serving).get("live"), 30)
        found = row(serving)
        assert (found["announced"], found["flows"]) == (1, 1)
        assert found["setup"]["count"] == 1
        assert 0 < found["setup"]["slowest"] < 30
        carried = counted(world, port)
        assert carried[0] > 0
        assert (found["live_packets"], found["live_bytes"]) == carried
        assert (found["packets"], found["bytes"]) == (0, 0)
        # Another flow meets the same announcement, some time after it.
        with meet(world, port):
            assert until(lambda: row(serving)["flows"] == 2, 30)
        assert row(serving)["setup"]["count"] == 1
        carried = counted(world, port)
        world.gateway.run("conntrack", "-D", "-p", "udp", "--dport", str(port))
        assert until(lambda: row(serving)["live"] == 0, 30)
        found = row(serving)
        assert (found["packets"], found["bytes"]) == carried
        shown = serving.ask("stats", "--by", "peer").stdout
        assert re.search(rf"^{CLIENT} +1 +2 +0 +{carried[0]} ", shown, re.MULTILINE)
        told = serving.ask("metrics").stdout
        assert 'cthelper_data_flows_total{helper="sunrpc"} 2' in told


def test_controller_that_was_killed_begins_anew(world: World, serving: Daemon) -> None:
    world.forget()
    flow, port = getport(world)
    with flow, meet(world, port):
        assert until(lambda: row(serving).get("live"), 30)
        os.kill(serving.events("controller-started")[-1]["pid"], signal.SIGKILL)
        serving.await_event("controller-died")
        serving.await_event("controller-started", 2)
        # The flow is there, and what it had announced is not known any more.
        assert until(lambda: row(serving).get("live") == 1, 30)
        assert row(serving)["announced"] == 0


def test_entries_come_and_go_as_conntrack_says(world: World, serving: Daemon) -> None:
    world.forget()
    ours = world.gateway.start(
        *(*CTHELPER, "flows", "events", "--all", "--json"), stdout=subprocess.PIPE
    )
    theirs = world.gateway.start("conntrack", "-E", stdout=subprocess.PIPE)
    assert ours.stdout is not None
    assert theirs.stdout is not None
    flows = []
    try:
        for told_by in (ours.stdout, theirs.stdout):
            # Both have begun.
            for _ in range(60):
                flows.append(getport(world)[0])
                if select.select([told_by], [], [], 1.0)[0]:
                    break
        # Else what they have announced would do for the next one, too.
        world.forget()
        flow, port = getport(world)
        data = meet(world, port)
        flows += [flow, data]
        asked = str(flow.getsockname()[1]), str(data.getsockname()[1])
        assert until(lambda: asked[1] in world.conntrack("-L"), 10)
        for source in asked:
            words = ("conntrack", "-D", "-p", "udp", "--orig-port-src", source)
            world.gateway.run(*words, check=True)
        text = _until(theirs, f"DESTROY.*sport={asked[1]} ")
        mine = [json.loads(line) for line in _until(ours, f'destroy.*:{asked[1]}"')]
    finally:
        for process in (ours, theirs):
            process.kill()
            process.wait()
        for one in flows:
            one.close()
    expected = [
        (found[1].lower(), *found.groups()[2:])
        for found in map(EVENT.search, text)
        if found is not None and found[5] in asked
    ]
    entries = [each for each in mine if "expects" not in each]
    told = [(each["event"], *ends(each["flow"])) for each in entries]
    assert [each for each in told if each[3] in asked] == expected
    assert {each[0] for each in expected} == {"new", "update", "destroy"}
    (end,) = (
        each
        for each in entries
        if each["event"] == "destroy" and ends(each["flow"])[2] == asked[1]
    )
    assert end["master"]["source"] == f"{CLIENT}:{asked[0]}"
    assert sum(end["packets"]) > 0
    assert end["began"] < end["ended"]
    expectations = [each["event"] for each in mine if "expects" in each]
    assert expectations[-2:] == ["expectation-new", "expectation-destroy"]


def _until(process: "subprocess.Popen[str]", last: str) -> list[str]:
    """The lines of a process up to one."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(last, line):
            return lines
    raise AssertionError(lines)


def test_only_flows_of_helpers_are_followed_unless_all_are(
    world: World, serving: Daemon
) -> None:
    world.forget()
    following = world.gateway.start(
        *(*CTHELPER, "flows", "events", "--event", "new"), stdout=subprocess.PIPE
    )
    assert following.stdout is not None
    flows = []
    try:
        for _ in range(60):
            # One that nobody has announced, and one that has a helper.
            flows += [meet(world, 7998), getport(world)[0]]
            if select.select([following.stdout], [], [], 1.0)[0]:
                break
        line = following.stdout.readline()
    finally:
        following.kill()
        following.communicate()
        for each in flows:
            each.close()
    assert re.search(rf" new udp {CLIENT}:\d+ > {SERVER}:{PORT}  sunrpc, ", line)
