# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon beside conntrackd: the same traffic in the same boot of one kernel.

usage: VM_CPUS=2 script/in-kernel .venv/bin/python -B -m bench.live [...]

Needs root, and a kernel that the live tests can use. Each round runs conntrackd and the
daemon with either queue backend, in an order that rotates. CPU is the daemon's time on
the CPU (/proc/PID/schedstat), which has the kernel's forwarding of the packets that it
releases in it; of NULL calls the answers alone come to its queue. Where there are two
CPUs the daemon has one, and clients and servers the other. A run in which packets did
not pass the queues, or were dropped there, is left out and named; so is all that a
daemon did which had packets bypassed.

How much of a packet's CPU is the kernel's is printed. With VM_COUNTED in place of
VM_CPUS a microsecond is a thousand instructions, whatever else the machine does.

The last line of the output is JSON, see `bench.table`.
"""

import argparse
import itertools
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench import BACKENDS, PEER, UNLIMITED, resident
from cthelper.core.netlink.ctnetlink import Ctnetlink
from tests.live.conntrackd import RPC_TNS, conntrackd
from tests.live.daemon import Daemon
from tests.live.traffic import getport_call, getport_reply, null_call
from tests.live.world import SERVER, World

# NULL calls are under way in one flow, so many at a time. GETPORT has so many flows,
# each with one call under way: conntrackd's helper remembers one call of a flow, and
# would ignore the answers to all others.
_WINDOW: Final = 64
_ASKERS: Final = 16
# What a policy of both lets a flow expect at a time.
_EXPECTED: Final = 8
# New flows that wait for their answer at a time.
_FLOWS: Final = 32
_CONFIG: Final = f"""{UNLIMITED}
[daemon]
backend = "{{}}"
flow_limit = 131072
"""
_TNS, _UNTAGGED, _REDIRECTED = 1521, 1522, 1999
# Announced ports are taken in turn, so that each announcement is another one.
_FIRST_PORT, _PORTS = 20_000, 40_000
_CONNECT, _ACCEPT, _REDIRECT = 1, 2, 5
_SYSCTLS: Final = {
    "nf_conntrack_expect_max": 65536,
    "nf_conntrack_max": 262_144,
}

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much a run does: calls of a kind, round trips, new flows, and MiB to send.

    `fewer` MiB are sent where it is not with the native backend.
    """

    calls: int
    trips: int
    flows: int
    mebibytes: int
    fewer: int


class Server(threading.Thread):
    """Answers calls of the portmapper, and streams to who connects to TNS ports.

    Who connects to the listener is accepted, or redirected where he asks for it. He
    says how many MiB he wants.
    """

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        with world.server.entered():
            self._calls = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listeners = [
                socket.create_server((SERVER, port))
                for port in (_TNS, _UNTAGGED, _REDIRECTED)
            ]
        self._calls.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._calls.bind((SERVER, 111))
        for listener in listeners:
            threading.Thread(target=_serve, args=(listener,), daemon=True).start()

    def run(self) -> None:
        """Answer until the process ends."""
        announced = 0
        while True:
            call, asker = self._calls.recvfrom(2048)
            xid = int.from_bytes(call[:4])
            if call[20:24] == b"\0\0\0\3":
                port = _FIRST_PORT + announced % _PORTS
                announced += 1
                self._calls.sendto(getport_reply(xid, port), asker)
            else:
                self._calls.sendto(struct.pack("!6I", xid, 1, 0, 0, 0, 0), asker)


def _serve(listener: socket.socket) -> None:
    block = bytes(1 << 20)
    while True:
        connection, _ = listener.accept()
        with connection:
            if b"redirect" in connection.recv(2048):
                text = f"(ADDRESS=(PROTOCOL=tcp)(HOST={SERVER})(PORT={_REDIRECTED}))"
                body = struct.pack("!H", len(text)) + text.encode()
                connection.sendall(_packet(_REDIRECT, body))
                continue
            connection.sendall(_packet(_ACCEPT, bytes(24)))
            for _ in range(int.from_bytes(connection.recv(4))):
                connection.sendall(block)


def _packet(kind: int, body: bytes) -> bytes:
    """A TNS packet."""
    return struct.pack("!HHBBH", 8 + len(body), 0, kind, 0, 0) + body


def _asker(world: World) -> socket.socket:
    with world.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(30.0)
    client.connect((SERVER, 111))
    return client


def _calls(
    world: World, count: int, call: Callable[[int], bytes], flows: int, window: int
) -> int:
    """At least so many calls, a window under way in each flow; packets both ways."""
    xids = itertools.count(1)
    sent = 0
    with ExitStack() as stack:
        askers = [stack.enter_context(_asker(world)) for _ in range(flows)]
        turn = [asker for asker in askers for _ in range(window)]
        while sent < count:
            for asker in turn:
                asker.send(call(next(xids)))
            for asker in turn:
                asker.recv(2048)
            sent += len(turn)
    return sent * 2


