# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets in, decisions out, with a line protocol over TCP and one over UDP."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    ANY,
    ON_LINK,
    PEER,
    Effect,
    Effects,
    Expect,
    ExpectationRefused,
    Helper,
    Hook,
    Message,
    Network,
    Policy,
    Source,
)
from cthelper.core.engine import NOTHING, Decision
from cthelper.core.grants import CHAINS
from cthelper.core.guard import Guard, Rules
from cthelper.core.outcome import Damaged, Event, Fault, Finished, Refused
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Direction,
)
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
    BOTH,
    CLIENT_ALONE,
    LINK,
    OTHER_LINK,
    SERVER_ALONE,
    Datagrams,
    Host,
    Lines,
    configured,
    expectation,
    fault_of,
)


@BOTH
def test_message_gives_an_expectation_and_nothing_else(helper: type[Helper]) -> None:
    host = Host(helper)
    decision = host.send(b"OPEN 5000\n")
    assert decision.expectations == (expectation(host, 5000),)
    assert (decision.packet, decision.events) == (None, ())
    assert decision.flow is not None
    assert decision.flow.finished is None


@BOTH
def test_announcement_of_the_server_lets_the_client_in(helper: type[Helper]) -> None:
    host = Host(helper)
    assert host.send(b"OPEN 5000\n", REPLY).expectations == (
        expectation(host, 5000, source=CLIENT_ALONE, address=SERVER),
    )


@BOTH
def test_message_carries_what_the_helper_may_know(helper: type[Helper]) -> None:
    host = Host(helper)
    host.send(b"NOTHING\n")
    host.clock.now = 2000.0
    host.send(b"NOTHING\n", REPLY)
    first, second = host.messages
    client, server = endpoint(CLIENT, CLIENT_PORT), endpoint(SERVER, SERVER_PORT)
    assert first == Message(
        direction=ORIGINAL,
        transport=host.transport,
        source=client,
        destination=server,
        payload=b"NOTHING\n",
        original=host.entry.original,
        reply=host.entry.reply,
        now=1000.0,
        options={"strict": True},
    )
    assert (second.direction, second.source, second.destination, second.now) == (
        REPLY,
        server,
        client,
        2000.0,
    )


def test_message_says_whether_the_packet_was_forwarded() -> None:
    host = Host(Datagrams)
    host.engine.handle(udp(b"NOTHING"), host.entry, ORIGINAL, forwarded=True)
    host.engine.handle(udp(b"NOTHING"), host.entry, ORIGINAL, forwarded=False)
    assert [message.forwarded for message in host.messages] == [True, False]


def group_of(source: str, destination: str) -> bool:
    """Whether a message between these addresses went to a group."""
    host = Host(Datagrams)
    original = flow_tuple(UDP, (source, CLIENT_PORT), (destination, SERVER_PORT))
    host.entry = conntrack(original, helper="datagram")
    host.send(b"NOTHING")
    host.send(b"NOTHING", REPLY)
    there, back = host.messages
    assert not back.group
    return there.group


@pytest.mark.parametrize(
    ("destination", "group"),
    [
        ("224.0.0.251", True),
        ("255.255.255.255", True),
        # Of the networks that the client is on-link with, 192.0.2.0/24 is the near one.
        ("192.0.2.255", True),
        ("192.0.2.127", False),
        ("192.0.2.254", False),
        ("198.51.100.255", False),
        (SERVER, False),
    ],
)
def test_message_says_whether_it_went_to_a_group(destination: str, group: bool) -> None:
    assert group_of(CLIENT, destination) is group


def test_group_of_ipv6_is_multicast() -> None:
    assert group_of("fe80::1", "ff02::fb")
    assert not group_of("fe80::1", "fe80::ffff")


def test_broadcast_of_a_link_that_the_source_is_not_on_is_none() -> None:
    assert not group_of("203.0.113.1", "203.0.113.255")


@given(st.ip_addresses(v=4), st.integers(1, 30), st.data())
def test_every_broadcast_address_is_recognised(
    address: IPv4Address, prefix: int, data: st.DataObject
) -> None:
    network = IPv4Network((address, prefix), strict=False)
    source = network[data.draw(st.integers(0, network.num_addresses - 2))]
    host = Host(Datagrams, on_link=lambda _: (network,))
    destination = network.broadcast_address
    original = flow_tuple(UDP, (str(source), 1000), (str(destination), 7000))
    host.entry = conntrack(original, helper="datagram")
    host.send(b"NOTHING")
    assert host.messages[0].group


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
    host.engine.guard = Guard(0)
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


