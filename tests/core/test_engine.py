# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets in, decisions out, with a line protocol over TCP and one over UDP."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import Helper, Message
from cthelper.core.engine import NOTHING, Decision
from cthelper.core.outcome import Damaged, Fault, Finished, Refused
from cthelper.core.packet import COPIED
from cthelper.core.tuples import ORIGINAL, REPLY, TCP, UDP, Address, Network
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
    Datagrams,
    Host,
    Lines,
    configured,
    expectation,
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


def test_flow_over_tcp_goes_to_no_group_and_nobody_asks_for_its_link() -> None:
    def never(address: Address) -> tuple[Network, ...]:
        raise AssertionError(address)

    host = Host(Lines, on_link=never)
    original = flow_tuple(TCP, (CLIENT, CLIENT_PORT), ("192.0.2.255", SERVER_PORT))
    host.entry = conntrack(original, helper=Lines.name)
    host.send(b"NOTHING\n")
    assert not host.messages[0].group


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


def test_datagrams_that_the_queue_has_copied_a_part_of_are_no_damage() -> None:
    host = Host(Datagrams)
    whole = udp(b"OPEN 5000" + bytes(0xFFFF - 28 - 9))
    for _ in range(9):
        decision = host.handle(whole[:COPIED])
        assert (decision.events, decision.expectations) == ((), ())
    assert host.send(b"OPEN 5000").expectations == (expectation(host, 5000),)
