# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers that do not come back, and servers that are stopped: no packet waits."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.live.daemon import Daemon, only
from tests.live.gateway import registered
from tests.live.netlink_lab import until
from tests.live.traffic import (
    PORT,
    Echo,
    Pinger,
    asker,
    expected,
    getport_call,
    wait_for,
)
from tests.live.world import SERVER, World

pytestmark = pytest.mark.live

HANG_PORT = 7113
PLUGIN = f"""
import ctypes
import re
import threading
import time
from cthelper.core.api import *

def stubborn():
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass

def loop():
    while True:
        pass

def threads():
    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    thread.join()

STEPS = {{
    b"loop": loop,
    b"sleep": lambda: time.sleep(3600),
    b"match": lambda: re.match(r"(a+)+$", "a" * 64 + "b"),
    b"huge": lambda: pow(3, 10**9),
    b"join": threads,
    b"stubborn": stubborn,
    b"crash": lambda: ctypes.string_at(0),
}}

class Hang(Helper):
    name = "hang"
    transports = frozenset({{UDP}})
    ports = ({HANG_PORT},)
    policies = (Policy("data"),)

    def on_message(self, message):
        if message.direction is ORIGINAL:
            STEPS[message.payload]()
        yield DONE
"""
CONFIG = (
    only("sunrpc")
    + f"[helpers.sunrpc]\nports = [111, {PORT}]\n"
    # What a helper of ours takes for its first packet, emulated, is not to be too long;
    # nor what it takes to name the line of the first one that is interrupted.
    + "[budget]\ndeadline = 2000\nsource_cpu = 100\n"
)
# A machine that is emulated on a busy one; nobody else would wait as long.
PATIENCE = 60.0


def start(daemon: Daemon, folder: Path, more: str = "") -> None:
    """Start it with the plugin."""
    plugins = folder / "plugins"
    plugins.mkdir(mode=0o755)
    (plugins / "hang.py").write_text(PLUGIN)
    daemon.start(f'{CONFIG}[plugins]\nfolder = "{plugins}"\n{more}')


def hanging(world: World) -> socket.socket:
    """A flow of the plugin's."""
    flow = asker(world)
    flow.settimeout(PATIENCE)
    flow.connect((SERVER, HANG_PORT))
    return flow


