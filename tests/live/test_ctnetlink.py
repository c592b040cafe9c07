# SPDX-License-Identifier: GPL-2.0-or-later
"""Conntrack entries and expectations in the kernel, and the events of both."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from cthelper.core.errors import AlreadyExists, Busy, NotFound, NotSupported
from cthelper.core.netlink.ctnetlink import (
    Ctnetlink,
    EntryGone,
    Events,
    ExpectationMade,
    ExpectationMet,
    _try_entry,
)
from cthelper.core.netlink.decoding import conntrack_entry
from cthelper.core.netlink.messages import CTNETLINK, GET, nfgen_msg
from cthelper.core.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from cthelper.core.tuples import (
    TCP,
    UDP,
    Endpoint,
    Expectation,
    Network,
    Status,
    Tuple,
    flow_key,
)
from tests.live.netlink_lab import (
    BRIEF,
    NAME,
    OTHER,
    OTHER_PORT,
    TIMEOUT,
    UNTAGGED_PORT,
    ZONE,
    ZONE_PORT,
    ZONE_SOURCE_PORT,
    Flow,
    Lab,
    expected_flow,
    readable,
    tcp_flow,
    until,
)
from tests.live.world import SERVER, Family, World

pytestmark = pytest.mark.live

# Type, code, checksum, identifier, sequence number.
ECHO_REQUEST = bytes.fromhex("08 00 f7ff 0000 0000")

Event = EntryGone | ExpectationMade | ExpectationMet


@pytest.fixture(scope="module")
def lab(world: World) -> Iterator[Lab]:
    """The helpers and the rules of this module."""
    with Lab(world) as lab:
        yield lab


@pytest.fixture
def ctnetlink(lab: Lab) -> Ctnetlink:
    """Requests on the gateway."""
    return lab.ctnetlink


@pytest.fixture
def flow(lab: Lab) -> Iterator[Flow]:
    """A confirmed flow with a helper."""
    with Flow(lab.world) as flow:
        yield flow.begin()


@pytest.fixture
def events(lab: Lab) -> Iterator[Events]:
    """Events of the gateway; of flows only that began after this."""
    with lab.world.gateway.entered():
        events = Events()
        events.follow(expectations=True)
    yield events
    events.close()


def unknown(flow: Flow) -> Tuple:
    """A tuple that no flow has."""
    return replace(flow.original, source=Endpoint(flow.original.source.address, 1))


def as_read(wanted: Expectation) -> Expectation:
    """An expectation as the kernel reports it: its helper is the master's own."""
    return replace(wanted, policy=None, helper=NAME)


def collect(events: Events, enough: Callable[[list[Event]], bool]) -> list[Event]:
    """The events that come until there are enough, or for some seconds."""
    found: list[Event] = []
    while not enough(found) and readable(events.fileno()):
        found += events.read()
    return found


def made(events: list[Event], wanted: Expectation) -> list[ExpectationMade]:
    """What the events say of one expectation."""
    return [
        each
        for each in events
        if isinstance(each, ExpectationMade)
        and each.expectation.destination == wanted.destination
    ]


# Entries


@pytest.mark.parametrize("family", [4, 6])
def test_get_reads_the_entry_of_a_tagged_flow(lab: Lab, family: Family) -> None:
    with Flow(lab.world, family=family) as flow:
        entry = lab.ctnetlink.get(flow.begin().original)
        assert entry.original == flow.original
        assert entry.reply == flow.reply
        assert entry.confirmed
        assert Status.HELPER in entry.status
        assert Status.SEEN_REPLY not in entry.status
        assert (entry.helper, entry.zone, entry.mark) == (NAME, 0, 0)
        assert entry.master is None
        assert entry.id
        assert 20 <= entry.timeout <= 30

        flow.server.send(b"answer")
        assert flow.client.recv(100) == b"answer"
        answered = lab.ctnetlink.get(flow.original)
        assert answered.id == entry.id
        assert Status.SEEN_REPLY in answered.status


def test_get_of_an_unknown_tuple_is_not_found(ctnetlink: Ctnetlink, flow: Flow) -> None:
    with pytest.raises(NotFound, match="get conntrack entry udp"):
        ctnetlink.get(unknown(flow))


def test_get_reads_no_helper_of_an_untagged_flow(lab: Lab) -> None:
    with Flow(lab.world, UNTAGGED_PORT) as flow:
        assert lab.ctnetlink.get(flow.begin().original).helper is None


