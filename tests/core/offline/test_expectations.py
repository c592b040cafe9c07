# SPDX-License-Identifier: GPL-2.0-or-later
"""Expectations of the model of conntrack: what meets one, replaces one, ends one.

Every rule has its case here, with the place in Linux 6.1 that it is from.
"""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from cthelper.core.offline.conntrack import State, Table
from cthelper.core.offline.entries import Entry
from cthelper.core.offline.expectations import Outcome
from cthelper.core.tuples import TCP, Endpoint, Status, Transport, Tuple
from tests.core.builders import endpoint, flow_tuple
from tests.core.offline.test_tcp import ACK, RST, SYN
from tests.core.offline.tracking import (
    CLIENT,
    CLIENT6,
    CONTROL,
    DATA,
    DATA_FLOW,
    OTHER,
    PLAIN,
    SERVER,
    SERVER6,
    begin,
    make,
    packet,
    play,
    see,
    table,
    tcp,
    track,
    turned,
    udp,
    unconfirmed,
    wanted,
)

# What meets an expectation (nf_ct_find_expectation in nf_conntrack_expect.c)


@pytest.mark.parametrize(
    ("changes", "flow", "met"),
    [
        ({}, DATA_FLOW, True),
        ({}, udp((SERVER, 1), (CLIENT, DATA)), True),
        ({}, udp((OTHER, 20000), (CLIENT, DATA)), False),
        ({}, udp((SERVER, 20000), (OTHER, DATA)), False),
        ({}, udp((SERVER, 20000), (CLIENT, DATA + 1)), False),
        ({}, tcp((SERVER, 20000), (CLIENT, DATA)), False),
        ({}, turned(DATA_FLOW), False),
        ({"transport": TCP}, tcp((SERVER, 20000), (CLIENT, DATA)), True),
        ({"transport": TCP}, DATA_FLOW, False),
        ({"source": None}, udp((OTHER, 20000), (CLIENT, DATA)), True),
        ({"source": ip_network("198.51.100.0/30")}, DATA_FLOW, True),
        (
            {"source": ip_network("198.51.100.0/31")},
            udp(("198.51.100.1", 1), (CLIENT, DATA)),
            True,
        ),
        ({"source": ip_network("198.51.100.0/31")}, DATA_FLOW, False),
        ({"source_port": 20000}, DATA_FLOW, True),
        ({"source_port": 20001}, DATA_FLOW, False),
        ({"source": None, "source_port": 20000}, DATA_FLOW, True),
    ],
)
def test_which_flow_meets_an_expectation(
    changes: Mapping[str, Any], flow: Tuple, met: bool
) -> None:
    held = table()
    master = begin(held, 0.0, udp())
    outcome, expected = held.expect(0.0, master, wanted(**changes), 1)
    assert outcome is Outcome.CREATED
    seen = track(held, 1.0, flow)
    assert seen.met is (expected if met else None)
    assert seen.state is (State.RELATED if met else State.NEW)
    assert len(held.live(1.0)) == (0 if met else 1)


@pytest.mark.parametrize("transport", Transport)
def test_expectation_of_ipv6(transport: Transport) -> None:
    held = table()
    master = begin(held, 0.0, udp((CLIENT6, 1), (SERVER6, CONTROL)))
    expectation = wanted(
        master=master.original,
        transport=transport,
        source=ip_network("2001:db8:2::/64"),
        destination=endpoint(CLIENT6, DATA),
    )
    held.expect(0.0, master, expectation, 1)
    away = flow_tuple(transport, ("2001:db8:3::2", 1), (CLIENT6, DATA))
    assert track(held, 1.0, away).met is None
    near = flow_tuple(transport, ("2001:db8:2:0:ffff::9", 1), (CLIENT6, DATA))
    assert track(held, 1.0, near).met is not None


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize("permanent", [False, True])
def test_expected_flow(transport: Transport, permanent: bool) -> None:
    held = table()
    master = begin(held, 0.0, udp())
    expectation = wanted(transport=transport, permanent=permanent)
    _, expected = held.expect(0.0, master, expectation, 4)
    assert expected is not None
    assert (expected.frame, expected.master, expected.helper) == (4, master, "lab")
    flow = flow_tuple(transport, (SERVER, 20000), (CLIENT, DATA))
    first = see(held, 5, 1.0, packet(flow), 0)
    assert first is not None
    assert (first.met, first.created) == (expected, True)
    entry = first.entry
    assert entry is not None
    assert entry.master is master
    held.confirm(entry)
    # nft's "related" until it is answered.
    again = track(held, 2.0, flow)
    assert (again.entry, again.met, again.state) == (entry, None, State.RELATED)
    assert entry.conntrack(2.0).master == master.original
    assert Status.EXPECTED in entry.conntrack(2.0).status
    answer = track(held, 3.0, turned(flow), SYN | ACK)
    assert answer.state is State.ESTABLISHED
    assert track(held, 4.0, flow, ACK).state is State.ESTABLISHED
    # One that is for one flow is used up; a permanent one is there for the next.
    other = replace(flow, source=Endpoint(flow.source.address, 20001))
    assert track(held, 5.0, other).met is (expected if permanent else None)
    assert held.live(5.0) == ([expected] if permanent else [])