def _latencies(world: World, count: int, call: Callable[[int], bytes]) -> list[float]:
    """Round trips of calls one at a time, in seconds, in order of size."""
    trips = []
    with _asker(world) as client:
        for xid in range(count):
            sent = time.perf_counter()
            client.send(call(xid))
            client.recv(2048)
            trips.append(time.perf_counter() - sent)
    return sorted(trips)


def _new_flows(world: World, count: int) -> float:
    """Flows a second that ask for one port each, some under way at a time."""
    began = time.perf_counter()
    for start in range(0, count, _FLOWS):
        with ExitStack() as stack:
            flows = [
                stack.enter_context(_asker(world))
                for _ in range(start, min(start + _FLOWS, count))
            ]
            for xid, flow in enumerate(flows, start):
                flow.send(getport_call(xid))
            for flow in flows:
                flow.recv(2048)
    return count / (time.perf_counter() - began)


def _transfer(world: World, port: int, mebibytes: int) -> float:
    """MiB a second of one transfer after ACCEPT."""
    with world.client.entered():
        client = socket.socket()
    with client:
        client.settimeout(120.0)
        client.connect((SERVER, port))
        client.sendall(_packet(_CONNECT, bytes(58)))
        client.recv(2048)
        time.sleep(1.5)  # a finished flow leaves the queue with the next sweep
        began, received = time.perf_counter(), 0
        client.sendall(mebibytes.to_bytes(4))
        while data := client.recv(1 << 18):
            received += len(data)
        assert received == mebibytes << 20  # noqa: S101 - as the server sends it
        return mebibytes / (time.perf_counter() - began)


def _follow(world: World) -> None:
    """Be redirected, so that the port where the session goes on is expected."""
    with world.client.entered():
        client = socket.socket()
    with client:
        client.settimeout(60.0)
        client.connect((SERVER, _TNS))
        client.sendall(_packet(_CONNECT, bytes(50) + b"redirect"))
        while client.recv(2048):
            pass


def _expectations(world: World) -> int:
    with world.gateway.entered(), closing(Ctnetlink()) as kernel:
        return len(kernel.expectations())


def _cpu(pids: Sequence[int]) -> float:
    texts = (Path(f"/proc/{pid}/schedstat").read_text("ascii") for pid in pids)
    return sum(int(text.split()[0]) for text in texts) / 1e9


def _ticks(pids: Sequence[int]) -> tuple[int, int]:
    """The same in user space and in the kernel, in hundredths of a second."""
    texts = (Path(f"/proc/{pid}/stat").read_text("ascii") for pid in pids)
    fields = [text.rpartition(")")[2].split() for text in texts]
    return sum(int(each[11]) for each in fields), sum(int(each[12]) for each in fields)


def _queued(world: World) -> tuple[int, int]:
    """How many packets the gateway's queues have had, and how many they dropped."""
    rows = world.queues().values()
    return sum(row.last for row in rows), sum(row.dropped for row in rows)


def _pid(name: str) -> int:
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                return int(path.parent.name)
        except OSError:
            continue
    raise SystemExit(f"bench: no process {name}")


def _apart(pids: Sequence[int]) -> None:
    """Give a daemon a CPU of its own, where there are two."""
    own, *others = sorted(os.sched_getaffinity(0))[::-1]
    for pid in pids if others else ():
        os.sched_setaffinity(pid, {own})