def test_requests_find_an_entry_in_its_zone_alone(lab: Lab) -> None:
    with Flow(lab.world, ZONE_PORT) as flow:
        flow.begin()
        entry = lab.ctnetlink.get(flow.original, ZONE)
        assert (entry.zone, entry.helper) == (ZONE, NAME)
        assert [
            each.zone for each in lab.ctnetlink.entries() if each.id == entry.id
        ] == [ZONE]
        lab.ctnetlink.update(flow.original, ZONE, timeout=500)
        assert lab.ctnetlink.get(flow.original, ZONE).timeout > 400
        for request in (
            lab.ctnetlink.get,
            lab.ctnetlink.delete,
            lab.ctnetlink.update,
        ):
            with pytest.raises(NotFound):
                request(flow.original)
        lab.ctnetlink.delete(flow.original, ZONE)
        with pytest.raises(NotFound):
            lab.ctnetlink.get(flow.original, ZONE)


def test_entries_lists_both_families_and_both_transports(lab: Lab) -> None:
    with (
        Flow(lab.world) as udp4,
        Flow(lab.world, family=6) as udp6,
        tcp_flow(lab.world) as tcp4,
        tcp_flow(lab.world, family=6) as tcp6,
    ):
        wanted = {udp4.begin().original, udp6.begin().original, tcp4, tcp6}
        entries = [each for each in lab.ctnetlink.entries() if each.original in wanted]
        assert {each.original for each in entries} == wanted
        assert len(entries) == len(wanted)
        assert {each.helper for each in entries} == {NAME}
        for each in entries:
            found = lab.ctnetlink.get(each.original)
            assert replace(found, timeout=0) == replace(each, timeout=0)


def test_entries_decoded_by_hand_are_those_that_pyroute2_decodes(lab: Lab) -> None:
    with (
        Flow(lab.world) as flow,
        Flow(lab.world, family=6) as flow6,
        Flow(lab.world, UNTAGGED_PORT) as untagged,
        Flow(lab.world, ZONE_PORT) as zoned,
        tcp_flow(lab.world) as tcp,
        tcp_flow(lab.world, family=6) as tcp6,
    ):
        wanted = [flow.begin().expectation(), flow6.begin().expectation()]
        untagged.begin()
        zoned.begin()
        flow.server.send(b"answer")
        lab.ctnetlink.update(flow.original, mark=(0x12345678, 0xFFFFFFFF), timeout=70)
        for each in wanted:
            lab.ctnetlink.expect(each)
        with (
            expected_flow(lab.world, wanted[0]) as expected,
            expected_flow(lab.world, wanted[1]) as expected6,
            lab.world.gateway.entered(),
            NetlinkSocket(NETLINK_NETFILTER) as requests,
        ):
            frames = requests.dump(nfgen_msg(), CTNETLINK | GET, "list all")
            frames = [each for each in frames if _try_entry(each) is not None]
    decoded = [conntrack_entry(each.data, 20, len(each.data)) for each in frames]
    assert decoded == [_try_entry(each) for each in frames]
    by_tuple = {each.original: each for each in decoded if each}
    assert by_tuple[expected].master == flow.original
    assert by_tuple[expected6].master == flow6.original
    assert by_tuple[flow.original].mark == 0x12345678
    assert by_tuple[zoned.original].zone == ZONE
    assert by_tuple[untagged.original].helper is None
    assert {tcp, tcp6} <= by_tuple.keys()


def test_entries_leaves_out_other_transports(lab: Lab) -> None:
    with lab.world.client.entered():
        pinger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with pinger:
        pinger.settimeout(5.0)
        pinger.sendto(ECHO_REQUEST, (SERVER, 0))
        pinger.recv(100)
    assert "icmp" in lab.world.conntrack("-L")
    assert {each.original.transport for each in lab.ctnetlink.entries()} <= {TCP, UDP}


def test_update_sets_the_timeout(ctnetlink: Ctnetlink, flow: Flow) -> None:
    ctnetlink.update(flow.original, timeout=600)
    assert 590 <= ctnetlink.get(flow.original).timeout <= 600


def test_update_changes_the_bits_of_the_mark_in_the_mask(
    ctnetlink: Ctnetlink, flow: Flow
) -> None:
    ctnetlink.update(flow.original, mark=(0x11001234, 0xFFFFFFFF))
    ctnetlink.update(flow.original, mark=(0xAB000000, 0xFF000000))
    assert ctnetlink.get(flow.original).mark == 0xAB001234


