# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of the Service Location Protocol to groups: without the daemon the answer is
dropped, with it the asker receives it, and after the policy's timeout it is dropped
again.

One daemon serves the whole module. It is reloaded for what an option decides, so the
tests of those stand last.
"""

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.live.chapters import (
    FAULTS,
    answer_to,
    forget,
    forget_answers,
    link_local,
    reload,
)
from tests.live.daemon import Daemon
from tests.live.slp_agent import (
    GROUP,
    GROUP_1,
    GROUPS6,
    PORT,
    Agent,
    Function,
    Version,
    answers,
    overflows,
    receive,
    request,
)
from tests.live.world import ETH, GATEWAY_WAN, SERVER, SERVER6, WAN, World

pytestmark = pytest.mark.live

TIMEOUT = 3
POLICIES = f"""
[helpers.slp.policies.answer]
timeout = {TIMEOUT}
"""
ANY_PORT = "[helpers.slp]\nany_sport = true\n" + POLICIES
VERSION_1 = "[helpers.slp]\nv1 = true\n" + POLICIES
OVERFLOWING = "[helpers.slp]\noverflow = true\n" + POLICIES

WAYS = {
    "multicast": GROUP,
    "limited broadcast": "255.255.255.255",
    "broadcast on the subnet": "10.77.2.255",
    "IPv6, link": GROUPS6[0],
    "IPv6, site": GROUPS6[1],
    "IPv6, by type": GROUPS6[2],
}
REQUESTS = (Function.SRV_RQST, Function.ATTR_RQST, Function.SRV_TYPE_RQST)

# A gateway that also bounds what it sends itself.
OUTPUT = f"""
table inet strict {{
    counter dropped {{ }}
    chain output {{
        type filter hook output priority filter; policy drop;
        meta l4proto ipv6-icmp accept
        udp dport {PORT} accept
        ct state {{ established, related }} accept
        counter name "dropped"
    }}
}}
"""

# A port that the agent does not listen on.
OTHER_PORT = 4270

Target = tuple[str | int, ...]


@dataclass
class Story:
    """What all tests use, and what came of the requests without the daemon."""

    world: World
    daemon: Daemon
    agent: Agent
    without: dict[str, bytes | None] = field(default_factory=dict)
    xids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def ask(
        self,
        destination: str,
        function: Function = Function.SRV_RQST,
        *,
        version: Version = 2,
        port: int = 0,
    ) -> bytes | None:
        """The answer to a request from a new socket; None where it is dropped."""
        asked = request(function, next(self.xids), version=version)
        with closing(self.asker(destination, port)) as asker:
            answer = self.send(asker, asked, destination)
        assert answer is None or overflows(answer) or answers(answer, asked)
        return answer

    def asker(self, destination: str, port: int = 0) -> socket.socket:
        """A UDP socket of the gateway, which may send broadcasts to the server."""
        with self.world.gateway.entered():
            asker = socket.socket(family(destination), socket.SOCK_DGRAM)
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WAN.encode())
        asker.bind(("", port))
        return asker

    def send(
        self, asker: socket.socket, asked: bytes, destination: str
    ) -> bytes | None:
        target = self.target(destination)
        return answer_to(self.world, asker, partial(asker.sendto, asked, target))

    def late(self, asker: socket.socket) -> bytes | None:
        """What an asker receives that the agent sends without being asked again."""
        port = asker.getsockname()[1]
        address: Target = (GATEWAY_WAN, port)
        if asker.family == socket.AF_INET6:
            with self.world.server.entered():
                scope = socket.if_nametoindex(ETH)
            address = (link_local(self.world.gateway, WAN), port, 0, scope)
        answer = partial(self.agent.send, b"late", address, PORT)
        return answer_to(self.world, asker, answer)

    def target(self, destination: str) -> Target:
        if ":" not in destination:
            return destination, PORT
        with self.world.gateway.entered():
            return destination, PORT, 0, socket.if_nametoindex(WAN)

    def connects(self, address: str) -> bool:
        """Whether the gateway gets an answer to a request over TCP."""
        asked = request(Function.SRV_RQST, next(self.xids))
        with self.world.gateway.entered():
            stream = socket.socket(family(address), socket.SOCK_STREAM)
        with stream, suppress(OSError):
            stream.settimeout(2.0)
            stream.connect((address, PORT))
            stream.settimeout(10.0)
            stream.sendall(asked)
            return answers(receive(stream), asked)
        return False


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Requests without the daemon, which is then started."""
    world.reset()
    world.firewall()
    with (
        Agent(world.server) as agent,
        Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon,
    ):
        story = Story(world, daemon, agent)
        story.without = {name: story.ask(each) for name, each in WAYS.items()}
        daemon.start(POLICIES)
        yield story


