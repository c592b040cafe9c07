# SPDX-License-Identifier: GPL-2.0-or-later
"""What a flow has labelled it takes back, and nothing that others still need."""

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import NetlinkError
from cthelper.core.grants import How, Placed, Withdrawn
from cthelper.core.offline.entries import Entry
from cthelper.core.tuples import key_of
from tests.core.builders import endpoint
from tests.core.offline.tracking import CLIENT, OTHER, wanted
from tests.core.test_expecter import NETWORK, World


@pytest.fixture
def world() -> World:
    return World()


def announce(world: World, master: Entry, label: bytes, **changes: Any) -> Placed:
    """The flow announces DATA, unless told, under a label."""
    return world.announce(master, label=label, **changes)


def withdraw(world: World, master: Entry, label: bytes) -> list[int | None]:
    """How many flows are left to come, of each that is taken back."""
    entry = master.conntrack(world.kernel.now)
    withdrawn = world.expecter.revoke(entry, label)
    return [each.flows for each in withdrawn]


def present(world: World) -> int:
    """How many expectations the kernel has."""
    return len(world.table.live(world.kernel.now))


def test_what_was_labelled_is_taken_out(world: World) -> None:
    master = world.master()
    placed = announce(world, master, b"x")
    entry = master.conntrack(world.kernel.now)
    assert world.expecter.revoke(entry, b"x") == [Withdrawn(placed.expectation, 0)]
    assert present(world) == 0
    assert not world.comes()
    assert world.record == []


def test_all_of_a_label_are_taken_out_and_no_other(world: World) -> None:
    master = world.master()
    for port, label in ((5000, b"x"), (5001, b"x"), (5002, b"y")):
        announce(world, master, label, destination=endpoint(CLIENT, port))
    world.announce(master, destination=endpoint(CLIENT, 5003))
    assert withdraw(world, master, b"x") == [0, 0]
    assert withdraw(world, master, b"x") == []
    assert present(world) == 2


def test_what_was_used_up_or_has_ended_is_no_error(world: World) -> None:
    master = world.master()
    announce(world, master, b"used")
    assert world.comes()
    assert withdraw(world, master, b"used") == []
    announce(world, master, b"ended")
    world.waits(15)
    assert withdraw(world, master, b"ended") == []
    assert withdraw(world, master, b"never there") == []
    assert world.record == []


def test_flow_that_has_come_goes_on(world: World) -> None:
    master = world.master()
    announce(world, master, b"x", permanent=True)
    assert world.comes()
    assert withdraw(world, master, b"x") == [0]
    assert not world.comes()


@pytest.mark.parametrize("first", [0, 1])
def test_other_flow_that_announced_the_same_goes_on(world: World, first: int) -> None:
    masters = [world.master(), world.master(40001)]
    for each in masters:
        announce(world, each, b"x")
    assert withdraw(world, masters[first], b"x") == [1]
    assert (world.comes(), world.comes()) == (True, False)


def test_expectation_goes_with_the_last_who_needs_it(world: World) -> None:
    masters = [world.master(), world.master(40001), world.master(40002)]
    for each in masters:
        announce(world, each, b"x")
    assert [withdraw(world, each, b"x") for each in masters] == [[2], [1], [0]]
    assert present(world) == 0
    assert not world.expecter.counts


@pytest.mark.parametrize("label", [0, 1])
def test_who_gave_no_label_goes_on(world: World, label: int) -> None:
    masters = [world.master(), world.master(40001)]
    for number, each in enumerate(masters):
        world.announce(each, label=b"x" if number == label else None)
    assert withdraw(world, masters[label], b"x") == [1]
    assert (world.comes(), world.comes()) == (True, False)


def test_same_flow_takes_back_one_of_two(world: World) -> None:
    master = world.master()
    assert announce(world, master, b"x").how is How.CREATED
    assert announce(world, master, b"y").how is How.RENEWED
    assert withdraw(world, master, b"x") == [1]
    assert (world.comes(), world.comes()) == (True, False)


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told yet"])
def test_withdrawn_after_one_of_two_came_leaves_one(world: World, told: bool) -> None:
    """Nobody knows whose flow it was."""
    masters = [world.master(), world.master(40001)]
    for each in masters:
        announce(world, each, b"x")
    assert world.comes(told=told)
    assert withdraw(world, masters[1], b"x") == []
    assert (world.comes(), world.comes()) == (True, False)


def test_one_that_took_its_place_stays(world: World) -> None:
    first, second = world.master(), world.master(40001)
    announce(world, first, b"x")
    assert world.comes()
    announce(world, second, b"x")
    assert withdraw(world, first, b"x") == []
    assert world.comes()


def test_one_of_another_program_stays(world: World) -> None:
    first, second = world.master(), world.master(40001)
    announce(world, first, b"x")
    assert world.comes()
    world.kernel.expect(wanted(master=second.original))
    assert withdraw(world, first, b"x") == []
    assert present(world) == 1