def test_update_of_an_unknown_tuple_is_not_found_and_makes_nothing(
    ctnetlink: Ctnetlink, flow: Flow
) -> None:
    missing = unknown(flow)
    with pytest.raises(NotFound, match="update conntrack entry"):
        ctnetlink.update(missing, timeout=60)
    assert missing not in {each.original for each in ctnetlink.entries()}


def test_entry_has_the_helper_that_is_registered_by_its_name(
    lab: Lab, flow: Flow
) -> None:
    attached = lab.ctnetlink.is_attached
    before = lab.ctnetlink.get(flow.original)
    assert attached(flow.original, NAME)
    assert not attached(flow.original, OTHER)
    assert not attached(flow.original, "nobody")
    # To ask changes nothing.
    after = lab.ctnetlink.get(flow.original)
    assert (after.helper, after.status) == (before.helper, before.status)
    with Flow(lab.world, UNTAGGED_PORT) as untagged:
        assert not attached(untagged.begin().original, NAME)
    with pytest.raises(NotFound, match="ask for helper lab of udp"):
        attached(unknown(flow), NAME)


def test_delete_removes_the_entry_and_its_expectations(lab: Lab, flow: Flow) -> None:
    wanted = flow.expectation()
    lab.ctnetlink.expect(wanted)
    lab.ctnetlink.delete(flow.original)
    with pytest.raises(NotFound):
        lab.ctnetlink.get(flow.original)
    with pytest.raises(NotFound, match="delete conntrack entry"):
        lab.ctnetlink.delete(flow.original)
    assert not lab.held(wanted)


# Expectations


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"source": None},
        {"source_port": 7777},
        {"source": None, "source_port": 7777},
        {"permanent": True},
        {"transport": TCP},
    ],
    ids=[
        "one source",
        "any source",
        "source port",
        "source port alone",
        "permanent",
        "other transport",
    ],
)
def test_expectation_reads_back_as_it_went_in(
    lab: Lab, family: Family, changes: dict[str, Any]
) -> None:
    with Flow(lab.world, family=family) as flow:
        wanted = flow.begin().expectation(**changes)
        lab.ctnetlink.expect(wanted)
        (found,) = lab.held(wanted)
    assert 20 <= found.timeout <= TIMEOUT
    assert replace(found, timeout=TIMEOUT) == as_read(wanted)


@pytest.mark.parametrize(
    ("family", "source"),
    [
        (4, IPv4Network("10.77.2.0/24")),
        (4, IPv4Network("10.76.0.0/15")),
        (6, IPv6Network("fe80::/10")),
        (6, IPv6Network("fd77:2::/64")),
    ],
)
def test_network_of_sources_reads_back_as_it_went_in(
    lab: Lab, family: Family, source: Network
) -> None:
    with Flow(lab.world, family=family) as flow:
        wanted = flow.begin().expectation(source=source)
        lab.ctnetlink.expect(wanted)
        (found,) = lab.held(wanted)
    assert replace(found, timeout=TIMEOUT) == as_read(wanted)


def test_network_of_sources_admits_its_hosts_alone(lab: Lab, flow: Flow) -> None:
    inside = flow.expectation(source=IPv4Network("10.77.2.0/30"))
    outside = flow.expectation(source=IPv4Network("10.77.2.4/30"))
    lab.ctnetlink.expect(inside)
    lab.ctnetlink.expect(outside)
    with expected_flow(lab.world, inside) as original:
        assert lab.ctnetlink.get(original).master == flow.original
    with expected_flow(lab.world, outside) as original:
        assert lab.ctnetlink.get(original).master is None
    assert not lab.held(inside)
    assert lab.held(outside)


def test_permanent_expectation_outlives_a_flow_that_met_it(
    lab: Lab, flow: Flow
) -> None:
    wanted = flow.expectation(permanent=True)
    lab.ctnetlink.expect(wanted)
    for _ in range(2):
        with expected_flow(lab.world, wanted) as original:
            assert lab.ctnetlink.get(original).master == flow.original
    assert lab.held(wanted)


def test_class_beside_a_helper_picks_the_policy(lab: Lab, flow: Flow) -> None:
    wanted = flow.expectation(helper=NAME, class_=1)
    lab.ctnetlink.expect(wanted)
    (found,) = lab.held(wanted)
    assert found.class_ == 1
    assert found.timeout <= BRIEF


