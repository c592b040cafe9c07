# SPDX-License-Identifier: GPL-2.0-or-later
"""How many expectations a real kernel's table gets from us, and what is left of it."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.errors import TableFull
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.tuples import TCP, UDP, Endpoint, Expectation, Tuple, host_network
from tests.live.daemon import Daemon, equal_limits, only
from tests.live.gateway import ctnetlink
from tests.live.traffic import PORT, Background, getport_call, getport_reply, null_call
from tests.live.world import CLIENT, ETH, SERVER, Namespace, World, until

pytestmark = pytest.mark.live

MOST: Final = 120
"""Of a machine of 1 GB (nf_conntrack_expect_init)."""
OURS: Final = 90 * 3 // 4
"""Of those that ask over UDP, and may be forged; a quarter of 120 is left to others."""
OF_SOURCE: Final = 33 * 4 // 6
"""Of one of them: what a source may have is three eighths of 90."""
OF_SERVER: Final = 45 * 3 // 4
_LIMIT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_expect_max")

CLIENTS: Final = [CLIENT, *(f"10.77.1.{host}" for host in range(20, 26))]
SERVERS: Final = [SERVER, "10.77.2.20", "10.77.2.21"]
CONFIG: Final = f"{only('sunrpc')}[helpers.sunrpc]\nports = [111, {PORT}]\n"


class Portmapper(Background):
    """Announces another port to each call; which one the call says."""

    def __init__(self, namespace: Namespace, address: str) -> None:
        super().__init__(namespace, timeout=0.2)
        self._socket.bind((address, PORT))

    def _step(self) -> None:
        try:
            data, asker = self._socket.recvfrom(65535)
        except TimeoutError:
            return
        xid = int.from_bytes(data[:4])
        self._socket.sendto(getport_reply(xid, xid), asker)


@pytest.fixture
def peers(world: World) -> Iterator[World]:
    """A table for few, and hosts with more addresses."""
    before = _LIMIT.read_text()
    try:
        _LIMIT.write_text(str(MOST))
        with ExitStack() as stack:
            for namespace, addresses in (
                (world.client, CLIENTS),
                (world.server, SERVERS),
            ):
                for each in addresses[1:]:
                    command = ("ip", "address", "add", f"{each}/24", "dev", ETH)
                    namespace.run(*command, check=True)
                    stack.callback(namespace.run, "ip", "address", "del", *command[3:])
            for each in SERVERS:
                stack.enter_context(Portmapper(world.server, each))
            yield world
    finally:
        _LIMIT.write_text(before)


def asked(world: World, client: str, server: str, ports: range) -> None:
    """Have ports announced to a client, each in a flow of its own."""
    for port in ports:
        with world.client.entered():
            flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with flow:
            flow.settimeout(10)
            flow.bind((client, 0))
            flow.connect((server, PORT))
            flow.send(getport_call(port))
            assert flow.recv(100) == getport_reply(port, port)


def masters(world: World, count: int) -> list[Tuple]:
    """Flows of ours that announce nothing."""
    made = []
    for _ in range(count):
        with world.client.entered():
            flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with flow:
            flow.settimeout(10)
            flow.connect((SERVER, PORT))
            flow.send(null_call(7))
            flow.recv(100)
            own, other = flow.getsockname(), flow.getpeername()
        ends = [Endpoint(ip_address(host), port) for host, port in (own, other)]
        made.append(Tuple(UDP, ends[0], ends[1]))
    return made


def of_another_program(master: Tuple, port: int) -> Expectation:
    return Expectation(
        master=master,
        transport=TCP,
        source=host_network(ip_address(CLIENT)),
        source_port=None,
        destination=Endpoint(ip_address(SERVER), port),
        policy=None,
        timeout=60,
    )


def held(kernel: Ctnetlink) -> int:
    """How many there are; that many the kernel has to list."""
    there = len(kernel.expectations())
    assert kernel.expectation_count() == there
    return there


def test_part_of_the_table_is_left_to_other_programs(
    peers: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG + equal_limits(300))
    with ctnetlink(peers) as kernel:
        assert held(kernel) == 0
        asked(peers, CLIENTS[0], SERVERS[0], range(20000, 20040))
        assert held(kernel) == OF_SOURCE
        # That of two sources does not fill the table, nor what a server announces.
        asked(peers, CLIENTS[1], SERVERS[0], range(20000, 20040))
        asked(peers, CLIENTS[2], SERVERS[0], range(20000, 20040))
        assert held(kernel) == OF_SERVER
        for number, client in enumerate(CLIENTS[3:]):
            ports = range(21000 + 40 * number, 21040 + 40 * number)
            asked(peers, client, SERVERS[1 + number % 2], ports)
        assert held(kernel) == OURS
        reasons = {str(each["reason"]) for each in daemon.events("refused")}
        assert reasons == {"live-source", "live-server", "live-unproven"}
        # What lives is renewed, though nothing new is granted.
        asked(peers, CLIENTS[0], SERVERS[0], range(20000, 20004))
        told = daemon.events("expectation")[-4:]
        assert [each["how"] for each in told] == ["shared"] * 4
        # And other programs put in theirs.
        flows = masters(peers, 7)
        places = [(flow, port) for flow in flows for port in range(30000, 30008)]
        for number, (flow, port) in enumerate(places[: MOST - OURS]):
            kernel.expect(of_another_program(flow, port + 10 * number))
        assert held(kernel) == MOST
        with pytest.raises(TableFull):
            kernel.expect(of_another_program(flows[-1], 40000))


def test_client_that_goes_where_it_was_told_is_never_refused(
    peers: World, daemon: Daemon
) -> None:
    """One after the other, as the sessions of a pool; nobody tells that they began."""
    config = CONFIG.replace("[helpers.sunrpc]\n", '[helpers.sunrpc]\nmode="oneshot"\n')
    daemon.start(config + equal_limits(300))
    with peers.client.entered():
        session = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with session, ctnetlink(peers) as kernel:
        session.bind((CLIENT, 0))
        for port in range(20000, 20000 + 4 * OF_SOURCE):
            asked(peers, CLIENT, SERVER, range(port, port + 1))
            assert held(kernel) == 1
            session.sendto(b"x", (SERVER, port))
            # It may be met between two questions: one is asked until then.
            assert until(lambda: kernel.expectation_count() == 0, 10)
            assert held(kernel) == 0
    assert daemon.events("refused") == []
