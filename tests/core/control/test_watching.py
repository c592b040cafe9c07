# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose flow an event is of: what its end does not tell is remembered."""

import pytest

from cthelper.core.control import watching as module
from cthelper.core.control.watching import Lineage
from cthelper.core.tuples import Conntrack, Status, Tuple
from tests.core.builders import conntrack
from tests.core.control.test_tree import listed, tuple_of


def bare(id_: int, status: Status = Status.CONFIRMED) -> Conntrack:
    """An entry as its end tells it."""
    entry = conntrack(tuple_of(id_), id_=id_, helper=None)
    entry.status = status
    return entry


def child(id_: int, master: Tuple) -> Conntrack:
    entry = bare(id_, status=Status.EXPECTED)
    entry.master = master
    return entry


def test_end_is_given_what_was_told_before() -> None:
    lineage = Lineage([listed(1, helper="line")])
    begun = child(10, tuple_of(1))
    lineage.complete(begun)
    assert lineage.of(begun, {"line"})
    control, data = bare(1, status=Status.HELPER), bare(10, status=Status.EXPECTED)
    lineage.complete(control, ended=True)
    lineage.complete(data, ended=True)
    assert (control.helper, data.master) == ("line", tuple_of(1))
    # The control flow may end before what came of it does.
    assert lineage.of(data, {"line"})
    again = bare(1)
    lineage.complete(again, ended=True)
    assert again.helper is None


def test_flows_of_other_helpers_are_others() -> None:
    lineage = Lineage([listed(1, helper="ftp"), listed(2, helper="line")])
    for number, ours in ((1, False), (2, True), (3, True)):
        flow = child(10 + number, tuple_of(number))
        lineage.complete(flow)
        # Whose control flow is gone may be one of ours.
        assert lineage.of(flow, {"line"}) is ours
    assert not lineage.of(bare(50), {"line"})
    assert lineage.of(bare(51, status=Status.EXPECTED), {"line"})


def test_no_more_is_remembered_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    lineage = Lineage(listed(number, helper="line") for number in (1, 2, 3))
    entries = [bare(number) for number in (1, 2, 3)]
    for each in entries:
        lineage.complete(each, ended=True)
    assert [each.helper for each in entries] == [None, "line", "line"]
