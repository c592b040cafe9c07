# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of ``cthelper top``: their order, rates, and the time that is left."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.cli.top_rows import (
    COLUMNS,
    MOST,
    Kind,
    Order,
    Rates,
    Row,
    Tree,
    plain,
    tree_of,
)


def row(flow: str, **known: Any) -> Row:
    return Row(
        ("entry", flow), Kind.CONTROL, flow, known.pop("state", ""), 0.0, **known
    )


# By what they differ: b has more below it.
A: Final = Tree(
    row(
        "udp 10.0.0.9:1",
        helper="tns",
        state="inspected",
        timeout=30,
        packets=9,
        bytes=900,
        packet_rate=1.0,
        byte_rate=100.0,
    ),
    (),
)
B: Final = Tree(
    row(
        "udp 10.0.0.10:1",
        helper="ftp",
        state="finished",
        timeout=40,
        packets=1,
        bytes=100,
        packet_rate=0.0,
        byte_rate=0.0,
    ),
    (
        row(
            "tcp 10.0.0.1:1",
            timeout=90,
            packets=50,
            bytes=9000,
            packet_rate=9.0,
            byte_rate=800.0,
        ),
        row("tcp 10.0.0.1:2", timeout=5),
    ),
)
C: Final = Tree(row("udp 10.0.0.11:1", state="has ended"), ())


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("flow", "ABC"),
        ("helper", "CBA"),
        ("state", "BCA"),
        ("left", "CBA"),
        ("packets", "BAC"),
        ("bytes", "BAC"),
        ("packets/s", "BAC"),
        ("bytes/s", "BAC"),
    ],
)
def test_trees_are_sorted_by_all_that_is_in_them(column: str, order: str) -> None:
    names = {"A": A, "B": B, "C": C}

    def sorted_by(order: Order) -> str:
        heads = {id(tree.head): name for name, tree in names.items()}
        return "".join(heads[id(each.head)] for each in order.trees(names.values()))

    assert sorted_by(Order(column)) == order
    assert sorted_by(Order(column, turned=True)) == order[::-1]


def test_every_column_is_a_way_to_sort() -> None:
    for column in COLUMNS:
        assert len(Order(column).trees([A, B, C])) == 3


def test_what_is_below_is_sorted_too() -> None:
    (tree,) = Order("left").trees([B])
    assert [each.timeout for each in tree.rows] == [5, 90]


def test_no_more_are_kept_than_anybody_looks_at() -> None:
    trees = (Tree(row(f"{at}", byte_rate=float(at)), ()) for at in range(100_000))
    kept = Order().trees(trees)
    assert [each.head.flow for each in kept[:2]] == ["99999", "99998"]
    assert len(kept) == MOST


@pytest.mark.parametrize(
    ("readings", "rates"),
    [
        ([(0.0, 10, 1000)], (None, None)),
        ([(0.0, 10, 1000), (2.0, 30, 5000)], (10.0, 2000.0)),
        ([(0.0, 10, 1000), (2.0, 10, 1000)], (0.0, 0.0)),
        # The last two count.
        ([(0.0, 0, 0), (2.0, 30, 5000), (6.0, 34, 5400)], (1.0, 100.0)),
        # Counted anew, as after `conntrack -Z`.
        ([(0.0, 10, 1000), (2.0, 3, 300)], (None, None)),
        # A key was pressed: it is not held against what is so near.
        ([(0.0, 0, 0), (2.0, 20, 200), (2.1, 21, 210)], (10.0, 100.0)),
        ([(0.0, 0, 0), (0.5, 5, 50), (0.9, 9, 90)], (None, None)),
        ([(0.0, 0, 0), (2.0, 0, 0), (2.9, 9, 90), (3.0, 9, 90)], (3.0, 30.0)),
    ],
)
def test_rates_are_those_between_two_readings(
    readings: list[tuple[float, int, int]], rates: tuple[float | None, float | None]
) -> None:
    found = Rates()
    told: tuple[float | None, float | None] = (None, None)
    for now, packets, size in readings:
        found.begin(now)
        told = found.of(7, now, packets, size)
    assert told == pytest.approx(rates)


def test_entry_that_was_not_there_in_between_is_new() -> None:
    rates = Rates()
    for now, ids in ((0.0, (1, 2)), (2.0, (1,)), (4.0, (1, 2))):
        rates.begin(now)
        told = [rates.of(each, now, int(now), int(now)) for each in ids]
    assert told == [(1.0, 1.0), (None, None)]


@pytest.mark.parametrize(
    ("timeout", "read", "now", "left"),
    [
        (30, 100.0, 100.0, 30),
        (30, 100.0, 100.9, 30),
        (30, 100.0, 101.0, 29),
        (30, 100.0, 130.0, 0),
        (30, 100.0, 500.0, 0),
        # What was read after the screen was last drawn.
        (30, 100.0, 99.0, 30),
        (None, 100.0, 101.0, None),
    ],
)
def test_time_counts_down_between_readings(
    timeout: int | None, read: float, now: float, left: int | None
) -> None:
    found = Row((), Kind.EXPECTS, "", "", read, timeout=timeout)
    assert found.left(now) == left


@given(st.text() | st.integers() | st.none())
def test_text_is_shown_as_it_is_by_every_terminal(text: object) -> None:
    shown = plain(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) == len(str(text))


json_values: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["flow", "id", "transport"]), inner, max_size=2
        )
    ),
    max_leaves=6,
)
KEYS: Final = (
    *("gone", "flow", "zone", "expectations", "flows", "id", "helper", "inspection"),
    *("state", "answered", "timeout", "packets", "bytes", "expects", "permanent"),
)


@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_record_is_read_or_makes_no_sense(record: dict[str, Any]) -> None:
    try:
        tree = tree_of(record, Rates(), 0.0)
    except (AttributeError, KeyError, TypeError, ValueError):
        return
    assert tree.head.flow.isprintable()