def test_flow_that_is_there_meets_nothing() -> None:
    held = table()
    begin(held, 0.0, DATA_FLOW)
    master = begin(held, 0.0, udp())
    held.expect(0.0, master, wanted(), 1)
    seen = track(held, 1.0, DATA_FLOW)
    assert (seen.met, seen.state) == (None, State.NEW)
    assert len(held.live(1.0)) == 1


def test_expectation_of_an_unconfirmed_master_is_not_met() -> None:
    held = table()
    master = unconfirmed(held, 0.0, udp())
    expected = make(held, 0.0, master)
    assert track(held, 0.0, DATA_FLOW).met is None
    held.confirm(master)
    other = replace(DATA_FLOW, source=endpoint(SERVER, 20001))
    assert track(held, 1.0, other).met is expected


def test_invalid_segment_uses_an_expectation_up() -> None:
    # init_conntrack looks for it before nf_conntrack_tcp_packet judges the segment.
    held = table()
    master = begin(held, 0.0, udp())
    held.expect(0.0, master, wanted(transport=TCP), 1)
    flow = tcp((SERVER, 20000), (CLIENT, DATA))
    seen = track(held, 1.0, flow, RST)
    assert (seen.state, seen.met) == (State.INVALID, None)
    assert held.live(1.0) == []
    assert track(held, 1.0, flow).state is State.NEW


def test_connection_opened_again_meets_an_expectation() -> None:
    held = table()
    flow = tcp((SERVER, 20000), (CLIENT, DATA))
    now = play(held, flow, ">S <SA >A >FA <FA >A")
    master = begin(held, now, udp())
    held.expect(now, master, wanted(transport=TCP), 1)
    assert track(held, now + 1.0, flow).state is State.RELATED


# What becomes of an expectation (__nf_ct_expect_check in nf_conntrack_expect.c,
# ctnetlink_new_expect in nf_conntrack_netlink.c)


def test_expectation_lasts_as_long_as_its_policy_says() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    # CTA_EXPECT_TIMEOUT counts for a refresh alone (nf_ct_expect_insert).
    first = make(held, 1.0, master, timeout=99)
    more = make(
        held, 1.0, master, destination=endpoint(CLIENT, 1), helper="lab", class_=1
    )
    assert (first.expires, more.expires) == (11.0, 21.0)
    assert set(held.live(10.9)) == {first, more}
    assert held.live(11.0) == [more]
    assert held.live(21.0) == []
    assert master.expectations == []


def test_expectation_that_has_expired_is_not_met() -> None:
    held = table()
    make(held, 0.0, begin(held, 0.0, udp()))
    assert track(held, 10.0, DATA_FLOW).met is None


def test_class_counts_with_and_without_the_name_of_a_helper() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    expected = make(held, 0.0, master, class_=1)
    assert expected.class_ == 1
    assert master.helper is not None
    assert expected.expires == master.helper.policies[1].timeout


