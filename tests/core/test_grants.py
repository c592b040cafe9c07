# SPDX-License-Identifier: GPL-2.0-or-later
"""What a helper may have opened, for whom, and what is refused it."""

from dataclasses import replace
from ipaddress import IPv6Network, ip_network
from typing import ClassVar

import pytest

from cthelper.core.api import (
    ANY,
    ON_LINK,
    PEER,
    Effect,
    Effects,
    Expect,
    Helper,
    Hook,
    Message,
    Network,
    Policy,
    Source,
)
from cthelper.core.grants import CHAINS
from cthelper.core.guard import UNLIMITED, Guard, Rules
from cthelper.core.outcome import Refused
from cthelper.core.tuples import ORIGINAL, REPLY, TCP, UDP, Direction, Status, key_of
from tests.core.builders import (
    CLIENT,
    CLIENT_PORT,
    SERVER,
    SERVER_PORT,
    conntrack,
    endpoint,
    flow_tuple,
    udp,
)
from tests.core.host import (
    LINK,
    OTHER_LINK,
    SERVER_ALONE,
    Datagrams,
    Host,
    configured,
    expectation,
    fault_of,
)


def test_depth_counts_the_flows_that_led_here() -> None:
    host = Host(Datagrams)
    host.entry = conntrack(flow_tuple(UDP), helper="datagram")
    assert host.send(b"CHAIN datagram").expectations
    for depth in range(1, 4):
        master = host.entry.original
        original = flow_tuple(UDP, (SERVER, 1000 + depth), (CLIENT, 5000))
        host.entry = replace(
            conntrack(original, id_=depth + 1, helper="datagram"), master=master
        )
        assert host.send(b"CHAIN datagram").expectations
        assert host.messages[0].depth == depth


def test_flow_of_an_unknown_master_is_one_deep() -> None:
    host = Host(Datagrams)
    master = flow_tuple(UDP, (SERVER, 9), (CLIENT, 9))
    host.entry = replace(conntrack(flow_tuple(UDP), helper="datagram"), master=master)
    host.send(b"NOTHING")
    assert host.messages[0].depth == 1


def test_depths_that_are_kept_are_bounded() -> None:
    host = Host(Datagrams)
    host.engine.guard = Guard(UNLIMITED)
    unlimited = Rules(per_source=0, per_helper=0)
    config = replace(configured(Datagrams), guard=unlimited)
    host.engine.helpers = {"datagram": config}
    first = flow_tuple(UDP, (CLIENT, 1), (SERVER, 7000))
    for port in range(1, CHAINS + 2):
        original = flow_tuple(UDP, (CLIENT, port), (SERVER, 7000))
        host.entry = conntrack(original, id_=port, helper="datagram")
        assert host.send(b"CHAIN datagram").expectations
    host.entry = replace(
        conntrack(flow_tuple(UDP, (SERVER, 9), (CLIENT, 9)), id_=0, helper="datagram"),
        master=first,
    )
    host.send(b"NOTHING")
    assert host.messages[0].depth == 1


def test_flow_of_another_host_opens_nothing_where_only_our_own_are_tagged() -> None:
    host = Host(Datagrams)
    config = replace(configured(Datagrams), hooks=frozenset({Hook.OUTPUT}))
    host.engine.helpers = {"datagram": config}
    entry = host.entry
    decision = host.engine.handle(udp(b"OPEN 5000"), entry, ORIGINAL, forwarded=True)
    (refused,) = decision.events
    assert isinstance(refused, Refused)
    assert (refused.reason, decision.expectations) == ("forwarded", ())
    assert host.engine.handle(udp(b"OPEN 5000"), entry, ORIGINAL).expectations


def test_expected_flow_may_come_in_where_only_our_own_are_tagged() -> None:
    host = Host(Datagrams)
    config = replace(configured(Datagrams), hooks=frozenset({Hook.OUTPUT}))
    host.engine.helpers = {"datagram": config}
    answer = flow_tuple(UDP, (SERVER, 427), (CLIENT, 5000))
    entry = replace(
        conntrack(answer, id_=2, helper="datagram"), master=host.entry.original
    )
    decision = host.engine.handle(udp(b"OPEN 5000"), entry, ORIGINAL, forwarded=True)
    assert decision.expectations


def test_endpoint_of_another_family_than_the_flow_is_refused() -> None:
    host = Host(Datagrams)
    allowed = Rules(allow_hosts=(IPv6Network("2001:db8::/32"),))
    config = replace(configured(Datagrams), guard=allowed)
    host.engine.helpers = {"datagram": config}
    decision = host.send(b"OTHER 5000")
    (refused,) = decision.events
    assert isinstance(refused, Refused)
    assert (refused.reason, decision.expectations) == ("address-family", ())


def test_whoever_asks_for_too_many_is_refused_more() -> None:
    host = Host(Datagrams)
    config = replace(configured(Datagrams), guard=Rules(per_source=3))
    host.engine.helpers = {"datagram": config}
    assert len(host.send(b"OPEN 5000 5001").expectations) == 2
    # Two networks on link are two expectations.
    (refused,) = host.send(b"LINK 5002").events
    assert isinstance(refused, Refused)
    assert refused.reason == "rate-source"
    assert len(host.send(b"OPEN 5003").expectations) == 1
    host.next_flow()
    assert host.send(b"OPEN 5004").expectations == ()
    # Who opened the flow counts, not who announces.
    assert host.send(b"OPEN 5004", REPLY).expectations == ()
    host.clock.now += 60
    assert len(host.send(b"OPEN 5004", REPLY).expectations) == 1


