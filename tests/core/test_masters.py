# SPDX-License-Identifier: GPL-2.0-or-later
"""Master flows: kept alive for their expectations, marked when they are finished."""

import errno
import io
from dataclasses import replace

import pytest

from cthelper.core.api import TCP, UDP, Transport
from cthelper.core.daemon.log import Log
from cthelper.core.errors import NetlinkError
from cthelper.core.masters import Masters, Updater
from cthelper.core.tuples import Conntrack, Expectation, Status, Tuple, flow_key, key_of
from tests.core.builders import CLIENT, conntrack, endpoint, flow_tuple

MARK = 0x4000


class FakeUpdater:
    """Writes down what changes, and answers with `error` where one is set."""

    def __init__(self) -> None:
        self.updates: list[str] = []
        self.error: int | None = None
        self.entries: dict[Tuple, Conntrack] = {}

    def get(self, original: Tuple, zone: int = 0) -> Conntrack:
        if original not in self.entries or self.entries[original].zone != zone:
            raise NetlinkError.of(errno.ENOENT, f"get conntrack entry {original}")
        return self.entries[original]

    def update(
        self,
        original: Tuple,
        zone: int = 0,
        *,
        timeout: int | None = None,
        mark: tuple[int, int] | None = None,
    ) -> None:
        change = f"timeout {timeout}"
        if mark is not None:
            change = "mark {:#x}/{:#x}".format(*mark)
        self.updates.append(f"{original} zone {zone}: {change}")
        if self.error is not None:
            raise NetlinkError.of(self.error, f"update conntrack entry {original}")


class World:
    """Masters between a fake kernel and a clock."""

    def __init__(self, mark: int = MARK) -> None:
        self.now = 1000.0
        self.updater = FakeUpdater()
        updater: Updater = self.updater
        self.output = io.StringIO()
        self.log = Log(clock=lambda: self.now, output=self.output)
        self.masters = Masters(updater, self.log, lambda: self.now, mark=mark)

    def updates(self) -> list[str]:
        """What has been changed since the last call."""
        updates = list(self.updater.updates)
        self.updater.updates.clear()
        return updates

    def passes(self, entry: Conntrack) -> None:
        """A packet of the flow passes, and a second with its sweep."""
        self.masters.passed(entry)
        self.masters.sweep()

    def counters(self) -> dict[str, int]:
        return dict(self.log.counters)


def master(
    timeout: int = 30,
    *,
    transport: Transport = UDP,
    zone: int = 0,
    confirmed: bool = True,
) -> Conntrack:
    entry = conntrack(flow_tuple(transport), zone=zone)
    status = entry.status if confirmed else Status(0)
    return replace(entry, timeout=timeout, status=status)


def wanted(timeout: int) -> Expectation:
    return Expectation(
        master=flow_tuple(UDP),
        transport=UDP,
        source=None,
        source_port=None,
        destination=endpoint(CLIENT, 5000),
        policy="data",
        timeout=timeout,
    )


FLOW = str(flow_tuple(UDP))


def keeps(seconds: int) -> list[str]:
    return [f"{FLOW} zone 0: timeout {seconds}"]


MARKED = [f"{FLOW} zone 0: mark 0x4000/0x4000"]


@pytest.fixture
def world() -> World:
    """The kernel knows the master."""
    world = World()
    world.updater.entries[master().original] = master(432000)
    return world


# Keeping.


@pytest.mark.parametrize(
    ("timeout", "updates"),
    [
        (0, keeps(301)),
        (30, keeps(301)),
        (300, keeps(301)),
        (301, []),
        (302, []),
        (432000, []),
    ],
)
def test_timeout_is_raised_to_a_second_over_the_expectation_and_never_lowered(
    world: World, timeout: int, updates: list[str]
) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.passes(master(timeout))
    assert world.updates() == updates


def test_flow_without_expectations_is_left_alone(world: World) -> None:
    world.masters.passed(master())
    world.masters.sweep()
    assert world.updates() == []


def test_longest_expectation_counts(world: World) -> None:
    world.masters.expect(master(), [wanted(10), wanted(300), wanted(60)])
    world.passes(master())
    assert world.updates() == keeps(301)


def test_shorter_expectation_that_comes_later_shortens_nothing(world: World) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.now += 100
    world.masters.expect(master(), [wanted(60)])
    world.passes(master())
    assert world.updates() == keeps(201)


def test_later_expectation_extends_the_time(world: World) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.now += 250
    world.masters.expect(master(), [wanted(300)])
    world.passes(master())
    assert world.updates() == keeps(301)


def test_every_packet_of_the_flow_is_followed_by_a_look_at_its_timeout(
    world: World,
) -> None:
    # Each one sets the timeout of the entry back to the 30 s of UDP.
    world.masters.expect(master(), [wanted(300)])
    for left in (301, 291, 281):
        world.passes(master(30))
        assert world.updates() == keeps(left)
        world.now += 10