@pytest.mark.parametrize("hands_down", [False, True])
def test_helper_is_handed_down_where_the_kernel_does_so(hands_down: bool) -> None:
    held = table(hands_down=hands_down)
    master = begin(held, 0.0, udp())
    make(held, 0.0, master)
    met = track(held, 1.0, DATA_FLOW)
    assert met.entry is not None
    assert met.entry.master is master
    assert met.entry.helper is (master.helper if hands_down else None)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        # The same, and what the first one covers.
        ({}, {}, Outcome.REFRESHED),
        ({}, {"permanent": True}, Outcome.REFRESHED),
        ({}, {"helper": "lab", "class_": 1}, Outcome.REFRESHED),
        ({"source": None}, {}, Outcome.REFRESHED),
        ({"source": None}, {"source": None}, Outcome.REFRESHED),
        ({}, {"source_port": 20000}, Outcome.REFRESHED),
        ({"source": ip_network("198.51.100.0/24")}, {}, Outcome.REFRESHED),
        # One that covers more clashes with it.
        ({}, {"source": None}, Outcome.CLASH),
        ({}, {"source": ip_network("198.51.100.0/24")}, Outcome.CLASH),
        ({"source_port": 20000}, {}, Outcome.CLASH),
        ({"source_port": 20000}, {"source": None}, Outcome.CLASH),
        (
            {"source": None, "source_port": 20000},
            {"source": ip_network(SERVER), "source_port": None},
            Outcome.CLASH,
        ),
        # What one packet cannot meet both does not.
        ({}, {"source": ip_network(OTHER)}, Outcome.CREATED),
        ({}, {"transport": TCP}, Outcome.CREATED),
        ({}, {"destination": endpoint(CLIENT, DATA + 1)}, Outcome.CREATED),
        ({}, {"destination": endpoint(OTHER, DATA)}, Outcome.CREATED),
        ({"source_port": 20000}, {"source_port": 20001}, Outcome.CREATED),
        (
            {"source": ip_network("198.51.100.0/31")},
            {"source": ip_network("198.51.100.2/31")},
            Outcome.CREATED,
        ),
    ],
)
def test_expectation_beside_another(
    before: Mapping[str, Any], after: Mapping[str, Any], outcome: Outcome
) -> None:
    for same_master in (True, False):
        held = table()
        master = begin(held, 0.0, udp())
        other = master if same_master else begin(held, 0.0, udp((CLIENT, 40001)))
        first = make(held, 0.0, master, **before)
        expectation = wanted(**after, timeout=7)
        found, expected = held.expect(5.0, other, expectation, 2)
        assert found is outcome
        if outcome is Outcome.REFRESHED:
            # It stays another's, and takes the timeout (ctnetlink_change_expect).
            assert expected is first
            assert (first.master, first.expires) == (master, 12.0)
            assert held.live(5.0) == [first]
        else:
            assert (expected is None) == (outcome is Outcome.CLASH)
            assert len(held.live(5.0)) == 1 + (outcome is Outcome.CREATED)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ({}, {}, Outcome.CREATED),
        ({}, {"permanent": True}, Outcome.CREATED),
        ({}, {"helper": "lab", "class_": 1}, Outcome.ALREADY),
        ({"source": None}, {}, Outcome.CLASH),
        ({}, {"source": None}, Outcome.CLASH),
        ({}, {"source": ip_network(OTHER)}, Outcome.CREATED),
    ],
)
def test_expectation_in_a_verdict_beside_another(
    before: Mapping[str, Any], after: Mapping[str, Any], outcome: Outcome
) -> None:
    # Nothing is refreshed there (ctnetlink_glue_attach_expect): the same one is made
    # anew, and one of another master clashes.
    held = table()
    master = unconfirmed(held, 0.0, udp())
    first = make(held, 0.0, master, **before)
    found, expected = held.expect(5.0, master, wanted(**after), 2)
    assert found is outcome
    live = held.live(5.0)
    if outcome is Outcome.CREATED:
        assert expected is not None
        assert expected.expires == 15.0
        assert live[0] is expected
        assert (first in live) == ("source" in after)
    else:
        assert live == [first]
    other = unconfirmed(held, 5.0, udp((CLIENT, 40001)))
    assert held.expect(5.0, other, live[0].expectation, 3) == (Outcome.CLASH, None)


def test_oldest_of_the_class_makes_room() -> None:
    # evict_oldest_expect; the limit is the master's own.
    held = table()
    master, other = begin(held, 0.0, udp()), begin(held, 0.0, udp((CLIENT, 40001)))
    more = make(
        held, 0.0, master, destination=endpoint(OTHER, 1), helper="lab", class_=1
    )
    theirs = make(held, 0.0, other, destination=endpoint(OTHER, 2))
    made = [
        make(held, float(port), master, destination=endpoint(CLIENT, port))
        for port in (1, 2, 3, 4)
    ]
    assert set(held.live(4.0)) == {more, theirs, made[2], made[3]}
    assert master.expectations == [made[3], made[2], more]
    last = make(
        held, 5.0, master, destination=endpoint(OTHER, 5), helper="lab", class_=1
    )
    assert set(held.live(5.0)) == {last, theirs, made[2], made[3]}


def test_refresh_does_not_make_an_expectation_younger() -> None:
    # The list is in the order of insertion, whatever the timers say.
    held = table()
    master = begin(held, 0.0, udp())
    ports = [endpoint(CLIENT, port) for port in (1, 2, 3)]
    first, second = (make(held, 0.0, master, destination=each) for each in ports[:2])
    held.expect(1.0, master, wanted(destination=ports[0]), 1)
    third = make(held, 2.0, master, destination=ports[2])
    assert first.expires == 11.0
    assert set(held.live(2.0)) == {second, third}


def test_expired_and_met_ones_make_room_by_themselves() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    make(held, 0.0, master)
    second = make(held, 5.0, master, destination=endpoint(CLIENT, 1))
    track(held, 6.0, DATA_FLOW)
    third = make(held, 7.0, master, destination=endpoint(CLIENT, 2))
    assert set(held.live(7.0)) == {second, third}
    fourth = make(held, 15.5, master, destination=endpoint(CLIENT, 3))
    assert set(held.live(15.5)) == {third, fourth}