def test_expectation_ends_with_its_policys_timeout(lab: Lab, flow: Flow) -> None:
    wanted = flow.expectation(helper=NAME, class_=1)
    lab.ctnetlink.expect(wanted)
    until(lambda: not lab.held(wanted))
    with expected_flow(lab.world, wanted) as original:
        assert lab.ctnetlink.get(original).master is None
    # It is not in the way of another either.
    with Flow(lab.world) as rival:
        again = replace(wanted, master=rival.begin().original, source=None)
        lab.ctnetlink.expect(again)
        assert [each.master for each in lab.held(wanted)] == [again.master]


def test_expectation_needs_a_master_in_the_table(
    ctnetlink: Ctnetlink, flow: Flow
) -> None:
    wanted = flow.expectation(master=unknown(flow))
    with pytest.raises(NotFound, match="expect udp"):
        ctnetlink.expect(wanted)


def test_expectation_needs_a_master_with_a_helper(lab: Lab) -> None:
    with Flow(lab.world, UNTAGGED_PORT) as flow:
        wanted = flow.begin().expectation()
        with pytest.raises(NotSupported, match="expect udp"):
            lab.ctnetlink.expect(wanted)
        assert not lab.held(wanted)


@pytest.mark.parametrize("same_master", [False, True], ids=["other's", "own"])
def test_expectation_that_overlaps_another_is_refused(
    lab: Lab, flow: Flow, same_master: bool
) -> None:
    wanted = flow.expectation()
    lab.ctnetlink.expect(wanted)
    with Flow(lab.world) as rival:
        master = flow.original if same_master else rival.begin().original
        with pytest.raises(Busy, match="expect udp any"):
            lab.ctnetlink.expect(replace(wanted, master=master, source=None))
    assert [each.source for each in lab.held(wanted)] == [wanted.source]


@pytest.mark.parametrize("wide", [False, True], ids=["the same", "a wider one"])
def test_expectation_that_another_masters_covers_is_not_made(
    lab: Lab, flow: Flow, wide: bool
) -> None:
    wanted = flow.expectation()
    first = replace(wanted, source=None) if wide else wanted
    lab.ctnetlink.expect(first)
    with Flow(lab.world) as rival:
        second = replace(wanted, master=rival.begin().original)
        with pytest.raises(AlreadyExists, match="expect udp"):
            lab.ctnetlink.expect(second)
        assert lab.ctnetlink.covering(second).master == flow.original
        lab.ctnetlink.renew(second, TIMEOUT)
    assert [(each.master, each.source) for each in lab.held(wanted)] == [
        (flow.original, first.source)
    ]


@pytest.mark.parametrize("seconds", [BRIEF, TIMEOUT, 10 * TIMEOUT])
def test_renewed_expectation_lives_for_so_long(
    lab: Lab, flow: Flow, seconds: int
) -> None:
    wanted = flow.expectation()
    lab.ctnetlink.expect(wanted)
    lab.ctnetlink.renew(wanted, seconds)
    (found,) = lab.held(wanted)
    assert seconds - 2 <= found.timeout <= seconds


def test_nothing_covers_what_is_not_expected(lab: Lab, flow: Flow) -> None:
    with pytest.raises(NotFound, match="get expectation udp"):
        lab.ctnetlink.covering(flow.expectation())


@pytest.mark.parametrize("gone", [False, True], ids=["there", "gone"])
def test_one_takes_the_place_of_others(lab: Lab, flow: Flow, gone: bool) -> None:
    narrow = flow.expectation()
    other = replace(narrow, source=IPv4Network("10.77.9.9"))
    for each in (narrow, other):
        lab.ctnetlink.expect(each)
    if gone:
        lab.ctnetlink.delete_expectation(narrow)
    wide = replace(narrow, source=None, permanent=True)
    lab.ctnetlink.replace_expectations([narrow, other], wide, 10 * TIMEOUT)
    (found,) = lab.ctnetlink.towards(narrow)
    assert (found.source, found.permanent) == (None, True)
    assert 10 * TIMEOUT - 2 <= found.timeout <= 10 * TIMEOUT
    for _ in range(2):
        with expected_flow(lab.world, wide) as original:
            assert lab.ctnetlink.get(original).master == flow.original


