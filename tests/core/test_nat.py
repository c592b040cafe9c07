# SPDX-License-Identifier: GPL-2.0-or-later
"""What is granted on translated flows."""

from collections.abc import Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import ExpectationRefused
from cthelper.core.nat import PORT_ATTEMPTS, Opening, opening_for, ports
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Address,
    Conntrack,
    Direction,
    Translation,
)
from tests.core.builders import (
    CLIENT,
    CLIENT6,
    CLIENT_PORT,
    SERVER,
    SERVER6,
    SERVER_PORT,
    conntrack,
    endpoint,
    flow_tuple,
)

# What the server knows the client by, and the client the server.
NAT, PUBLIC = "203.0.113.9", "203.0.113.80"
NAT6, PUBLIC6 = "2001:db8:9::9", "2001:db8:9::80"
OTHER, OTHER_OUTSIDE = "198.51.100.3", "203.0.113.81"


def translated(
    client: str = CLIENT,
    *,
    known: str | None = None,
    server: str = SERVER,
    public: str | None = None,
) -> Conntrack:
    """A flow whose client is known as `known`, and whose server as `public`."""
    return conntrack(
        flow_tuple(TCP, (client, CLIENT_PORT), (public or server, SERVER_PORT)),
        flow_tuple(TCP, (server, SERVER_PORT), (known or client, CLIENT_PORT)),
    )


PLAIN = translated()
MASQUERADED = translated(known=NAT)
FORWARDED = translated(public=PUBLIC)
BOTH = translated(known=NAT, public=PUBLIC)
BOTH6 = translated(CLIENT6, known=NAT6, server=SERVER6, public=PUBLIC6)
PORT_TRANSLATED = conntrack(
    reply=flow_tuple(TCP, (SERVER, SERVER_PORT), (CLIENT, CLIENT_PORT + 1))
)
PORT_FORWARDED = conntrack(
    flow_tuple(TCP, destination=(SERVER, SERVER_PORT)),
    flow_tuple(TCP, (SERVER, SERVER_PORT + 1), (CLIENT, CLIENT_PORT)),
)


def test_flow_is_translated_where_an_address_or_a_port_is() -> None:
    entries = (PLAIN, PORT_TRANSLATED, MASQUERADED, FORWARDED, BOTH, BOTH6)
    assert [each.translated for each in entries] == [False, *[True] * 5]


# Entry, direction of the announcement, announced address; who opens the flow and to
# where, as its first packet has it; and whether another port may be told.
CASES: list[tuple[Conntrack, Direction, str, str, str, bool]] = [
    (PLAIN, REPLY, SERVER, CLIENT, SERVER, False),
    (PLAIN, ORIGINAL, CLIENT, SERVER, CLIENT, False),
    (PORT_TRANSLATED, ORIGINAL, CLIENT, SERVER, CLIENT, False),
    (MASQUERADED, REPLY, SERVER, CLIENT, SERVER, False),
    (MASQUERADED, ORIGINAL, CLIENT, SERVER, NAT, True),
    (FORWARDED, REPLY, SERVER, CLIENT, PUBLIC, True),
    (FORWARDED, ORIGINAL, CLIENT, SERVER, CLIENT, False),
    (BOTH, REPLY, SERVER, CLIENT, PUBLIC, True),
    (BOTH, ORIGINAL, CLIENT, SERVER, NAT, True),
    (BOTH6, REPLY, SERVER6, CLIENT6, PUBLIC6, True),
    (BOTH6, ORIGINAL, CLIENT6, SERVER6, NAT6, True),
    # The announcer names what the other side knows it by.
    (FORWARDED, REPLY, PUBLIC, CLIENT, PUBLIC, True),
    (BOTH, ORIGINAL, NAT, SERVER, NAT, True),
]


@pytest.mark.parametrize(
    ("entry", "direction", "announced", "opener", "target", "any_port"), CASES
)
def test_receiver_opens_the_flow_to_what_it_knows_the_announcer_by(
    entry: Conntrack,
    direction: Direction,
    announced: str,
    opener: str,
    target: str,
    any_port: bool,
) -> None:
    opening = opening_for(entry, direction, endpoint(announced, 5000), {})
    opens = REPLY if direction is ORIGINAL else ORIGINAL
    translation = Translation(opens, 5000) if entry.translated else None
    assert opening == Opening(
        ip_address(opener), endpoint(target, 5000), translation, any_port
    )


