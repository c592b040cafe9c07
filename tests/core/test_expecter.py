# SPDX-License-Identifier: GPL-2.0-or-later
"""As many flows get in as were announced: in the model of the kernel's table."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cthelper.core.api import Policy
from cthelper.core.errors import ExpectationRefused, NetlinkError
from cthelper.core.expecter import Expecter, Kernel
from cthelper.core.grants import How, Placed
from cthelper.core.masters import Masters
from cthelper.core.offline.conntrack import State
from cthelper.core.offline.entries import Entry
from cthelper.core.offline.kernel import ModelKernel
from cthelper.core.tuples import REPLY, Expectation, Translation, Tuple
from tests.core.builders import endpoint
from tests.core.offline.tracking import (
    CLIENT,
    DATA,
    OTHER,
    SERVER,
    begin,
    config,
    packet,
    table,
    udp,
    wanted,
)

NETWORK = ip_network("198.51.100.0/24")


class FaultyKernel(ModelKernel):
    """The model; `errors` are those of requests to come, by the port they ask for.

    `made` is what was put in, which the kernel tells those who follow its events.
    """

    errors: dict[int, int]
    made: list[Expectation]

    def expect(self, expectation: Expectation) -> None:
        error = self.errors.get(expectation.destination.port)
        if error is not None:
            raise NetlinkError.of(error, f"expect {expectation}")
        super().expect(expectation)
        self.made.append(expectation)

    def replace_expectations(
        self, old: Sequence[Expectation], new: Expectation, seconds: int
    ) -> None:
        super().replace_expectations(old, new, seconds)
        self.made.append(new)


@dataclass
class Late:
    """A flow of which the kernel has not told yet."""

    flow: Tuple
    master: Tuple


class World:
    """An expecter beside the model; `record` is what is followed and logged."""

    def __init__(self) -> None:
        self.table = table(config(policies=(Policy("data", 8, 10),)))
        self.kernel = FaultyKernel(self.table)
        self.kernel.errors = {}
        self.kernel.made = []
        self.record: list[object] = []
        self.untold: list[Late] = []
        kernel: Kernel = self.kernel
        self.masters = Masters(self.kernel, self, self.clock, mark=0)
        self.expecter = Expecter(*(kernel, self.masters, self, self.clock), self.follow)
        self._next = 20000

    def clock(self) -> float:
        return self.kernel.now

    def event(self, event: str, level: str = "info", /, **fields: object) -> None:
        self.record.append((event, fields["reason"]))

    def follow(self, on: bool) -> None:
        if on:
            self.tell()
        if self.record[-1:] != [on]:
            self.record.append(on)

    def master(self, port: int = 40000, host: str = CLIENT) -> Entry:
        """A flow with the helper, which begins here."""
        return begin(self.table, self.kernel.now, udp((host, port)))

    def announce(self, master: Entry, **changes: Any) -> Placed:
        """The flow announces DATA, unless told."""
        entry = master.conntrack(self.kernel.now)
        expectation = wanted(**{"master": master.original, **changes})
        answer = self.expecter.carry_out(entry, [expectation])
        assert answer.refused == ()
        (placed,) = answer.placed
        return placed

    def comes(self, host: str = SERVER, *, told: bool = True) -> bool:
        """Whether a flow from `host` to DATA gets in; the kernel tells of it."""
        self._next += 1
        flow = udp((host, self._next), (CLIENT, DATA))
        seen = self.table.track(1, self.kernel.now, packet(flow), 0)
        assert seen is not None
        assert seen.entry is not None
        self.table.confirm(seen.entry)
        if seen.met is None:
            return False
        self.untold.append(Late(flow, seen.met.master.original))
        if told:
            self.tell()
        return seen.state is State.RELATED

    def tell(self) -> None:
        """The kernel's events are read."""
        while self.untold:
            late = self.untold.pop(0)
            self.expecter.met(late.flow, late.master, 0)

    def waits(self, seconds: float) -> None:
        """Time passes, in which the daemon looks after things every second."""
        until = self.kernel.now + seconds
        while self.kernel.now < until:
            self.kernel.now = min(until, self.kernel.now + 1)
            self.expecter.sweep()
            self.masters.sweep()

    @property
    def present(self) -> list[Expectation]:
        """What the kernel has."""
        return [each.expectation for each in self.table.live(self.kernel.now)]


@pytest.fixture
def world() -> World:
    return World()


