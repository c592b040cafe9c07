# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway's addresses and prefixes, and their changes."""

from collections.abc import Iterator
from ipaddress import IPv6Network, ip_address, ip_network

import pytest

from cthelper.core.errors import ExpectationRefused
from cthelper.core.netlink.links import Links
from cthelper.core.tuples import Address, Network
from tests.live.netlink_lab import readable
from tests.live.world import (
    CLIENT,
    CLIENT6,
    GATEWAY_LAN,
    GATEWAY_LAN6,
    GATEWAY_WAN,
    GATEWAY_WAN6,
    LAN,
    SERVER,
    SERVER6,
    WAN,
    World,
)

pytestmark = pytest.mark.live

LINK_LOCAL = IPv6Network("fe80::/10")
ADDED = ip_address("192.0.2.1")
ADDED6 = ip_address("2001:db8:5::1")


@pytest.fixture
def links(world: World) -> Iterator[Links]:
    """The addresses of the gateway."""
    with world.gateway.entered():
        links = Links()
    yield links
    links.close()


def networks(*texts: str) -> tuple[Network, ...]:
    """Networks from text."""
    return tuple(ip_network(text) for text in texts)


def off_link(links: Links, address: Address) -> bool:
    """Whether an address is refused as on none of the links."""
    try:
        links.on_link(address)
    except ExpectationRefused as error:
        return error.reason == "off-link"
    return False


def change(world: World, links: Links, *arguments: str) -> None:
    """Change addresses or interfaces, and take in what that changed."""
    world.gateway.run("ip", *arguments, check=True)
    assert readable(links.fileno()), "no event came"
    links.update()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (GATEWAY_LAN, networks("10.77.1.0/24")),
        (GATEWAY_WAN, networks("10.77.2.0/24")),
        (GATEWAY_LAN6, networks("fd77:1::/64", "fe80::/10")),
        (GATEWAY_WAN6, networks("fd77:2::/64", "fe80::/10")),
        ("127.0.0.1", networks("127.0.0.0/8")),
    ],
)
def test_own_address_is_on_link_with_its_interfaces_prefixes(
    links: Links, address: str, expected: tuple[Network, ...]
) -> None:
    assert links.on_link(ip_address(address)) == expected
    assert links.is_local(ip_address(address))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (CLIENT, networks("10.77.1.0/24")),
        (SERVER, networks("10.77.2.0/24")),
        (CLIENT6, networks("fd77:1::/64", "fe80::/10")),
        (SERVER6, networks("fd77:2::/64", "fe80::/10")),
    ],
)
def test_neighbour_is_on_link_with_the_prefixes_around_it(
    links: Links, address: str, expected: tuple[Network, ...]
) -> None:
    assert links.on_link(ip_address(address)) == expected
    assert not links.is_local(ip_address(address))


@pytest.mark.parametrize(
    ("interface", "prefix"), [(LAN, "fd77:1::/64"), (WAN, "fd77:2::/64")]
)
def test_own_link_local_address_is_on_link_with_global_addresses_too(
    world: World, links: Links, interface: str, prefix: str
) -> None:
    command = ("ip", "-6", "-o", "address", "show", "dev", interface, "scope", "link")
    text = world.gateway.run(*command, check=True).stdout
    own = ip_address(text.split("inet6 ")[1].split("/")[0])
    assert own in LINK_LOCAL
    assert links.is_local(own)
    assert links.on_link(own) == networks(prefix, "fe80::/10")


@pytest.mark.parametrize(
    "address", ["192.0.2.9", "10.77.3.1", "2001:db8::1", "fe80::77", "fd77:3::1"]
)
def test_foreign_address_is_off_link(links: Links, address: str) -> None:
    assert off_link(links, ip_address(address))
    assert not links.is_local(ip_address(address))


@pytest.mark.parametrize(
    ("own", "length", "neighbour"),
    [(ADDED, 25, "192.0.2.77"), (ADDED6, 56, "2001:db8:5:7::9")],
    ids=["IPv4", "IPv6"],
)
def test_address_that_is_added_and_removed_is_followed(
    world: World, links: Links, own: Address, length: int, neighbour: str
) -> None:
    near = ip_address(neighbour)
    assert off_link(links, near)
    change(world, links, "address", "add", f"{own}/{length}", "dev", LAN)
    prefix = ip_network(f"{own}/{length}", strict=False)
    assert links.is_local(own)
    assert prefix in links.on_link(own)
    # All prefixes of the interface, for the neighbour as well.
    assert links.on_link(near) == links.on_link(own)
    sibling = ip_address(GATEWAY_LAN if own.version == 4 else GATEWAY_LAN6)
    assert links.on_link(sibling) == links.on_link(own)

    change(world, links, "address", "del", f"{own}/{length}", "dev", LAN)
    assert not links.is_local(own)
    assert off_link(links, own)
    assert off_link(links, near)
    assert prefix not in links.on_link(sibling)


def test_far_end_of_a_point_to_point_address_is_on_link(
    world: World, links: Links
) -> None:
    far = ip_address("192.0.2.66")
    arguments = (str(ADDED), "peer", f"{far}/32", "dev", LAN)
    change(world, links, "address", "add", *arguments)
    assert links.is_local(ADDED)
    assert not links.is_local(far)
    assert ip_network("192.0.2.66/32") in links.on_link(far)
    assert off_link(links, ip_address("192.0.2.2"))
    change(world, links, "address", "del", *arguments)
    assert not links.is_local(ADDED)
    assert off_link(links, far)


def test_addresses_of_an_interface_that_goes_are_forgotten(
    world: World, links: Links
) -> None:
    script = (
        "link add brief type veth peer name brief-peer\n"
        "link set brief up\n"
        f"address add {ADDED}/24 dev brief\n"
        f"address add {ADDED6}/64 dev brief nodad\n"
    )
    world.gateway.run("ip", "-batch", "-", input=script, check=True)
    links.update()
    assert links.is_local(ADDED)
    assert links.is_local(ADDED6)
    change(world, links, "link", "del", "brief")
    assert not links.is_local(ADDED)
    assert not links.is_local(ADDED6)
    assert off_link(links, ip_address("192.0.2.9"))
    assert off_link(links, ip_address("2001:db8:5::9"))
    assert links.is_local(ip_address(GATEWAY_LAN))


def test_update_without_a_change_does_not_wait(links: Links) -> None:
    links.update()
    assert links.is_local(ip_address(GATEWAY_LAN6))