@pytest.mark.parametrize("permanent", [False, True])
def test_one_that_another_server_counts_on_stays(world: World, permanent: bool) -> None:
    master = world.master()
    placed = announce(world, master, b"x", permanent=permanent)
    world.kernel.now += 5
    again = wanted(master=master.original, permanent=True)
    world.kernel.replace_expectations([placed.expectation], again, 10)
    assert withdraw(world, master, b"x") == []
    assert present(world) == 1


def test_permanent_one_goes_with_the_last_who_needs_it(world: World) -> None:
    masters = [world.master(), world.master(40001)]
    for each in masters:
        announce(world, each, b"x", permanent=True)
    assert withdraw(world, masters[0], b"x") == [None]
    assert world.comes()
    assert withdraw(world, masters[1], b"x") == [0]
    assert present(world) == 0


def test_one_that_a_wider_one_has_taken_the_place_of(world: World) -> None:
    first, second = world.master(), world.master(40001)
    announce(world, first, b"x")
    announce(world, second, b"x", source=NETWORK)
    assert withdraw(world, first, b"x") == [1]
    assert (world.comes(), world.comes()) == (True, False)
    announce(world, second, b"y", source=NETWORK)
    announce(world, first, b"y")
    assert withdraw(world, second, b"y") == [1]
    assert withdraw(world, first, b"y") == [0]
    assert present(world) == 0


def test_nobody_else_takes_it_back(world: World) -> None:
    """Not by the same label, nor the same address, nor a key that was another's."""
    master = world.master()
    announce(world, master, b"x")
    for other in (world.master(40001), world.master(40000, OTHER)):
        assert withdraw(world, other, b"x") == []
    entry = world.master(40002).conntrack(world.kernel.now)
    entry.id = master.conntrack(world.kernel.now).id
    assert world.expecter.revoke(entry, b"x") == []
    assert present(world) == 1


def test_flow_that_has_ended_has_no_labels(world: World) -> None:
    master = world.master()
    announce(world, master, b"x")
    entry = master.conntrack(world.kernel.now)
    world.expecter.forget(key_of(entry))
    assert withdraw(world, master, b"x") == []


def test_labels_of_a_flow_are_the_latest(world: World) -> None:
    master = world.master()
    for number in range(40):
        announce(world, master, b"%d" % number)
    found = [withdraw(world, master, b"%d" % each) for each in range(40)]
    assert found == [[]] * 8 + [[39 - each] for each in range(32)]


def test_labels_are_let_go_of_in_time(world: World) -> None:
    for port in range(40000, 40020):
        announce(world, world.master(port), b"x", destination=endpoint(CLIENT, port))
    world.waits(15)
    assert world.expecter.labels == 0


def test_flows_with_labels_are_bounded(world: World) -> None:
    for port in range(20000, 24200):
        master = world.master(port)
        announce(world, master, b"x")
    assert world.expecter.labels == 4096


@pytest.mark.parametrize(
    ("code", "told"),
    [(errno.ENOENT, []), (errno.EPERM, [("step-failed", "kernel-eperm")])],
)
@pytest.mark.interpreted
def test_kernel_that_refuses_is_told_of_and_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, code: int, told: list[object]
) -> None:
    def refuse(_expectation: object) -> None:
        raise NetlinkError.of(code, "delete expectation")

    master = world.master()
    announce(world, master, b"x")
    monkeypatch.setattr(world.kernel, "delete_expectation", refuse)
    assert withdraw(world, master, b"x") == []
    assert world.record == told


def test_withdrawn_port_is_free_for_another(world: World) -> None:
    """As behind NAT, where it is put in while the helper waits."""
    first, second = world.master(), world.master(40001)
    entries = [each.conntrack(world.kernel.now) for each in (first, second)]
    for entry in entries:
        expectation = wanted(master=entry.original, label=b"x")
        placed = world.expecter.place(entry, [expectation])
        assert placed is not None
        assert placed[0].how is How.CREATED
        assert world.expecter.revoke(entry, b"x") == [Withdrawn(expectation, 0)]


steps = st.lists(
    st.tuples(st.sampled_from(["announce", "come", "withdraw"]), st.integers(0, 2))
)


@given(steps)
def test_whoever_has_not_withdrawn_gets_in(ways: list[tuple[str, int]]) -> None:
    """A flow for each announcement that stands, and for none more than there were."""
    world = World()
    masters = [world.master(40000 + each) for each in range(3)]
    # Of each flow: what it has announced and whether that was followed.
    standing: list[list[bytes]] = [[], [], []]
    used: list[list[bytes]] = [[], [], []]
    for number, (step, who) in enumerate(ways):
        if step == "announce":
            label = b"%d" % number
            announce(world, masters[who], label)
            standing[who].append(label)
        elif step == "come" and standing[who]:
            assert world.comes()
            used[who].append(standing[who].pop(0))
        elif step == "withdraw":
            for label in (used[who] or standing[who])[:1]:
                withdraw(world, masters[who], label)
                (used[who] or standing[who]).remove(label)
    for who in range(3):
        for _ in standing[who]:
            assert world.comes()
