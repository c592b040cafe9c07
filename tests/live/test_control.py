# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket of a real daemon: what it tells is what the kernel has.

What ``cthelper flows`` and ``cthelper expectations`` say is held against conntrack(8);
and whoever asks, reads slowly or kills the controller, no packet waits for it.
"""

import grp
import json
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from cthelper.control import Control, ControlError
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


@pytest.fixture(scope="module")
def serving(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose clients have an RPC server to ask."""
    world.reset()
    with (
        Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon,
        Echo(world.server, ANNOUNCED),
    ):
        daemon.start(CONFIG)
        daemon.await_event("controller-started")
        yield daemon
        assert daemon.stop() == 0


@pytest.fixture
def control(serving: Daemon) -> Iterator[Control]:
    """A client in this process, which starts sooner than a command."""
    with Control(place(serving)) as control:
        yield control


def place(daemon: Daemon) -> Path:
    """The socket as it is seen from here."""
    return Path(f"/proc/{daemon.pid}/root{PATH}")


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


def own(flow: socket.socket) -> dict[str, Any]:
    """The filter that means this control flow alone."""
    return {"transport": "udp", "source": CLIENT, "sport": flow.getsockname()[1]}


def meet(world: World, port: int) -> socket.socket:
    """Begin the flow that was expected."""
    with world.client.entered():
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flow.bind((CLIENT, 0))
    flow.sendto(b"x", (SERVER, port))
    return flow


def test_status_says_what_is_amiss_until_all_is_well(
    world: World, daemon: Daemon
) -> None:
    """And who takes over after a crash has the socket, too."""
    daemon.start(CONFIG)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    daemon.start(CONFIG + '[daemon]\nworkers = 2\nlost_ruleset = "warn"\n')
    assert daemon.events("control-unavailable") == []
    assert until(lambda: daemon.ask("status").returncode == 0, 30)
    with Control(place(daemon)) as control:
        found = control.status()
        assert (found["health"], found["problems"]) == ("ok", [])
        assert [each["answers"] for each in found["servers"]] == [True, True]
        assert [each["bound"] for each in found["queues"]] == [True, True]
        assert found["tables"]["conntrack"]["most"] > 1000
        world.gateway.run("nft", "delete table inet cthelper", check=True)
        daemon.await_event("ruleset-lost")
        gone = "the ruleset is gone: new flows are not inspected"
        assert gone in control.status()["problems"]
        done = daemon.ask("status")
        assert done.returncode == 1
        assert f"\n  !          {gone}\n" in done.stdout
        server = daemon.events("worker-started")[0]["pid"]
        os.kill(server, signal.SIGSTOP)
        found = control.status()
        assert any(each.endswith(" does not answer") for each in found["problems"])
        os.kill(server, signal.SIGCONT)
        daemon.config.write_text("no table")
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reload-refused")
        assert any(
            "reload was refused" in each for each in control.status()["problems"]
        )
    assert daemon.stop() == 0
    assert daemon.ask("status").returncode == 2


def test_flows_are_those_that_conntrack_lists(
    world: World, serving: Daemon, control: Control
) -> None:
    asked = [getport(world)[0] for _ in range(3)]
    port = str(PORT)
    theirs = conntracks(world, "-L", "-p", "udp", "-d", SERVER, "--dport", port)
    found = list(control.flows())
    assert {ends(each["flow"]) for each in found} == theirs
    assert len(theirs) == len(asked)
    assert {each["inspection"] for each in found} == {"inspected"}
    expected = [each for flow in found for each in flow["expectations"]]
    wanted = f"{SERVER}:{ANNOUNCED}"
    assert {each["expects"]["destination"] for each in expected} == {wanted}
    assert all(0 < each["timeout"] <= 300 for each in expected)
    # One of them is shared by all that ask for the same.
    masters = conntracks(world, "-L", "expect")
    assert len(masters) == len(list(control.expectations())) == 1
    with meet(world, ANNOUNCED) as data:
        sport = data.getsockname()[1]
        assert until(lambda: list(control.flows(sport=sport)), 10)
        (tree,) = control.flows(sport=sport)
        (child,) = tree["flows"]
        assert child["flow"]["source"] == f"{CLIENT}:{sport}"
        shown = serving.ask("flows", "--dport", str(ANNOUNCED)).stdout
        assert re.search(rf"^udp {CLIENT}:\d+ > {SERVER}:{PORT}  sunrpc, ", shown)
        assert f"\n  expected udp {CLIENT}:{sport} > " in shown
        assert list(control.flows(helper="ftp")) == []
        assert list(control.flows(source="10.99.0.0/16")) == []
        # Everything, and each entry once.
        whole = list(control.flows(others=True))
        every = [ends(each["flow"]) for each in whole if not each["gone"]]
        every += [ends(each["flow"]) for tree in whole for each in tree["flows"]]
        assert len(every) == len(set(every))
        assert set(every) == conntracks(world, "-L")
    for flow in asked:
        flow.close()


