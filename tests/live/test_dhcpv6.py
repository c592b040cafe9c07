# SPDX-License-Identifier: GPL-2.0-or-later
"""Real DHCPv6 clients and a real relay: without the daemon none gets a lease, with it
each does, and when the policy's timeout is over the port is shut again.

One daemon serves the whole module. It is reloaded for what an option decides, so the
tests of those stand last.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.live.chapters import (
    FAULTS,
    answer_to,
    forget,
    forget_answers,
    lost,
    reload,
)
from tests.live.daemon import Daemon
from tests.live.peers_dhcpv6 import (
    ALL_AGENTS,
    ALL_SERVERS,
    CLIENT_PORT,
    CLIENTS,
    SERVER_PORT,
    Client,
    Server,
    ask,
    asker,
    dnsmasq,
    message,
    relay,
)
from tests.live.world import ETH, LAN, SERVER6, WAN, Namespace, Transport, World, until

pytestmark = pytest.mark.live

# A test sends several answers to one message meanwhile.
TIMEOUT = 8
POLICIES = f"""
[helpers.dhcpv6.policies.answer]
timeout = {TIMEOUT}
"""
RELAYING = "[helpers.dhcpv6]\nrelay = true\n" + POLICIES
STRICT = "[helpers.dhcpv6]\nstrict_sport = true\n" + POLICIES
LINK_LOCAL_SERVERS = '[helpers.dhcpv6]\nservers = ["fe80::/10"]\n' + POLICIES

# A client starts to ask after a second or two; an emulated machine takes its time.
SECONDS = 60.0
ANSWER = b"an answer"
RELAYED = "dhclient through dhcrelay"
# What is dropped without the daemon: answers to clients, and to the relay.
PORTS = {**dict.fromkeys(CLIENTS, CLIENT_PORT), RELAYED: SERVER_PORT}

# The relay serves the client's link, which this user's rule set lets it do.
RELAY_RULE = (
    *("nft", "insert", "rule", "inet", "firewall", "input"),
    *("iifname", LAN, "udp", "dport", str(SERVER_PORT), "accept"),
)


@dataclass
class Story:
    """All chapters of all clients, and what further tests use."""

    world: World
    daemon: Daemon
    leased: dict[str, dict[str, bool]] = field(default_factory=dict)
    dropped: dict[str, dict[str, Counter[tuple[Transport, int]]]] = field(
        default_factory=dict
    )
    related: dict[str, int] = field(default_factory=dict)

    def run(self, chapter: str) -> None:
        """Run each client until it has a lease, or its answer was dropped."""
        world = self.world
        leased = self.leased[chapter] = {}
        dropped = self.dropped[chapter] = {}
        for name in PORTS:
            forget(world)
            before = world.counter("related-input")
            with lost(world) as dropped[name]:
                leased[name] = self._lease(name)
            self.related[name] = world.counter("related-input") - before

    def _lease(self, name: str) -> bool:
        world, port = self.world, PORTS[name]
        where: tuple[Namespace, str, str] = (world.gateway, WAN, name)
        with ExitStack() as stack:
            if name == RELAYED:
                stack.enter_context(relay(world))
                where = (world.client, ETH, "dhclient")
            before = world.dropped("udp", port)
            client = stack.enter_context(Client(*where))
            # Looking starts programs, and takes time from the client's.
            until(
                lambda: client.leased() or world.dropped("udp", port) > before,
                SECONDS,
                pause=0.5,
            )
            return bool(client.leased())

    def asks(self, kind: int, *, port: int = CLIENT_PORT) -> bool:
        """Send a message of a type to the group; whether an answer comes through."""
        return self.exchange(message(kind), ALL_AGENTS, port) == [True]

    def exchange(
        self, request: bytes, group: str, port: int, *sources: tuple[str | None, int]
    ) -> list[bool]:
        """Send a message to a group; which of the answers come through.

        The answers come from these addresses and ports, by default from one.
        """
        forget(self.world)
        with Server(self.world) as server, asker(self.world, port) as client:
            ask(client, request, group)
            assert server.receive() == request
            answers = [
                partial(server.answer, ANSWER, to=port, address=address, port=source)
                for address, source in sources or ((None, SERVER_PORT),)
            ]
            return [
                answer_to(self.world, client, answer) == ANSWER for answer in answers
            ]

    def log(self) -> str:
        """What clients, the relay and the server have said."""
        world = self.world
        return "".join(
            each.log() for each in (world.gateway, world.client, world.server)
        )

    def refused(self) -> list[str]:
        return [each["reason"] for each in self.daemon.events("refused")]


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The run of all real clients."""
    world.reset()
    world.firewall()
    world.gateway.run(*RELAY_RULE, check=True)
    with Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon:
        story = Story(world, daemon)
        with dnsmasq(world):
            story.run("without")
            daemon.start(RELAYING)
            story.run("working")
        yield story


