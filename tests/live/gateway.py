# SPDX-License-Identifier: GPL-2.0-or-later
"""What the gateway's kernel holds, read as the daemon reads it."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address

from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import HelperTable, Registration
from cthelper.core.tuples import TCP, UDP, Conntrack, Endpoint, Tuple
from tests.live.world import World


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
