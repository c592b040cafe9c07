# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of connection tracking."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import Malformed
from cthelper.core.tuples import (
    UDP,
    Address,
    Conntrack,
    Endpoint,
    Expectation,
    Status,
    Transport,
    Tuple,
    collapsed,
    host_network,
)
from tests.core.builders import CLIENT, CLIENT6, SERVER, SERVER6, endpoint, flow_tuple


@given(st.ip_addresses(), st.integers(0, 65535))
def test_address_is_written_as_everywhere(address: Address, port: int) -> None:
    shown = f"[{address}]" if address.version == 6 else str(address)
    for _ in range(2):
        assert str(Endpoint(address, port)) == f"{shown}:{port}"


@pytest.mark.parametrize("port", [65536, 0x10050, -1])
def test_port_over_16_bits_is_malformed(port: int) -> None:
    with pytest.raises(Malformed, match=f"port {port}"):
        endpoint(CLIENT, port)


@pytest.mark.parametrize("port", [0, 65535])
def test_port_of_16_bits_is_a_value(port: int) -> None:
    assert endpoint(CLIENT, port).port == port


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (endpoint(CLIENT, 1), "192.0.2.1:1"),
        (endpoint(CLIENT6, 1), "[2001:db8:1::1]:1"),
        (
            flow_tuple(UDP, (CLIENT, 1), (SERVER, 2)),
            "udp 192.0.2.1:1 > 198.51.100.2:2",
        ),
    ],
    ids=["ipv4", "ipv6", "tuple"],
)
def test_address_and_port_are_told_apart_in_text(value: object, text: str) -> None:
    assert str(value) == text


@pytest.mark.parametrize(
    ("address", "network"), [(CLIENT, f"{CLIENT}/32"), (CLIENT6, f"{CLIENT6}/128")]
)
def test_host_network_holds_one_address(address: str, network: str) -> None:
    assert host_network(ip_address(address)) == ip_network(network)


@pytest.mark.parametrize(
    ("version", "kept"),
    [(4, ["192.0.2.0/24", "198.51.100.2/32"]), (6, ["2001:db8::/32"])],
)
def test_networks_inside_others_are_left_out(version: int, kept: list[str]) -> None:
    networks = [
        ip_network(text)
        for text in (
            "198.51.100.2",
            "192.0.2.128/25",
            "2001:db8::/32",
            "192.0.2.0/25",
            "2001:db8:1::/48",
            "192.0.2.7",
        )
    ]
    assert collapsed(networks, version) == tuple(map(ip_network, kept))


def test_numbers_are_those_of_the_kernel() -> None:
    # IPPROTO_*, and IPS_*_BIT in nf_conntrack_common.h.
    assert {str(each): int(each) for each in Transport} == {"tcp": 6, "udp": 17}
    assert [Status(1 << bit).name for bit in range(15)] == [
        "EXPECTED",
        "SEEN_REPLY",
        "ASSURED",
        "CONFIRMED",
        "SRC_NAT",
        "DST_NAT",
        "SEQ_ADJUST",
        "SRC_NAT_DONE",
        "DST_NAT_DONE",
        "DYING",
        "FIXED_TIMEOUT",
        "TEMPLATE",
        "UNTRACKED",
        "HELPER",
        "OFFLOAD",
    ]


@pytest.mark.parametrize(
    ("status", "confirmed"),
    [
        (Status.CONFIRMED | Status.ASSURED, True),
        (Status.EXPECTED | Status.SEEN_REPLY, False),
        (Status(0), False),
    ],
)
def test_confirmed_is_one_bit_of_the_status(status: Status, confirmed: bool) -> None:
    original = flow_tuple()
    reply = Tuple(original.transport, original.destination, original.source)
    entry = Conntrack(id=1, original=original, reply=reply, status=status)
    assert entry.confirmed is confirmed


@pytest.mark.parametrize(
    ("source", "source_port", "text"),
    [
        (None, None, "udp any > [2001:db8:2::2]:9"),
        (None, 53, "udp any port 53 > [2001:db8:2::2]:9"),
        (f"{CLIENT6}/128", None, "udp 2001:db8:1::1 > [2001:db8:2::2]:9"),
        ("2001:db8::/64", 53, "udp 2001:db8::/64 port 53 > [2001:db8:2::2]:9"),
    ],
    ids=["anybody", "source port", "one host", "network"],
)
def test_expectation_says_who_may_come(
    source: str | None, source_port: int | None, text: str
) -> None:
    expectation = Expectation(
        master=flow_tuple(),
        transport=UDP,
        source=None if source is None else ip_network(source),
        source_port=source_port,
        destination=endpoint(SERVER6, 9),
        policy="data",
        timeout=60,
    )
    assert str(expectation) == text
