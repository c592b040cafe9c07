# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets in, decisions out, with a line protocol over TCP and one over UDP."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet import UDP as ScapyUDP

from cthelper.core.api import (
    ANY,
    DONE,
    ON_LINK,
    PEER,
    Address,
    Effect,
    Effects,
    Endpoint,
    Expect,
    ExpectationRefused,
    Helper,
    Hook,
    Malformed,
    Message,
    Network,
    OptionValue,
    Policy,
    Rewrite,
    Source,
    Transport,
    expect,
)
from cthelper.core.config import HelperConfig
from cthelper.core.engine import NOTHING, Decision, Engine
from cthelper.core.grants import CHAINS, OnLink
from cthelper.core.guard import Guard, Rules
from cthelper.core.outcome import Damaged, Event, Fault, Finished, Refused
from cthelper.core.reader import FAULT_WINDOW, FAULTS, MALFORMED_IN_A_ROW, Watch
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Direction,
    Expectation,
)
from tests.core.builders import (
    CLIENT,
    CLIENT_PORT,
    SERVER,
    SERVER_PORT,
    conntrack,
    cut,
    endpoint,
    flow_tuple,
    tcp,
    udp,
)

FIRST = 2**32 - 5
LINK = ip_network("192.0.2.0/24")
OTHER_LINK = ip_network("198.51.100.0/24")
CLIENT_ALONE = ip_network(CLIENT)
SERVER_ALONE = ip_network(SERVER)


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Commands(Helper):
    """One command a message; OPEN PORT announces a port of the sender."""

    ports = (SERVER_PORT,)
    policies = (Policy("data", max_expected=2, timeout=60), Policy("chained"))
    message_limit = 32

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def on_message(self, message: Message) -> Effects:
        self.messages.append(message)
        own = message.source.address
        word, *arguments = message.payload.decode("latin-1").split() or [""]
        numbers = [int(each) for each in arguments if each.isdigit()]
        match word:
            case "OPEN":
                for port in numbers:
                    yield from expect(Endpoint(own, port), policy="data")
            case "TRY":
                for port in numbers:
                    with suppress(ExpectationRefused):
                        yield from expect(Endpoint(own, port), policy="data")
            case "GRANT":
                grant = yield from expect(Endpoint(own, numbers[0]), policy="data")
                yield Rewrite((6, 10), b"%d" % grant.endpoint.port)
            case "AGAIN":
                try:
                    yield from expect(Endpoint(own, numbers[0]), policy="data")
                except ExpectationRefused:
                    yield from expect(Endpoint(own, numbers[1]), policy="data")
            case "LINK":
                yield from expect(
                    Endpoint(own, numbers[0]), policy="data", source=ON_LINK
                )
            case "POLICY":
                yield from expect(Endpoint(own, 5000), policy=arguments[0])
            case "CHAIN":
                (name,) = arguments or ["line"]
                yield from expect(Endpoint(own, 5000), policy="chained", helper=name)
            case "OTHER":
                other = Endpoint(IPv6Address("2001:db8::1"), numbers[0])
                yield from expect(other, policy="data")
            case "REFUSE":
                raise ExpectationRefused("out-of-turn", "nobody asked")
            case "RAISE":
                raise {"bug": ZeroDivisionError, "assert": AssertionError}[
                    arguments[0]
                ]("in the helper")
            case "OPEN-RAISE":
                yield from expect(Endpoint(own, numbers[0]), policy="data")
                raise RuntimeError("after the expectation")
            case "REWRITE":
                yield Rewrite((8, 8 + len(arguments[0])), arguments[0].encode())
            case "CHANGE":
                yield Rewrite((0, 6), b"was")
                yield Rewrite((7, 7), b"and ")
            case "BEYOND":
                yield Rewrite((0, 100), b"x")
            case "DONE":
                yield DONE
            case "" | "NOTHING":
                pass
            case _:
                raise Malformed(f"command {word!r}")


