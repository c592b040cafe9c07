# SPDX-License-Identifier: GPL-2.0-or-later
"""DHCPv6 through the engine: faults of conntrackd, any bytes, words, other readers."""

from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import dhcp6
from scapy.layers.inet import UDP as ScapyUDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from cthelper import nft
from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    UDP,
    Address,
    Direction,
    Expect,
    ExpectationRefused,
    Malformed,
    Network,
    OptionValue,
)
from cthelper.core.config import parse
from cthelper.core.engine import Decision
from cthelper.core.outcome import Damaged, Refused
from cthelper.helpers.dhcpv6 import Dhcpv6
from cthelper.testing import play
from tests.core.builders import conntrack, flow_tuple, packet6
from tests.helpers import tshark
from tests.helpers.given import damaged
from tests.helpers.inspected import configured, engine_with
from tests.helpers.test_dhcpv6 import (
    ANSWERED,
    CLIENT_PORT,
    CLIENT_TYPES,
    GROUP,
    GROUPS,
    HOST,
    LEASEQUERY,
    OTHER_PORT,
    RELAY_FORWARD,
    RELAY_MESSAGE,
    RELAY_REPLY,
    RELAY_SOURCE_PORT,
    SERVER_PORT,
    SERVER_TYPES,
    Options,
    answers_to,
    client,
    encode,
    line,
    opened,
    payload_of,
    relay,
)

# Through the engine


def on_link(address: Address) -> tuple[Network, ...]:
    if address in ip_network("fe80::/10"):
        return (ip_network("fe80::/10"),)
    raise ExpectationRefused("off-link", f"{address} is on no link")


def handle(
    payload: bytes,
    *,
    port: int = CLIENT_PORT,
    source: str = HOST,
    seen_as: str | None = None,
    forwarded: bool = False,
    **options: OptionValue,
) -> Decision:
    """What the engine decides for a message to the first group.

    `seen_as` is the address that the source is translated to.
    """
    config = configured(Dhcpv6)
    config = replace(config, options={**config.options, **options})
    engine = engine_with(config, on_link=on_link)
    original = flow_tuple(UDP, (source, port), (GROUP, SERVER_PORT))
    reply = flow_tuple(UDP, (GROUP, SERVER_PORT), (seen_as or source, port))
    entry = conntrack(original, reply, helper="dhcpv6")
    return engine.handle(packet6(UDP, payload), entry, ORIGINAL, forwarded=forwarded)


def reasons(decision: Decision) -> list[str]:
    return [each.reason for each in decision.events if isinstance(each, Refused)]


def test_anybody_may_answer_unless_configured() -> None:
    (expectation,) = handle(client(1)).expectations
    assert str(expectation) == "udp any > [fe80::1]:546"
    assert expectation.permanent


def test_configured_networks_may_answer() -> None:
    networks = (IPv6Network("fe80::/10"), IPv6Network("2001:db8:5::/48"))
    decision = handle(client(1), servers=networks, strict_sport=True)
    assert list(map(str, decision.expectations)) == [
        "udp fe80::/10 port 547 > [fe80::1]:546",
        "udp 2001:db8:5::/48 port 547 > [fe80::1]:546",
    ]


def test_off_link_address_is_no_hindrance() -> None:
    # Relays and servers may be networks away.
    decision = handle(relay(), port=SERVER_PORT, source="2001:db8::9", relay=True)
    assert list(map(str, decision.expectations)) == [
        "udp any > [2001:db8::9]:547",
    ]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("::", "unspecified-address"),
        ("::1", "loopback-address"),
        ("::ffff:192.0.2.1", "v4-mapped-address"),
    ],
)
def test_asker_that_nobody_can_answer_is_refused(source: str, reason: str) -> None:
    decision = handle(client(1), source=source)
    assert (decision.expectations, reasons(decision)) == ((), [reason])


def test_message_of_another_host_is_refused() -> None:
    decision = handle(client(1), forwarded=True)
    assert (decision.expectations, reasons(decision)) == ((), ["forwarded"])


def test_nat_is_refused() -> None:
    decision = handle(client(1), source="fd00::1", seen_as="2001:db8::1")
    assert (decision.expectations, reasons(decision)) == ((), ["nat"])


# Faults of conntrackd


@pytest.mark.fault("dhcpv6 1", "an empty datagram is read as type 0 and opens the port")
@pytest.mark.parametrize("length", range(4))
def test_datagram_too_short_for_a_header_opens_nothing(length: int) -> None:
    decision = handle(client(1)[:length])
    assert decision.expectations == ()
    assert isinstance(decision.events[0], Damaged)