def test_nothing_takes_the_place_of_another_whose_master_is_gone(
    lab: Lab, flow: Flow
) -> None:
    wanted = flow.expectation()
    lab.ctnetlink.expect(wanted)
    orphan = replace(wanted, master=unknown(flow))
    with pytest.raises(NotFound, match="expect udp"):
        lab.ctnetlink.replace_expectations([wanted], orphan, TIMEOUT)
    # The request after it is not kept by one that fails.
    lab.ctnetlink.expect(wanted)
    assert lab.held(wanted)


def test_oldest_expectation_gives_way_beyond_the_policys_limit(lab: Lab) -> None:
    with Flow(lab.world, OTHER_PORT) as flow:
        flow.begin()
        first, second, third = (flow.expectation() for _ in range(3))
        for each in (first, second, third):
            lab.ctnetlink.expect(each)
        assert not lab.held(first)
        assert lab.held(second)
        assert lab.held(third)


def test_expectation_in_a_zone_is_met_there(lab: Lab) -> None:
    with Flow(lab.world, ZONE_PORT) as flow:
        wanted = flow.begin().expectation(zone=ZONE, source_port=ZONE_SOURCE_PORT)
        lab.ctnetlink.expect(wanted)
        assert lab.held(wanted)
        with expected_flow(lab.world, wanted) as original:
            assert lab.ctnetlink.get(original, ZONE).master == flow.original


def test_expectation_in_a_zone_is_deleted_there(lab: Lab) -> None:
    with Flow(lab.world, ZONE_PORT) as flow:
        wanted = flow.begin().expectation(zone=ZONE)
        lab.ctnetlink.expect(wanted)
        with pytest.raises(NotFound):
            lab.ctnetlink.delete_expectation(replace(wanted, zone=0))
        lab.ctnetlink.delete_expectation(wanted)
        assert not lab.held(wanted)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("permanent", [False, True], ids=["once", "permanent"])
def test_expectation_is_deleted_alone(
    lab: Lab, family: Family, permanent: bool
) -> None:
    with Flow(lab.world, family=family) as flow:
        flow.begin()
        wanted = flow.expectation(permanent=permanent)
        other = flow.expectation()
        lab.ctnetlink.expect(wanted)
        lab.ctnetlink.expect(other)
        lab.ctnetlink.delete_expectation(wanted)
        assert not lab.held(wanted)
        assert lab.held(other)
        with pytest.raises(NotFound, match="delete expectation"):
            lab.ctnetlink.delete_expectation(wanted)


def test_expectation_read_back_can_be_deleted(lab: Lab, flow: Flow) -> None:
    wanted = flow.expectation(source=IPv4Network("10.77.2.0/24"))
    lab.ctnetlink.expect(wanted)
    (found,) = lab.held(wanted)
    lab.ctnetlink.delete_expectation(found)
    assert not lab.held(wanted)


def test_flush_of_one_helper_leaves_the_others(lab: Lab, flow: Flow) -> None:
    with Flow(lab.world, OTHER_PORT) as other, Flow(lab.world, family=6) as flow6:
        expectations = [
            each.expectation() for each in (flow, flow6.begin(), other.begin())
        ]
        for each in expectations:
            lab.ctnetlink.expect(each)
        lab.ctnetlink.flush_expectations(NAME)
        assert [bool(lab.held(each)) for each in expectations] == [False, False, True]
        lab.ctnetlink.flush_expectations(OTHER)
        assert not lab.held(expectations[2])


def test_flush_deletes_all_expectations(lab: Lab, flow: Flow) -> None:
    lab.ctnetlink.expect(flow.expectation())
    lab.ctnetlink.flush_expectations()
    assert not lab.ctnetlink.expectations()


# Events


def test_events_tell_of_an_expectation_made_and_who_asked(
    lab: Lab, events: Events
) -> None:
    with Flow(lab.world) as flow:
        wanted = flow.begin().expectation(source=IPv4Network("10.77.2.0/24"))
        lab.ctnetlink.expect(wanted)
        found = collect(events, lambda so_far: bool(made(so_far, wanted)))
    (event,) = made(found, wanted)
    assert event.port == lab.ctnetlink.port
    assert 20 <= event.expectation.timeout <= TIMEOUT
    assert replace(event.expectation, timeout=TIMEOUT) == as_read(wanted)
    assert events.overruns == 0