class Lines(Commands):
    """The commands over TCP, each ended by a line feed."""

    name = "line"
    transports = frozenset({TCP})

    def frame(self, data: memoryview) -> int | None:
        text = bytes(data)
        if text[:1] == b"!":
            rest = data[1:]
            raise Malformed(f"{len(rest)} bytes behind a !")
        if text[:1] == b"#":
            return int(text[1:4])
        return text.find(b"\n") + 1 or None


class Datagrams(Commands):
    """The commands over UDP."""

    name = "datagram"
    transports = frozenset({UDP})


def on_link(address: Address) -> tuple[Network, ...]:
    if address == endpoint(CLIENT, 0).address:
        return LINK, OTHER_LINK
    raise ExpectationRefused("off-link", f"{address} is on-link with no network")


def configured(
    helper: type[Helper], options: Mapping[str, OptionValue] | None = None
) -> HelperConfig:
    return HelperConfig(
        helper=helper,
        queue=0,
        ports=helper.ports,
        policies=helper.policies,
        options=options or {},
    )


class Host:
    """An engine and one flow through it."""

    def __init__(
        self,
        helper: type[Helper],
        watch: Watch | None = None,
        on_link: OnLink = on_link,
    ) -> None:
        (transport,) = helper.transports
        self.clock = Clock()
        self.engine = Engine(
            {helper.name: configured(helper, {"strict": True})},
            guard=Guard(),
            on_link=on_link,
            clock=self.clock,
            flow_limit=16,
            watch=watch,
        )
        self.transport: Transport = transport
        self.entry = conntrack(flow_tuple(transport), helper=helper.name)
        self._sent: dict[Direction, int] = {}

    def handle(self, packet: bytes, direction: Direction = ORIGINAL) -> Decision:
        return self.engine.handle(packet, self.entry, direction)

    def send(self, payload: bytes, direction: Direction = ORIGINAL) -> Decision:
        """The next bytes of the direction, after a handshake on TCP."""
        if self.transport is UDP:
            return self.handle(udp(payload, direction=direction), direction)
        if direction not in self._sent:
            syn = tcp(b"", FIRST - 1, flags="S", direction=direction)
            assert self.handle(syn, direction).events == ()
            self._sent[direction] = 0
        offset = self._sent[direction]
        self._sent[direction] += len(payload)
        return self.segment(offset, payload, direction)

    def segment(
        self, offset: int, payload: bytes, direction: Direction = ORIGINAL
    ) -> Decision:
        packet = tcp(payload, FIRST + offset, direction=direction)
        return self.handle(packet, direction)

    def next_flow(self) -> None:
        """Go on with another flow, which has another conntrack id."""
        original = self.entry.original
        self.entry = conntrack(
            original, id_=self.entry.id + 1, helper=self.entry.helper
        )
        self._sent.clear()

    @property
    def messages(self) -> list[Message]:
        """What the helper of the flow has read."""
        flow = self.engine.flows.find(self.entry)
        assert flow is not None
        assert isinstance(flow.helper, Commands)
        return flow.helper.messages


def expectation(
    host: Host,
    port: int,
    *,
    source: Network | None = SERVER_ALONE,
    address: str = CLIENT,
) -> Expectation:
    """What the client gets when it announces `port`, unless told."""
    return Expectation(
        master=host.entry.original,
        transport=host.transport,
        source=source,
        source_port=None,
        destination=endpoint(address, port),
        policy="data",
        timeout=60,
    )


BOTH = pytest.mark.parametrize("helper", [Lines, Datagrams], ids=["TCP", "UDP"])


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


# Messages on TCP.


def test_only_the_completing_segment_gives_the_expectation() -> None:
    host = Host(Lines)
    decisions = [host.send(piece) for piece in (b"OP", b"EN 50", b"00", b"\n", b"NO")]
    assert [len(each.expectations) for each in decisions] == [0, 0, 0, 1, 0]
    assert decisions[3].expectations == (expectation(host, 5000),)


def test_messages_of_one_segment_give_all_their_expectations() -> None:
    host = Host(Lines)
    decision = host.send(b"OPEN 5000\nNOTHING\nOPEN 5001\nOPEN 50")
    assert decision.expectations == (expectation(host, 5000), expectation(host, 5001))
    assert host.send(b"02\n").expectations == (expectation(host, 5002),)


