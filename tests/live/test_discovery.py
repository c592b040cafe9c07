# SPDX-License-Identifier: GPL-2.0-or-later
"""Queries to a group or by broadcast: without the daemon the answers are dropped, with
it those of the link come in, for a while; real programs, and peers of the tests' own.

One daemon serves the whole module.
"""

import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import pytest

from tests.live.chapters import FAULTS, answer_to, forget_answers, link_local
from tests.live.compared import print_table, with_others
from tests.live.conntrackd import Tagged
from tests.live.daemon import Daemon, only
from tests.live.peers_discovery import (
    ASKERS,
    HELPERS,
    OWN,
    PROTOCOLS,
    Address,
    Protocol,
    Responder,
    start_servers,
)
from tests.live.world import ETH, GATEWAY_WAN, SERVER, WAN, World

pytestmark = pytest.mark.live

TIMEOUT = 3
CONFIG = (
    only()
    + "".join(f"[helpers.{name}]\nenabled = true\n" for name in HELPERS)
    + OWN
    + "".join(
        f"[helpers.{each.name}.policies.answer]\ntimeout = {TIMEOUT}\n"
        for each in PROTOCOLS
    )
)
# Some listen until they are ended, and upnpc asks again for 8 s. Meanwhile the peers of
# the tests' own go on.
ASKER_SECONDS = 14.0
# Those that each kind of answer is forged to; what is expected for the others is alike.
FORGED = ("lamp", "llmnr", "netbios-ns", "ssdp")

# What the gateway asks, with helpers that others have, too.
OTHERS = (
    Tagged("ssdp", "udp", "1900", hook="output"),
    Tagged("netbios-ns", "udp", "137", families=(4,), hook="output"),
)

WAYS = [
    pytest.param(protocol, group, id=f"{protocol}, {group}")
    for protocol in PROTOCOLS
    for group in protocol.groups
]