@pytest.mark.fault("dhcpv6 2", "messages of type 14 and above are dropped")
def test_no_message_type_is_dropped() -> None:
    # A decision has no way to drop; nor is a type unheard of damage or a bug.
    for kind in range(256):
        decision = handle(payload_of(kind), port=SERVER_PORT, relay=True)
        assert decision.packet is None
        assert all(isinstance(each, Refused) for each in decision.events)
        assert reasons(decision) == (["source-port"] if kind in CLIENT_TYPES else [])


@pytest.mark.fault("dhcpv6 3", "what is refused is printed, where nobody reads it")
def test_refusal_is_an_event_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for kind in range(256):
        handle(payload_of(kind), port=OTHER_PORT)
    decision = handle(client(1), port=OTHER_PORT)
    assert [each.detail for each in decision.events if isinstance(each, Refused)] == [
        "Solicit from port 40000"
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.fault("dhcpv6 4", "messages of servers and relays open the port, too")
@pytest.mark.parametrize("kind", sorted(SERVER_TYPES))
def test_multicast_message_of_a_server_opens_no_port(kind: int) -> None:
    for port in (CLIENT_PORT, SERVER_PORT):
        assert handle(payload_of(kind), port=port).expectations == ()


@pytest.mark.fault("dhcpv6 5", "a relayed message opens port 546 instead of 547")
def test_relayed_message_opens_the_port_of_the_relay() -> None:
    decision = handle(relay(), port=SERVER_PORT, relay=True)
    assert [each.destination.port for each in decision.expectations] == [SERVER_PORT]
    own = relay([(RELAY_SOURCE_PORT, bytes(2)), (RELAY_MESSAGE, client(1))])
    decision = handle(own, port=OTHER_PORT, relay=True)
    assert [each.destination.port for each in decision.expectations] == [OTHER_PORT]


@pytest.mark.fault("dhcpv6 6", "anybody may answer from any port for 300 s")
def test_answers_can_be_confined_and_the_port_closes_soon() -> None:
    (policy,) = Dhcpv6.policies
    assert (policy.max_expected, policy.timeout) == (8, 30)
    decision = handle(client(1), servers=(IPv6Network("fe80::/10"),), strict_sport=True)
    (expectation,) = decision.expectations
    assert expectation.source == IPv6Network("fe80::/10")
    assert (expectation.source_port, expectation.timeout) == (SERVER_PORT, 30)


@pytest.mark.fault("dhcpv6 7", "the port is open as long as the client waits to repeat")
@pytest.mark.parametrize("kind", sorted(ANSWERED))
def test_port_is_open_equally_long_after_every_message(kind: int) -> None:
    port = SERVER_PORT if kind in (RELAY_FORWARD, LEASEQUERY) else CLIENT_PORT
    (expectation,) = handle(payload_of(kind), port=port, relay=True).expectations
    assert expectation.timeout == 30


@pytest.mark.fault("dhcpv6 8", "a Reconfigure never gets in, yet opens the port")
@pytest.mark.parametrize("destination", [GROUP, "fe80::2"])
def test_reconfigure_opens_nothing(destination: str) -> None:
    for port in (CLIENT_PORT, SERVER_PORT):
        flow = line(port, destination=destination)
        for direction in Direction:
            assert opened(flow.message(direction, client(10))) == []


@pytest.mark.fault("dhcpv6 9", "length and options of a message are not looked at")
@pytest.mark.parametrize("kind", sorted(ANSWERED))
def test_message_with_broken_options_opens_nothing(kind: int) -> None:
    decision = handle(payload_of(kind) + b"\0\1\0\xff", port=SERVER_PORT)
    assert decision.expectations == ()
    assert isinstance(decision.events[0], Damaged)


@pytest.mark.fault("dhcpv6 10", "the timeout of an entry is set before it is confirmed")
@pytest.mark.parametrize("kind", sorted(ANSWERED))
def test_helper_asks_for_expectations_and_nothing_else(kind: int) -> None:
    port = SERVER_PORT if kind in (RELAY_FORWARD, LEASEQUERY) else CLIENT_PORT
    effects = play(Dhcpv6(), [line(port, relay=True).sent(payload_of(kind))])
    assert [type(each) for each in effects] == [Expect]


@pytest.mark.fault(
    "dhcpv6 11", "in a configuration for both IP versions it does nothing"
)
def test_ruleset_for_both_ip_versions_tags_ipv6_alone() -> None:
    ruleset = nft.render(parse("", Path("test.toml"), {"dhcpv6": Dhcpv6}))
    rules = [each.strip() for each in ruleset.splitlines() if "ct helper set" in each]
    assert rules == [
        "ip6 daddr { ff02::1:2/128, ff05::1:3/128 } udp dport 547 "
        'ct helper set "dhcpv6-udp"'
    ]
    assert "table inet" in ruleset


# Any bytes

options_of_any_kind: Final = st.lists(
    st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=20)), max_size=4
)
kinds: Final = st.sampled_from([*CLIENT_TYPES, *SERVER_TYPES, LEASEQUERY, 0, 99])
clients: Final = st.builds(
    client,
    kinds.filter(lambda kind: kind != RELAY_REPLY),
    options_of_any_kind,
    st.integers(0, 0xFFFFFF),
)
relays: Final = st.builds(
    relay, options_of_any_kind, st.sampled_from([RELAY_FORWARD, RELAY_REPLY])
)
valid: Final = clients | relays