@pytest.mark.parametrize("name", PORTS)
def test_client_gets_no_lease_without_the_daemon(story: Story, name: str) -> None:
    assert not story.leased["without"][name]
    assert story.dropped["without"][name]["udp", PORTS[name]] > 0


@pytest.mark.parametrize("name", PORTS)
def test_client_gets_a_lease_with_the_daemon(story: Story, name: str) -> None:
    assert story.leased["working"][name], story.log()
    assert story.dropped["working"][name]["udp", PORTS[name]] == 0
    # An Advertise and a Reply.
    assert story.related[name] >= 2


def test_nothing_was_refused_and_nothing_failed(story: Story) -> None:
    for event in ("refused", *FAULTS):
        assert story.daemon.events(event) == []


# Answers of the tests' own server


@pytest.mark.parametrize("kind", [1, 6, 11, 14, 36])
def test_message_of_a_client_opens_its_port(story: Story, kind: int) -> None:
    assert story.asks(kind)


@pytest.mark.parametrize("kind", [2, 10, 13, 200])
def test_other_message_opens_nothing(story: Story, kind: int) -> None:
    assert not story.asks(kind)


def test_answers_come_from_any_address_and_port(story: Story) -> None:
    sources = ((None, SERVER_PORT), (SERVER6, SERVER_PORT), (None, 40000))
    assert story.exchange(message(1), ALL_AGENTS, CLIENT_PORT, *sources) == [True] * 3


def test_late_answer_is_dropped(story: Story) -> None:
    world = story.world
    assert story.asks(1)
    time.sleep(TIMEOUT + 1)
    forget_answers(world, CLIENT_PORT)
    with Server(world) as server, asker(world) as client:
        assert answer_to(world, client, partial(server.answer, ANSWER)) is None


def test_relay_is_answered_at_its_port(story: Story) -> None:
    assert story.exchange(message(12), ALL_SERVERS, SERVER_PORT) == [True]


def test_relay_with_a_port_of_its_own_is_answered_there(story: Story) -> None:
    port = 40547
    said = message(12, {135: b"\0\0"})
    assert story.exchange(said, ALL_SERVERS, port) == [True]


def test_client_that_asks_from_another_port_is_refused(story: Story) -> None:
    assert not story.asks(1, port=40546)
    assert story.refused()[-1] == "source-port"


# With other configurations


@pytest.mark.parametrize("port", [SERVER_PORT, 40547])
def test_relay_opens_nothing_by_default(story: Story, port: int) -> None:
    reload(story.daemon, POLICIES)
    said = message(12, {135: b"\0\0"})
    assert story.exchange(said, ALL_SERVERS, port) == [False]
    assert story.refused()[-1] == "relay"


@pytest.mark.parametrize(
    ("config", "sources"),
    [
        (
            STRICT,
            {
                (None, SERVER_PORT): True,
                (SERVER6, SERVER_PORT): True,
                (None, 40001): False,
            },
        ),
        (
            LINK_LOCAL_SERVERS,
            {
                (None, SERVER_PORT): True,
                (None, 40001): True,
                (SERVER6, SERVER_PORT): False,
            },
        ),
    ],
    ids=["strict_sport", "servers"],
)
def test_option_bounds_who_may_answer(
    story: Story, config: str, sources: dict[tuple[str | None, int], bool]
) -> None:
    reload(story.daemon, config)
    came = story.exchange(message(1), ALL_AGENTS, CLIENT_PORT, *sources)
    assert came == list(sources.values())


def test_daemon_ends_well(story: Story) -> None:
    assert story.daemon.stop() == 0
    for event in FAULTS:
        assert story.daemon.events(event) == []