def test_directions_have_streams_of_their_own() -> None:
    host = Host(Lines)
    host.send(b"OPEN ")
    host.send(b"NOTH", REPLY)
    host.send(b"5000\n")
    host.send(b"ING\n", REPLY)
    assert [message.payload for message in host.messages] == [
        b"OPEN 5000\n",
        b"NOTHING\n",
    ]


@given(
    st.lists(st.integers(1, 65535), max_size=6),
    st.sets(st.integers(1, 80), max_size=12),
)
def test_any_segmentation_gives_the_same_expectations(
    ports: list[int], cuts: set[int]
) -> None:
    content = b"".join(b"TRY %d\n" % port for port in ports)
    whole = Host(Lines).send(content)
    host = Host(Lines)
    decisions = [host.send(piece) for piece in cut(content, cuts)]
    assert tuple(made for each in decisions for made in each.expectations) == (
        whole.expectations
    )
    assert tuple(event for each in decisions for event in each.events) == whole.events
    assert all(each.packet is None for each in decisions)


def test_retransmission_gives_no_second_expectation() -> None:
    host = Host(Lines)
    host.send(b"OPEN 5000\n")
    assert host.segment(0, b"OPEN 5000\n") == Decision(
        host.engine.flows.find(host.entry)
    )


def test_segment_that_fills_the_hole_gives_the_expectation() -> None:
    host = Host(Lines)
    host.send(b"")
    assert host.segment(5, b"5000\n").expectations == ()
    assert host.segment(0, b"OPEN ").expectations == (expectation(host, 5000),)


@pytest.mark.parametrize(
    ("packets", "reason"),
    [
        ([tcp(b"OPEN 5000\n", FIRST)], "mid-stream"),
        ([tcp(b"", FIRST, flags="A")], "mid-stream"),
        (
            [tcp(b"", FIRST - 1, flags="S"), tcp(b"OPEN 5000\n", FIRST + 30)],
            "gap",
        ),
        (
            [
                tcp(b"", FIRST - 1, flags="S"),
                tcp(b"OPEN 5000", FIRST),
                tcp(b"5001\n", FIRST + 5),
            ],
            "overlap",
        ),
    ],
    ids=["mid-stream", "mid-stream without payload", "gap", "overlap"],
)
def test_lost_stream_finishes_the_flow_once(packets: list[bytes], reason: str) -> None:
    host = Host(Lines)
    *earlier, last = packets
    assert all(host.handle(packet).events == () for packet in earlier)
    decision = host.handle(last)
    assert decision.flow is not None
    assert decision == Decision(decision.flow, events=(Finished(reason),))
    assert decision.flow.finished == reason
    # Nothing is read any longer, not even what begins afresh.
    for packet in (tcp(b"", 8, flags="S"), tcp(b"OPEN 5000\n", 9)):
        assert host.handle(packet) == Decision(decision.flow)
        assert host.handle(packet, REPLY) == Decision(decision.flow)


# What is malformed.


def damaged(decision: Decision) -> bool:
    assert decision.expectations == ()
    assert decision.packet is None
    return [type(event) for event in decision.events] == [Damaged]


def test_malformed_message_ends_one_direction_of_tcp() -> None:
    host = Host(Lines)
    decision = host.send(b"HELO\n")
    assert decision.events == (Damaged("command 'HELO'"),)
    assert host.send(b"OPEN 5000\n") == Decision(decision.flow)
    assert len(host.send(b"OPEN 5000\n", REPLY).expectations) == 1


def test_flow_is_finished_when_both_directions_are_malformed() -> None:
    host = Host(Lines)
    assert damaged(host.send(b"HELO\n"))
    decision = host.send(b"220 ready\n", REPLY)
    assert [type(event) for event in decision.events] == [Damaged, Finished]
    assert decision.events[1] == Finished("malformed")
    assert host.send(b"OPEN 5000\n", REPLY) == Decision(decision.flow)


