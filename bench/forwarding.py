# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ruleset, or statistics, cost traffic that they have nothing to do with.

usage: VM_COUNTED=yes script/in-kernel .venv/bin/python -B -m bench.forwarding [...]

Datagrams of one established flow that no rule tags, sent through the gateway as fast as
one CPU can send and forward them. The table is put to sleep and woken between the runs,
which come in pairs. Where the emulated machine's time is that of its instructions
(VM_COUNTED), what else the host does meanwhile does not matter.

With --statistics each datagram begins a flow of its own, without a ruleset; what is
measured is that somebody follows new flows, none of which reach him.

The last line of the output is JSON, see `bench.table`.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from cthelper.core.control.collecting import KINDS
from cthelper.core.netlink.ctnetlink import Events
from cthelper.core.netlink.monitor import Monitor
from cthelper.core.tuples import Status
from tests.live.daemon import Daemon
from tests.live.world import SERVER, World

_PORT: Final = 9
_PAYLOAD: Final = bytes(64)
# Datagrams in one system call.
_BATCH: Final = 64
_FIRST: Final = 10_000
# A user's own rules, which have conntrack follow the flow with and without ours.
_STATEFUL: Final = """table inet user {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
	}
}
"""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr, of a socket that is connected."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("name_length", ctypes.c_uint32),
        ("iovec", ctypes.POINTER(_Iovec)),
        ("iovec_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint32),
    )


def measure(world: World, folder: Path, pairs: int, packets: int) -> list[float]:
    """Packets a second with the ruleset, over those without; one ratio for each pair.

    `packets` are sent in each run. Ends the benchmark where some did not arrive.
    """
    world.reset()
    world.gateway.run("nft", "-f", "-", input=_STATEFUL, check=True)
    with (
        Daemon(world.gateway, folder) as daemon,
        _flow(world) as sender,
    ):
        daemon.start()
        daemon.await_rest()
        # It would look, on the same CPU, what becomes of its table.
        daemon.send_signal(signal.SIGSTOP)
        ratios = []
        for number in range(pairs):
            rates = {}
            for asleep in (True, False) if number % 2 else (False, True):
                _sleep(world, asleep=asleep)
                rates[asleep] = _rate(world, sender, packets)
            ratios.append(rates[False] / rates[True])
        daemon.send_signal(signal.SIGCONT)
        daemon.stop()
    return ratios


def measure_statistics(world: World, pairs: int, packets: int) -> list[float]:
    """New flows a second while they are followed, over those while they are not."""
    world.reset()
    world.gateway.run("nft", "-f", "-", input=_STATEFUL, check=True)
    with world.client.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ratios = []
    with sender, world.gateway.entered(), closing(Events()):
        # As beside a daemon, the ends of flows are followed anyway.
        for number in range(pairs):
            rates = {}
            for followed in (True, False) if number % 2 else (False, True):
                world.forget()
                with _followed() if followed else nullcontext():
                    rates[followed] = _rate(world, sender, packets, _FIRST)
            ratios.append(rates[True] / rates[False])
    return ratios


@contextmanager
def _followed() -> Iterator[None]:
    """As for the statistics of a daemon that expects nothing."""
    with closing(Monitor(KINDS, status=Status.EXPECTED, buffer=1 << 20)):
        yield


@contextmanager
def _flow(world: World) -> Iterator[socket.socket]:
    """The client's end of an established flow, whose server reads no more."""
    with world.server.entered():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with world.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.bind((SERVER, _PORT))
        client.connect((SERVER, _PORT))
        client.send(b"call")
        _, asker = server.recvfrom(100)
        server.sendto(b"answer", asker)
        client.recv(100)
        yield client


def _sleep(world: World, *, asleep: bool) -> None:
    flags = "{ flags dormant; }" if asleep else ""
    world.gateway.run("nft", f"add table inet cthelper {flags}", check=True)


def _rate(
    world: World, sender: socket.socket, packets: int, first: int | None = None
) -> float:
    """Packets a second of one run; from port `first` on each goes to another one."""
    libc = ctypes.CDLL(None, use_errno=True)
    batches = list(_batches(packets, first))
    before = _arrived(world)
    began = time.perf_counter()
    sent = 0
    for batch in batches:
        done = libc.sendmmsg(sender.fileno(), batch, _BATCH, 0)
        if done < 0:
            raise OSError(ctypes.get_errno(), "sendmmsg")
        sent += done
    took = time.perf_counter() - began
    arrived = _arrived(world) - before
    if arrived < sent:
        raise SystemExit(f"bench: {sent - arrived} of {sent} packets did not arrive")
    return sent / took


def _batches(packets: int, first: int | None) -> Iterator["ctypes.Array[_Message]"]:
    """What so many datagrams are sent by, of one system call each."""
    iovec = _Iovec(_PAYLOAD, len(_PAYLOAD))
    for number in range(0, packets, _BATCH):
        batch = (_Message * _BATCH)(
            *(
                _Message(iovec=ctypes.pointer(iovec), iovec_length=1)
                for _ in range(_BATCH)
            )
        )
        if first is not None:
            for port, message in enumerate(batch, first + number):
                name = _name(port)
                message.name, message.name_length = name, len(name)
        yield batch


def _name(port: int) -> bytes:
    """Struct sockaddr_in of a port of the server's."""
    family = struct.pack("=H", socket.AF_INET)
    return family + struct.pack("!H4s8x", port, socket.inet_aton(SERVER))


def _arrived(world: World) -> int:
    """How many packets the server's interface has received."""
    with world.server.entered():
        text = Path("/proc/thread-self/net/dev").read_text("ascii")
    (line,) = (each for each in text.splitlines() if each.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[1])


def main() -> int:
    """Measure; the last line has the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--packets", type=int, default=6400, help="of a run")
    parser.add_argument(
        "--statistics", action="store_true", help="what statistics cost new flows"
    )
    options = parser.parse_args()
    # Sending and forwarding take turns on one CPU.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with World() as world, tempfile.TemporaryDirectory() as folder:
        if options.statistics:
            ratios = measure_statistics(world, options.pairs, options.packets)
        else:
            ratios = measure(world, Path(folder), options.pairs, options.packets)
    print(json.dumps({"kernel": os.uname().release, "ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
