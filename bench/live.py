# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon beside conntrackd: the same traffic in the same boot of one kernel.

usage: script/in-kernel .venv/bin/python -B -m bench.live [--rounds N]

Needs root, and a kernel that the live tests can use. Each round runs conntrackd and the
daemon with either queue backend, in an order that rotates; what is printed are medians
of the rounds and of the ratios to conntrackd's within a round. CPU is the daemon's time
on the CPU (/proc/PID/schedstat), which has the kernel's forwarding of the packets that
it releases in it. A run in which packets did not pass the queues, or were dropped
there, is left out and named; so is all that a daemon did which had packets bypassed.
"""

import argparse
import json
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.live.conntrackd import conntrackd
from tests.live.daemon import Daemon
from tests.live.traffic import getport_call, getport_reply, null_call
from tests.live.world import SERVER, World

_WINDOW: Final = 64
_PEER: Final = "conntrackd"
_CONFIG: Final = """
[guard]
in_all = 0
[helpers.sunrpc.guard]
per_source = 0
per_helper = 0
[daemon]
backend = "{}"
"""
_TNS, _UNTAGGED = 1521, 1522

Figures = dict[str, float]


class Server(threading.Thread):
    """Answers calls of the portmapper, and streams to who connects to TNS ports."""

    def __init__(self, world: World, size: int) -> None:
        super().__init__(daemon=True)
        with world.server.entered():
            self._calls = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._listeners = [socket.socket() for _ in range(2)]
        self._calls.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._calls.bind((SERVER, 111))
        self._size = size
        for listener, port in zip(self._listeners, (_TNS, _UNTAGGED), strict=True):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((SERVER, port))
            listener.listen()
            threading.Thread(target=self._stream, args=(listener,), daemon=True).start()

    def run(self) -> None:
        """Answer until the process ends."""
        while True:
            call, asker = self._calls.recvfrom(2048)
            xid = int.from_bytes(call[:4])
            if call[20:24] == b"\0\0\0\3":
                self._calls.sendto(getport_reply(xid, 20048), asker)
            else:
                self._calls.sendto(struct.pack("!6I", xid, 1, 0, 0, 0, 0), asker)

    def _stream(self, listener: socket.socket) -> None:
        block = bytes(1 << 20)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2048)
                connection.sendall(_packet(2, bytes(24)))
                connection.recv(1)
                for _ in range(self._size):
                    connection.sendall(block)


def _packet(kind: int, body: bytes) -> bytes:
    """A TNS packet: 1 is CONNECT, 2 ACCEPT."""
    return struct.pack("!HHBBH", 8 + len(body), 0, kind, 0, 0) + body


def _calls(world: World, count: int, call: Callable[[int], bytes]) -> int:
    """At least so many calls in one flow, a window under way; packets both ways."""
    with world.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sent = 0
    with client:
        client.settimeout(30.0)
        client.connect((SERVER, 111))
        for start in range(0, count, _WINDOW):
            for xid in range(start, start + _WINDOW):
                client.send(call(xid))
            for _ in range(_WINDOW):
                client.recv(2048)
            sent += _WINDOW
    return sent * 2


def _latencies(world: World, count: int, call: Callable[[int], bytes]) -> list[float]:
    """Round trips of calls one at a time, in seconds."""
    with world.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    trips = []
    with client:
        client.settimeout(30.0)
        client.connect((SERVER, 111))
        for xid in range(count):
            sent = time.perf_counter()
            client.send(call(xid))
            client.recv(2048)
            trips.append(time.perf_counter() - sent)
    return trips


def _transfer(world: World, port: int) -> float:
    """MiB a second of one transfer after ACCEPT."""
    with world.client.entered():
        client = socket.socket()
    with client:
        client.settimeout(120.0)
        client.connect((SERVER, port))
        client.sendall(_packet(1, bytes(58)))
        client.recv(2048)
        time.sleep(1.5)  # a finished flow leaves the queue with the next sweep
        client.send(b"x")
        began, received = time.perf_counter(), 0
        while data := client.recv(1 << 18):
            received += len(data)
        return received / (1 << 20) / (time.perf_counter() - began)


def _cpu(pid: int) -> float:
    text = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii")
    return int(text.split()[0]) / 1e9


def _queued(world: World) -> tuple[int, int]:
    """How many packets the gateway's queues have had, and how many they dropped."""
    with world.gateway.entered():
        text = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
    rows = [[int(field) for field in line.split()] for line in text.splitlines()]
    return sum(row[7] for row in rows), sum(row[5] + row[6] for row in rows)


