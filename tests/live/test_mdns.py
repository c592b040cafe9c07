# SPDX-License-Identifier: GPL-2.0-or-later
"""Queriers of multicast DNS: those that are answered by unicast need the daemon, and
those that are answered by multicast work with it as they do without.

One daemon serves the whole module.
"""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import dns.message
import dns.query
import pytest

from tests.live.chapters import (
    FAULTS,
    answer_to,
    forget,
    forget_answers,
    link_local,
)
from tests.live.daemon import Daemon
from tests.live.peers_mdns import (
    BROWSERS,
    INSTANCE,
    NAME,
    ZEROCONF_QU,
    Responder,
    ask,
    asker,
    question,
)
from tests.live.world import (
    ETH,
    GATEWAY_WAN,
    MDNS_GROUP,
    MDNS_PORT,
    MDNS_SERVICE,
    SERVER,
    SERVER6,
    WAN,
    Family,
    World,
    until,
)

pytestmark = pytest.mark.live

TIMEOUT = 3
CONFIG = f"""
[helpers.mdns.policies.answer]
timeout = {TIMEOUT}
"""
FAMILIES: tuple[Family, ...] = (4, 6)
BROWSE_SECONDS = 25.0
SCAN_SECONDS = 8.0


# The daemon of avahi-browse probes for its name before it answers.
BROWSE_SECONDS = 40.0
# mdns-scan never ends.
SCAN_SECONDS = 10.0
ANSWER_SECONDS = 20.0


@dataclass
class Story:
    """What all tests use, and what the queriers found, chapter by chapter."""

    world: World
    daemon: Daemon
    responder: Responder
    found: dict[str, dict[str, bool]] = field(default_factory=dict)
    one_shot: dict[str, dict[Family, str | None]] = field(default_factory=dict)
    dropped: dict[Family, int] = field(default_factory=dict)
    unicast: dict[str, dict[Family, bytes | None]] = field(default_factory=dict)

    def browse(self) -> dict[str, bool]:
        """Whether those that ask from port 5353 find the service; all at a time."""
        with ThreadPoolExecutor(len(BROWSERS)) as pool:
            found = pool.map(self.finds, BROWSERS.values())
            return dict(zip(BROWSERS, found, strict=True))

    def finds(self, argv: tuple[str, ...]) -> bool:
        """Whether a program on the gateway finds the service."""
        seconds = BROWSE_SECONDS if argv[1:] else SCAN_SECONDS
        done = self.world.gateway.run(*argv, timeout=seconds)
        # mdns-scan says it as an error.
        return INSTANCE in done.stdout + done.stderr

    def ask(self, family: Family) -> bytes | None:
        """The answer to a QU question; None where it is dropped."""
        with asker(self.world, family) as querier:
            asked = question(unicast=True)
            return answer_to(self.world, querier, partial(ask, querier, asked))

    def late(self, querier: socket.socket) -> bytes | None:
        """What a querier receives that nobody has asked for any more."""
        port = querier.getsockname()[1]
        forget_answers(self.world, port)
        address: tuple[str | int, ...] = (GATEWAY_WAN, port)
        if querier.family == socket.AF_INET6:
            with self.world.server.entered():
                scope = socket.if_nametoindex(ETH)
            address = (link_local(self.world.gateway, WAN), port, 0, scope)
        answer = partial(self.responder.answer, address)
        return answer_to(self.world, querier, answer)

    def was_expected(self, port: int) -> bool:
        """Whether the daemon says that it expected an answer to a port."""
        # The kernel tells of an expectation; the answer may be there before.
        return until(
            lambda: any(
                each["expects"].endswith(f":{port}")
                for each in self.daemon.events("expectation")
            ),
            ANSWER_SECONDS,
        )


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All queriers without the daemon, and those that ask from port 5353 with it."""
    world.reset()
    world.firewall()
    world.start_mdns()
    with (
        Responder(world.server) as responder,
        Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon,
    ):
        story = Story(world, daemon, responder)
        story.found["without"] = story.browse()
        story.one_shot["without"] = {}
        for family in FAMILIES:
            result = world.mdns_query(family, timeout=1.5)
            story.one_shot["without"][family] = result.source
            story.dropped[family] = world.dropped("udp", result.port)
        story.unicast["without"] = {family: story.ask(family) for family in FAMILIES}
        # A flow that began without the daemon has no helper.
        forget(world)
        daemon.start(CONFIG)
        story.found["working"] = story.browse()
        yield story


@pytest.mark.parametrize("name", BROWSERS)
def test_querier_that_is_answered_by_multicast_works_as_without(
    story: Story, name: str
) -> None:
    assert story.found["without"][name]
    assert story.found["working"][name]


def test_queries_that_are_answered_by_multicast_open_nothing(story: Story) -> None:
    # This test stands before those whose queries open something.
    assert story.daemon.events("expectation") == []


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot_query_is_not_answered_without_the_daemon(
    story: Story, family: Family
) -> None:
    assert story.one_shot["without"][family] is None
    assert story.dropped[family] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot_query_is_answered_with_the_daemon(
    story: Story, family: Family
) -> None:
    result = story.world.mdns_query(family, ANSWER_SECONDS)
    # Over IPv6 the query has a link-local source, and avahi answers from a global one.
    assert result.source == (SERVER if family == 4 else SERVER6)
    assert story.was_expected(result.port)


def test_one_shot_query_of_dnspython_is_answered(story: Story) -> None:
    query = dns.message.make_query(MDNS_SERVICE, "PTR")
    with story.world.gateway.entered():
        answer = dns.query.udp(query, MDNS_GROUP, ANSWER_SECONDS, MDNS_PORT)
    assert INSTANCE.encode() in answer.to_wire()


@pytest.mark.parametrize("family", FAMILIES)
def test_unicast_answer_to_port_5353_needs_the_daemon(
    story: Story, family: Family
) -> None:
    assert story.unicast["without"][family] is None
    answer = story.ask(family)
    assert answer is not None
    assert NAME in answer


@pytest.mark.parametrize("port", [MDNS_PORT, 0], ids=["QU", "one-shot"])
@pytest.mark.parametrize("family", FAMILIES)
def test_late_answer_is_dropped(story: Story, family: Family, port: int) -> None:
    with asker(story.world, family, port) as querier:
        asked = question(unicast=port == MDNS_PORT)
        assert answer_to(story.world, querier, partial(ask, querier, asked))
        time.sleep(TIMEOUT + 1)
        assert story.late(querier) is None


def test_browser_that_wants_unicast_answers_works(story: Story) -> None:
    assert story.finds(ZEROCONF_QU)
    assert story.was_expected(MDNS_PORT)


def test_nothing_was_refused_and_nothing_failed(story: Story) -> None:
    for event in ("refused", *FAULTS):
        assert story.daemon.events(event) == []
    assert story.daemon.stop() == 0
