# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is left out after faults, who is not, and for how long."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from cthelper.core.quarantine import (
    FAULTS,
    FIRST,
    LONGEST,
    PEERS,
    WINDOW,
    Quarantine,
)
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    UDP,
    Conntrack,
    Direction,
    Status,
    flow_key,
    host_of,
    key_of,
)
from tests.core.builders import SERVER, SERVER_PORT, conntrack, flow_tuple
from tests.core.host import Clock

HELPER = "line"
GOOD = "192.0.2.1"
BAD = "192.0.2.66"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(clock)


def entry(source: str, destination: str = SERVER, *, assured: bool = True) -> Conntrack:
    """A flow's."""
    tuple_ = flow_tuple(UDP, (source, 40000), (destination, SERVER_PORT))
    made = conntrack(tuple_, id_=int(ip_address(source)) % 2**32)
    return replace(made, status=made.status | Status.ASSURED) if assured else made


def blame(
    quarantine: Quarantine,
    client: str,
    times: int = 1,
    *,
    server: str = SERVER,
    direction: Direction = ORIGINAL,
    assured: bool = True,
) -> list[str]:
    ends = ip_address(client), ip_address(server)
    return [
        quarantine.blame(HELPER, *ends, direction, assured=assured)
        for _ in range(times)
    ]


def test_nobody_is_left_out_at_first(quarantine: Quarantine) -> None:
    assert quarantine.empty
    assert not quarantine.holds(HELPER, entry(GOOD))


def test_peer_that_a_helper_faults_over_again_and_again_is_left_out_alone(
    quarantine: Quarantine,
) -> None:
    assert blame(quarantine, BAD, FAULTS) == [""] * (FAULTS - 1) + ["peer"]
    assert not quarantine.empty
    assert quarantine.holds(HELPER, entry(BAD))
    assert not quarantine.holds(HELPER, entry(GOOD))
    assert not quarantine.holds("other", entry(BAD))


def test_server_is_left_out_for_the_client_that_it_answered_alone(
    quarantine: Quarantine,
) -> None:
    blame(quarantine, GOOD, FAULTS, server=BAD, direction=REPLY)
    assert quarantine.holds(HELPER, entry(GOOD, BAD))
    assert not quarantine.holds(HELPER, entry(GOOD))
    assert not quarantine.holds(HELPER, entry("192.0.2.7", BAD))


def test_one_server_with_many_clients_is_one_peer(quarantine: Quarantine) -> None:
    for number in range(4 * PEERS):
        client = f"203.0.113.{number}"
        blame(quarantine, client, server=BAD, direction=REPLY)
    assert not quarantine.holds(HELPER, entry(GOOD))


def test_one_fault_may_count_as_many(quarantine: Quarantine) -> None:
    ends = ip_address(BAD), ip_address(SERVER)
    held = quarantine.blame(HELPER, *ends, ORIGINAL, assured=True, weight=FAULTS)
    assert held == "peer"


def test_it_ends_by_itself_and_is_longer_each_time(
    quarantine: Quarantine, clock: Clock
) -> None:
    for length in (FIRST, 2 * FIRST, 4 * FIRST):
        blame(quarantine, BAD, FAULTS)
        clock.now += length - 0.1
        assert quarantine.holds(HELPER, entry(BAD))
        clock.now += 0.2
        assert not quarantine.holds(HELPER, entry(BAD))
        assert quarantine.empty
    for _ in range(20):
        blame(quarantine, BAD, FAULTS)
        clock.now += LONGEST + 0.1
        assert not quarantine.holds(HELPER, entry(BAD))


def test_peer_that_was_good_for_long_begins_anew(
    quarantine: Quarantine, clock: Clock
) -> None:
    for _ in range(4):
        blame(quarantine, BAD, FAULTS)
    clock.now += 2 * LONGEST + WINDOW
    blame(quarantine, BAD, FAULTS)
    clock.now += FIRST + 0.1
    assert not quarantine.holds(HELPER, entry(BAD))


def test_faults_far_apart_do_not_count_together(
    quarantine: Quarantine, clock: Clock
) -> None:
    for _ in range(3 * FAULTS):
        assert blame(quarantine, BAD) == [""]
        clock.now += WINDOW / (FAULTS - 1) + 1


def test_helper_rests_only_where_several_peers_had_faults(
    quarantine: Quarantine, clock: Clock
) -> None:
    for _ in range(100):
        blame(quarantine, BAD)
    assert not quarantine.holds(HELPER, entry(GOOD))
    peers = [f"203.0.113.{number}" for number in range(PEERS - 1)]
    assert [blame(quarantine, each)[-1] for each in peers][-1] == "helper"
    assert quarantine.holds(HELPER, entry(GOOD))
    assert not quarantine.holds("other", entry(GOOD))
    clock.now += FIRST + 0.1
    assert not quarantine.holds(HELPER, entry(GOOD))


def test_senders_that_may_be_forged_do_not_switch_a_helper_off(
    quarantine: Quarantine,
) -> None:
    for number in range(250):
        blame(quarantine, f"203.0.113.{number}", FAULTS, assured=False)
    assert not quarantine.holds(HELPER, entry(GOOD))


def test_what_is_forged_in_a_peers_name_leaves_its_assured_flows_alone(
    quarantine: Quarantine,
) -> None:
    blame(quarantine, GOOD, FAULTS, assured=False)
    assert quarantine.holds(HELPER, entry(GOOD, assured=False))
    assert not quarantine.holds(HELPER, entry(GOOD))


def test_hosts_of_a_64_are_one_peer_and_no_other(quarantine: Quarantine) -> None:
    for number in range(FAULTS):
        blame(quarantine, f"2001:db8::{number + 1:x}")
    assert quarantine.holds(HELPER, entry("2001:db8::ffff", "2001:db8:9::2"))
    assert not quarantine.holds(HELPER, entry("2001:db8:0:1::1", "2001:db8:9::2"))
    assert host_of(ip_address("::1")) != host_of(ip_address("0.0.0.1"))


def test_neighbours_with_link_local_addresses_are_peers_of_their_own(
    quarantine: Quarantine,
) -> None:
    for _ in range(20):
        blame(quarantine, "fe80::1")
    assert quarantine.holds(HELPER, entry("fe80::1", "2001:db8:9::2"))
    assert not quarantine.holds(HELPER, entry("fe80::2", "2001:db8:9::2"))


def test_flow_may_be_left_out_by_itself(quarantine: Quarantine, clock: Clock) -> None:
    one = entry(GOOD)
    quarantine.hold_flow(key_of(one))
    assert quarantine.holds(HELPER, one)
    assert not quarantine.holds(HELPER, replace(one, id=one.id + 1))
    clock.now += LONGEST + 0.1
    assert not quarantine.holds(HELPER, one)


def test_everybody_is_let_out(quarantine: Quarantine) -> None:
    blame(quarantine, BAD, FAULTS)
    quarantine.hold_flow(flow_key(1, 0))
    quarantine.release()
    assert quarantine.empty
    assert not quarantine.holds(HELPER, entry(BAD))


def test_what_is_remembered_is_bounded(quarantine: Quarantine) -> None:
    blame(quarantine, BAD, FAULTS)
    for number in range(5000):
        blame(quarantine, str(ip_address(number)), FAULTS, assured=False)
        quarantine.hold_flow(flow_key(number, 0))
    assert quarantine.size <= 2 * 1024 + 1
    assert quarantine.holds(HELPER, entry(str(ip_address(4998)), assured=False))
    # Nobody is let out by what others forge.
    assert quarantine.holds(HELPER, entry(BAD))
