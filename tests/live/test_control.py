# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket of a real daemon: what it tells is what the kernel has.

What ``cthelper flows`` and ``cthelper expectations`` say is held against conntrack(8);
and whoever asks, reads slowly or kills the controller, no packet waits for it.
"""

import grp
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import pytest

from tests.live.daemon import CTHELPER, Daemon, equal_limits, only
from tests.live.traffic import PORT, Echo, call, getport, getport_call
from tests.live.world import CLIENT, SERVER, World, until

pytestmark = pytest.mark.live

GROUP: Final = "adm"
ANNOUNCED: Final = 7999
PATH: Final = "/run/cthelper/control.sock"
CONFIG: Final = (
    f"{only('sunrpc')}[helpers.sunrpc]\nports = [111, {PORT}]\n{equal_limits(300)}"
    f'[control]\ngroup = "{GROUP}"\n'
)
# A user of no group that may ask.
NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def serving(world: World, daemon: Daemon) -> Iterator[Daemon]:
    """A daemon whose clients have an RPC server to ask."""
    daemon.start(CONFIG)
    with Echo(world.server, ANNOUNCED):
        yield daemon


def conntracks(world: World, *arguments: str) -> set[tuple[str, ...]]:
    """Ends of what conntrack(8) lists: of entries, or of what is expected."""
    return {
        tuple(re.findall(r"\b(?:src|dst|sport|dport)=(\S+)", line)[:4])
        for line in world.conntrack(*arguments).splitlines()
        if re.match("tcp|udp|[0-9]+ proto=(6|17)", line)
    }


def ends(flow: dict[str, Any]) -> tuple[str, ...]:
    """Those of a record."""
    source, _, sport = flow["source"].rpartition(":")
    destination, _, dport = flow["destination"].rpartition(":")
    return source, destination, sport, dport


def local(flow: socket.socket) -> tuple[str, ...]:
    """The options that say this control flow alone."""
    return ("-p", "udp", "-s", CLIENT, "--sport", str(flow.getsockname()[1]))


def meet(world: World, port: int) -> socket.socket:
    """Begin the flow that was expected."""
    with world.client.entered():
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flow.bind((CLIENT, 0))
    flow.sendto(b"x", (SERVER, port))
    return flow


def test_status_says_what_is_amiss_and_since_when_all_is_well(
    world: World, daemon: Daemon
) -> None:
    assert daemon.ask("status").returncode == 2  # nobody answers
    daemon.start(CONFIG + '[daemon]\nworkers = 2\nlost_ruleset = "warn"\n')
    assert until(lambda: daemon.ask("status").returncode == 0, 30)
    (found,) = daemon.records("status")
    assert (found["health"], found["problems"]) == ("ok", [])
    assert [each["answers"] for each in found["servers"]] == [True, True]
    assert [each["bound"] for each in found["queues"]] == [True, True]
    assert found["tables"]["conntrack"]["most"] > 1000
    world.gateway.run("nft", "delete table inet cthelper", check=True)
    daemon.await_event("ruleset-lost")
    done = daemon.ask("status")
    assert done.returncode == 1
    assert "! " in done.stdout
    assert "the ruleset is gone: new flows are not inspected" in done.stdout
    server = daemon.events("worker-started")[0]["pid"]
    os.kill(server, signal.SIGSTOP)
    assert until(lambda: " does not answer" in daemon.ask("status").stdout, 30)
    os.kill(server, signal.SIGCONT)
    daemon.config.write_text("no table")
    daemon.send_signal(signal.SIGHUP)
    assert until(lambda: "reload was refused" in daemon.ask("status").stdout, 60)
    assert daemon.stop() == 0
    assert daemon.ask("status").returncode == 2


def test_flows_are_those_that_conntrack_lists(world: World, serving: Daemon) -> None:
    asked = [getport(world)[0] for _ in range(3)]
    port = str(PORT)
    theirs = conntracks(world, "-L", "-p", "udp", "-d", SERVER, "--dport", port)
    found = serving.records("flows")
    assert {ends(each["flow"]) for each in found} == theirs
    assert len(theirs) == len(asked)
    assert {each["inspection"] for each in found} == {"inspected"}
    expected = [each for flow in found for each in flow["expectations"]]
    assert {each["expects"]["destination"] for each in expected} == {
        f"{SERVER}:{ANNOUNCED}"
    }
    assert all(0 < each["timeout"] <= 300 for each in expected)
    # One of them is shared by all that ask for the same.
    masters = conntracks(world, "-L", "expect")
    assert len(masters) == len(serving.records("expectations", "list")) == 1
    with meet(world, ANNOUNCED) as data:
        assert until(
            lambda: len(serving.records("flows", "--dport", str(ANNOUNCED))) == 1, 10
        )
        (tree,) = serving.records("flows", "--dport", str(ANNOUNCED))
        (child,) = tree["flows"]
        assert child["flow"]["source"] == f"{CLIENT}:{data.getsockname()[1]}"
        shown = serving.ask("flows", "--dport", str(ANNOUNCED)).stdout
        assert re.search(rf"^udp {CLIENT}:\d+ > {SERVER}:{PORT}  sunrpc, ", shown)
        assert f"\n  expected udp {CLIENT}:" in shown
        assert serving.records("flows", "--helper", "ftp") == []
        assert serving.records("flows", "-s", "10.99.0.0/16") == []
        # Everything, and each entry once.
        whole = serving.records("flows", "--all")
        every = [ends(each["flow"]) for each in whole if not each["gone"]]
        every += [ends(each["flow"]) for tree in whole for each in tree["flows"]]
        assert len(every) == len(set(every))
        assert set(every) == conntracks(world, "-L")
    for flow in asked:
        flow.close()


def test_many_flows_are_listed_between_packets(world: World, serving: Daemon) -> None:
    flows = []
    for _ in range(600):
        with world.client.entered():
            flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        flow.settimeout(10)
        flow.connect((SERVER, PORT))
        # A call that announces nothing is read by nobody.
        flow.send(getport_call(1))
        assert flow.recv(100)
        flows.append(flow)
    try:
        found = serving.records("flows")
        assert len(found) == len(flows)
        assert {each["inspection"] for each in found} == {"inspected"}
    finally:
        for flow in flows:
            flow.close()


def test_flow_is_ended_with_what_it_expects_by_root_alone(
    world: World, serving: Daemon
) -> None:
    flow, port = getport(world)
    with flow, meet(world, port) as data:
        dport = ("--dport", str(port))
        assert until(lambda: serving.records("flows", *dport)[0]["flows"], 10)
        mine = local(flow)
        member = ("setpriv", "--reuid=65534", f"--regid={grp.getgrnam(GROUP).gr_gid}")
        as_member = (*member, "--clear-groups", *CTHELPER, "flows")
        shown = world.gateway.run(*as_member, *mine, timeout=60)
        assert "sunrpc, inspected" in shown.stdout, shown.stderr
        refused = world.gateway.run(*as_member, "delete", *mine, timeout=60)
        assert refused.returncode == 1
        assert refused.stderr == (
            "cthelper: delete-flows is root's alone: run it as root\n"
        )
        stranger = world.gateway.run(*NOBODY, *CTHELPER, "flows", timeout=60)
        assert stranger.returncode == 1
        assert stranger.stderr == f"cthelper: {PATH}: Permission denied\n"
        assert serving.ask("flows", "delete").returncode == 2  # which?
        assert (
            len(conntracks(world, "-L", "-p", "udp", "--orig-port-dst", str(ANNOUNCED)))
            == 1
        )
        ended = serving.ask("flows", "delete", "--data", *mine)
        assert ended.stdout.endswith("2 entries deleted\n"), ended
        assert conntracks(world, "-L", "expect") == set()
        own = {str(each.getsockname()[1]) for each in (flow, data)}
        assert not own & {each[2] for each in conntracks(world, "-L", "-p", "udp")}
        # It begins anew, and is inspected.
        call(flow)
        assert until(lambda: len(serving.records("flows", *mine)) == 1, 10)


def test_expectation_is_put_in_and_taken_out_by_hand(
    world: World, serving: Daemon
) -> None:
    flow, _ = getport(world)
    with flow:
        own = f"{CLIENT}:{flow.getsockname()[1]}"
        words = ("expectations", "add", "tcp", f"{SERVER}:7500", "--from", CLIENT)
        control_flow = ("--flow", "udp", own, f"{SERVER}:{PORT}")
        (made,) = serving.records(*words, *control_flow, "--permanent")
        assert made["helper"] == "sunrpc"
        assert made["permanent"] is True
        assert made["expects"]["destination"] == f"{SERVER}:7500"
        assert "dport=7500" in world.conntrack("-L", "expect")
        again = serving.ask(*words, *control_flow)
        assert again.returncode == 1
        assert "(EEXIST)" in again.stderr
        wrong = serving.ask(*words, "--flow", "udp", "10.9.9.9:1", f"{SERVER}:{PORT}")
        assert wrong.returncode == 1
        assert "(ENOENT)" in wrong.stderr
        gone = serving.ask("expectations", "delete", "-p", "tcp", "--dport", "7500")
        assert gone.stdout.endswith("1 expectations deleted\n")
        left = world.conntrack("-L", "expect")
        assert "dport=7500" not in left
        assert f"dport={ANNOUNCED}" in left
        assert "1 expectations" in serving.ask("expectations", "flush").stdout
        assert conntracks(world, "-L", "expect") == set()


def test_events_come_as_they_happen_and_are_remembered(
    world: World, serving: Daemon
) -> None:
    command = (*CTHELPER, "events", "--json", "--event", "expectation", "-s", CLIENT)
    following = world.gateway.start(*command, stdout=subprocess.PIPE)
    assert following.stdout is not None
    try:
        time.sleep(5)  # it takes that long to begin where all is emulated
        flow, port = getport(world)
        flow.close()
        told = json.loads(following.stdout.readline())
    finally:
        following.kill()
        following.communicate()
    assert told["helper"] == "sunrpc"
    assert told["flow"]["transport"] == "udp"
    assert told["expects"]["destination"] == f"{SERVER}:{port}"
    assert told["worker"] == 0
    since = ("events", "--since", "10m", "--no-follow")
    remembered = serving.records(*since)
    assert told in remembered
    assert "started" in {each["event"] for each in remembered}
    assert serving.records(*since, "--helper", "ftp") == []
    assert f" expectation sunrpc udp {CLIENT}:" in serving.ask(*since).stdout


def test_nothing_that_is_asked_keeps_packets_waiting(
    world: World, serving: Daemon
) -> None:
    flow, _ = getport(world)
    place = f"/proc/{serving.pid}/root{PATH}"
    slow = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(31)]
    try:
        for each in slow:
            each.connect(place)
            each.sendall(b'{"command": "flows", "all": true}\n' * 40)
            call(flow)
        junk = slow.pop()
        junk.sendall(b"[" * 100_000)
        assert b"unreadable" in _rest(junk)
        call(flow)
        controller = int(serving.events("controller-started")[-1]["pid"])
        os.kill(controller, signal.SIGSTOP)
        call(flow)
        os.kill(controller, signal.SIGKILL)
        call(flow)
        serving.await_event("controller-died")
        serving.await_event("controller-started", 2)
        assert until(lambda: serving.ask("status").returncode == 0, 30)
    finally:
        flow.close()
        for each in slow:
            each.close()
    # Who takes over after a crash has the socket, too.
    serving.send_signal(signal.SIGKILL)
    serving.wait()
    serving.start(CONFIG)
    assert serving.events("control-unavailable") == []
    assert until(lambda: serving.ask("status").returncode == 0, 30)


def _rest(connection: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    connection.settimeout(30)
    data = b""
    # So it ends where not all was read that was sent.
    with suppress(ConnectionResetError):
        while more := connection.recv(1 << 16):
            data += more
    return data
