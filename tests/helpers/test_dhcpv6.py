# SPDX-License-Identifier: GPL-2.0-or-later
"""DHCPv6: which messages to a group open the port that they came from, and for whom.

The faults that the tests name are those of conntrackd's dhcpv6 helper, which reads one
byte of the payload and opens port 546 to everybody for up to 300 seconds.
"""

from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Final

import pytest

from cthelper.core.api import (
    ANY,
    UDP,
    Direction,
    Expect,
    ExpectationRefused,
    Hook,
    Malformed,
    Message,
    Network,
    OptionValue,
)
from cthelper.core.config import HelperConfig, parse
from cthelper.core.errors import ConfigError
from cthelper.helpers.dhcpv6 import Dhcpv6
from cthelper.testing import Line, defaults, play
from tests.cases import cases
from tests.core.builders import endpoint, flow_tuple

HOST: Final = "fe80::1"
GROUP: Final = "ff02::1:2"
SERVERS: Final = "ff05::1:3"
GROUPS: Final = (GROUP, SERVERS)
CLIENT_PORT, SERVER_PORT = 546, 547
OTHER_PORT: Final = 40000

RELAY_FORWARD, RELAY_REPLY, LEASEQUERY = 12, 13, 14
RELAY_MESSAGE, RELAY_SOURCE_PORT = 9, 135

CLIENT_TYPES: Final = {
    1: "Solicit",
    3: "Request",
    4: "Confirm",
    5: "Renew",
    6: "Rebind",
    8: "Release",
    9: "Decline",
    11: "Information-request",
    20: "DHCPv4-query",
    36: "Addr-reg-inform",
}
SERVER_TYPES: Final = {
    2: "Advertise",
    7: "Reply",
    10: "Reconfigure",
    13: "Relay-reply",
    15: "Leasequery-reply",
    17: "Leasequery-data",
    21: "DHCPv4-response",
    37: "Addr-reg-reply",
}
ANSWERED: Final = frozenset({*CLIENT_TYPES, RELAY_FORWARD, LEASEQUERY})

Options = list[tuple[int, bytes]]
CLIENT_ID: Final = (1, bytes.fromhex("00030001020000000001"))


def encode(options: Options) -> bytes:
    """Options as RFC 8415, section 21.1, has them."""
    return b"".join(
        code.to_bytes(2) + len(data).to_bytes(2) + data for code, data in options
    )


def client(kind: int, options: Options | None = None, xid: int = 0x31E7C5) -> bytes:
    """A message between client and server."""
    return (
        bytes([kind])
        + xid.to_bytes(3)
        + encode([CLIENT_ID] if options is None else options)
    )


def relay(options: Options | None = None, kind: int = RELAY_FORWARD) -> bytes:
    """A message between relay and server."""
    link, peer = IPv6Address("2001:db8:1::1"), IPv6Address("fe80::9")
    body = [(RELAY_MESSAGE, client(1))] if options is None else options
    return bytes([kind, 0]) + link.packed + peer.packed + encode(body)


def payload_of(kind: int) -> bytes:
    """A well-formed message of this type."""
    return relay(kind=kind) if kind in (RELAY_FORWARD, RELAY_REPLY) else client(kind)


def line(
    port: int = CLIENT_PORT,
    *,
    source: str = HOST,
    destination: str = GROUP,
    **options: OptionValue,
) -> Line:
    flow = flow_tuple(UDP, (source, port), (destination, SERVER_PORT))
    return Line(flow, {**defaults(Dhcpv6), **options})


def opened(message: Message) -> list[Expect]:
    """What the helper asks for at `message`; it yields nothing else."""
    effects = play(Dhcpv6(), [message])
    assert all(isinstance(each, Expect) for each in effects)
    return [each for each in effects if isinstance(each, Expect)]


def answers_to(
    port: int = CLIENT_PORT,
    *,
    source: str = HOST,
    server: Network | None = None,
    server_port: int | None = None,
) -> Expect:
    return Expect(
        endpoint(source, port),
        "answer",
        source=server or ANY,
        source_port=server_port,
        permanent=True,
    )


def handles(kind: int, name: str, outcome: str) -> Any:
    """A case for one message type, which the test proves."""
    text = f"{name} ({kind})"
    mark = pytest.mark.handles("dhcpv6", text, outcome)
    return pytest.param(kind, id=text, marks=mark)


# Which messages open a port


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "kind",
    [
        handles(kind, name, "any > asker:546, 30 s")
        for kind, name in CLIENT_TYPES.items()
    ],
)
def test_message_of_a_client_opens_its_port(kind: int, group: str) -> None:
    assert opened(line(destination=group).sent(client(kind))) == [answers_to()]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", CLIENT_TYPES)
