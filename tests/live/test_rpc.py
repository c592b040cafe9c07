# SPDX-License-Identifier: GPL-2.0-or-later
"""Real RPC clients and servers: without the daemon each client fails, with it each
works, and when the policy's timeout is over the port is shut again.

The story runs once for all clients, since starting things is what costs most; the
tests then look at one chapter of one client each. The daemon that they share is
reloaded for what an option decides, so those chapters stand last.
"""

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.live.chapters import FAULTS, forget, forget_answers, lost, reload
from tests.live.daemon import Daemon
from tests.live.traffic import knock
from tests.live.world import (
    CLIENT,
    CLIENT6,
    ETH,
    GATEWAY_WAN,
    MOUNTD,
    NFS,
    NFS_EXPORT,
    NFS_TEXT,
    NLOCKMGR,
    RSTATD,
    RUSERSD,
    SERVER,
    SERVER6,
    Netid,
    Transport,
    World,
    nfs_url,
)

pytestmark = pytest.mark.live

TIMEOUT = 3
# So long that all lists are asked for and tried meanwhile, and broadcasts are sent.
LONG_TIMEOUT = 12
POLICIES = f"""
[helpers.sunrpc.policies.service]
timeout = {TIMEOUT}
[helpers.sunrpc.policies.broadcast]
timeout = {LONG_TIMEOUT}
[helpers.sunrpc.policies.dump]
timeout = {LONG_TIMEOUT}
"""
DENYING = '[helpers.sunrpc]\ndeny_programs = ["mountd"]\n' + POLICIES
DUMPING = '[helpers.sunrpc]\nprocedures = ["getaddr", "dump"]\n' + POLICIES
# An address of the server's that nobody asks; its rpcbind names it all the same.
SECOND6, LAN6 = "fd77:2::99", "fd77:2::/64"
ALLOWING = f'[helpers.sunrpc.guard]\nallow_hosts = ["{LAN6}"]\n' + POLICIES
CALLING = '[helpers.sunrpc]\nprocedures = ["callit", "bcast"]\n' + POLICIES

Service = tuple[int, Netid]

# All clients that shall fail run at a time; what one of them waits for does not come.
FAILING_SECONDS = 6.0
WORKING_SECONDS = 15.0
# rpcinfo waits 12 s for answers to a broadcast.
BROADCAST_SECONDS = 25.0
# The gateway receives what it broadcasts, and its rule set drops that.
OWN_BROADCASTS = {("udp", 111)}


@dataclass(frozen=True)
class Client:
    """A real client, and the services that it looks up and calls."""

    argv: tuple[str, ...]
    services: tuple[Service, ...]
    says: str = ""
    """What its output holds where it is served."""

    def served(self, world: World, seconds: float) -> bool:
        """Run it and say whether it was served."""
        done = world.client.run(*self.argv, timeout=seconds)
        return done.returncode == 0 and self.says in done.stdout


def rpcinfo(netid: Netid) -> Client:
    server = SERVER6 if netid.endswith("6") else SERVER
    argv = ("rpcinfo", "-T", netid, server, str(MOUNTD), "3")
    return Client(argv, ((MOUNTD, netid),), "ready and waiting")


def nfs(*argv: str, file: str = "", netid: Netid, says: str) -> Client:
    server = SERVER6 if netid.endswith("6") else SERVER
    return Client((*argv, nfs_url(server, file)), ((MOUNTD, netid), (NFS, netid)), says)


def showmount(server: str, netid: Netid) -> Client:
    return Client(("showmount", "-e", server), ((MOUNTD, netid),), NFS_EXPORT)