def test_packets_of_a_second_cost_one_update(world: World) -> None:
    world.masters.expect(master(), [wanted(300)])
    for _ in range(3):
        world.masters.passed(master(30))
    assert world.updates() == []
    world.masters.sweep()
    world.masters.sweep()
    assert world.updates() == keeps(301)


@pytest.mark.parametrize(("timeout", "updates"), [(4, keeps(301)), (5, [])])
def test_timeout_of_a_few_seconds_does_not_wait_for_the_sweep(
    world: World, timeout: int, updates: list[str]
) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.masters.passed(master(timeout))
    assert world.updates() == updates


@pytest.mark.parametrize(
    ("timeout", "confirmed", "needed"),
    [(30, True, 301), (300, True, 301), (301, True, None), (30, False, None)],
)
def test_new_expectation_says_what_timeout_its_master_needs(
    world: World, timeout: int, confirmed: bool, needed: int | None
) -> None:
    entry = master(timeout, confirmed=confirmed)
    assert world.masters.expect(entry, [wanted(300)]) == needed


def test_part_of_a_second_counts_as_a_whole(world: World) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.now += 0.5
    world.passes(master(300))
    assert world.updates() == keeps(301)


def test_entry_that_was_not_confirmed_gets_its_timeout_in_any_case(
    world: World,
) -> None:
    # What it says of its timeout then is not to be relied on.
    entry = master(432000, confirmed=False)
    world.masters.expect(entry, [wanted(300)])
    world.masters.passed(entry)
    assert world.updates() == keeps(301)


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("seconds", [301, 302, 9000])
def test_timeout_is_not_touched_when_the_expectations_have_ended(
    world: World, seconds: int, confirmed: bool
) -> None:
    # A timeout of 0 or less would end the flow.
    world.masters.expect(master(), [wanted(300)])
    world.now += seconds
    world.masters.passed(master(confirmed=confirmed))
    assert world.updates() == []


def test_zone_goes_with_the_update(world: World) -> None:
    entry = master(zone=7)
    world.updater.entries[entry.original] = entry
    world.masters.expect(entry, [wanted(300)])
    world.passes(entry)
    world.masters.finish(entry, "sunrpc", "done")
    world.now += 301
    world.masters.sweep()
    assert world.updates() == [
        f"{FLOW} zone 7: timeout 301",
        f"{FLOW} zone 7: mark 0x4000/0x4000",
    ]


def test_entry_that_is_gone_is_forgotten(world: World) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.masters.finish(master(), "sunrpc", "done")
    world.updater.error = errno.ENOENT
    world.passes(master())
    assert world.updates() == keeps(301)
    world.now += 1000
    world.passes(master())
    world.masters.sweep()
    assert world.updates() == []
    assert world.counters() == {}


def test_timeout_that_the_kernel_refuses_is_counted_and_tried_again(
    world: World,
) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.updater.error = errno.EPERM
    world.passes(master())
    world.passes(master())
    assert world.updates() == keeps(301) * 2
    assert world.counters() == {"keep-failed.kernel-eperm": 2}


# Marking.


def test_finished_flow_without_expectations_is_marked_at_once(world: World) -> None:
    world.masters.finish(master(), "sunrpc", "mid-stream")
    world.masters.passed(master())
    assert world.updates() == MARKED
    assert world.counters() == {"marked.mid-stream": 1}
    line = world.output.getvalue()
    assert f'event=marked reason=mid-stream helper=sunrpc flow="{FLOW}"' in line


def test_finished_flow_that_has_no_more_packets_is_marked_by_the_sweep(
    world: World,
) -> None:
    world.masters.finish(master(), "sunrpc", "done")
    world.masters.sweep()
    assert world.updates() == MARKED


def test_flow_is_marked_once(world: World) -> None:
    world.masters.finish(master(), "sunrpc", "done")
    for _ in range(3):
        world.masters.passed(master())
        world.masters.sweep()
    assert world.updates() == MARKED


def test_packet_that_was_on_its_way_does_not_mark_the_flow_again(
    world: World,
) -> None:
    entry = master()
    for _ in range(3):
        world.masters.finish(entry, "sunrpc", "done")
        world.masters.passed(entry)
    assert len(world.updates()) == 1
    assert world.counters()["marked.done"] == 1
    # Another flow may be given the same key.
    other = replace(entry, original=flow_tuple(UDP, (CLIENT, 999)))
    world.masters.finish(other, "sunrpc", "done")
    world.masters.passed(other)
    assert len(world.updates()) == 1
    # And the same one may come again when it has ended.
    world.masters.forget(key_of(other))
    world.masters.finish(other, "sunrpc", "done")
    world.masters.passed(other)
    assert len(world.updates()) == 1


def test_first_reason_stays(world: World) -> None:
    world.masters.finish(master(), "sunrpc", "done")
    world.masters.finish(master(), "sunrpc", "gap")
    world.masters.sweep()
    assert world.counters() == {"marked.done": 1}


