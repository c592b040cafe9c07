# SPDX-License-Identifier: GPL-2.0-or-later
"""Real clients and servers: without the daemon each fails, with it each works, and when
the policy's timeout is over the port is shut again.

The whole story runs once for all clients, since starting things is what costs most; the
tests then look at one chapter of one client each.
"""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.daemon import Daemon
from tests.live.traffic import knock
from tests.live.world import (
    CLIENT,
    CLIENT6,
    ETH,
    GATEWAY_WAN,
    MDNS_PORT,
    MOUNTD,
    RSTATD,
    SERVER,
    SERVER6,
    WAN,
    Family,
    Netid,
    Transport,
    World,
)

pytestmark = pytest.mark.live

TIMEOUT = 3
CONFIG = f"""
[helpers.sunrpc.policies.service]
timeout = {TIMEOUT}
[helpers.mdns.policies.answer]
timeout = {TIMEOUT}
"""


@dataclass(frozen=True)
class Client:
    """A real client; `call` runs it and says whether it was served."""

    netid: Netid
    program: int
    call: Callable[[World, float], bool]

    @property
    def transport(self) -> Transport:
        return "tcp" if self.netid.startswith("tcp") else "udp"

    @property
    def addresses(self) -> tuple[str, str]:
        return (CLIENT6, SERVER6) if self.netid.endswith("6") else (CLIENT, SERVER)


def rpcinfo(netid: Netid) -> Client:
    def call(world: World, seconds: float) -> bool:
        return world.rpcinfo(netid, timeout=seconds).returncode == 0

    return Client(netid, MOUNTD, call)


CLIENTS = {
    "rpcinfo -T tcp": rpcinfo("tcp"),
    "rpcinfo -T udp": rpcinfo("udp"),
    "rpcinfo -T tcp6": rpcinfo("tcp6"),
    "rpcinfo -T udp6": rpcinfo("udp6"),
    "rpcinfo -u": Client(
        "udp", RSTATD, lambda world, seconds: world.rstat(seconds).returncode == 0
    ),
    "showmount -e": Client(
        "tcp",
        MOUNTD,
        lambda world, seconds: world.showmount(4, seconds).returncode == 0,
    ),
    "showmount -e, IPv6": Client(
        "tcp6",
        MOUNTD,
        lambda world, seconds: world.showmount(6, seconds).returncode == 0,
    ),
}
FAMILIES: tuple[Family, ...] = (4, 6)

# A client that is to fail need not be given its whole time: what its flow does is
# counted at once. One that is to work gets all of it.
FAILING_SECONDS = 3.5
WORKING_SECONDS = 10.0


@dataclass(frozen=True)
class Call:
    """What one run of a client did: was it served, and how many were dropped."""

    served: bool
    dropped: int


@dataclass(frozen=True)
class Story:
    """All chapters of all clients."""

    without: dict[str, Call]
    working: dict[str, Call]
    entries: str
    late: dict[str, int]
    mdns_without: dict[Family, Call]
    mdns_working: dict[Family, str | None]
    mdns_late: dict[Family, int]
    daemon: Daemon


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The run of it all."""
    world.reset()
    world.firewall()
    world.start_rpc()
    world.start_mdns()
    ports = {
        name: world.rpc_port(client.program, client.netid)
        for name, client in CLIENTS.items()
    }

    def call(name: str, seconds: float) -> Call:
        client = CLIENTS[name]
        before = world.dropped(client.transport, ports[name])
        served = client.call(world, seconds)
        return Call(served, world.dropped(client.transport, ports[name]) - before)

    without = {name: call(name, FAILING_SECONDS) for name in CLIENTS}
    mdns_without = {family: ask(world, family) for family in FAMILIES}
    folder: Path = tmp_path_factory.mktemp("daemon")
    with Daemon(world.gateway, folder) as daemon:
        daemon.start(CONFIG)
        working = {name: call(name, WORKING_SECONDS) for name in CLIENTS}
        answers = {family: world.mdns_query(family) for family in FAMILIES}
        entries = world.conntrack("-L") + world.conntrack("-L", "-f", "ipv6")
        time.sleep(TIMEOUT + 1)
        late = {}
        for name, client in CLIENTS.items():
            before = world.dropped(client.transport, ports[name])
            knock(world, client.transport, ports[name], client.addresses[1])
            late[name] = world.dropped(client.transport, ports[name]) - before
        mdns_late = {
            family: answer_late(world, family, answers[family].port)
            for family in FAMILIES
        }
        daemon.stop()
        yield Story(
            without,
            working,
            entries,
            late,
            mdns_without,
            {family: answers[family].source for family in FAMILIES},
            mdns_late,
            daemon,
        )


def ask(world: World, family: Family) -> Call:
    """A one-shot query that shall fail; what was dropped towards the asker's port."""
    result = world.mdns_query(family, timeout=1.5)
    return Call(result.source is not None, world.dropped("udp", result.port))