def test_expectation_carries_policy_zone_and_helper() -> None:
    host = Host(Datagrams)
    host.entry = conntrack(flow_tuple(UDP), zone=7, helper="datagram")
    (made,) = host.send(b"CHAIN").expectations
    assert (made.policy, made.class_, made.timeout) == ("chained", 1, 300)
    assert (made.helper, made.zone, made.permanent) == ("line", 7, False)


class Wishes(Helper):
    """Asks for what the test wants."""

    name = "wishes"
    transports = frozenset({UDP})
    ports = (SERVER_PORT,)
    policies = (Policy("data", timeout=60),)
    effects: ClassVar[tuple[Effect, ...]] = ()

    def on_message(self, message: Message) -> Effects:
        for effect in self.effects:  # noqa: UP028 - a tuple takes no Grant
            yield effect


@pytest.mark.parametrize(
    ("source", "networks"),
    [
        (PEER, (SERVER_ALONE,)),
        (ANY, (None,)),
        (ON_LINK, (LINK, OTHER_LINK)),
        (ip_network("203.0.113.0/24"), (ip_network("203.0.113.0/24"),)),
    ],
    ids=str,
)
def test_source_says_who_may_come(
    source: Source | Network,
    networks: tuple[Network | None, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wish = Expect(
        endpoint(CLIENT, 5000), "data", TCP, source, source_port=20, permanent=True
    )
    monkeypatch.setattr(Wishes, "effects", (wish,))
    host = Host(Wishes)
    made = host.send(b"x").expectations
    assert tuple(each.source for each in made) == networks
    assert {(each.transport, each.source_port, each.permanent) for each in made} == {
        (TCP, 20, True)
    }


def test_two_networks_on_link_give_two_expectations() -> None:
    host = Host(Datagrams)
    assert host.send(b"LINK 5000").expectations == (
        expectation(host, 5000, source=LINK),
        expectation(host, 5000, source=OTHER_LINK),
    )


def test_address_on_link_with_nothing_is_refused() -> None:
    decision = Host(Datagrams).send(b"LINK 5000", REPLY)
    assert decision.expectations == ()
    assert [each.reason for each in decision.events if isinstance(each, Refused)] == [
        "off-link"
    ]


def test_source_of_another_family_than_the_endpoint_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wish = Expect(endpoint(CLIENT, 5000), "data", TCP, ip_network("2001:db8::/32"))
    monkeypatch.setattr(Wishes, "effects", (wish,))
    fault = fault_of(Host(Wishes).send(b"x"))
    assert fault.error == "HelperFault: source 2001:db8::/32 for 192.0.2.1:5000"


class Untranslated(Datagrams):
    """Knows nothing of NAT."""

    nat = False


def test_translated_flow_of_a_helper_without_nat_opens_nothing() -> None:
    host = Host(Untranslated)
    reply = flow_tuple(UDP, (SERVER, SERVER_PORT), ("203.0.113.9", CLIENT_PORT))
    host.entry = conntrack(flow_tuple(UDP), reply, helper="datagram")
    for direction in Direction:
        decision = host.send(b"OPEN 5000", direction)
        assert decision.expectations == ()
        (refused,) = decision.events
        assert isinstance(refused, Refused)
        assert refused.reason == "nat"


ASSURED = Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED


@pytest.mark.parametrize(
    ("status", "forwarded", "granted"),
    [
        (Status(0), True, 1),
        (Status.CONFIRMED, True, 1),
        (Status.CONFIRMED | Status.SEEN_REPLY, True, 4),
        (ASSURED, True, 6),
        # What this host sends is not forged.
        (Status(0), False, 6),
    ],
)
def test_flow_that_anybody_may_have_begun_is_granted_less(
    status: Status, forwarded: bool, granted: int
) -> None:
    host = Host(Datagrams)
    host.engine.guard = Guard(replace(UNLIMITED, live_source=6))
    entry = replace(host.entry, status=status)
    made = [
        host.engine.handle(udp(b"OPEN %d" % port), entry, ORIGINAL, forwarded=forwarded)
        for port in range(5000, 5010)
    ]
    assert [len(each.expectations) for each in made] == (
        [1] * granted + [0] * (10 - granted)
    )
    reasons = {
        each.reason for one in made for each in one.events if isinstance(each, Refused)
    }
    assert reasons == {"live-source"}


def test_server_counts_unless_it_is_a_group() -> None:
    host = Host(Datagrams)
    host.engine.guard = Guard(replace(UNLIMITED, live_server=1))
    assert host.send(b"OPEN 5000").expectations
    (refused,) = host.send(b"OPEN 5001").events
    assert isinstance(refused, Refused)
    assert refused.reason == "live-server"
    group = flow_tuple(UDP, (CLIENT, CLIENT_PORT), ("224.0.0.251", SERVER_PORT))
    host.entry = conntrack(group, id_=2, helper="datagram")
    assert host.send(b"OPEN 5002").expectations
    assert host.send(b"OPEN 5003").expectations


def test_end_of_the_flow_and_what_is_not_put_in_make_room() -> None:
    host = Host(Datagrams)
    host.engine.guard = Guard(replace(UNLIMITED, live_source=1))
    ledger = host.engine.guard.ledger
    assert host.send(b"OPEN 5000").expectations
    ledger.forget(key_of(host.entry))
    (made,) = host.send(b"OPEN 5001").expectations
    assert host.send(b"OPEN 5002").expectations == ()
    ledger.cancel([made])
    assert host.send(b"OPEN 5002").expectations
    assert len(ledger) == 1