def admitted(world: World, attempts: int, host: str = SERVER) -> int:
    """How many of so many flows get in."""
    return sum(world.comes(host) for _ in range(attempts))


def test_single_announcement_is_one_flows_and_nothing_is_followed(
    world: World,
) -> None:
    master = world.master()
    assert world.announce(master) == Placed(
        wanted(master=master.original), How.CREATED, 1
    )
    assert admitted(world, 3) == 1
    assert world.record == []
    # Once more, after the first has come.
    assert world.announce(master).how is How.CREATED
    assert admitted(world, 3) == 1


@pytest.mark.parametrize("count", [2, 3, 8])
def test_as_many_flows_of_one_master_get_in_as_it_announced(
    world: World, count: int
) -> None:
    master = world.master()
    placed = [world.announce(master) for _ in range(count)]
    assert [(each.how, each.flows) for each in placed] == [
        (How.CREATED, 1),
        *((How.RENEWED, number) for number in range(2, count + 1)),
    ]
    assert admitted(world, count + 3) == count
    assert world.present == []
    assert world.record == [True, False]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_as_many_get_in_as_several_masters_announced(world: World, count: int) -> None:
    """Sessions of a pool, each redirected to one endpoint before any comes again."""
    masters = [world.master(40000 + number) for number in range(count)]
    placed = [world.announce(each) for each in masters]
    assert [(each.how, each.flows) for each in placed] == [
        (How.CREATED, 1),
        *((How.SHARED, number) for number in range(2, count + 1)),
    ]
    assert admitted(world, count + 3) == count


def test_all_come_at_once_before_the_kernels_events_are_read(world: World) -> None:
    for number in range(3):
        world.announce(world.master(40000 + number))
    assert [world.comes(told=False) for _ in range(3)] == [True] * 3
    world.tell()
    assert not world.comes()
    assert world.present == []


def test_one_shot_again_before_the_last_one(world: World) -> None:
    for number in range(3):
        world.announce(world.master(40000 + number))
    assert [each.permanent for each in world.present] == [True]
    world.comes()
    assert [each.permanent for each in world.present] == [True]
    world.comes()
    assert [each.permanent for each in world.present] == [False]
    # The kernel keeps the count of the last one: nothing has to be told.
    assert world.comes(told=False)
    assert not world.comes(told=False)