@given(
    st.binary() | valid | damaged(valid),
    st.sampled_from(Direction),
    st.sampled_from([CLIENT_PORT, SERVER_PORT, OTHER_PORT]),
    st.sampled_from([*GROUPS, "2001:db8::2"]),
)
def test_any_bytes_open_the_askers_own_port_or_nothing(
    payload: bytes, direction: Direction, port: int, destination: str
) -> None:
    flow = line(port, destination=destination, relay=True)
    try:
        effects = opened(flow.message(direction, payload))
    except (Malformed, ExpectationRefused):
        return
    assert effects in ([], [answers_to(port)])
    assert not (effects and (direction is REPLY or destination not in GROUPS))


@given(st.binary() | valid | damaged(valid), st.integers(0, 0xFFFF))
def test_no_other_port_than_that_of_clients_is_opened_by_default(
    payload: bytes, port: int
) -> None:
    """Whatever a process sends: it needs a privilege to send from port 546."""
    with suppress(Malformed, ExpectationRefused):
        assert {each.endpoint.port for each in opened(line(port).sent(payload))} <= {
            CLIENT_PORT
        }


@given(valid)
def test_well_formed_message_is_never_malformed(payload: bytes) -> None:
    answered = payload[0] in ANSWERED
    for port in (CLIENT_PORT, SERVER_PORT, OTHER_PORT):
        try:
            effects = opened(line(port, relay=True).sent(payload))
        except ExpectationRefused:
            assert answered
        else:
            assert bool(effects) == answered


@given(valid, options_of_any_kind)
def test_options_that_follow_change_nothing(payload: bytes, more: Options) -> None:
    more = [each for each in more if each[0] != RELAY_SOURCE_PORT]
    for port in (CLIENT_PORT, SERVER_PORT):
        try:
            effects = opened(line(port, relay=True).sent(payload))
        except ExpectationRefused:
            continue
        assert opened(line(port, relay=True).sent(payload + encode(more))) == effects


# In words


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        (client(1), {"type": "Solicit (1)", "transaction": "0x31e7c5"}),
        (client(21), {"type": "DHCPv4-response (21)", "transaction": "0x31e7c5"}),
        (client(99), {"type": "unknown (99)", "transaction": "0x31e7c5"}),
        (
            relay([(RELAY_SOURCE_PORT, bytes(2)), (RELAY_MESSAGE, client(3))]),
            {
                "type": "Relay-forward (12)",
                "hops": "0",
                "link": "2001:db8:1::1",
                "peer": "fe80::9",
                "source port": "the relay's own choice",
                "carries": "Request (3)",
            },
        ),
        (
            relay([(RELAY_MESSAGE, b""), (1, b"x")], RELAY_REPLY),
            {
                "type": "Relay-reply (13)",
                "hops": "0",
                "link": "2001:db8:1::1",
                "peer": "fe80::9",
            },
        ),
    ],
)
def test_message_is_described(payload: bytes, fields: dict[str, str]) -> None:
    assert Dhcpv6().describe(line().sent(payload)) == fields


@given(st.binary() | valid | damaged(valid))
def test_any_bytes_are_described_or_malformed(payload: bytes) -> None:
    try:
        fields = Dhcpv6().describe(line().sent(payload))
    except Malformed:
        return
    assert all(fields.values())


