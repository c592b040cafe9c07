# SPDX-License-Identifier: GPL-2.0-or-later
"""What the end of a flow costs a server of the daemon, with and without a helper.

usage: VM_CPUS=2 script/in-kernel .venv/bin/python -B -m bench.events
       [--flows N] [--rounds N]

Needs root, and a kernel that the live tests can use. CPU is the server's time on the
CPU (/proc/PID/schedstat), from before the gateway's conntrack table is emptied until
nothing of it is left to be told. Under emulation all is slower by the same factor: the
figures are to be compared with each other.
"""

import argparse
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from tests.live.daemon import Daemon
from tests.live.traffic import null_call
from tests.live.world import CLIENT, SERVER, World

_PORTS: Final = {"with a helper": 111, "without a helper": 112}
_FIRST: Final = 10_000
_QUIET_SECONDS: Final = 0.5


def _begin(world: World, count: int, port: int) -> None:
    """So many UDP flows from the client to a port of the server."""
    with world.client.entered():
        for number in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind((CLIENT, _FIRST + number))
                client.sendto(null_call(number), (SERVER, port))


def _cpu(pid: int) -> int:
    """Nanoseconds on the CPU."""
    return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0])


def _rest(pid: int) -> int:
    """Its time on the CPU once it has nothing more to do than each second."""
    before = _cpu(pid)
    while True:
        time.sleep(_QUIET_SECONDS)
        now = _cpu(pid)
        if now - before < 5_000_000:
            return now
        before = now


def _cost(world: World, pid: int, flows: int, port: int) -> float:
    """Microseconds for each flow that ends."""
    _begin(world, flows, port)
    before = _rest(pid)
    entries = int(world.conntrack("-C"))
    if not flows <= entries < flows + 64:
        sys.exit(f"{entries} entries of {flows} flows")
    world.conntrack("-F")
    return (_rest(pid) - before) / 1000 / flows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flows", type=int, default=2000, help="that end at a time")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with (
        World() as world,
        tempfile.TemporaryDirectory() as folder,
        Daemon(world.gateway, Path(folder)) as daemon,
    ):
        world.reset()
        daemon.start()
        (_, pid) = daemon.processes
        for name, port in _PORTS.items():
            costs = [
                _cost(world, pid, options.flows, port) for _ in range(options.rounds)
            ]
            print(
                f"{os.uname().release}: a flow {name} ends: {median(costs):.2f} us "
                f"({min(costs):.2f} to {max(costs):.2f})",
                flush=True,
            )
        daemon.stop()
        lost = sum(each["overruns"] for each in daemon.events("events-lost"))
    print(f"lost: {lost} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