CLIENTS = {
    "rpcinfo -T tcp": rpcinfo("tcp"),
    "rpcinfo -T udp": rpcinfo("udp"),
    "rpcinfo -T tcp6": rpcinfo("tcp6"),
    "rpcinfo -T udp6": rpcinfo("udp6"),
    "rpcinfo -t": Client(
        ("rpcinfo", "-t", SERVER, str(MOUNTD), "3"),
        ((MOUNTD, "tcp"),),
        "ready and waiting",
    ),
    "rpcinfo -u": Client(
        ("rpcinfo", "-u", SERVER, str(RSTATD), "3"),
        ((RSTATD, "udp"),),
        "ready and waiting",
    ),
    "showmount -e": showmount(SERVER, "tcp"),
    "showmount -e, IPv6": showmount(SERVER6, "tcp6"),
    "rup": Client(("rup", SERVER), ((RSTATD, "udp"),), "load"),
    "rusers": Client(("rusers", SERVER), ((RUSERSD, "udp"),)),
    "nfs-ls": nfs("nfs-ls", netid="tcp", says="file"),
    "nfs-ls, IPv6": nfs("nfs-ls", netid="tcp6", says="file"),
    "nfs-cat": nfs("nfs-cat", file="/file", netid="tcp", says=NFS_TEXT),
    "nfs-cat, IPv6": nfs("nfs-cat", file="/file", netid="tcp6", says=NFS_TEXT),
}
SERVICES = sorted({each for client in CLIENTS.values() for each in client.services})
NAMES = [f"{program}-{netid}" for program, netid in SERVICES]
# What lists all services.
LISTS = {
    "rpcinfo -p": ("rpcinfo", "-p", SERVER),
    "rpcinfo -s": ("rpcinfo", "-s", SERVER),
    "rpcinfo -p, IPv6": ("rpcinfo", "-p", SERVER6),
    "rpcinfo -s, IPv6": ("rpcinfo", "-s", SERVER6),
}


@dataclass
class Story:
    """All chapters of all clients, and what further tests use."""

    world: World
    daemon: Daemon
    ports: dict[Service, int]
    served: dict[str, dict[str, bool]] = field(default_factory=dict)
    dropped: dict[str, Counter[tuple[Transport, int]]] = field(default_factory=dict)
    related: dict[str, int] = field(default_factory=dict)
    broadcast: str = ""

    def at_a_time(self, seconds: float) -> dict[str, bool]:
        """Run all clients at a time; whether each was served."""
        with ThreadPoolExecutor(len(CLIENTS)) as pool:
            calls = {
                name: pool.submit(client.served, self.world, seconds)
                for name, client in CLIENTS.items()
            }
        return {name: call.result() for name, call in calls.items()}

    def one_by_one(self) -> Iterator[tuple[str, bool]]:
        """Run each client, for which nothing is expected that it did not ask for."""
        for name, client in CLIENTS.items():
            self.world.conntrack("-F", "expect")
            before = self.world.counter("related-forward")
            yield name, client.served(self.world, WORKING_SECONDS)
            self.related[name] = self.world.counter("related-forward") - before

    def place(self, service: Service) -> tuple[Transport, int]:
        return transport(service), self.ports[service]

    def lost_at(self, service: Service) -> int:
        """How many packets to a service were dropped so far."""
        return self.world.dropped(*self.place(service))

    def knock(self, service: Service, address: str = "") -> int:
        """Call a service without having asked where it is; how many were dropped."""
        before = self.lost_at(service)
        knock(self.world, *self.place(service), address or addresses(service)[1])
        return self.lost_at(service) - before

    def configured(self, text: str) -> "Story":
        """The same, once the daemon has this configuration, and knows no flow."""
        forget(self.world)
        reload(self.daemon, text)
        return self

    def refused(self) -> list[str]:
        """The details of what was refused on account of its program."""
        return [
            each["detail"]
            for each in self.daemon.events("refused")
            if each["reason"] == "denied-program"
        ]


def transport(service: Service) -> Transport:
    return "tcp" if service[1].startswith("tcp") else "udp"