@pytest.mark.parametrize(
    ("seconds", "marked"),
    [(0, False), (299, False), (300, False), (300.9, False), (301, True), (999, True)],
)
def test_flow_is_marked_a_second_after_its_last_expectation(
    world: World, seconds: float, marked: bool
) -> None:
    # A master whose packets nobody sees would not be kept.
    world.masters.expect(master(), [wanted(300)])
    world.masters.finish(master(), "sunrpc", "done")
    world.now += seconds
    world.masters.sweep()
    assert world.updates() == MARKED * marked


def test_packet_of_a_finished_flow_keeps_its_expectations_alive(world: World) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.masters.finish(master(), "sunrpc", "done")
    world.passes(master())
    assert world.updates() == keeps(301)


def test_last_packet_may_mark_the_flow(world: World) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.masters.finish(master(), "sunrpc", "done")
    world.now += 301
    world.masters.passed(master())
    assert world.updates() == MARKED


def test_flow_that_has_ended_is_forgotten(world: World) -> None:
    world.updater.error = errno.ENOENT
    world.masters.finish(master(), "sunrpc", "done")
    world.masters.sweep()
    world.masters.sweep()
    assert world.updates() == MARKED
    assert world.counters() == {}


def test_marking_that_the_kernel_refuses_is_counted(world: World) -> None:
    world.updater.error = errno.EPERM
    world.masters.finish(master(), "sunrpc", "done")
    world.masters.sweep()
    assert world.counters() == {"mark-failed.kernel-eperm": 1}


def test_forgotten_flow_is_neither_kept_nor_marked(world: World) -> None:
    world.masters.expect(master(), [wanted(300)])
    world.masters.finish(master(), "sunrpc", "done")
    world.masters.forget(key_of(master()))
    world.masters.passed(master())
    world.now += 1000
    world.masters.sweep()
    assert world.updates() == []


def test_flow_that_is_not_known_can_be_forgotten(world: World) -> None:
    world.masters.forget(flow_key(99, 0))
    assert world.updates() == []


def test_flows_are_told_apart(world: World) -> None:
    other = replace(master(transport=TCP), id=2)
    world.masters.expect(other, [wanted(300)])
    world.masters.finish(master(), "sunrpc", "done")
    world.masters.finish(other, "sunrpc", "done")
    world.masters.sweep()
    assert world.updates() == MARKED
    world.now += 301
    world.masters.sweep()
    assert world.updates() == [f"{flow_tuple(TCP)} zone 0: mark 0x4000/0x4000"]


def test_without_a_mark_a_finished_flow_is_told_and_left_as_it_is() -> None:
    world = World(mark=0)
    world.masters.finish(master(), "sunrpc", "done")
    for _ in range(3):
        world.masters.passed(master())
        world.masters.sweep()
    assert world.updates() == []
    assert world.counters() == {"kept.done": 1}


def test_master_of_anothers_expectation_is_lengthened_at_once_and_kept(
    world: World,
) -> None:
    entry = master(timeout=5)
    world.updater.entries[entry.original] = entry
    world.masters.lengthen(entry.original, wanted(60))
    assert world.updates() == [f"{entry.original} zone 0: timeout 61"]
    world.now += 10
    world.passes(entry)
    assert world.updates() == [f"{entry.original} zone 0: timeout 51"]


def test_master_of_anothers_expectation_may_be_gone(world: World) -> None:
    world.updater.entries.clear()
    world.masters.lengthen(master().original, wanted(60))
    assert world.updates() == []
    assert world.counters() == {}


# Packets that a prefilter hides.


def test_master_whose_packets_are_not_seen_is_looked_after(world: World) -> None:
    world.updater.entries[master().original] = master()
    world.masters.expect(master(400), [wanted(300)])
    for _ in range(14):
        world.now += 1
        world.masters.sweep()
    assert world.updates() == []
    # A packet that the prefilter has hidden put the timeout back to 30 s.
    world.now += 1
    world.masters.sweep()
    assert world.updates() == keeps(286)
    world.updater.entries[master().original] = master(286)
    world.now += 15
    world.masters.sweep()
    assert world.updates() == []
    world.now += 300
    world.updater.entries[master().original] = master(5)
    world.masters.sweep()
    world.masters.sweep()
    assert world.updates() == []


def test_unseen_master_that_is_gone_is_forgotten(world: World) -> None:
    world.masters.expect(master(400), [wanted(300)])
    world.updater.entries.clear()
    world.now += 15
    world.masters.sweep()
    assert not world.masters.keeps(key_of(master()))
    assert world.updates() == []
    assert world.counters() == {}


def test_tcp_master_has_all_its_packets_seen(world: World) -> None:
    world.masters.expect(master(transport=TCP), [wanted(300)])
    world.now += 60
    world.masters.sweep()
    assert world.updates() == []