@pytest.mark.parametrize("permanent", [False, True])
def test_events_tell_of_the_flows_that_were_expected_alone(
    lab: Lab, events: Events, permanent: bool
) -> None:
    with Flow(lab.world) as flow, Flow(lab.world):
        wanted = flow.begin().expectation(permanent=permanent)
        lab.ctnetlink.expect(wanted)
        came = []
        for _ in range(1 + permanent):
            with expected_flow(lab.world, wanted) as original:
                came.append(ExpectationMet(original, flow.original, 0))
        found = collect(events, lambda so_far: came[-1] in so_far)
    assert [each for each in found if isinstance(each, ExpectationMet)] == came


def test_events_that_are_not_followed_do_not_come(lab: Lab, events: Events) -> None:
    events.follow(expectations=False)
    with Flow(lab.world) as flow:
        wanted = flow.begin().expectation()
        lab.ctnetlink.expect(wanted)
        with expected_flow(lab.world, wanted):
            pass
        entry = lab.ctnetlink.get(flow.original)
        lab.ctnetlink.delete(flow.original)
        gone = EntryGone(flow_key(entry.id, 0))
        found = collect(events, lambda so_far: gone in so_far)
    assert not [each for each in found if not isinstance(each, EntryGone)]


@pytest.mark.parametrize("family", [4, 6])
def test_events_do_not_tell_of_the_end_of_an_entry_without_a_helper(
    lab: Lab, events: Events, family: Family
) -> None:
    with (
        Flow(lab.world, UNTAGGED_PORT, family) as untagged,
        Flow(lab.world, family=family) as tagged,
    ):
        flows = (untagged.begin(), tagged.begin())
        first, second = (lab.ctnetlink.get(each.original) for each in flows)
        for each in flows:
            lab.ctnetlink.delete(each.original)
        gone = EntryGone(flow_key(second.id, 0))
        found = collect(events, lambda so_far: gone in so_far)
    assert gone in found
    assert EntryGone(flow_key(first.id, 0)) not in found


def test_events_tell_the_end_of_an_expected_entry(lab: Lab, events: Events) -> None:
    with Flow(lab.world) as flow:
        wanted = flow.begin().expectation()
        lab.ctnetlink.expect(wanted)
        with expected_flow(lab.world, wanted) as original:
            entry = lab.ctnetlink.get(original)
            lab.ctnetlink.delete(original)
            gone = EntryGone(flow_key(entry.id, 0))
            found = collect(events, lambda so_far: gone in so_far)
    assert gone in found


@pytest.mark.parametrize("family", [4, 6])
def test_events_tell_the_key_of_an_entry_gone(
    lab: Lab, events: Events, family: Family
) -> None:
    with Flow(lab.world, family=family) as flow, Flow(lab.world) as lasting:
        other = lab.ctnetlink.get(lasting.begin().original)
        entry = lab.ctnetlink.get(flow.begin().original)
        lab.ctnetlink.delete(flow.original)
        gone = EntryGone(flow_key(entry.id, 0))
        found = collect(events, lambda so_far: gone in so_far)
    assert gone in found
    assert EntryGone(flow_key(other.id, 0)) not in found


def test_events_tell_the_zone_of_an_entry_gone(lab: Lab, events: Events) -> None:
    with Flow(lab.world, ZONE_PORT) as flow:
        entry = lab.ctnetlink.get(flow.begin().original, ZONE)
        lab.ctnetlink.delete(flow.original, ZONE)
        gone = EntryGone(flow_key(entry.id, ZONE))
        found = collect(events, lambda so_far: gone in so_far)
    assert gone in found


def test_reading_events_never_waits(events: Events) -> None:
    # Entries of other tests may end meanwhile.
    assert not [each for each in events.read() if isinstance(each, ExpectationMade)]


def test_events_that_are_not_read_count_as_overruns(lab: Lab, events: Events) -> None:
    # Room for a few events, of which each takes 512 bytes at least.
    room = 8192
    with socket.socket(fileno=os.dup(events.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    with Flow(lab.world) as flow:
        flow.begin()
        wanted = [flow.expectation() for _ in range(40)]
        for each in wanted:
            lab.ctnetlink.expect(each)
        lost = collect(events, bool)
        assert 0 < len(lost) < min(len(wanted), 2 * room // 512)
        list(events.read())
        assert events.overruns > 0

        before = events.overruns
        again = flow.expectation()
        lab.ctnetlink.expect(again)
        found = collect(events, lambda so_far: bool(made(so_far, again)))
        assert made(found, again)
        assert events.overruns == before