# What is refused.

LOW = Refused(
    "low-port", "port 1000 is below 1024", Expect(endpoint(CLIENT, 1000), "data")
)


@BOTH
@pytest.mark.parametrize(
    ("command", "ports", "events"),
    [
        (b"OPEN 1000\n", [], (LOW,)),
        (b"OPEN 5000 1000 5001\n", [5000], (LOW,)),
        (b"TRY 1000\n", [], (LOW,)),
        (b"TRY 1000 5000 1000\n", [5000], (LOW, LOW)),
        (b"AGAIN 1000 5000\n", [5000], (LOW,)),
        (b"AGAIN 1000 1000\n", [], (LOW, LOW)),
        (b"REFUSE\n", [], (Refused("out-of-turn", "nobody asked", None),)),
    ],
    ids=[
        "uncaught",
        "uncaught after another",
        "caught",
        "caught twice",
        "caught, another wish",
        "caught, another wish is refused too",
        "raised by the helper",
    ],
)
def test_refusal_is_counted_once_and_the_flow_goes_on(
    helper: type[Helper], command: bytes, ports: list[int], events: tuple[Event, ...]
) -> None:
    host = Host(helper)
    decision = host.send(command)
    assert [made.destination.port for made in decision.expectations] == ports
    assert decision.events == events
    assert host.send(b"OPEN 6000\n").expectations == (expectation(host, 6000),)


class Eager(Datagrams):
    """Refuses before its generator runs."""

    def on_message(self, message: Message) -> Effects:
        raise ExpectationRefused("out-of-turn", "nobody asked")


def test_refusal_by_a_helper_without_a_generator_is_no_fault() -> None:
    decision = Host(Eager).send(b"x")
    assert decision.events == (Refused("out-of-turn", "nobody asked", None),)


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


# Flows and the configuration.


@pytest.mark.parametrize("name", ["ftp", None])
def test_flow_of_another_helper_is_not_ours(name: str | None) -> None:
    host = Host(Datagrams)
    host.entry = conntrack(flow_tuple(UDP), helper=name)
    assert host.send(b"OPEN 5000") is NOTHING
    assert len(host.engine.flows) == 0


def test_flows_have_instances_of_their_own() -> None:
    host = Host(Lines)
    first = host.entry
    host.send(b"OPEN ")
    host.next_flow()
    host.send(b"TRY ")
    assert host.send(b"5001\n").expectations == (expectation(host, 5001),)
    host.entry = first
    assert host.segment(5, b"5000\n").expectations == (expectation(host, 5000),)


def test_flow_of_a_removed_helper_is_finished_once() -> None:
    host = Host(Datagrams)
    host.send(b"NOTHING")
    host.engine.helpers = {}
    decision = host.send(b"OPEN 5000")
    assert decision == Decision(decision.flow, events=(Finished("helper-removed"),))
    assert host.send(b"OPEN 5000") == Decision(decision.flow)
    host.next_flow()
    assert host.send(b"OPEN 5000") is NOTHING


def test_flow_goes_on_with_a_new_configuration() -> None:
    host = Host(Datagrams)
    host.send(b"NOTHING")
    host.engine.helpers = {"datagram": configured(Datagrams, {"strict": False})}
    host.send(b"NOTHING")
    assert [message.options for message in host.messages] == [
        {"strict": True},
        {"strict": False},
    ]


def test_entry_that_has_lost_its_helper_stays_the_flow_that_it_was() -> None:
    host = Host(Datagrams)
    host.send(b"NOTHING")
    host.entry = conntrack(flow_tuple(UDP), helper=None)
    assert len(host.send(b"OPEN 5000").expectations) == 1


@BOTH
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_payload_is_accepted(helper: type[Helper], payloads: list[bytes]) -> None:
    host = Host(helper)
    for payload in payloads:
        for event in host.send(payload).events:
            assert isinstance(event, Damaged | Fault | Finished | Refused)