def test_messages_before_the_malformed_one_count() -> None:
    host = Host(Lines)
    decision = host.send(b"OPEN 5000\nHELO\nOPEN 5001\n")
    assert decision.expectations == (expectation(host, 5000),)
    assert decision.events == (Damaged("command 'HELO'"),)


def test_malformed_frame_ends_the_direction() -> None:
    # frame() still holds a view of the pending bytes when the exception arrives.
    host = Host(Lines)
    decision = host.send(b"!12")
    assert decision.events == (Damaged("2 bytes behind a !"),)
    assert host.send(b"\nOPEN 5000\n") == Decision(decision.flow)


@pytest.mark.parametrize(
    "pieces",
    [[b"OPEN" + b" " * 24 + b"5000\n"], [b"OPEN" + b" " * 24, b"5000", b"0"]],
    ids=["whole", "not yet whole"],
)
def test_message_over_the_limit_is_oversized(pieces: list[bytes]) -> None:
    host = Host(Lines)
    *earlier, last = pieces
    assert all(host.send(piece).events == () for piece in earlier)
    decision = host.send(last)
    assert damaged(decision)
    assert "33 bytes" in str(decision.events[0])
    assert host.send(b"\nOPEN 5000\n") == Decision(decision.flow)


def test_message_of_the_limit_is_read() -> None:
    host = Host(Lines)
    assert host.send(b"OPEN" + b" " * 23 + b"500").events == ()
    assert host.send(b"0").events == ()
    assert host.send(b"\n").expectations == (expectation(host, 5000),)


def test_malformed_datagram_is_ignored() -> None:
    host = Host(Datagrams)
    assert damaged(host.send(b"HELO"))
    assert host.send(b"OPEN 5000").expectations == (expectation(host, 5000),)


def test_malformed_datagrams_in_a_row_end_one_direction_of_udp() -> None:
    host = Host(Datagrams)
    for _ in range(MALFORMED_IN_A_ROW - 1):
        assert damaged(host.send(b"HELO"))
    assert len(host.send(b"OPEN 5000").expectations) == 1
    for _ in range(MALFORMED_IN_A_ROW):
        assert damaged(host.send(b"HELO"))
    decision = host.send(b"OPEN 5000")
    assert decision == Decision(decision.flow)
    assert len(host.send(b"OPEN 5000", REPLY).expectations) == 1
    for _ in range(MALFORMED_IN_A_ROW - 1):
        assert damaged(host.send(b"HELO", REPLY))
    assert Finished("malformed") in host.send(b"HELO", REPLY).events


def test_malformed_packet_is_counted_as_a_malformed_message() -> None:
    host = Host(Datagrams)
    assert damaged(host.handle(udp(b"OPEN 5000")[:-1]))
    assert len(host.send(b"OPEN 5000").expectations) == 1


def test_malformed_packets_of_a_direction_that_is_not_read_are_no_events() -> None:
    host = Host(Datagrams)
    for _ in range(MALFORMED_IN_A_ROW):
        assert host.handle(udp(b"NOTHING")[:-8]).events
    assert host.handle(udp(b"NOTHING")[:-8]).events == ()
    assert host.send(b"NOTHING", REPLY).events == ()


def test_fragment_is_accepted_without_events() -> None:
    host = Host(Datagrams)
    packet = bytes(IP(src=CLIENT, dst=SERVER, flags="MF") / ScapyUDP() / b"HELO")
    decision = host.handle(packet)
    assert decision == Decision(decision.flow)
    assert len(host.send(b"OPEN 5000").expectations) == 1


# What a helper does wrong.


class Broken(Commands):
    """Breaks the contract in the way that the test wants."""

    name = "line"
    transports = frozenset({TCP})
    length: ClassVar[int | None] = None

    def frame(self, data: memoryview) -> int | None:
        return self.length


class Unmakeable(Lines):
    """Cannot be instantiated."""

    def __init__(self) -> None:
        raise OSError("no such file")


