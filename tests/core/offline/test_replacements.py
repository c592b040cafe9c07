# SPDX-License-Identifier: GPL-2.0-or-later
"""What takes an address' place is as long, near its neighbours, and nobody's."""

import random
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.offline.replacements import Replacements, is_host, network
from cthelper.core.tuples import Address, Endpoint

# Few numbers of each length, so that networks have several hosts.
NUMBER = st.sampled_from([0, 1, 7, 9, 10, 77, 99, 100, 168, 254, 255])
GROUP = st.sampled_from([0, 1, 0xA, 0x77, 0xDB8, 0xFD77, 0xFE80, 0x2001])
V4 = st.lists(NUMBER, min_size=4, max_size=4).map(lambda each: IPv4Address(bytes(each)))
V6 = st.lists(GROUP, min_size=8, max_size=8).map(
    lambda each: IPv6Address(b"".join(group.to_bytes(2) for group in each))
)
ADDRESSES = st.sets(V4 | V6, min_size=1, max_size=12)


@given(ADDRESSES, st.integers())
def test_what_takes_its_place_is_alike(addresses: set[Address], seed: int) -> None:
    replacements = Replacements(addresses, random.Random(seed))
    hosts = [each for each in addresses if is_host(each)]
    others = {each: replacements.of(each) for each in hosts}
    left = {each: other for each, other in others.items() if other is not None}
    # All have one, and no two the same.
    assert len(set(left.values())) == len(left)
    assert not set(left.values()) & addresses
    for address, other in left.items():
        assert other == replacements.of(address)
        assert other.version == address.version
        assert is_host(other)
        assert other.is_link_local == address.is_link_local
        assert len(str(other)) == len(str(address))
        assert len(str(Endpoint(other, 1))) == len(str(Endpoint(address, 1)))
        assert list(map(len, _numbers(other))) == list(map(len, _numbers(address)))
        if other.version == 4:
            assert len(str(int(other))) == len(str(int(address)))
        for neighbour, its in left.items():
            same = network(address) == network(neighbour)
            assert same is (network(other) == network(its))


def _numbers(address: Address) -> list[str]:
    return str(address).replace(":", ".").split(".")


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "0.1.2.3"),  # noqa: S104
        *("127.0.0.1", "224.0.0.251", "239.255.255.250"),
        *("255.255.255.255", "240.0.0.1", "::", "::1", "::ffff:10.0.0.1", "ff02::fb"),
    ],
)
def test_who_is_nobody_stays(text: str) -> None:
    address = ip_address(text)
    assert Replacements([address], random.Random(0)).of(address) is address


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("10.77.1.255", "255"),
        ("10.77.1.0", "0"),
        ("169.254.9.9", "169.254."),
        ("fe80::1:2", "fe80::"),
    ],
)
def test_what_an_address_is_stays(text: str, stays: str) -> None:
    address = ip_address(text)
    for seed in range(30):
        other = str(Replacements([address], random.Random(seed)).of(address))
        assert other != text
        assert other.startswith(stays) or other.endswith(f".{stays}")


def test_a_whole_network_is_replaced_and_what_is_too_much_is_not() -> None:
    hosts = [IPv4Address(0x0A4D0100 + host) for host in range(256)]
    replacements = Replacements(hosts, random.Random(0))
    assert len({replacements.of(each) for each in hosts}) == 256
    # There are 900 networks of such short numbers, and all of them are somebody's.
    all_short = [
        IPv4Address(bytes((one, two, three, 1)))
        for one in range(1, 10)
        for two in range(10)
        for three in range(10)
    ]
    assert Replacements(all_short, random.Random(0)).of(all_short[0]) is None