@pytest.mark.parametrize("port", [0, 68, 545, SERVER_PORT, OTHER_PORT])
def test_message_of_a_client_from_another_port_is_refused(
    port: int, kind: int, group: str
) -> None:
    with pytest.raises(ExpectationRefused) as caught:
        opened(line(port, destination=group).sent(client(kind)))
    assert caught.value.reason == "source-port"


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("port", [CLIENT_PORT, SERVER_PORT])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "kind",
    [
        *(handles(kind, name, "opens nothing") for kind, name in SERVER_TYPES.items()),
        handles(0, "reserved", "opens nothing"),
    ],
)
def test_message_of_a_server_opens_nothing(
    kind: int, group: str, port: int, direction: Direction
) -> None:
    flow = line(port, destination=group)
    assert opened(flow.message(direction, payload_of(kind))) == []


@pytest.mark.handles("dhcpv6", "any other type", "opens nothing, passes")
def test_unknown_type_opens_nothing() -> None:
    for kind in set(range(256)) - ANSWERED - set(SERVER_TYPES):
        assert opened(line().sent(payload_of(kind))) == []
        # What follows its first bytes is not known, and so not malformed either.
        assert opened(line().sent(bytes([kind]) + b"\xff" * 9)) == []


@pytest.mark.handles(
    "dhcpv6", "Relay-forward (12)", "where configured: any > relay:its port, 30 s"
)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("port", "options"),
    [
        (SERVER_PORT, [(RELAY_MESSAGE, client(1))]),
        (SERVER_PORT, []),
        (OTHER_PORT, [(RELAY_SOURCE_PORT, bytes(2)), (RELAY_MESSAGE, client(1))]),
        (OTHER_PORT, [(RELAY_MESSAGE, client(1)), (RELAY_SOURCE_PORT, b"\x02\x23")]),
        (SERVER_PORT, [(RELAY_SOURCE_PORT, bytes(2))]),
    ],
    ids=["port 547", "no option", "own port", "port of a relay below", "both"],
)
def test_relayed_message_opens_the_port_that_it_came_from(
    port: int, options: Options, group: str
) -> None:
    flow = line(port, source="2001:db8::9", destination=group, relay=True)
    expected = [answers_to(port, source="2001:db8::9")]
    assert opened(flow.sent(relay(options))) == expected


@pytest.mark.parametrize("port", [CLIENT_PORT, OTHER_PORT])
@cases(
    "options",
    {
        "no option": [],
        "message": [(RELAY_MESSAGE, client(1))],
        # In the message of a relay further down; this one came from port 547 then.
        "option of another relay": [
            (RELAY_MESSAGE, relay([(RELAY_SOURCE_PORT, bytes(2))]))
        ],
    },
)
def test_relayed_message_from_a_port_that_it_does_not_explain_is_refused(
    options: Options, port: int
) -> None:
    with pytest.raises(ExpectationRefused) as caught:
        opened(line(port, destination=SERVERS, relay=True).sent(relay(options)))
    assert caught.value.reason == "source-port"


@pytest.mark.parametrize("port", [CLIENT_PORT, SERVER_PORT, OTHER_PORT])
@pytest.mark.parametrize("group", GROUPS)
def test_relayed_message_opens_nothing_unless_configured(port: int, group: str) -> None:
    # With the option for a port of its own any process could send it, from any port.
    said = relay([(RELAY_SOURCE_PORT, bytes(2)), (RELAY_MESSAGE, client(1))])
    with pytest.raises(ExpectationRefused) as caught:
        opened(line(port, destination=group).sent(said))
    assert caught.value.reason == "relay"


@pytest.mark.handles(
    "dhcpv6",
    "Leasequery (14)",
    "any > asker:546, 30 s; where configured: any > asker:547, 30 s",
)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("port", [CLIENT_PORT, SERVER_PORT])
def test_leasequery_opens_the_port_that_it_came_from(port: int, group: str) -> None:
    flow = line(port, destination=group, relay=port == SERVER_PORT)
    assert opened(flow.sent(client(LEASEQUERY))) == [answers_to(port)]


def test_leasequery_of_a_relay_opens_nothing_unless_configured() -> None:
    with pytest.raises(ExpectationRefused) as caught:
        opened(line(SERVER_PORT).sent(client(LEASEQUERY)))
    assert caught.value.reason == "relay"


@pytest.mark.parametrize(
    "options", [[CLIENT_ID], [(RELAY_SOURCE_PORT, bytes(2))]], ids=["plain", "option"]
)
def test_leasequery_from_another_port_is_refused(options: Options) -> None:
    # The option is for relayed messages alone.
    with pytest.raises(ExpectationRefused) as caught:
        opened(line(OTHER_PORT, relay=True).sent(client(LEASEQUERY, options)))
    assert caught.value.reason == "source-port"