class Plain(Lines):
    """Its on_message is no generator."""

    def on_message(self, message: Message) -> Effects:
        return None  # type: ignore[return-value]  # the fault that is tested


class Foreign(Lines):
    """Yields what is no effect."""

    def on_message(self, message: Message) -> Effects:
        yield "OPEN"  # type: ignore[misc]  # the fault that is tested


class UnicodeFault(Lines):
    """Lets an exception of the codec out of frame()."""

    def frame(self, data: memoryview) -> int | None:
        return len(bytes(data).decode("ascii"))


def fault_of(decision: Decision) -> Fault:
    """The fault, after a look at what else a fault means."""
    assert decision.flow is not None
    assert decision.flow.finished == "fault"
    assert (decision.expectations, decision.packet) == ((), None)
    fault, finished = decision.events
    assert finished == Finished("fault")
    assert isinstance(fault, Fault)
    return fault


@BOTH
@pytest.mark.parametrize(
    ("command", "error"),
    [
        (b"RAISE bug\n", "ZeroDivisionError: in the helper"),
        (b"RAISE assert\n", "AssertionError: in the helper"),
        (b"OPEN-RAISE 5000\n", "RuntimeError: after the expectation"),
        (b"GRANT\n", "IndexError: list index out of range"),
    ],
    ids=["exception", "assertion", "after an expectation", "index"],
)
def test_exception_of_a_helper_is_a_fault_with_its_place(
    helper: type[Helper], command: bytes, error: str
) -> None:
    host = Host(helper)
    fault = fault_of(host.send(command))
    assert fault.error == error
    assert not fault.quarantined
    name, _, line = fault.where.partition(":")
    assert name == "test_engine.py"
    assert int(line) > 0
    decision = host.send(b"OPEN 5000\n")
    assert decision == Decision(decision.flow)


def test_fault_in_a_library_is_placed_in_the_helper_that_called_it() -> None:
    fault = fault_of(Host(UnicodeFault).send(b"\xff"))
    assert fault.where.startswith("test_engine.py:")


@pytest.mark.parametrize(
    ("helper", "error"),
    [
        (Unmakeable, "OSError: no such file"),
        (Plain, "TypeError: "),
        (Foreign, "AssertionError: "),
        (UnicodeFault, "UnicodeDecodeError: "),
    ],
)
def test_helper_that_breaks_the_contract_is_at_fault(
    helper: type[Helper], error: str
) -> None:
    host = Host(helper)
    syn = host.handle(tcp(b"", FIRST - 1, flags="S"))
    decision = syn if syn.events else host.segment(0, b"OPEN \xff\n")
    assert fault_of(decision).error.startswith(error)


@pytest.mark.parametrize("length", [0, -1, 11])
def test_frame_of_no_length_or_too_much_is_a_fault(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "length", length)
    fault = fault_of(Host(Broken).send(b"OPEN 5000\n"))
    assert fault.error == f"HelperFault: frame() returned {length} of 10 bytes"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (b"POLICY other", "HelperFault: no policy 'other'"),
        (
            b"POLICY chained",
            "HelperFault: policy 'chained' is not the first: the kernel applies it "
            "only to an expectation that names a helper",
        ),
        (b"BEYOND", "HelperFault: rewrite of a span that leaves the datagram"),
    ],
    ids=["unknown policy", "second policy without a helper", "rewrite out of range"],
)
def test_wish_that_cannot_be_is_a_fault(command: bytes, error: str) -> None:
    assert fault_of(Host(Datagrams).send(command)).error.startswith(error)


def test_faults_within_the_window_quarantine_the_helper() -> None:
    host = Host(Datagrams)
    waiting = host.entry
    host.send(b"NOTHING")
    for number in range(1, FAULTS + 1):
        host.next_flow()
        fault = fault_of(host.send(b"RAISE bug"))
        assert fault.quarantined is (number == FAULTS)
        host.clock.now += FAULT_WINDOW / (FAULTS - 1)
    # Neither flows that go on nor new ones are inspected.
    host.next_flow()
    for entry in (waiting, host.entry):
        decision = host.engine.handle(udp(b"OPEN 5000"), entry, ORIGINAL)
        assert decision == Decision(decision.flow, events=(Finished("quarantine"),))
        again = host.engine.handle(udp(b"OPEN 5000"), entry, ORIGINAL)
        assert again == Decision(decision.flow)
    host.engine.release()
    host.next_flow()
    assert len(host.send(b"OPEN 5000").expectations) == 1
    host.next_flow()
    assert not fault_of(host.send(b"RAISE bug")).quarantined