@contextmanager
def _pinned() -> Iterator[None]:
    """Keep clients and servers off the daemon's CPU; threads come with it."""
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) > 1:
        os.sched_setaffinity(0, everywhere - {max(everywhere)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


class Bench:
    """Runs the variants in one world."""

    def __init__(self, world: World, folder: Path, amount: Amount) -> None:
        self._world = world
        self._folder = folder
        self._amount = amount

    def run(self, variant: str) -> Figures:
        """The figures of one run of a variant."""
        world = self._world
        world.reset()
        if variant == PEER:
            began = time.perf_counter()
            with conntrackd(world, self._folder, *RPC_TNS):
                started = time.perf_counter() - began
                return {
                    "start s": started,
                    **self._measure([_pid(PEER)], ours=False, whole=False),
                }
        with Daemon(world.gateway, self._folder) as daemon:
            began = time.perf_counter()
            daemon.start(_CONFIG.format(variant))
            started = time.perf_counter() - began
            figures = {"start s": started, "start CPU s": _cpu(daemon.processes)}
            # It looks at the ruleset once more, on the CPU that it has for all it does.
            daemon.await_rest()
            whole = variant == BACKENDS[0]
            figures |= self._measure(daemon.processes, ours=True, whole=whole)
            daemon.stop()
            (stopped,) = daemon.events("stopped")
        # A packet that passes a full queue has taken a number there already.
        if bypassed := stopped["bypassed"]:
            print(f"left out: {variant} had {bypassed} packets bypassed")
            return {}
        return figures

    def _measure(self, pids: Sequence[int], *, ours: bool, whole: bool) -> Figures:
        amount, world = self._amount, self._world
        figures: Figures = {}
        _apart(pids)
        for name, call, flows, window in (
            ("null", null_call, 1, _WINDOW),
            ("getport", getport_call, _ASKERS, 1),
        ):
            calls = partial(_calls, world, amount.calls, call, flows, window)
            # Our ruleset leaves these calls out, and queues their answers.
            share = 0.5 if ours and call is null_call else 1.0
            rate = self._rate(pids, name, calls, share)
            if rate is None:
                continue
            there = _expectations(world)
            if there != (_EXPECTED * _ASKERS if call is getport_call else 0):
                print(f"left out: {name}, {there} are expected")
                continue
            figures[f"{name} packets/CPU-s"] = rate
            trips = _latencies(world, amount.trips, call)
            for share in (50, 90, 99):
                index = len(trips) * share // 100
                figures[f"{name} p{share} us"] = trips[index] * 1e6
        world.conntrack("-F")
        per_second = _new_flows(world, amount.flows)
        if (there := _expectations(world)) == amount.flows:
            figures["new flows/s"] = per_second
        else:
            print(f"left out: new flows, {there} of {amount.flows} are expected")
        world.conntrack("-F")
        mebibytes = amount.mebibytes if whole else amount.fewer
        return figures | self._transfers(mebibytes)

    def _transfers(self, mebibytes: int) -> Figures:
        """Of a tagged flow and a redirected one, between two that are neither."""
        world = self._world
        before = _transfer(world, _UNTAGGED, mebibytes)
        figures = {"TNS MiB/s": _transfer(world, _TNS, mebibytes)}
        _follow(world)
        if _expectations(world):
            figures["redirected MiB/s"] = _transfer(world, _REDIRECTED, mebibytes)
        else:
            print("left out: the redirected session, which is not expected")
        plain = (before + _transfer(world, _UNTAGGED, mebibytes)) / 2
        for name in ("TNS", "redirected"):
            if f"{name} MiB/s" in figures:
                figures[f"{name} / untagged"] = figures[f"{name} MiB/s"] / plain
        return figures | {"untagged MiB/s": plain}

    def _rate(
        self,
        pids: Sequence[int],
        name: str,
        calls: Callable[[], int],
        share: float,
    ) -> float | None:
        """Packets of calls per second of the daemon's on the CPU.

        None: fewer than this share of them were queued, or some were dropped.
        """
        seen, dropped = _queued(self._world)
        spent, (user, kernel) = _cpu(pids), _ticks(pids)
        try:
            packets = calls()
        except TimeoutError:
            print(f"left out: {name}, a call was not answered")
            return None
        spent, (user_now, kernel_now) = _cpu(pids) - spent, _ticks(pids)
        seen_now, dropped_now = _queued(self._world)
        if seen_now - seen < packets * share or dropped_now != dropped:
            print(
                f"left out: {name}, {seen_now - seen} of {packets} packets were "
                f"queued, {dropped_now - dropped} dropped"
            )
            return None
        ours, theirs = user_now - user, kernel_now - kernel
        print(
            f"{name}: {spent / packets * 1e6:.1f} us of CPU a packet, "
            f"{theirs / max(1, ours + theirs):.0%} of it in the kernel"
        )
        return packets / spent

    def memory(self, flows: int) -> Figures:
        """What so many flows at a time take, each of which asked for a port."""
        world = self._world
        world.reset()
        with Daemon(world.gateway, self._folder) as daemon:
            daemon.start(_CONFIG.format(BACKENDS[0]))
            (server,) = daemon.processes[1:]
            idle = resident(server)
            _new_flows(world, flows)
            there = _expectations(world)
            figures = {
                "flows": float(flows),
                "expectations": float(there),
                "MiB": resident(server) - idle,
            }
            daemon.stop()
            (stopped,) = daemon.events("stopped")
        figures["bypassed"] = float(stopped["bypassed"])
        return figures


def main() -> int:
    """Measure; progress and, as the last line, all figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=640, help="of each kind")
    parser.add_argument("--trips", type=int, default=60)
    parser.add_argument("--flows", type=int, default=256)
    parser.add_argument("--mebibytes", type=int, default=256, help="of a transfer")
    parser.add_argument("--fewer", type=int, default=32, help="but for native")
    parser.add_argument("--memory", type=int, default=20_000, help="flows; 0: none")
    options = parser.parse_args()
    amount = Amount(
        *(options.calls, options.trips, options.flows),
        *(options.mebibytes, options.fewer),
    )
    variants = (PEER, *BACKENDS)
    rounds: list[dict[str, Figures]] = []
    with (
        World() as world,
        tempfile.TemporaryDirectory() as folder,
        _pinned(),
    ):
        for name, value in _SYSCTLS.items():
            # Those of the first namespace are for all.
            Path("/proc/sys/net/netfilter", name).write_text(f"{value}\n")
        Server(world).start()
        bench = Bench(world, Path(folder), amount)
        for number in range(options.rounds):
            first = number % len(variants)
            done: dict[str, Figures] = {}
            for variant in variants[first:] + variants[:first]:
                began = time.perf_counter()
                done[variant] = bench.run(variant)
                took = time.perf_counter() - began
                print(number, variant, f"{took:.0f} s", done[variant], flush=True)
            rounds.append(done)
        memory = bench.memory(options.memory) if options.memory else {}
    result = {"kernel": os.uname().release, "rounds": rounds, "memory": memory}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
