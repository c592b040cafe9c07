# SPDX-License-Identifier: GPL-2.0-or-later
"""A gateway with two registered helpers, rules that tag flows with them, and flows.

For tests of the netlink layer alone: no daemon runs, and the tests answer the queue.
"""

import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Final, Self

from cthelper.core.api import Policy
from cthelper.core.daemon.ruleset import unregister
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import FAMILIES, HelperTable, Registration
from cthelper.core.tuples import (
    TCP,
    UDP,
    Endpoint,
    Expectation,
    Transport,
    Tuple,
    host_network,
)
from tests.live.world import CLIENT, CLIENT6, SERVER, SERVER6, Family, World

NAME: Final = "lab"
OTHER: Final = "lab-other"
QUEUE: Final = 4077

# Control ports: of the one helper, of the other, of none, and of the one in ZONE.
PORT: Final = 7200
OTHER_PORT: Final = 7201
UNTAGGED_PORT: Final = 7202
ZONE_PORT: Final = 7203
ZONE: Final = 5

# Expected flows from the one port are in ZONE, those to the other one are tagged too.
ZONE_SOURCE_PORT: Final = 7204
TAGGED_PORT: Final = 7205

TIMEOUT: Final = 30
BRIEF: Final = 2
# The second one is taken only by an expectation that names a helper.
POLICIES: Final = (Policy("data", 8, TIMEOUT), Policy("brief", 8, BRIEF))
OTHER_POLICIES: Final = (Policy("data", 2, TIMEOUT),)

_TABLE: Final = f"""
table inet lab {{
    ct helper lab-udp {{
        type "{NAME}" protocol udp;
    }}
    ct helper lab-tcp {{
        type "{NAME}" protocol tcp;
    }}
    ct helper other-udp {{
        type "{OTHER}" protocol udp;
    }}
    chain zone {{
        type filter hook prerouting priority raw; policy accept;
        udp dport {ZONE_PORT} ct zone set {ZONE}
        udp sport {{ {ZONE_PORT}, {ZONE_SOURCE_PORT} }} ct zone set {ZONE}
    }}
    chain tag {{
        type filter hook prerouting priority -150; policy accept;
        udp dport {TAGGED_PORT} ct helper set "lab-udp"
        ct state != new return
        udp dport {{ {PORT}, {ZONE_PORT} }} ct helper set "lab-udp"
        tcp dport {PORT} ct helper set "lab-tcp"
        udp dport {OTHER_PORT} ct helper set "other-udp"
    }}
}}
"""

# Has the packets of tagged flows queued.
_QUEUEING: Final = f"""
table inet lab {{
    chain postrouting {{
        type filter hook postrouting priority 300; policy accept;
        ct status & 0x2000 != 0 queue num {QUEUE} bypass
    }}
    chain input {{
        type filter hook input priority 300; policy accept;
        ct status & 0x2000 != 0 queue num {QUEUE} bypass
    }}
}}
"""

# Expectations of two masters may not clash, so no test takes another's port.
_ports = itertools.count(20000)
# Of flows. An entry outlives its sockets, and a port that the kernel chose could be met
# again: the flow would then be one that began before this test.
_sources = itertools.count(10000)