def test_full_table() -> None:
    # nf_conntrack_expect_max.
    held = table(expect_max=2)
    masters = [begin(held, 0.0, udp((CLIENT, port))) for port in (1, 2, 3)]
    ends = [endpoint(CLIENT, port) for port in (1, 2, 3)]
    for master, end in zip(masters[:2], ends[:2], strict=True):
        make(held, 0.0, master, destination=end)
    late = wanted(destination=ends[2])
    assert held.expect(1.0, masters[2], late, 1) == (Outcome.FULL, None)
    outcome, _ = held.expect(10.0, masters[2], late, 1)
    assert outcome is Outcome.CREATED


def test_flow_without_helper_has_no_expectations() -> None:
    held = table()
    master = begin(held, 0.0, udp(to=(SERVER, PLAIN)))
    assert held.expect(0.0, master, wanted(), 1) == (Outcome.NO_HELPER, None)


def test_class_that_the_helper_does_not_have() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    expectation = wanted(helper="lab", class_=2)
    assert held.expect(0.0, master, expectation, 1) == (Outcome.INVALID, None)


@pytest.mark.parametrize("gone", [False, True])
def test_master_that_has_ended(gone: bool) -> None:
    held = table()
    master = begin(held, 0.0, udp())
    if gone:
        begin(held, 30.0, udp())
    assert held.expect(30.0, master, wanted(), 1) == (Outcome.NO_MASTER, None)


def test_refresh_asks_for_no_master() -> None:
    # ctnetlink_new_expect looks for the expectation first.
    held = table()
    first = make(held, 25.0, begin(held, 25.0, udp()))
    ended = begin(held, 0.0, udp((CLIENT, 40001)))
    plain = begin(held, 25.0, udp(to=(SERVER, PLAIN)))
    for master in (ended, plain):
        found = held.expect(31.0, master, wanted(), 1)
        assert found == (Outcome.REFRESHED, first)


# What ends with a master (nf_ct_remove_expectations)


@pytest.mark.parametrize("confirmed", [False, True])
def test_finished_flow_is_no_longer_looked_at_and_has_its_expectations(
    confirmed: bool,
) -> None:
    held = table()
    master = begin(held, 0.0, udp()) if confirmed else unconfirmed(held, 0.0, udp())
    made = make(held, 0.0, master)
    held.leave(master)
    assert held.live(0.0) == [made]
    held.confirm(master)
    assert see(held, 1, 1.0, packet(udp()), 0) is None
    # A flow of the same tuple after it is.
    again = see(held, 1, 500.0, packet(udp()), 0)
    assert again is not None
    assert again.created


def ends_by_expiry(held: Table, master: Entry) -> float:
    held.keep(0.0, master, 5.0)
    return 5.0


def ends_by_deletion(held: Table, master: Entry) -> float:
    held.keep(1.0, master, 0.0)
    return 1.0


def ends_by_refusal(held: Table, master: Entry) -> float:
    track(held, 1.0, master.reply, RST | ACK)
    return 1.0


@pytest.mark.parametrize("end", [ends_by_expiry, ends_by_deletion, ends_by_refusal])
@pytest.mark.parametrize("permanent", [False, True])
def test_expectations_end_with_their_master(end: Any, permanent: bool) -> None:
    for listed in (False, True):
        held = table()
        master = begin(held, 0.0, tcp())
        make(held, 0.0, master, permanent=permanent)
        now = end(held, master)
        if listed:
            assert held.live(now) == []
        assert track(held, now, DATA_FLOW).state is State.NEW
        assert held.live(now) == []
        assert held.expect(now, master, wanted(), 1)[0] is Outcome.NO_MASTER


def test_expectations_of_an_ended_master_that_have_ended_themselves() -> None:
    # Both for one end, so that they are looked at together.
    held = table()
    master = begin(held, 0.0, udp())
    make(held, 0.0, master, source_port=1)
    make(held, 5.0, master, source_port=2)
    held.keep(5.0, master, 7.0)
    assert track(held, 12.5, DATA_FLOW).state is State.NEW
    assert held.live(12.5) == []


def test_expected_flow_outlives_its_master() -> None:
    held = table()
    master = begin(held, 0.0, udp())
    make(held, 0.0, master)
    track(held, 1.0, DATA_FLOW)
    held.keep(1.0, master, 0.0)
    seen = track(held, 2.0, DATA_FLOW)
    assert seen.state is State.RELATED
    assert seen.entry is not None
    assert seen.entry.conntrack(2.0).master == master.original