@dataclass
class Story:
    """What all tests use, and what came of the queries."""

    world: World
    daemon: Daemon
    responder: Responder
    pool: ThreadPoolExecutor
    without: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    printed: dict[str, dict[str, Future[str]]] = field(default_factory=dict)

    def ask(self, protocol: Protocol, group: str) -> bytes | None:
        """What a query is answered; None where that is dropped."""
        with (
            closing(self.asker(protocol, group)) as asker,
            closing(self.receiver(asker, protocol)) as receiver,
        ):
            return self.answer(asker, receiver, protocol, group)

    def answer(
        self,
        asker: socket.socket,
        receiver: socket.socket,
        protocol: Protocol,
        group: str,
    ) -> bytes | None:
        """What comes to `receiver` once a socket has asked."""
        query = partial(asker.sendto, protocol.query, self.target(protocol, group))
        return answer_to(self.world, receiver, query)

    def named(self, name: str) -> Protocol:
        """The protocol of a helper."""
        (protocol,) = (each for each in PROTOCOLS if each.name == name)
        return protocol

    def answers(self, name: str) -> dict[str, bool]:
        """Which groups' queries are answered."""
        protocol = self.named(name)
        return {
            group: self.ask(protocol, group) is not None for group in protocol.groups
        }

    def asker(self, protocol: Protocol, group: str) -> socket.socket:
        """A UDP socket of the gateway, which may send broadcasts to the server."""
        return self.opened(protocol.asked_from, ":" in group)

    def receiver(self, asker: socket.socket, protocol: Protocol) -> socket.socket:
        """Where the answers come."""
        if protocol.answer_port:
            return self.opened(protocol.answer_port, asker.family == socket.AF_INET6)
        return asker.dup()

    def opened(self, port: int, ipv6: bool) -> socket.socket:
        with self.world.gateway.entered():
            family = socket.AF_INET6 if ipv6 else socket.AF_INET
            opened = socket.socket(family, socket.SOCK_DGRAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WAN.encode())
        opened.bind(("", port))
        return opened

    def target(self, protocol: Protocol, group: str) -> Address:
        if ":" not in group:
            return group, protocol.port
        with self.world.gateway.entered():
            return group, protocol.port, 0, socket.if_nametoindex(WAN)

    def address(self, asker: socket.socket) -> Address:
        """An asker's address, as the server writes it."""
        port: int = asker.getsockname()[1]
        if asker.family == socket.AF_INET:
            return GATEWAY_WAN, port
        with self.world.server.entered():
            scope = socket.if_nametoindex(ETH)
        return link_local(self.world.gateway, WAN), port, 0, scope

    def run_askers(self, chapter: str) -> None:
        """Have the real programs ask, all at once."""
        self.printed[chapter] = {
            name: self.pool.submit(self._run, argv)
            for name, (argv, _) in ASKERS.items()
        }

    def found(self, chapter: str, name: str) -> bool:
        """Whether a program was answered; skips where Debian does not have it."""
        program = ASKERS[name][0][0]
        if shutil.which(program) is None:
            pytest.skip(f"this Debian has no {program}")
        return ASKERS[name][1] in self.printed[chapter][name].result()

    def _run(self, argv: tuple[str, ...]) -> str:
        done = self.world.gateway.run(*argv, timeout=ASKER_SECONDS)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All is asked without the daemon, which is then started, and once more."""
    world.reset()
    world.firewall()
    with (
        Responder(world.server) as responder,
        Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon,
        ThreadPoolExecutor(len(ASKERS)) as pool,
    ):
        start_servers(world.server)
        story = Story(world, daemon, responder, pool)
        story.run_askers("without")
        for protocol in PROTOCOLS:
            for group in protocol.groups:
                way = protocol.name, group
                story.without[way] = story.ask(protocol, group)
        wait(story.printed["without"].values())
        folder = tmp_path_factory.mktemp("others")
        theirs = {
            helper.helper: with_others(
                *(world, folder, helper, partial(story.answers, helper.helper))
            )
            for helper in OTHERS
        }
        # Those who ask from one port have flows of before, which have no helper.
        world.forget()
        daemon.start(CONFIG)
        story.run_askers("with")
        for name, others in theirs.items():
            if others:
                ours = story.answers(name)
                without = {each: story.without[name, each] is not None for each in ours}
                print_table(name, ours, {"without": without, "cthelper": ours} | others)
        yield story


@pytest.mark.parametrize("name", ASKERS)
def test_real_asker_finds_nothing_without_the_daemon(story: Story, name: str) -> None:
    assert not story.found("without", name)


@pytest.mark.parametrize(("protocol", "group"), WAYS)
def test_answer_is_dropped_without_the_daemon(
    story: Story, protocol: Protocol, group: str
) -> None:
    assert story.without[protocol.name, group] is None


@pytest.mark.parametrize(("protocol", "group"), WAYS)
def test_query_is_answered_with_the_daemon(
    story: Story, protocol: Protocol, group: str
) -> None:
    assert story.ask(protocol, group) == protocol.answer(protocol.query)


@pytest.mark.parametrize(
    "name", [each.name for each in PROTOCOLS if not each.asked_from | each.answer_port]
)
def test_two_askers_at_once_are_answered_each(story: Story, name: str) -> None:
    protocol = story.named(name)
    group = protocol.groups[0]
    with (
        closing(story.asker(protocol, group)) as one,
        closing(story.asker(protocol, group)) as other,
    ):
        for asker in (one, other):
            asker.sendto(protocol.query, story.target(protocol, group))
        for asker in (one, other):
            asker.settimeout(20.0)
            assert asker.recv(65535) == protocol.answer(protocol.query)


@pytest.mark.parametrize("name", ASKERS)
def test_real_askers_all_at_once_find_it_with_the_daemon(
    story: Story, name: str
) -> None:
    assert story.found("with", name)


def test_forged_and_late_answers_are_dropped(story: Story) -> None:
    """From another port, from a host that is not on the link, and after the window."""
    asked: list[tuple[socket.socket, socket.socket, Protocol]] = []
    try:
        for protocol in PROTOCOLS:
            if protocol.name not in FORGED:
                continue
            group = protocol.groups[0]
            asker = story.asker(protocol, group)
            receiver = story.receiver(asker, protocol)
            asked.append((asker, receiver, protocol))
        for asker, receiver, protocol in asked:
            group = protocol.groups[0]
            assert story.answer(asker, receiver, protocol, group) is not None
            address = story.address(receiver)
            send = story.responder.send
            other_port = partial(send, b"forged", address, protocol.replies_from + 1)
            assert answer_to(story.world, receiver, other_port) is None
            if receiver.family == socket.AF_INET:
                third = story.world.client
                afar = partial(send, b"forged", address, protocol.replies_from, third)
                assert answer_to(story.world, receiver, afar) is None
        time.sleep(TIMEOUT + 1)
        for _, receiver, protocol in asked:
            address = story.address(receiver)
            forget_answers(story.world, int(address[1]))
            late = partial(
                story.responder.send, b"late", address, protocol.replies_from
            )
            assert answer_to(story.world, receiver, late) is None
    finally:
        for opened in chain.from_iterable(each[:2] for each in asked):
            opened.close()


def test_unicast_query_needs_no_helper(story: Story) -> None:
    before = len(story.daemon.events("expectation"))
    for protocol in PROTOCOLS:
        if ":" in protocol.groups[0] or protocol.answer_port:
            continue
        with closing(story.opened(protocol.asked_from, ipv6=False)) as asker:
            asker.settimeout(20.0)
            asker.sendto(protocol.query, (SERVER, protocol.port))
            assert asker.recv(65535) == protocol.answer(protocol.query)
    assert len(story.daemon.events("expectation")) == before


def test_nothing_was_refused_and_daemon_ends_well(story: Story) -> None:
    assert story.daemon.stop() == 0
    for event in ("refused", *FAULTS):
        assert story.daemon.events(event) == []