class Lab:
    """The helpers and the rules; a context manager that removes them again.

    With `queueing` the packets of tagged flows go to QUEUE, where the test serves it.
    """

    def __init__(self, world: World, *, queueing: bool = False) -> None:
        self.world = world
        self._rules = _TABLE + (_QUEUEING if queueing else "")
        self._registrations = _registrations()
        with world.gateway.entered():
            self.ctnetlink = Ctnetlink()
            self.helpers = HelperTable()

    def __enter__(self) -> Self:
        self.world.reset()
        for registration in self._registrations:
            self.helpers.put(registration)
        self.world.gateway.run("nft", "-f", "-", input=self._rules, check=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.world.reset()
        unregister(self.helpers, self._registrations)
        self.helpers.close()
        self.ctnetlink.close()

    def held(self, wanted: Expectation) -> list[Expectation]:
        """What the kernel holds for the destination of this expectation."""
        return [
            each
            for each in self.ctnetlink.expectations()
            if (each.transport, each.destination)
            == (wanted.transport, wanted.destination)
        ]


class Flow:
    """A UDP flow from the client to the server with both its sockets, a context.

    Nothing has been sent before `begin`.
    """

    def __init__(self, world: World, port: int = PORT, family: Family = 4) -> None:
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        client, server = (CLIENT, SERVER) if family == 4 else (CLIENT6, SERVER6)
        with world.client.entered():
            self.client = socket.socket(kind, socket.SOCK_DGRAM)
        with world.server.entered():
            self.server = socket.socket(kind, socket.SOCK_DGRAM)
        self.client.settimeout(5.0)
        self.server.settimeout(5.0)
        self.client.bind((client, next(_sources)))
        self.client.connect((server, port))
        # Connected to each other, flows to the same port do not mix.
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.bind((server, port))
        local = self.client.getsockname()[1]
        self.server.connect((client, local))
        self.original = Tuple(
            UDP,
            Endpoint(ip_address(client), local),
            Endpoint(ip_address(server), port),
        )
        self.reply = Tuple(UDP, self.original.destination, self.original.source)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        self.server.close()

    def begin(self) -> Self:
        """Have the server receive one datagram, so that the entry is confirmed."""
        self.client.send(b"hello")
        assert self.server.recv(100) == b"hello"
        return self

    def expectation(self, **changes: Any) -> Expectation:
        """An expectation of this flow: the server may send to a new client's port."""
        wanted = Expectation(
            master=self.original,
            transport=UDP,
            source=host_network(self.original.destination.address),
            source_port=None,
            destination=Endpoint(self.original.source.address, next(_ports)),
            policy="data",
            timeout=TIMEOUT,
        )
        return replace(wanted, **changes)


@contextmanager
def expected_flow(world: World, expectation: Expectation) -> Iterator[Tuple]:
    """The server sends one datagram to what is expected; the new flow's tuple."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}
    family = kind[expectation.destination.address.version]
    server = SERVER if family == socket.AF_INET else SERVER6
    destination = expectation.destination
    with ExitStack() as stack:
        with world.client.entered():
            receiver = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        with world.server.entered():
            sender = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        receiver.settimeout(5.0)
        receiver.bind((str(destination.address), destination.port))
        sender.bind((server, expectation.source_port or 0))
        sender.sendto(b"data", (str(destination.address), destination.port))
        assert receiver.recv(100) == b"data"
        port = sender.getsockname()[1]
        yield Tuple(UDP, Endpoint(ip_address(server), port), destination)


@contextmanager
def tcp_flow(world: World, port: int = PORT, family: Family = 4) -> Iterator[Tuple]:
    """An established TCP flow from the client to the server; its original tuple."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    client, server = (CLIENT, SERVER) if family == 4 else (CLIENT6, SERVER6)
    with ExitStack() as stack:
        with world.server.entered():
            listener = stack.enter_context(socket.socket(kind))
        with world.client.entered():
            connected = stack.enter_context(socket.socket(kind))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((server, port))
        listener.listen()
        connected.settimeout(5.0)
        connected.connect((server, port))
        local = connected.getsockname()[1]
        yield Tuple(
            TCP,
            Endpoint(ip_address(client), local),
            Endpoint(ip_address(server), port),
        )


def until(ready: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def readable(descriptor: int, seconds: float = 5.0) -> bool:
    """Wait for a descriptor to be readable, and tell whether it is."""
    return bool(select.select([descriptor], [], [], seconds)[0])


def _registrations() -> list[Registration]:
    return [
        Registration(
            name=NAME,
            family=family,
            transport=transport,
            queue=QUEUE,
            policies=POLICIES,
        )
        for family in FAMILIES
        for transport in Transport
    ] + [
        Registration(
            name=OTHER,
            family=socket.AF_INET,
            transport=UDP,
            queue=QUEUE,
            policies=OTHER_POLICIES,
        )
    ]