def test_flow_is_ended_with_what_it_expects_by_root_alone(
    world: World, serving: Daemon, control: Control
) -> None:
    world.forget()
    flow, port = getport(world)
    with flow, meet(world, port) as data:
        assert until(
            lambda: [each for each in control.flows(**own(flow)) if each["flows"]], 10
        )
        narrow = ("-p", "udp", "-s", CLIENT, "--sport", str(flow.getsockname()[1]))
        member = ("setpriv", "--reuid=65534", f"--regid={grp.getgrnam(GROUP).gr_gid}")
        as_member = (*member, "--clear-groups", *CTHELPER, "flows")
        shown = world.gateway.run(*as_member, *narrow, timeout=60)
        assert "sunrpc, inspected" in shown.stdout, shown.stderr
        refused = world.gateway.run(*as_member, "delete", *narrow, timeout=60)
        assert refused.returncode == 1
        said = "cthelper: delete-flows is root's alone: run it as root\n"
        assert refused.stderr == said
        stranger = world.gateway.run(*NOBODY, *CTHELPER, "flows", timeout=60)
        assert stranger.returncode == 1
        assert stranger.stderr == f"cthelper: {PATH}: Permission denied\n"
        assert len(list(control.flows(**own(flow)))) == 1
        # On a busy machine the commands take as long as such a flow lives.
        data.sendto(b"x", (SERVER, port))
        ended = serving.ask("flows", "delete", "--data", *narrow)
        assert ended.stdout.endswith("2 entries deleted\n"), ended
        assert conntracks(world, "-L", "expect") == set()
        ours = {str(each.getsockname()[1]) for each in (flow, data)}
        assert not ours & {each[2] for each in conntracks(world, "-L", "-p", "udp")}
        # It begins anew, and is inspected.
        flow.send(getport_call(2))
        assert flow.recv(100)
        (found,) = control.flows(**own(flow))
        assert found["inspection"] == "inspected"


def test_expectation_is_put_in_and_taken_out_by_hand(
    world: World, serving: Daemon, control: Control
) -> None:
    world.forget()
    flow, _ = getport(world)
    with flow:
        ours = f"{CLIENT}:{flow.getsockname()[1]}"
        words = ("expectations", "add", "tcp", f"{SERVER}:7500", "--from", CLIENT)
        of_flow = ("--flow", "udp", ours, f"{SERVER}:{PORT}", "--permanent")
        made = serving.ask(*words, *of_flow)
        assert made.stdout.startswith(f"tcp {CLIENT} > {SERVER}:7500  sunrpc "), made
        assert ", permanent, " in made.stdout
        assert "dport=7500" in world.conntrack("-L", "expect")
        again = serving.ask(*words, *of_flow)
        assert again.returncode == 1
        assert "(EEXIST)" in again.stderr
        with pytest.raises(ControlError, match=r"\(ENOENT\)"):
            list(
                control.request(
                    "add-expectation",
                    flow={
                        "transport": "udp",
                        "source": "10.9.9.9:1",
                        "destination": f"{SERVER}:{PORT}",
                    },
                )
            )
        list(control.request("delete-expectations", filter={"dport": 7500}))
        left = world.conntrack("-L", "expect")
        assert "dport=7500" not in left
        assert f"dport={ANNOUNCED}" in left
        assert "1 expectations" in serving.ask("expectations", "flush").stdout
        assert conntracks(world, "-L", "expect") == set()


def test_events_come_as_they_happen_and_are_remembered(
    world: World, serving: Daemon, control: Control
) -> None:
    command = (*CTHELPER, "events", "--json", "--event", "expectation", "-s", CLIENT)
    following = world.gateway.start(*command, stdout=subprocess.PIPE)
    assert following.stdout is not None
    try:
        # It takes a while to begin where all is emulated.
        for _ in range(60):
            flow, port = getport(world)
            flow.close()
            if select.select([following.stdout], [], [], 1.0)[0]:
                break
        told = json.loads(following.stdout.readline())
    finally:
        following.kill()
        following.communicate()
    assert told["helper"] == "sunrpc"
    assert told["flow"]["transport"] == "udp"
    assert told["expects"]["destination"] == f"{SERVER}:{port}"
    assert told["worker"] == 0
    remembered = list(control.events(since=600, follow=False))
    assert told in remembered
    assert "started" in {each["event"] for each in remembered}
    assert list(control.events(since=600, follow=False, helper="ftp")) == []


def test_many_flows_are_listed_between_packets(world: World, control: Control) -> None:
    world.forget()
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
        found = list(control.flows())
        assert len(found) == len(flows)
        assert {each["inspection"] for each in found} == {"inspected"}
    finally:
        for flow in flows:
            flow.close()


def test_nothing_that_is_asked_keeps_packets_waiting(
    world: World, serving: Daemon
) -> None:
    flow, _ = getport(world)
    slow = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(31)]
    try:
        for each in slow:
            each.connect(str(place(serving)))
            each.sendall(b'{"command": "flows", "all": true}\n' * 40)
            call(flow)
        with slow.pop() as junk, suppress(BrokenPipeError):
            junk.sendall(b"[" * 100_000)
        call(flow)
        controller = int(serving.events("controller-started")[-1]["pid"])
        os.kill(controller, signal.SIGSTOP)
        call(flow)
        os.kill(controller, signal.SIGKILL)
        call(flow)
        serving.await_event("controller-died")
        serving.await_event("controller-started", 2)
        assert until(lambda: health(serving) == "ok", 30)
    finally:
        flow.close()
        for each in slow:
            each.close()


def health(daemon: Daemon) -> str:
    """What it says of itself; empty where nobody answers."""
    try:
        with Control(place(daemon)) as control:
            return str(control.status()["health"])
    except ControlError:
        return ""