def test_announcement_between_two_flows_is_counted(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.announce(master)
    assert world.comes()
    # One-shot in the kernel, and still counted here.
    assert world.announce(master).flows == 2
    assert admitted(world, 4) == 2


def test_announcement_after_the_last_flow_is_a_new_one(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.announce(master)
    assert world.comes()
    assert world.comes(told=False)
    assert world.announce(master).how is How.CREATED
    world.tell()
    assert admitted(world, 3) == 1


def test_flow_that_came_before_it_was_shared_is_not_counted(world: World) -> None:
    """Its event waits to be read while the next two are announced."""
    master = world.master()
    world.announce(master)
    assert world.comes(told=False)
    world.announce(master)
    world.announce(master)
    assert admitted(world, 4) == 2


def test_announcements_end_one_by_one(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.waits(6)
    world.announce(master)
    world.waits(5)  # the first ends after 10 s
    assert [each.permanent for each in world.present] == [False]
    assert admitted(world, 3) == 1


def test_nothing_is_left_open_when_their_time_is_over(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.announce(master)
    world.waits(11)
    assert world.present == []
    assert admitted(world, 2) == 0
    assert world.record == [True, False]


@pytest.mark.parametrize("first", [True, False])
def test_any_number_gets_in_where_one_asked_for_that(world: World, first: bool) -> None:
    master = world.master()
    world.announce(master, permanent=first)
    assert world.announce(master, permanent=not first).flows is None
    assert admitted(world, 5) == 5
    world.waits(11)
    assert admitted(world, 1) == 0


def test_any_number_gets_in_where_several_had_asked_for_one(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.announce(master)
    world.announce(master, permanent=True)
    assert admitted(world, 5) == 5
    assert world.record == [True, False]


def test_lifetime_is_never_shortened(world: World) -> None:
    master = world.master()
    world.announce(master, permanent=True)
    world.kernel.renew(wanted(master=master.original), 300)
    master.expires = 301.0
    world.announce(master, permanent=True)
    world.waits(100)
    assert len(world.present) == 1


# Those that do not ask for the same


def test_wider_one_takes_the_place_of_those_that_it_covers(world: World) -> None:
    one, two = world.master(), world.master(40001)
    world.announce(one)
    world.announce(one, source=ip_network(OTHER))
    placed = world.announce(two, source=None)
    assert (placed.how, placed.flows) == (How.SHARED, 3)
    (present,) = world.present
    assert (present.master, present.source) == (two.original, None)
    assert [world.comes(host) for host in (SERVER, OTHER, "203.0.113.1")] == [True] * 3
    assert not world.comes()


def test_wider_one_of_the_same_flow_renews(world: World) -> None:
    master = world.master()
    world.announce(master)
    assert world.announce(master, source=NETWORK).how is How.RENEWED
    assert admitted(world, 3) == 2


def test_wider_one_stays_permanent_where_a_covered_one_was(world: World) -> None:
    master = world.master()
    world.announce(master, permanent=True)
    assert world.announce(master, source=NETWORK).flows is None
    assert admitted(world, 5) == 5


def test_narrower_one_is_covered(world: World) -> None:
    one, two = world.master(), world.master(40001)
    world.announce(one, source=NETWORK)
    assert world.announce(two) == Placed(wanted(master=two.original), How.SHARED, 2)
    (present,) = world.present
    assert (present.source, present.master) == (NETWORK, one.original)
    assert admitted(world, 4) == 2


def test_those_that_only_overlap_are_refused(world: World) -> None:
    master = world.master()
    world.announce(master, source_port=5353, source=None)
    crossing = wanted(master=master.original, source=NETWORK)
    answer = world.expecter.carry_out(master.conntrack(world.clock()), [crossing])
    assert [error.reason for _, error in answer.refused] == ["kernel-ebusy"]


def test_wider_one_counts_what_has_come_before_it(world: World) -> None:
    master = world.master()
    for _ in range(3):
        world.announce(master)
    assert [world.comes(told=False) for _ in range(2)] == [True] * 2
    world.announce(master, source=None)
    assert admitted(world, 5) == 2


def test_wider_one_that_is_refused_changes_nothing(world: World) -> None:
    one, two = world.master(), world.master(40001)
    world.announce(two, source=ip_network(OTHER))
    world.announce(one, source_port=5353)
    world.announce(one, source_port=5353)
    # It covers the latter, and overlaps the first one.
    crossing = wanted(master=one.original, source=None, source_port=5353)
    answer = world.expecter.carry_out(one.conntrack(world.clock()), [crossing])
    assert [error.reason for _, error in answer.refused] == ["kernel-ebusy"]
    for permanent in (True, False):
        shared = [each for each in world.present if each.master == one.original]
        assert [each.permanent for each in shared] == [permanent]
        world.expecter.met(udp((SERVER, 5353), (CLIENT, DATA)), one.original, 0)
    assert [each.master for each in world.present] == [two.original]


def test_nothing_that_is_placed_takes_the_place_of_another(world: World) -> None:
    """Its port can be another one; and it may be withdrawn again."""
    one, two = world.master(), world.master(40001)
    world.announce(one)
    entry = two.conntrack(world.clock())
    assert world.expecter.place(entry, [wanted(master=two.original, source=None)]) is (
        None
    )
    (present,) = world.present
    assert (present.master, present.source) == (one.original, ip_network(SERVER))


@pytest.mark.parametrize(
    "changes", [{}, {"permanent": True}, {"source": None}], ids=str
)
def test_what_was_there_is_there_where_the_kernel_takes_no_other_in_its_place(
    world: World, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    one, two = world.master(), world.master(40001)
    world.announce(one)
    world.announce(one)
    # It is one-shot again, and counted.
    assert world.comes()

    def refuses(old: list[Expectation], new: Expectation, _seconds: int) -> None:
        for each in old:
            world.kernel.delete_expectation(each)
        raise NetlinkError.of(errno.EMFILE, f"expect {new}")

    monkeypatch.setattr(world.kernel, "replace_expectations", refuses)
    wish = wanted(master=two.original, **changes)
    answer = world.expecter.carry_out(two.conntrack(world.clock()), [wish])
    assert [error.reason for _, error in answer.refused] == ["kernel-emfile"]
    monkeypatch.undo()
    assert admitted(world, 4) == 1


def test_what_cannot_be_followed_is_refused_and_what_ends_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = world.master()
    world.announce(master)

    def fails(_on: bool) -> None:
        raise NetlinkError.of(errno.ENOBUFS, "join netlink group")

    monkeypatch.setattr(world.expecter, "_follow", fails)
    entry = master.conntrack(world.clock())
    answer = world.expecter.carry_out(entry, [wanted(master=master.original)])
    assert [error.reason for _, error in answer.refused] == ["kernel-enobufs"]
    monkeypatch.undo()
    world.announce(master)
    monkeypatch.setattr(world.expecter, "_follow", fails)
    world.waits(11)
    assert ("step-failed", "kernel-enobufs") in world.record


# When masters and others get in the way


def test_master_of_what_is_shared_is_kept_for_both(world: World) -> None:
    one, two = world.master(), world.master(40001)
    world.announce(one, timeout=10)
    world.kernel.now = 9.0
    world.announce(two, timeout=60)
    assert one.expires == 9.0 + 61


def test_end_of_the_master_ends_the_count(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.announce(master)
    master.expires = world.kernel.now
    assert admitted(world, 2) == 0
    world.waits(11)
    assert world.present == []
    assert world.record == [True, False]


def test_what_was_evicted_does_not_come_back(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.announce(master)
    world.announce(master)
    world.kernel.delete_expectation(wanted(master=master.original))
    world.expecter.met(udp((SERVER, 1), (CLIENT, DATA)), master.original, 0)
    world.expecter.met(udp((SERVER, 2), (CLIENT, DATA)), master.original, 0)
    assert world.present == []
    assert world.record == [True, False]


def test_flow_that_another_master_expected_is_not_counted(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.announce(master)
    for stranger in (
        Late(udp((SERVER, 1), (CLIENT, DATA)), udp((OTHER, 1))),
        Late(udp((OTHER, 1), (CLIENT, DATA)), master.original),
        Late(udp((SERVER, 1), (CLIENT, DATA + 1)), master.original),
    ):
        world.expecter.met(stranger.flow, stranger.master, 0)
    assert admitted(world, 4) == 2


def successor(world: World) -> World:
    """Another server beside the same kernel, which knows nothing of what was."""
    other = World()
    other.table, other.kernel, other.masters = world.table, world.kernel, world.masters
    other.expecter = Expecter(
        *(world.kernel, world.masters, other, other.clock), other.follow
    )
    other._next = 50000
    return other


def test_what_a_killed_server_counted_is_open_until_its_time_is_over(
    world: World,
) -> None:
    """However often it is asked for meanwhile."""
    master = world.master()
    world.announce(master)
    world.announce(master)
    after = successor(world)
    for _ in range(3):
        after.waits(3)
        assert after.announce(master).flows is None
        # It may be one of those that were announced before.
        assert after.comes()
    after.waits(2)  # the old ones' 10 s are over
    assert after.announce(master).flows == 1
    assert admitted(after, 4) == 1
    assert after.present == []


def test_what_is_withdrawn_meanwhile_is_not_counted_either(world: World) -> None:
    master = world.master()
    world.announce(master)
    world.announce(master)
    after = successor(world)
    after.waits(3)
    entry = master.conntrack(after.clock())
    placed = after.expecter.place(entry, [wanted(master=master.original)])
    assert placed is not None
    after.expecter.withdraw(placed)
    after.waits(8)
    assert after.present == []


def test_another_helpers_permanent_one_stays_so(world: World) -> None:
    master = world.master()
    world.announce(master, permanent=True)
    other = replace(master.conntrack(world.clock()), helper="other")
    expectation = wanted(master=master.original)
    (placed,) = world.expecter.carry_out(other, [expectation]).placed
    assert placed.flows is None
    assert admitted(world, 3) == 3


def test_another_servers_announcement_is_counted_by_the_one_that_counts(
    world: World,
) -> None:
    """Two servers share the kernel's table; each is told of the other's requests."""
    one, two = world.master(), world.master(40001)
    world.announce(one)
    world.announce(one)
    other = successor(world)
    placed = other.announce(two)
    assert (placed.how, placed.flows) == (How.SHARED, None)
    # It has put in the expectation anew, which the kernel tells everybody.
    (present,) = world.present
    assert present.permanent
    world.expecter.renewed(present)
    assert admitted(world, 5) == 3


@example([f"announce {server}" for server in (0, 0, 1, 1)] + ["come"] * 4)
@example(
    ["announce 0", "announce 1", "come", "announce 0", "announce 0"] + ["come"] * 3
)
@given(st.lists(st.sampled_from(["announce 0", "announce 1", "come"]), max_size=24))
def test_two_servers_keep_no_flow_out_that_either_announced(steps: list[str]) -> None:
    world = World()
    servers = world, successor(world)
    masters = [world.master(40000 + number) for number in range(3)]
    to_come = 0
    for number, step in enumerate(steps):
        if step == "come":
            got_in = world.comes(told=False)
            assert got_in or not to_come
            to_come = max(0, to_come - 1)
            for late in world.untold:
                for each in servers:
                    each.expecter.met(late.flow, late.master, 0)
            world.untold.clear()
        else:
            asked = int(step[-1])
            world.kernel.made.clear()
            servers[asked].announce(masters[number % 3])
            for made in tuple(world.kernel.made):
                servers[1 - asked].expecter.renewed(made)
            to_come += 1
    for _ in range(25):
        for each in servers:
            each.waits(0.5)
    assert world.present == []
    assert not any(each.expecter.counts for each in servers)


# Placed while the helper waits


def place(world: World, master: Entry, *expectations: Expectation) -> list[Placed]:
    """Put in all or none of them; empty: another that leads elsewhere is there."""
    entry = master.conntrack(world.clock())
    return world.expecter.place(entry, expectations) or []


def translated(master: Entry, port: int = DATA, to: int = DATA) -> Expectation:
    """One of a translated flow, that leads to port `to` of the client."""
    return wanted(
        master=master.original,
        destination=endpoint(CLIENT, port),
        translation=Translation(REPLY, to),
    )


def ports(world: World) -> list[int]:
    return sorted(each.destination.port for each in world.present)


def test_all_are_placed_or_none(world: World) -> None:
    master = world.master()
    both = [translated(master, 1), translated(master, 2)]
    assert [each.how for each in place(world, master, *both)] == [How.CREATED] * 2
    assert ports(world) == [1, 2]
    third = translated(master, 3)
    elsewhere = translated(master, 2, to=9)
    assert place(world, master, third, elsewhere) == []
    assert ports(world) == [1, 2]


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.EMFILE, "kernel-emfile"), (errno.ENOENT, "kernel-enoent")],
)
def test_other_error_refuses_what_is_placed(
    world: World, code: int, reason: str
) -> None:
    world.kernel.errors[2] = code
    master = world.master()
    with pytest.raises(ExpectationRefused) as caught:
        place(world, master, translated(master, 1), translated(master, 2))
    assert caught.value.reason == reason
    assert world.present == []


@pytest.mark.parametrize(
    ("host", "to", "shared"),
    [
        (CLIENT, DATA, True),
        # Another port of the client, or another client.
        (CLIENT, 9, False),
        (OTHER, DATA, False),
    ],
)
def test_one_of_another_flow_is_shared_if_it_leads_alike(
    world: World, host: str, to: int, shared: bool
) -> None:
    one, two = world.master(host=host), world.master(40001)
    place(world, one, translated(one, to=to))
    placed = place(world, two, translated(two))
    assert [(each.how, each.flows) for each in placed] == [(How.SHARED, 2)] * shared
    assert [each.master for each in world.present] == [one.original]


def test_what_is_withdrawn_is_not_announced(world: World) -> None:
    master = world.master()
    for withdrawn in (1, 2, 3):
        kept = [place(world, master, translated(master)) for _ in range(withdrawn)]
        again = place(world, master, translated(master))
        world.expecter.withdraw(again)
        assert admitted(world, 5) == len(kept)


def test_created_one_is_withdrawn_whole(world: World) -> None:
    master = world.master()
    world.expecter.withdraw(place(world, master, translated(master)))
    assert world.present == []
    assert world.record == []


def test_what_cannot_be_withdrawn_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Expectation) -> None:
        raise NetlinkError.of(errno.EPERM, "delete expectation")

    monkeypatch.setattr(world.kernel, "delete_expectation", fails)
    master = world.master()
    world.expecter.withdraw(place(world, master, translated(master)))
    assert world.record == [("step-failed", "kernel-eperm")]


# Any order of things


@given(st.lists(st.sampled_from(["announce", "come", "come untold", "tell"])))
def test_no_flow_that_was_announced_is_kept_out(steps: list[str]) -> None:
    """And none but those that were announced, but while the kernel has not told."""
    world = World()
    masters = [world.master(40000 + number) for number in range(3)]
    to_come = untold = 0
    for number, step in enumerate(steps):
        if step == "announce":
            world.announce(masters[number % 3])
            to_come += 1
        elif step == "tell":
            world.tell()
            untold = 0
        elif world.comes(told=step == "come"):
            assert to_come or untold
            to_come = max(0, to_come - 1)
            untold = 0 if step == "come" else untold + 1
        else:
            assert not to_come
