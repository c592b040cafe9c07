# SPDX-License-Identifier: GPL-2.0-or-later
"""What a gateway translated: the tuples of flows and expectations, from each side."""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core import tuples
from cthelper.core.errors import UsageError
from cthelper.core.offline.nat import Nat, Side, Tuples, turned
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    Endpoint,
    Expectation,
    Translation,
    Tuple,
)
from tests.core.builders import endpoint
from tests.core.offline.gateway import GATEWAYS4, GATEWAYS6, Gateway, flow

PCAPS: Final = Path(__file__).parents[3] / "pcaps"
SIDES: Final = tuple(Side)
CONTROL, OPENED_FROM, DATA = 7000, 41000, 5000


# Tuples


BOTH = GATEWAYS4[2]


@pytest.mark.parametrize("gateway", [*GATEWAYS4, *GATEWAYS6], ids=str)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("opens", Side)
def test_original_tuple_is_what_the_openers_side_shows(
    gateway: Gateway, side: Side, opens: Side
) -> None:
    def seen(on: Side) -> Tuple:
        ends = (gateway.client_on(on), 1), (gateway.server_on(on), 2)
        return flow(*(ends if opens is Side.CLIENT else ends[::-1]))

    other = Side.SERVER if opens is Side.CLIENT else Side.CLIENT
    expected = seen(opens), turned(seen(other)), opens is side
    assert gateway.nat(side).begin(seen(side)) == expected


@pytest.mark.parametrize(
    ("source", "to"),
    [
        ("192.0.2.1", "192.0.2.2"),
        # Of two hosts on one side, and of none that is translated.
        (BOTH.client, BOTH.client),
        (BOTH.server_known, BOTH.server_known),
        # What the other side shows.
        (BOTH.client_known, BOTH.server),
    ],
)
def test_other_flows_are_as_they_are_shown(source: str, to: str) -> None:
    seen = flow((source, 1), (to, 2))
    assert BOTH.nat(Side.CLIENT).begin(seen) == (seen, turned(seen), True)


def addresses(**pairs: str) -> dict[tuples.Address, tuples.Address]:
    """Pairs of the last octets of IPv4 addresses."""
    return {
        ip_address(f"192.0.2.{key[1:]}"): ip_address(f"192.0.2.{value}")
        for key, value in pairs.items()
    }


@pytest.mark.parametrize(
    ("sources", "destinations", "refused"),
    [
        (addresses(_1="9", _2="9"), {}, Side.SERVER),
        ({}, addresses(_8="4", _7="4"), Side.SERVER),
        (addresses(_1="9"), addresses(_8="9"), Side.SERVER),
        (addresses(_1="9"), addresses(_1="4"), Side.CLIENT),
    ],
)
def test_side_that_shows_two_hosts_alike_is_refused(
    sources: dict[tuples.Address, tuples.Address],
    destinations: dict[tuples.Address, tuples.Address],
    refused: Side,
) -> None:
    for side in SIDES:
        if side is not refused:
            Nat(sources=sources, destinations=destinations, side=side)
            continue
        with pytest.raises(UsageError, match="cannot"):
            Nat(sources=sources, destinations=destinations, side=side)


@pytest.mark.parametrize(("behind", "shown"), [("_1", "192.0.2.1"), ("_1_2", None)])
def test_other_host_is_shown_if_it_is_the_only_one_behind_its_address(
    behind: str, shown: str | None
) -> None:
    hosts = dict.fromkeys((f"_{each}" for each in behind[1:].split("_")), "9")
    nat = Nat(sources=addresses(**hosts))
    master = nat.begin(flow(("192.0.2.1", 1), ("192.0.2.50", 2)))
    wanted = Expectation(
        master=master.original,
        transport=tuples.UDP,
        source=None,
        source_port=None,
        destination=endpoint("192.0.2.9", 5),
        policy="data",
        timeout=1,
    )
    assert nat.shown(wanted, master) == endpoint(shown or "192.0.2.9", 5)


ports = st.integers(1, 0xFFFF)


@st.composite
def gateways(draw: st.DrawFn) -> tuple[Nat, Nat, list[Tuple]]:
    """A translation of several hosts, from both sides, and packets on the client's."""
    address = draw(st.sampled_from([st.ip_addresses(v=4), st.ip_addresses(v=6)]))
    # All different: what is not translated means one host on both sides.
    found = draw(st.lists(address, min_size=4, max_size=12, unique=True))
    size = draw(st.integers(0, len(found) // 2))
    pairs = list(zip(found[:size], found[size : 2 * size], strict=True))
    middle = draw(st.integers(0, size))
    given = {"sources": dict(pairs[:middle]), "destinations": dict(pairs[middle:])}
    shown = st.sampled_from(found[:size] + found[2 * size :] or found)
    ends = st.builds(Endpoint, shown, ports)
    packets = st.builds(Tuple, st.sampled_from(tuples.Transport), ends, ends)
    return (
        Nat(**given, side=Side.CLIENT),
        Nat(**given, side=Side.SERVER),
        draw(st.lists(packets, min_size=1, max_size=5)),
    )


def beyond(found: Tuples) -> Tuple:
    """The flow's first packet as the other side shows it."""
    return turned(found.reply) if found.here else found.original


@given(gateways())
def test_there_and_back_is_the_identity(
    given: tuple[Nat, Nat, Sequence[Tuple]],
) -> None:
    client, server, packets = given
    for seen in packets:
        found = client.begin(seen)
        back = server.begin(beyond(found))
        if beyond(found) == seen:
            assert found == (seen, turned(seen), True)
        else:
            assert back == (*found[:2], not found.here)
            assert beyond(back) == seen


@given(
    gateway=st.sampled_from([*GATEWAYS4, *GATEWAYS6]),
    opens=st.sampled_from(Side),
    master_opens=st.sampled_from(Side),
    granted=ports,
    announced=ports,
)
def test_expected_flow_is_translated_alike_from_both_sides(
    gateway: Gateway, opens: Side, master_opens: Side, granted: int, announced: int
) -> None:
    """The capture shows the granted port where the flow comes from, and then another.

    The master may be a flow that the server has opened.
    """
    ends = (gateway.client_on, gateway.server_on)
    opener, announcer = ends if opens is Side.CLIENT else ends[::-1]
    other = Side.SERVER if opens is Side.CLIENT else Side.CLIENT
    seen = {
        opens: flow((opener(opens), 9), (announcer(opens), granted)),
        other: flow((opener(other), 9), (announcer(other), announced)),
    }
    direction = ORIGINAL if opens is master_opens else REPLY
    for side in SIDES:
        nat = gateway.nat(side)
        begun = flow((ends[0](side), 1), (ends[1](side), 2))
        master = nat.begin(begun if master_opens is Side.CLIENT else turned(begun))
        wanted = Expectation(
            master=master.original,
            transport=tuples.UDP,
            source=tuples.host_network(seen[opens].source.address),
            source_port=None,
            destination=seen[opens].destination,
            policy="data",
            timeout=1,
            translation=Translation(direction, announced),
        )
        assert nat.shown(wanted, master) == seen[side].destination
        assert nat.opener(seen[side].source.address) == seen[opens].source.address
        assert nat.follow(seen[side], wanted, master) == (
            seen[opens],
            turned(seen[other]),
            opens is side,
        )