@pytest.mark.parametrize("kind", sorted(ANSWERED))
@pytest.mark.parametrize(
    "destination",
    ["2001:db8::2", "fe80::2", "ff02::1", "ff02::1:3", "ff05::1:2", "ff08::1:3"],
)
def test_message_to_another_address_opens_nothing(destination: str, kind: int) -> None:
    # Conntrack follows unicast by itself.
    for port in (CLIENT_PORT, SERVER_PORT, OTHER_PORT):
        flow = line(port, destination=destination)
        assert opened(flow.sent(payload_of(kind))) == []


@pytest.mark.parametrize("kind", sorted(ANSWERED))
def test_message_in_the_reply_direction_opens_nothing(kind: int) -> None:
    assert opened(line().answered(payload_of(kind))) == []


def test_each_message_opens_the_port_anew() -> None:
    # A client waits up to two minutes before it sends again, from the same port.
    messages = [line().sent(client(1, xid=xid)) for xid in (1, 1, 2)]
    assert play(Dhcpv6(), messages) == [answers_to()] * 3


def test_address_registration_is_answered_to_the_address_that_it_is_for() -> None:
    message = line(source="2001:db8::5").sent(client(36))
    assert opened(message) == [answers_to(source="2001:db8::5")]


@pytest.mark.parametrize("kind", sorted(ANSWERED - {RELAY_FORWARD}))
def test_message_without_options_opens_the_port(kind: int) -> None:
    # A server may reject it; that it is one is certain.
    assert opened(line().sent(client(kind, []))) == [answers_to()]


@cases(
    "payload",
    {
        "type alone": b"\x01",
        "half a transaction id": client(1)[:3],
        "half an option": client(1)[:-1],
        "half an option code": client(1, []) + b"\0",
        "half an option length": client(1, []) + b"\0\1\0",
        "length past the end": client(1, []) + b"\0\1\xff\xff",
        "half a relay header": relay()[:33],
        "relay header one byte short": relay([])[:-1],
        "half a relayed message": relay()[:-1],
        "half a relay source port": relay([]) + b"\0\x87\0\2\0",
        "relay option past the end": relay([]) + b"\0\x09\xff\xff",
    },
)
@pytest.mark.parametrize("port", [CLIENT_PORT, SERVER_PORT, OTHER_PORT])
def test_message_that_does_not_parse_is_malformed(payload: bytes, port: int) -> None:
    with pytest.raises(Malformed):
        opened(line(port).sent(payload))


# Who may answer


def test_answers_may_be_wanted_from_port_547_alone() -> None:
    message = line(strict_sport=True).sent(client(1))
    assert opened(message) == [answers_to(server_port=SERVER_PORT)]


def test_answers_may_be_wanted_from_some_networks_alone() -> None:
    networks = (IPv6Network("fe80::/10"), IPv6Network("2001:db8:5::/48"))
    message = line(servers=networks).sent(client(1))
    assert opened(message) == [answers_to(server=each) for each in networks]
    both = line(SERVER_PORT, servers=networks[:1], strict_sport=True, relay=True)
    assert opened(both.sent(relay())) == [
        answers_to(SERVER_PORT, server=networks[0], server_port=SERVER_PORT)
    ]


def configured(settings: str = "") -> HelperConfig:
    return parse(settings, Path("test.toml"), {"dhcpv6": Dhcpv6}).helpers["dhcpv6"]


def test_options_are_read_from_the_configuration() -> None:
    options = {"relay": False, "strict_sport": False, "servers": ()}
    assert configured().options == options
    config = configured(
        '[helpers.dhcpv6]\nservers = ["fe80::/10", "2001:db8::5"]\n'
        "strict_sport = true\nrelay = true"
    )
    servers = (IPv6Network("fe80::/10"), IPv6Network("2001:db8::5/128"))
    assert config.options == {
        "relay": True,
        "strict_sport": True,
        "servers": servers,
    }


@pytest.mark.parametrize("value", ['"fe80::/129"', '"192.0.2.0/24"', '"x"', "1"])
def test_server_that_is_no_ipv6_network_is_a_configuration_error(value: str) -> None:
    with pytest.raises(ConfigError, match="must be an IPv6 network"):
        configured(f"[helpers.dhcpv6]\nservers = [{value}]")


def test_only_local_messages_to_the_groups_are_tagged() -> None:
    assert Dhcpv6.hooks == {Hook.OUTPUT}
    assert set(map(str, Dhcpv6.destinations)) == {"ff02::1:2/128", "ff05::1:3/128"}
