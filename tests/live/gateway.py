# SPDX-License-Identifier: GPL-2.0-or-later
"""What the gateway's kernel holds, read as the daemon reads it."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from typing import Final

from cthelper.core.daemon.probe import NAME, Kernel
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import HelperTable, Registration
from cthelper.core.tuples import TCP, UDP, Conntrack, Endpoint, Tuple
from tests.live.world import World

ASK: Final = (
    *(sys.executable, "-B", "-c"),
    "import dataclasses, json;"
    "from cthelper.core.daemon.probe import ask;"
    "print(json.dumps(dataclasses.asdict(ask())))",
)


def asking(world: World) -> "subprocess.Popen[str]":
    """A process that asks the gateway's kernel what it does; it has no threads."""
    return world.gateway.start(*ASK, stdout=subprocess.PIPE)


def answer(process: "subprocess.Popen[str]") -> Kernel:
    """What it was told."""
    told, _ = process.communicate(timeout=90)
    return Kernel(**json.loads(told))


def ask_here() -> Kernel:
    """What the kernel does, asked where this process is."""
    return answer(subprocess.Popen(ASK, stdout=subprocess.PIPE, text=True))


def ask_in(world: World) -> Kernel:
    """What the gateway's kernel does."""
    return answer(asking(world))


@contextmanager
def helper_table(world: World) -> Iterator[HelperTable]:
    """The gateway's table of helpers; the tests stay where they are."""
    with world.gateway.entered():
        table = HelperTable()
    with closing(table):
        yield table


@contextmanager
def ctnetlink(world: World) -> Iterator[Ctnetlink]:
    """The gateway's entries and expectations; the tests stay where they are."""
    with world.gateway.entered():
        kernel = Ctnetlink()
    with closing(kernel):
        yield kernel


def tables(world: World) -> str:
    """The tables of nft, as it lists them."""
    return world.gateway.run("nft", "list", "tables", check=True).stdout


def registered(world: World) -> list[Registration]:
    """The helpers that are registered, but for what the kernel is asked with."""
    return [each for each in all_registered(world) if each.name != NAME]


def all_registered(world: World) -> list[Registration]:
    """The helpers that are registered."""
    with helper_table(world) as table:
        return table.list()


def entries(world: World) -> list[Conntrack]:
    """All conntrack entries."""
    with ctnetlink(world) as kernel:
        return kernel.entries()


def entry_of(world: World, flow: socket.socket) -> Conntrack:
    """The conntrack entry of a flow of the client's."""
    transport = TCP if flow.type == socket.SOCK_STREAM else UDP
    ours, theirs = (
        Endpoint(ip_address(address), port)
        for address, port in (flow.getsockname(), flow.getpeername())
    )
    with ctnetlink(world) as kernel:
        return kernel.get(Tuple(transport, ours, theirs))