def serves_again(world: World, daemon: Daemon) -> None:
    """What it announces is expected, once the server is there.

    Nobody must call meanwhile, or the log leaves lines out.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            assert expected(world, daemon)["helper"] == "sunrpc"
            return
        except ValueError:
            assert time.monotonic() < deadline, daemon.text
            time.sleep(0.5)


def test_helper_is_interrupted_and_its_packet_goes_on(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    start(daemon, tmp_path)
    server = daemon.processes[1:]
    steps = ["loop", "sleep", "match", "huge", "join"]
    with (
        Echo(world.server),
        Echo(world.server, port=HANG_PORT),
        Pinger(world.client, PATIENCE) as pinger,
    ):
        for count, step in enumerate(steps, 1):
            wait_for(pinger, 5)
            with hanging(world) as flow:
                flow.send(step.encode())
                assert flow.recv(100) == step.encode()
                fault = daemon.await_event("helper-fault", count)
                assert fault["helper"] == "hang"
                assert fault["error"].startswith("Overrun: ")
                assert fault["at"].startswith("hang.py:")
                # The flow is not inspected any more.
                flow.send(step.encode())
                assert flow.recv(100) == step.encode()
            if "quarantined" in fault:
                # Its peer is not for a while, but for a reload.
                daemon.send_signal(signal.SIGHUP)
                daemon.await_event("reloaded")
        wait_for(pinger, 5)
        pinger.end()
        serves_again(world, daemon)
        assert pinger.lost == 0
    faults = daemon.events("helper-fault")
    assert [each.get("quarantined") for each in faults] == [
        *(None, None, "peer", None, None)
    ]
    assert daemon.events("worker-died") == []
    assert daemon.processes[1:] == server
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("step", "status"), [("stubborn", "SIGKILL"), ("crash", "SIGSEGV")]
)
def test_server_that_cannot_be_interrupted_is_replaced_and_its_flow_left_out(
    world: World, daemon: Daemon, tmp_path: Path, step: str, status: str
) -> None:
    start(daemon, tmp_path)
    with (
        Echo(world.server),
        Echo(world.server, port=HANG_PORT),
        Pinger(world.client, PATIENCE) as pinger,
        hanging(world) as flow,
    ):
        wait_for(pinger, 5)
        flow.send(step.encode())
        assert flow.recv(100) == step.encode()
        died = daemon.await_event("worker-died")
        assert died["status"] == status
        assert died["helper"] == "hang"
        assert ("because" in died) is (step == "stubborn")
        daemon.await_event("worker-started", 2)
        # The next server does not read it, nor another flow of its peer's.
        flow.send(step.encode())
        assert flow.recv(100) == step.encode()
        with hanging(world) as other:
            other.send(step.encode())
            assert other.recv(100) == step.encode()
        wait_for(pinger, 5)
        pinger.end()
        serves_again(world, daemon)
        assert pinger.lost == 0
    assert len(daemon.events("worker-died")) == 1
    assert daemon.stop() == 0
    assert registered(world) == []


def test_server_that_is_stopped_is_replaced_and_no_packet_lost(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    start(daemon, tmp_path)
    with Echo(world.server), Pinger(world.client, PATIENCE) as pinger:
        wait_for(pinger, 5)
        os.kill(daemon.processes[1], signal.SIGSTOP)
        stuck = daemon.await_event("worker-stuck")
        assert stuck["pid"] == daemon.await_event("worker-died")["pid"]
        wait_for(pinger, 20)
        daemon.await_event("worker-started", 2)
        pinger.end()
        serves_again(world, daemon)
        assert pinger.lost == 0
    assert daemon.stop() == 0


def test_helper_that_fails_closed_has_packets_dropped_while_it_hangs(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    start(daemon, tmp_path, "[helpers.hang]\nfail_closed = true\n")
    with (
        Echo(world.server),
        Echo(world.server, port=HANG_PORT),
        Pinger(world.client, PATIENCE) as pinger,
        hanging(world) as flow,
    ):
        wait_for(pinger, 5)
        flow.send(b"stubborn")
        daemon.await_event("worker-stuck")
        daemon.await_event("worker-started", 2)
        flow.settimeout(1.0)
        with pytest.raises(TimeoutError):
            flow.recv(100)
        # What fails open has passed meanwhile.
        wait_for(pinger, 5)
        assert pinger.lost == 0
        # The flow is left out, and passes as one that is finished does.
        flow.settimeout(PATIENCE)
        flow.send(b"again")
        assert flow.recv(100) == b"again"
    assert daemon.stop() == 0


def test_daemon_ends_while_a_helper_hangs(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    start(daemon, tmp_path)
    with Echo(world.server, port=HANG_PORT), hanging(world) as flow:
        flow.send(b"stubborn")
        assert daemon.stop() == 0
        assert flow.recv(100) == b"stubborn"
    assert registered(world) == []


def test_server_whose_helper_hangs_ends_after_its_supervisor(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    start(daemon, tmp_path)
    with (
        Echo(world.server),
        Echo(world.server, port=HANG_PORT),
        hanging(world) as flow,
        asker(world) as good,
    ):
        os.kill(daemon.pid, signal.SIGSTOP)
        # Nobody watches: others serve all the same, and one that hangs hangs.
        good.send(getport_call(1))
        assert good.recv(100)
        flow.send(b"loop")
        flow.settimeout(2.0)
        with pytest.raises(TimeoutError):
            flow.recv(100)
        daemon.stop(signal.SIGKILL)
        flow.settimeout(PATIENCE)
        assert flow.recv(100) == b"loop"
        until(lambda: daemon.events("withdrawn"), PATIENCE)
        daemon.start(CONFIG)
        serves_again(world, daemon)
    assert daemon.stop() == 0