@pytest.mark.parametrize("name", WAYS)
def test_answer_is_dropped_without_the_daemon(story: Story, name: str) -> None:
    assert story.without[name] is None


@pytest.mark.parametrize("name", WAYS)
def test_request_is_answered_with_the_daemon(story: Story, name: str) -> None:
    assert story.ask(WAYS[name]) is not None


@pytest.mark.parametrize("function", REQUESTS, ids=lambda each: each.name)
@pytest.mark.parametrize("group", [GROUP, GROUPS6[0]])
def test_every_request_is_answered(
    story: Story, group: str, function: Function
) -> None:
    assert story.ask(group, function) is not None


@pytest.mark.parametrize("destination", [GROUP, GROUPS6[0]])
def test_late_answer_is_dropped(story: Story, destination: str) -> None:
    with closing(story.asker(destination)) as asker:
        asked = request(Function.SRV_RQST, next(story.xids))
        assert story.send(asker, asked, destination) is not None
        time.sleep(TIMEOUT + 1)
        forget_answers(story.world, asker.getsockname()[1])
        assert story.late(asker) is None


def test_unicast_request_needs_no_helper(story: Story) -> None:
    before = len(story.daemon.events("expectation"))
    assert story.ask(SERVER) is not None
    assert story.ask(SERVER6) is not None
    assert len(story.daemon.events("expectation")) == before


def test_answer_from_another_port_is_dropped(story: Story) -> None:
    story.agent.source_port = OTHER_PORT
    try:
        assert story.ask(GROUP) is None
        assert story.ask(GROUPS6[0]) is None
    finally:
        story.agent.source_port = PORT


@pytest.mark.parametrize("destination", [GROUP, GROUPS6[0]])
def test_port_427_is_never_opened(story: Story, destination: str) -> None:
    assert story.ask(destination, port=PORT) is None


def test_request_of_version_1_opens_nothing(story: Story) -> None:
    assert story.ask(GROUP_1, version=1) is None


def test_nothing_was_refused_and_nothing_failed(story: Story) -> None:
    for event in ("refused", *FAULTS):
        assert story.daemon.events(event) == []


# With other configurations


def test_any_sport_admits_answers_from_another_port(story: Story) -> None:
    reload(story.daemon, ANY_PORT)
    story.agent.source_port = OTHER_PORT
    try:
        assert story.ask(GROUP) is not None
        assert story.ask(GROUPS6[0]) is not None
    finally:
        story.agent.source_port = PORT


def test_version_1_is_answered_where_it_is_configured(story: Story) -> None:
    reload(story.daemon, VERSION_1)
    for destination, function in itertools.product((GROUP_1, GROUP), REQUESTS):
        assert story.ask(destination, function, version=1) is not None


@pytest.mark.parametrize(
    ("group", "address"), [(GROUP, SERVER), (GROUPS6[1], SERVER6)], ids=["IPv4", "IPv6"]
)
def test_answer_that_overflows_lets_the_asker_connect(
    story: Story, group: str, address: str
) -> None:
    story.world.gateway.run("nft", "-f", "-", input=OUTPUT, check=True)
    story.agent.overflow = True
    try:
        reload(story.daemon, POLICIES)
        assert story.ask(group) is not None
        assert not story.connects(address)
        forget(story.world)
        reload(story.daemon, OVERFLOWING)
        assert not story.connects(address)
        assert story.ask(group) is not None
        assert story.connects(address)
        # The answer that announced the connection allowed one.
        assert not story.connects(address)
        assert story.ask(group) is not None
        time.sleep(TIMEOUT + 1)
        assert not story.connects(address)
    finally:
        story.agent.overflow = False
        story.world.gateway.run("nft", "delete", "table", "inet", "strict")


def test_daemon_ends_well(story: Story) -> None:
    assert story.daemon.stop() == 0
    for event in FAULTS:
        assert story.daemon.events(event) == []
