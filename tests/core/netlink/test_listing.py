# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries with TCP's state and counters, decoded by hand: no bytes may do harm."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import Truncated
from cthelper.core.netlink.listing import Count, listed_entry
from tests.core.netlink.test_decoding import (
    NESTED,
    TUPLE_ORIG,
    TUPLE_REPLY,
    attribute,
    ip,
    proto,
)

PROTOINFO, COUNTERS_ORIG, COUNTERS_REPLY = 4, 9, 10


def ends(number: int) -> bytes:
    one = ip("192.0.2.1", "192.0.2.2") + proto(number, 5000, 111)
    other = ip("192.0.2.2", "192.0.2.1") + proto(number, 111, 5000)
    return attribute(NESTED | TUPLE_ORIG, one) + attribute(NESTED | TUPLE_REPLY, other)


def state(number: int) -> bytes:
    tcp = attribute(NESTED | 1, attribute(1, bytes([number])))
    return attribute(NESTED | PROTOINFO, tcp)


def counters(kind: int, packets: int, size: int) -> bytes:
    counted = attribute(1, packets.to_bytes(8)) + attribute(2, size.to_bytes(8))
    return attribute(NESTED | kind, counted)


@pytest.mark.parametrize(
    ("number", "name"), [(3, "ESTABLISHED"), (7, "TIME_WAIT"), (99, "99")]
)
def test_state_and_counters_are_read(number: int, name: str) -> None:
    data = ends(6) + state(number)
    data += counters(COUNTERS_ORIG, 3, 1 << 40) + counters(COUNTERS_REPLY, 2, 100)
    found = listed_entry(data, 0)
    assert found is not None
    assert found.state == name
    assert (found.sent, found.answered) == (Count(3, 1 << 40), Count(2, 100))


def test_udp_has_no_state_and_counters_need_not_be_there() -> None:
    found = listed_entry(ends(17) + state(3), 0)
    assert found is not None
    assert (found.state, found.sent, found.answered) == (None, None, None)
    assert listed_entry(ends(1), 0) is None


@given(st.binary(max_size=120))
def test_any_bytes_are_an_entry_or_truncated(data: bytes) -> None:
    for head in (b"", ends(6)):
        with suppress(Truncated):
            listed_entry(head + data, 0)