def answer_late(world: World, family: Family, port: int) -> int:
    """Send what a responder would, when the asker waits no more; how many dropped."""
    # The answer's own flow lives on for its conntrack timeout: it is to be forgotten.
    for protocol in ("ipv4", "ipv6"):
        with suppress(Exception):
            world.conntrack("-D", "-f", protocol, "-p", "udp", "--dport", str(port))
    before = world.dropped("udp", port)
    with world.server.entered():
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        responder = socket.socket(kind, socket.SOCK_DGRAM)
        scope = socket.if_nametoindex(ETH)
    with responder:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            responder.setsockopt(socket.SOL_SOCKET, option, 1)
        responder.bind((SERVER if family == 4 else SERVER6, MDNS_PORT))
        if family == 4:
            responder.sendto(b"late", (GATEWAY_WAN, port))
        else:
            responder.sendto(b"late", (link_local(world), port, 0, scope))
    return world.dropped("udp", port) - before


def link_local(world: World) -> str:
    """The address that the gateway's IPv6 queries come from."""
    show = world.gateway.run(
        *("ip", "-6", "-o", "address", "show", "dev", WAN, "scope", "link"), check=True
    )
    return show.stdout.split()[3].partition("/")[0]


@pytest.mark.parametrize("name", CLIENTS)
def test_client_fails_without_the_daemon_at_its_data_flow(
    story: Story, name: str
) -> None:
    assert not story.without[name].served
    assert story.without[name].dropped > 0


@pytest.mark.parametrize("name", CLIENTS)
def test_client_works_with_the_daemon(story: Story, name: str) -> None:
    assert story.working[name] == Call(served=True, dropped=0)


@pytest.mark.parametrize("name", CLIENTS)
def test_data_flow_was_related(world: World, story: Story, name: str) -> None:
    client = CLIENTS[name]
    port = world.rpc_port(client.program, client.netid)
    source, destination = client.addresses
    flow = rf"{client.transport} .*src={source} dst={destination} .*dport={port} src="
    assert re.search(flow, story.entries)
    announced = [
        each
        for each in story.daemon.events("expectation")
        if each["expects"].endswith(f":{port}")
        and each["expects"].startswith(f"{client.transport} {source} ")
    ]
    assert announced


@pytest.mark.parametrize("name", CLIENTS)
def test_port_is_shut_after_the_timeout(story: Story, name: str) -> None:
    assert story.late[name] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot_query_is_not_answered_without_the_daemon(
    story: Story, family: Family
) -> None:
    assert not story.mdns_without[family].served
    assert story.mdns_without[family].dropped > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot_query_is_answered_with_the_daemon(
    story: Story, family: Family
) -> None:
    # Over IPv6 the query has a link-local source, and avahi answers from a global one.
    assert story.mdns_working[family] == (SERVER if family == 4 else SERVER6)


@pytest.mark.parametrize("family", FAMILIES)
def test_late_answer_is_dropped(story: Story, family: Family) -> None:
    assert story.mdns_late[family] > 0


def test_nothing_was_refused_and_nothing_failed(story: Story) -> None:
    for event in ("refused", "malformed", "helper-fault", "step-failed", "overload"):
        assert story.daemon.events(event) == []