def addresses(service: Service) -> tuple[str, str]:
    return (CLIENT6, SERVER6) if service[1].endswith("6") else (CLIENT, SERVER)


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The run of it all."""
    world.reset()
    world.firewall()
    world.start_rpc()
    services = {*SERVICES, (NLOCKMGR, "tcp"), (NLOCKMGR, "tcp6")}
    ports = {each: world.rpc_port(*each) for each in services}
    with Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon:
        story = Story(world, daemon, ports)
        with lost(world) as story.dropped["without"]:
            story.served["without"] = story.at_a_time(FAILING_SECONDS)
        with lost(world) as story.dropped["broadcast"]:
            story.broadcast = broadcast(world, FAILING_SECONDS)
        daemon.start(POLICIES)
        with lost(world) as story.dropped["working"]:
            story.served["working"] = dict(story.one_by_one())
        forget(world)
        story.served["together"] = story.at_a_time(WORKING_SECONDS)
        time.sleep(TIMEOUT + 1)
        with lost(world) as story.dropped["late"]:
            for each in SERVICES:
                knock(world, *story.place(each), addresses(each)[1])
        yield story


@pytest.mark.parametrize("name", CLIENTS)
def test_client_fails_without_the_daemon_at_its_data_flow(
    story: Story, name: str
) -> None:
    assert not story.served["without"][name]
    assert story.dropped["without"][story.place(CLIENTS[name].services[0])] > 0


@pytest.mark.parametrize("name", CLIENTS)
def test_client_works_with_the_daemon(story: Story, name: str) -> None:
    assert story.served["working"][name]
    assert story.related[name] >= len(CLIENTS[name].services)
    for service in CLIENTS[name].services:
        assert story.dropped["working"][story.place(service)] == 0


def test_clients_work_at_a_time(story: Story) -> None:
    assert story.served["together"] == dict.fromkeys(CLIENTS, True)


@pytest.mark.parametrize("service", SERVICES, ids=NAMES)
def test_data_flow_was_expected(story: Story, service: Service) -> None:
    source = addresses(service)[0]
    announced = [
        each
        for each in story.daemon.events("expectation")
        if each["expects"].endswith(f":{story.ports[service]}")
        and each["expects"].startswith(f"{transport(service)} {source} ")
    ]
    assert announced
    assert {each["timeout"] for each in announced} == {TIMEOUT}


@pytest.mark.parametrize("service", SERVICES, ids=NAMES)
def test_port_is_shut_after_the_timeout(story: Story, service: Service) -> None:
    assert story.dropped["late"][story.place(service)] > 0


def test_nothing_was_refused_and_nothing_failed(story: Story) -> None:
    for event in ("refused", *FAULTS):
        assert story.daemon.events(event) == []


@pytest.mark.parametrize("name", LISTS)
def test_list_of_services_needs_port_111_alone_and_opens_nothing(
    story: Story, name: str
) -> None:
    forget(story.world)
    done = story.world.client.run(*LISTS[name])
    assert done.returncode == 0
    assert "nlockmgr" in done.stdout
    assert story.knock((NLOCKMGR, "tcp")) > 0
    assert story.knock((NLOCKMGR, "tcp6")) > 0


# With other configurations


@pytest.fixture(scope="module")
def denying(story: Story) -> Story:
    """Program mountd is denied."""
    return story.configured(DENYING)


def test_denied_program_is_not_opened(denying: Story) -> None:
    before = denying.lost_at((MOUNTD, "tcp"))
    client = CLIENTS["showmount -e"]
    assert not client.served(denying.world, FAILING_SECONDS)
    assert denying.lost_at((MOUNTD, "tcp")) > before
    assert f"program {MOUNTD} (mountd), by deny_programs" in denying.refused()


def test_program_that_is_not_denied_is_opened(denying: Story) -> None:
    assert CLIENTS["rup"].served(denying.world, WORKING_SECONDS)


@pytest.fixture(scope="module")
def dumping(story: Story) -> Story:
    """DUMP opens what it lists."""
    return story.configured(DUMPING)


def test_all_that_is_listed_is_opened(dumping: Story) -> None:
    # What is listed over IPv6 with version 2 is for IPv4 alone.
    lists: dict[str, Service] = {
        "rpcinfo -p": (NLOCKMGR, "tcp"),
        "rpcinfo -s": (NLOCKMGR, "tcp"),
        "rpcinfo -s, IPv6": (NLOCKMGR, "tcp6"),
    }
    for name, service in lists.items():
        forget(dumping.world)
        assert dumping.world.client.run(*LISTS[name]).returncode == 0
        assert dumping.knock(service) == 0, name
    time.sleep(LONG_TIMEOUT + 1)
    assert dumping.knock((NLOCKMGR, "tcp6")) > 0


@pytest.fixture(scope="module")
def calling(story: Story) -> Story:
    """CALLIT and BCAST to a group open the port that asked."""
    return story.configured(CALLING)


def broadcast(world: World, seconds: float) -> str:
    """What rpcinfo says about who answers for NFS on the gateway's links."""
    # The answers are written one by one, for it may be ended before it is done.
    return world.gateway.run(
        *("stdbuf", "-oL", "rpcinfo", "-b", str(NFS), "3"), timeout=seconds
    ).stdout