def test_port_that_the_flow_comes_from_is_what_the_other_side_knows_it_by() -> None:
    entry = conntrack(
        flow_tuple(UDP, (CLIENT, 650), (SERVER, 69)),
        flow_tuple(UDP, (SERVER, 69), (NAT, 12345)),
    )
    assert opening_for(entry, ORIGINAL, endpoint(CLIENT, 650), {}) == Opening(
        ip_address(SERVER), endpoint(NAT, 12345), Translation(REPLY, 650)
    )


def test_server_whose_port_alone_is_translated_is_known_by_the_port() -> None:
    own, told = endpoint(SERVER, SERVER_PORT + 1), endpoint(SERVER, SERVER_PORT)
    assert opening_for(PORT_FORWARDED, REPLY, own, {}) == Opening(
        ip_address(CLIENT), told, Translation(ORIGINAL, SERVER_PORT + 1)
    )


OUTSIDE: Mapping[Address, Address] = {ip_address(OTHER): ip_address(OTHER_OUTSIDE)}


@pytest.mark.parametrize("entry", [FORWARDED, BOTH])
def test_other_host_is_what_its_outside_address_says(entry: Conntrack) -> None:
    opening = opening_for(entry, REPLY, endpoint(OTHER, 5000), OUTSIDE)
    # The users' own rules translate it.
    assert opening == Opening(ip_address(CLIENT), endpoint(OTHER_OUTSIDE, 5000))


@pytest.mark.parametrize("outside", [{}, OUTSIDE])
@pytest.mark.parametrize("entry", [PLAIN, MASQUERADED, PORT_TRANSLATED, PORT_FORWARDED])
def test_other_host_beside_a_server_that_is_not_translated_is_itself(
    entry: Conntrack, outside: Mapping[Address, Address]
) -> None:
    # A client on the inside knows the hosts there by their own addresses.
    opening = opening_for(entry, REPLY, endpoint(OTHER, 5000), outside)
    assert opening == Opening(ip_address(CLIENT), endpoint(OTHER, 5000))


@pytest.mark.parametrize(
    ("entry", "direction", "announcer", "known"),
    [
        (FORWARDED, REPLY, SERVER, PUBLIC),
        (BOTH, REPLY, SERVER, PUBLIC),
        (MASQUERADED, ORIGINAL, CLIENT, NAT),
    ],
)
def test_other_host_whose_outside_address_nobody_tells_is_refused(
    entry: Conntrack, direction: Direction, announcer: str, known: str
) -> None:
    with pytest.raises(ExpectationRefused) as caught:
        opening_for(entry, direction, endpoint(OTHER, 5000), {})
    assert (caught.value.reason, caught.value.detail) == (
        "nat",
        f"{announcer} is translated to {known}, "
        f"and nat.outside has no address for {OTHER}",
    )


# Ports.


@pytest.mark.parametrize(
    ("wanted", "lowest", "pair", "first"),
    [
        (5000, 1024, False, [5000, 5001, 5002]),
        (65534, 1024, False, [65534, 65535, 1024, 1025]),
        (5000, 1024, True, [5000, 5002, 5004]),
        (5001, 1024, True, [5001, 5003]),
        (65534, 1024, True, [65534, 1024, 1026]),
        (65531, 1024, True, [65531, 65533, 1025]),
        (65535, 65535, False, [65535]),
        (65530, 65530, True, [65530, 65532, 65534]),
    ],
)
def test_ports_that_are_tried(
    wanted: int, lowest: int, pair: bool, first: list[int]
) -> None:
    assert list(ports(wanted, lowest, pair=pair))[: len(first)] == first


@given(st.integers(1, 0xFFFF), st.booleans(), st.data())
def test_no_port_is_tried_twice_and_none_is_out_of_range(
    lowest: int, pair: bool, data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(lowest, 0xFFFF))
    if pair and wanted == 0xFFFF:
        return
    tried = list(ports(wanted, lowest, pair=pair))
    assert tried[0] == wanted
    assert len(tried) == len(set(tried)) <= PORT_ATTEMPTS
    assert all(lowest <= port <= 0xFFFF - pair for port in tried)
    if pair:
        assert {port % 2 for port in tried} == {wanted % 2}