def _pid(name: str) -> int:
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                return int(path.parent.name)
        except OSError:
            continue
    raise SystemExit(f"bench: no process {name}")


def _run(world: World, variant: str, folder: Path, count: int, trips: int) -> Figures:
    """The figures of one run of a variant."""
    world.reset()
    if variant == _PEER:
        with conntrackd(world, folder):
            return _measure(world, _pid(_PEER), count, trips)
    with Daemon(world.gateway, folder) as daemon:
        daemon.start(_CONFIG.format(variant))
        figures = _measure(world, daemon.pid, count, trips)
        daemon.stop()
        # A packet that passes a full queue has taken a number there already.
        bypassed = daemon.events("stopped")[0]["bypassed"]
    if bypassed:
        print(f"left out: {variant} had {bypassed} packets bypassed")
        return {}
    return figures


def _measure(world: World, pid: int, count: int, trips: int) -> Figures:
    figures: Figures = {}
    for name, call in (("null", null_call), ("getport", getport_call)):
        seen, dropped = _queued(world)
        spent = _cpu(pid)
        try:
            packets = _calls(world, count, call)
        except TimeoutError:
            print(f"left out: {name}, a call was not answered")
            continue
        spent = _cpu(pid) - spent
        seen_now, dropped_now = _queued(world)
        if seen_now - seen < packets or dropped_now != dropped:
            print(
                f"left out: {name}, {seen_now - seen} of {packets} packets were "
                f"queued, {dropped_now - dropped} dropped"
            )
            continue
        figures[f"{name} packets/CPU-s"] = packets / spent
        times = sorted(_latencies(world, trips, call))
        for share in (50, 90, 99):
            figures[f"{name} p{share} us"] = times[len(times) * share // 100] * 1e6
    figures["TNS MiB/s"] = _transfer(world, _TNS)
    figures["untagged MiB/s"] = _transfer(world, _UNTAGGED)
    figures["TNS / untagged"] = figures["TNS MiB/s"] / figures["untagged MiB/s"]
    return figures


def main() -> int:
    """Measure and print the table, and all figures as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3200)
    parser.add_argument("--trips", type=int, default=200)
    parser.add_argument("--mebibytes", type=int, default=8)
    options = parser.parse_args()
    variants = [_PEER, "native", "netfilterqueue"]
    rounds: list[dict[str, Figures]] = []
    with World() as world, tempfile.TemporaryDirectory() as folder:
        Server(world, options.mebibytes).start()
        for number in range(options.rounds):
            turn = variants[number % 3 :] + variants[: number % 3]
            done: dict[str, Figures] = {}
            for variant in turn:
                done[variant] = _run(
                    *(world, variant, Path(folder), options.calls, options.trips)
                )
                print(number, variant, json.dumps(done[variant]), flush=True)
            rounds.append(done)
    names = dict.fromkeys(
        name for each in rounds for figures in each.values() for name in figures
    )
    for name in names:
        print(f"{name:<24}", end="")
        for variant in variants:
            values = [each[variant][name] for each in rounds if name in each[variant]]
            ratios = [
                each[variant][name] / each[_PEER][name]
                for each in rounds
                if name in each[variant] and name in each[_PEER]
            ]
            if values and ratios:
                print(
                    f" {variant} {statistics.median(values):,.2f}"
                    f" ({statistics.median(ratios):.2f} x)",
                    end="",
                )
        print()
    print(json.dumps(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