def test_call_to_a_group_is_not_answered_without_the_daemon(story: Story) -> None:
    assert story.broadcast == ""
    assert set(story.dropped["broadcast"]) > OWN_BROADCASTS


def test_call_to_a_group_is_answered_where_it_is_configured(calling: Story) -> None:
    world = calling.world
    version = ("dpkg-query", "-W", "-f", "${Version}", "rpcbind")
    rpcbind = world.server.run(*version, check=True).stdout
    old = ("dpkg", "--compare-versions", rpcbind, "lt", "1.2.7")
    if world.server.run(*old).returncode:
        # It passes a call on by the loopback interface, and answers from there, too:
        # libtirpc's IP_PKTINFO has the source of the last packet that came.
        pytest.skip(f"rpcbind {rpcbind} answers what it passes on from 127.0.0.1")
    before = world.counter("related-input")
    with lost(world) as dropped:
        assert f"{SERVER}." in broadcast(world, BROADCAST_SECONDS)
    assert set(dropped) == OWN_BROADCASTS
    assert world.counter("related-input") > before
    found = [
        match[1]
        for each in calling.daemon.events("expectation")
        if each["policy"] == "broadcast"
        and (match := re.search(rf"> {GATEWAY_WAN}:(\d+)$", each["expects"]))
    ]
    assert found
    port = int(found[-1])
    time.sleep(LONG_TIMEOUT + 1)
    forget_answers(world, port)
    with world.server.entered():
        late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with late:
        late.sendto(b"late", (GATEWAY_WAN, port))
    assert world.dropped("udp", port) > 0


# A server with two addresses


@pytest.fixture(scope="module")
def second(story: Story) -> Iterator[Story]:
    """The server has another address, as one of SLAAC that is about to go."""
    address = (f"{SECOND6}/64", "dev", ETH)
    temporary = ("preferred_lft", "0", "nodad")
    story.world.server.run("ip", "address", "add", *address, *temporary, check=True)
    try:
        yield story
    finally:
        story.world.server.run("ip", "address", "del", *address, check=True)


@pytest.fixture(scope="module")
def narrow(second: Story) -> Story:
    """The asked server's own address is opened alone."""
    return second.configured(POLICIES)


@pytest.mark.parametrize("name", ["nfs-ls, IPv6", "nfs-cat, IPv6"])
def test_client_that_takes_the_port_alone_is_served(narrow: Story, name: str) -> None:
    forget(narrow.world)
    before = len(narrow.daemon.events("refused"))
    assert CLIENTS[name].served(narrow.world, WORKING_SECONDS)
    refused = narrow.daemon.events("refused")[before:]
    assert {each["reason"] for each in refused} == {"other-address"}
    assert all(SECOND6 in each["detail"] for each in refused)
    assert narrow.knock((MOUNTD, "tcp6"), SECOND6) > 0


@pytest.fixture(scope="module")
def wide(second: Story) -> Story:
    """Its other addresses may be announced."""
    return second.configured(ALLOWING)


@pytest.mark.parametrize(
    "name", ["showmount -e, IPv6", "rpcinfo -T tcp6", "rpcinfo -T udp6", "nfs-ls, IPv6"]
)
def test_client_that_takes_the_whole_address_is_served_where_it_is_allowed(
    wide: Story, name: str
) -> None:
    forget(wide.world)
    assert CLIENTS[name].served(wide.world, WORKING_SECONDS)


def test_address_that_was_not_asked_is_opened_where_it_is_allowed(wide: Story) -> None:
    forget(wide.world)
    assert CLIENTS["nfs-ls, IPv6"].served(wide.world, WORKING_SECONDS)
    assert wide.knock((MOUNTD, "tcp6"), SECOND6) == 0


def test_daemon_ends_well(calling: Story) -> None:
    assert calling.daemon.stop() == 0
    for event in FAULTS:
        assert calling.daemon.events(event) == []