@given(kinds.filter(lambda kind: kind != RELAY_REPLY), st.integers(0, 0xFFFFFF))
def test_what_is_written_is_read_back(kind: int, xid: int) -> None:
    fields = Dhcpv6().describe(line().sent(client(kind, xid=xid)))
    assert fields["transaction"] == f"0x{xid:06x}"
    assert fields["type"].endswith(f"({kind})")


@pytest.mark.parametrize(("kind", "name"), [*(CLIENT_TYPES | SERVER_TYPES).items()])
def test_types_have_the_names_of_the_registry(kind: int, name: str) -> None:
    fields = Dhcpv6().describe(line().sent(payload_of(kind)))
    assert fields["type"] == f"{name} ({kind})"


# Against other readers

SCAPY: Final = {
    1: dhcp6.DHCP6_Solicit,
    2: dhcp6.DHCP6_Advertise,
    3: dhcp6.DHCP6_Request,
    4: dhcp6.DHCP6_Confirm,
    5: dhcp6.DHCP6_Renew,
    6: dhcp6.DHCP6_Rebind,
    7: dhcp6.DHCP6_Reply,
    8: dhcp6.DHCP6_Release,
    9: dhcp6.DHCP6_Decline,
    10: dhcp6.DHCP6_Reconf,
    11: dhcp6.DHCP6_InfoRequest,
    36: dhcp6.DHCP6_AddrRegInform,
    37: dhcp6.DHCP6_AddrRegReply,
}


@pytest.mark.parametrize("kind", SCAPY)
@given(st.integers(0, 0xFFFFFF), st.lists(st.integers(0, 0xFFFF), max_size=4))
def test_message_that_scapy_writes_is_read(
    kind: int, xid: int, requested: list[int]
) -> None:
    built = bytes(
        SCAPY[kind](trid=xid)
        / dhcp6.DHCP6OptClientId(duid=dhcp6.DUID_LL(lladdr="02:00:00:00:00:01"))
        / dhcp6.DHCP6OptOptReq(reqopts=requested)
        / dhcp6.DHCP6OptElapsedTime()
    )
    fields = Dhcpv6().describe(line().sent(built))
    assert fields["transaction"] == f"0x{xid:06x}"
    assert fields["type"].endswith(f"({kind})")
    assert opened(line().sent(built)) == ([answers_to()] if kind in ANSWERED else [])


@given(
    st.integers(0, 31),
    st.ip_addresses(v=6),
    st.ip_addresses(v=6),
    st.sampled_from(sorted(SCAPY)),
)
def test_relayed_message_that_scapy_writes_is_read(
    hops: int, link: IPv6Address, peer: IPv6Address, kind: int
) -> None:
    built = bytes(
        dhcp6.DHCP6_RelayForward(hopcount=hops, linkaddr=str(link), peeraddr=str(peer))
        / dhcp6.DHCP6OptIfaceId(ifaceid=b"eth0")
        / dhcp6.DHCP6OptRelayMsg(message=SCAPY[kind](trid=7))
    )
    fields = Dhcpv6().describe(line().sent(built))
    assert fields["type"] == "Relay-forward (12)"
    assert fields["hops"] == str(hops)
    assert IPv6Address(fields["link"]) == link
    assert IPv6Address(fields["peer"]) == peer
    assert fields["carries"].endswith(f"({kind})")


@tshark.needed
def test_tshark_reads_the_same(tmp_path: Path) -> None:
    payloads = [
        *(client(kind, xid=kind * 1000) for kind in CLIENT_TYPES),
        *(client(kind) for kind in SERVER_TYPES if kind != RELAY_REPLY),
        client(LEASEQUERY),
        relay([]),
        relay([], RELAY_REPLY),
    ]
    capture = tmp_path / "capture.pcap"
    ether = Ether(src="02:00:00:00:00:01", dst="33:33:00:01:00:02")
    header = IPv6(src=HOST, dst=GROUP) / ScapyUDP(sport=CLIENT_PORT, dport=SERVER_PORT)
    wrpcap(str(capture), [ether / header / each for each in payloads])
    names = ("msgtype", "xid", "hopcount", "linkaddr", "peeraddr")
    read = tshark.fields(capture, [f"dhcpv6.{each}" for each in names])
    assert len(read) == len(payloads)
    for payload, (kind, xid, hops, link, peer) in zip(payloads, read, strict=True):
        ours = Dhcpv6().describe(line().sent(payload))
        assert ours["type"].endswith(f"({kind})")
        if "transaction" in ours:
            assert int(ours["transaction"], 16) == int(xid, 16)
        else:
            assert (ours["hops"], ours["link"], ours["peer"]) == (hops, link, peer)
