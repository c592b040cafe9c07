# SPDX-License-Identifier: GPL-2.0-or-later
"""The attacks that the guard stops, each by its reason."""

from ipaddress import ip_address

import pytest

from cthelper.core.errors import ExpectationRefused
from cthelper.core.guard import Guard
from tests.core.builders import CLIENT, CLIENT6, SERVER, SERVER6, endpoint


def refusal(
    address: str,
    port: int,
    *,
    announcer: str | None = None,
    lowest_port: int = 1024,
    guard: Guard | None = None,
) -> str | None:
    """The reason why `announcer`, the address itself unless given, is refused."""
    try:
        (guard or Guard()).check(
            endpoint(address, port), ip_address(announcer or address), lowest_port
        )
    except ExpectationRefused as error:
        return error.reason
    return None


@pytest.mark.parametrize("address", [CLIENT, CLIENT6, "10.0.0.255", "fe80::1"])
@pytest.mark.parametrize("port", [1024, 40000, 65535])
def test_own_address_and_high_port_are_allowed(address: str, port: int) -> None:
    assert refusal(address, port) is None


@pytest.mark.parametrize(
    ("address", "announcer"),
    [
        (SERVER, CLIENT),
        (SERVER6, CLIENT6),
        ("192.0.2.2", CLIENT),
        (CLIENT, CLIENT6),
        (CLIENT6, CLIENT),
    ],
    ids=["ipv4", "ipv6", "neighbour", "ipv4 on an ipv6 flow", "ipv6 on an ipv4 flow"],
)
def test_third_party_address_is_refused(address: str, announcer: str) -> None:
    # FTP bounce, NAT slipstreaming 2, TNS poison, SSDP LOCATION of another host.
    assert refusal(address, 5000, announcer=announcer) == "third-party-address"


@pytest.mark.parametrize("port", [1, 1023])
def test_low_port_is_refused(port: int) -> None:
    assert refusal(CLIENT, port) == "low-port"


def test_helper_may_declare_low_ports() -> None:
    assert refusal(CLIENT, 546, lowest_port=546) is None
    assert refusal(CLIENT, 545, lowest_port=546) == "low-port"


@pytest.mark.parametrize("port", [22, 23, 25, 53, 80, 135, 139, 443, 445, 3389])
def test_denied_port_is_refused_whatever_the_helper_declares(port: int) -> None:
    assert refusal(CLIENT, port) == "denied-port"
    assert refusal(CLIENT, port, lowest_port=1) == "denied-port"


def test_configured_ports_take_the_place_of_the_usual_ones() -> None:
    guard = Guard(frozenset({6000}))
    assert refusal(CLIENT, 6000, guard=guard) == "denied-port"
    assert refusal(CLIENT, 3389, guard=guard) is None


def test_port_zero_is_refused_even_where_the_helper_declares_it() -> None:
    assert refusal(CLIENT, 0) == "port-zero"
    assert refusal(CLIENT, 0, lowest_port=0) == "port-zero"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "unspecified-address"),  # noqa: S104 - nothing is bound to it
        ("::", "unspecified-address"),
        ("127.0.0.1", "loopback-address"),
        ("127.255.0.1", "loopback-address"),
        ("::1", "loopback-address"),
        ("224.0.0.251", "multicast-address"),
        ("239.255.255.250", "multicast-address"),
        ("ff02::fb", "multicast-address"),
        ("255.255.255.255", "broadcast-address"),
        ("::ffff:192.0.2.1", "v4-mapped-address"),
        ("::ffff:127.0.0.1", "v4-mapped-address"),
        ("::ffff:0.0.0.0", "v4-mapped-address"),
        ("::ffff:224.0.0.251", "v4-mapped-address"),
    ],
)
def test_address_of_no_host_is_refused(address: str, reason: str) -> None:
    # Both as the announcer's own address, where nothing else stops it, and as another.
    assert refusal(address, 5000) == reason
    assert refusal(address, 5000, announcer=CLIENT) == reason


def test_refusal_names_what_was_announced() -> None:
    with pytest.raises(ExpectationRefused) as caught:
        Guard().check(endpoint(SERVER, 5000), ip_address(CLIENT), 1024)
    assert str(caught.value) == (
        "third-party-address: 192.0.2.1 announced 198.51.100.2"
    )