def test_faults_far_apart_do_not_quarantine() -> None:
    host = Host(Datagrams)
    for _ in range(2 * FAULTS):
        host.next_flow()
        assert not fault_of(host.send(b"RAISE bug")).quarantined
        host.clock.now += FAULT_WINDOW / (FAULTS - 1) + 1


def test_quarantine_is_the_helpers_own() -> None:
    host = Host(Datagrams)
    for _ in range(FAULTS):
        host.next_flow()
        host.send(b"RAISE bug")
    host.engine.helpers = {**host.engine.helpers, "line": configured(Lines)}
    other = conntrack(id_=99, helper="line")
    host.engine.handle(tcp(b"", FIRST - 1, flags="S"), other, ORIGINAL)
    decision = host.engine.handle(tcp(b"OPEN 5000\n", FIRST), other, ORIGINAL)
    assert len(decision.expectations) == 1


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


# Rewrites and the end.


@BOTH
@pytest.mark.parametrize("command", [b"REWRITE same\n", b"GRANT 5000\n"])
def test_rewrite_to_the_same_bytes_is_dropped(
    helper: type[Helper], command: bytes
) -> None:
    decision = Host(helper).send(command)
    assert (decision.packet, decision.events) == (None, ())


def test_rewrite_of_a_datagram_replaces_the_packet() -> None:
    decision = Host(Datagrams).send(b"CHANGE me")
    assert decision.packet == udp(b"was and me")
    assert decision.events == ()


def test_rewrite_of_a_segment_is_a_fault() -> None:
    fault = fault_of(Host(Lines).send(b"CHANGE me\n"))
    assert fault.error.startswith("HelperFault: rewrite of a TCP segment")


@BOTH
def test_done_finishes_the_flow_once(helper: type[Helper]) -> None:
    host = Host(helper)
    assert len(host.send(b"OPEN 5000\n").expectations) == 1
    decision = host.send(b"DONE\n")
    assert decision == Decision(decision.flow, events=(Finished("done"),))
    for direction in Direction:
        assert host.send(b"OPEN 5000\n", direction) == Decision(decision.flow)


def test_messages_after_done_are_not_read() -> None:
    decision = Host(Lines).send(b"OPEN 5000\nDONE\nOPEN 5001\n")
    assert [made.destination.port for made in decision.expectations] == [5000]
    assert decision.events == (Finished("done"),)


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


# Looking on.


class Onlooker:
    """Writes down what the engine tells it."""

    def __init__(self) -> None:
        self.told: list[bytes | Effect] = []

    def message(self, helper: Helper, message: Message) -> None:
        assert isinstance(helper, Commands)
        assert message not in helper.messages
        self.told.append(message.payload)

    def effect(self, effect: Effect) -> None:
        self.told.append(effect)


@BOTH
def test_watch_is_told_of_messages_and_effects_in_their_order(
    helper: type[Helper],
) -> None:
    onlooker = Onlooker()
    host = Host(helper, onlooker)
    port = endpoint(CLIENT, 22)
    for payload in (b"TRY 22 5000\n", b"NONSENSE\n"):
        host.send(payload)
    assert onlooker.told == [
        b"TRY 22 5000\n",
        Expect(port, "data"),
        Expect(endpoint(CLIENT, 5000), "data"),
        b"NONSENSE\n",
    ]


def test_helper_describes_nothing_unless_it_says_so() -> None:
    host = Host(Datagrams)
    host.send(b"NOTHING")
    (message,) = host.messages
    assert Datagrams().describe(message) == {}
