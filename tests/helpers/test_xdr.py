# SPDX-License-Identifier: GPL-2.0-or-later
"""XDR's variable-length data and lists, and records of several fragments on TCP."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import Cursor, Malformed, Oversized, Truncated
from cthelper.helpers.xdr import (
    join_record,
    read_list,
    read_opaque,
    read_opaques,
    read_string,
    record_length,
)

LAST = 0x80000000
TAIL = b"\xa5\xa5"


def u32(value: int) -> bytes:
    return value.to_bytes(4)


def record(fragments: list[bytes]) -> bytes:
    """A record of these fragments, at least one."""
    *first, last = fragments
    marked = [u32(len(each)) + each for each in first]
    return b"".join(marked) + u32(LAST | len(last)) + last


@pytest.mark.parametrize(
    ("wire", "value"),
    [
        (u32(0), b""),
        (u32(1) + b"a\0\0\0", b"a"),
        (u32(2) + b"ab\0\0", b"ab"),
        (u32(3) + b"abc\0", b"abc"),
        (u32(4) + b"abcd", b"abcd"),
        (u32(5) + b"abcde\0\0\0", b"abcde"),
        (u32(1) + b"axyz", b"a"),
    ],
    ids=["0", "1", "2", "3", "4", "5", "padding that is not zero"],
)
def test_opaque_data_is_read_with_its_padding(wire: bytes, value: bytes) -> None:
    cursor = Cursor(wire + TAIL)
    assert read_opaque(cursor, 5) == value
    assert cursor.take(2) == TAIL


def test_opaque_data_over_the_limit_is_malformed() -> None:
    assert read_opaque(Cursor(u32(8) + bytes(8)), 8) == bytes(8)
    with pytest.raises(Malformed, match=r"opaque data of 9 bytes, the limit is 8"):
        read_opaque(Cursor(u32(9) + bytes(12)), 8)


@pytest.mark.parametrize(
    "wire",
    [b"", b"\0\0\0", u32(4) + b"abc", u32(3) + b"abc", u32(0xFFFFFFFF) + b"abcd"],
    ids=["nothing", "half a length", "short data", "no padding", "4 GiB"],
)
def test_truncated_opaque_data_is_malformed(wire: bytes) -> None:
    with pytest.raises(Truncated):
        read_opaque(Cursor(wire), 1 << 32)


def test_string_is_ascii() -> None:
    assert read_string(Cursor(u32(4) + b"tcp6"), 255) == "tcp6"
    with pytest.raises(Malformed, match="is not ASCII"):
        read_string(Cursor(u32(2) + "é".encode() + b"\0\0"), 255)


@given(st.binary(), st.integers(0, 64))
def test_any_bytes_give_data_within_the_limit_or_malformed(
    wire: bytes, limit: int
) -> None:
    cursor = Cursor(wire)
    try:
        data = read_opaque(cursor, limit)
    except Malformed:
        return
    assert len(data) <= limit
    assert cursor.position % 4 == 0
    assert wire[4:].startswith(data)


def numbers(*items: int) -> bytes:
    """A list of unsigned integers."""
    return b"".join(u32(1) + u32(item) for item in items) + u32(0)


@pytest.mark.parametrize("items", [[], [7], [7, 0, 1]], ids=str)
def test_list_is_read_up_to_its_end(items: list[int]) -> None:
    cursor = Cursor(numbers(*items) + TAIL)
    assert list(read_list(cursor, Cursor.u32)) == items
    assert cursor.take(2) == TAIL


@pytest.mark.parametrize(
    "wire",
    [b"", u32(1), numbers(7)[:-1], numbers(7)[:-4], u32(1) * 1001],
    ids=["nothing", "no item", "half an end", "no end", "ones without end"],
)
def test_list_without_end_is_malformed(wire: bytes) -> None:
    with pytest.raises(Truncated):
        list(read_list(Cursor(wire), Cursor.u32))


@pytest.mark.parametrize("follows", [2, 0x100, 0xFFFFFFFF])
def test_only_0_and_1_are_booleans(follows: int) -> None:
    with pytest.raises(Malformed, match=rf"^boolean {follows} in a list$"):
        list(read_list(Cursor(u32(follows) + bytes(8)), Cursor.u32))


@given(st.lists(st.integers(0, 0xFFFFFFFF)), st.binary(max_size=8))
def test_list_comes_back_as_it_was_written(items: list[int], tail: bytes) -> None:
    cursor = Cursor(numbers(*items) + tail)
    assert list(read_list(cursor, Cursor.u32)) == items
    assert cursor.remaining == len(tail)


def padded(data: bytes) -> bytes:
    """Opaque data as XDR writes it."""
    return u32(len(data)) + data + bytes(-len(data) % 4)


def test_list_is_read_up_to_a_limit() -> None:
    cursor = Cursor(numbers(7, 8, 9))
    assert list(read_list(cursor, Cursor.u32, 2)) == [7, 8]
    assert list(read_list(cursor, Cursor.u32, 2)) == [9]


@given(st.lists(st.binary(max_size=9), max_size=5), st.binary(max_size=3))
def test_several_are_read_as_one_by_one(items: list[bytes], tail: bytes) -> None:
    wire = b"".join(map(padded, items)) + tail
    cursor = Cursor(b"12" + wire, 2)
    assert read_opaques(cursor, len(items), 9) == items
    assert cursor.remaining == len(tail)
    cursor = Cursor(wire)
    with pytest.raises(Malformed):
        read_opaques(cursor, len(items) + 1, 9)
    if any(items):
        with pytest.raises(Malformed):
            read_opaques(Cursor(wire), len(items), max(map(len, items)) - 1)


@given(st.binary())
def test_any_bytes_are_a_list_that_fits_or_malformed(wire: bytes) -> None:
    try:
        items = list(read_list(Cursor(wire), lambda cursor: read_opaque(cursor, 8)))
    except Malformed:
        return
    assert len(items) * 8 + 4 <= len(wire)


@pytest.mark.parametrize(
    "fragments",
    [
        [b"abcd"],
        [b""],
        [b"ab", b"cd"],
        [b"", b"abcd"],
        [b"abcd", b""],
        [b"a", b"", b"bcd"],
        [b"abc", b"d", b"efghi"],
    ],
    ids=str,
)
def test_record_is_measured_and_joined(fragments: list[bytes]) -> None:
    wire = record(fragments)
    for end in range(len(wire)):
        assert record_length(memoryview(wire[:end]), 64) is None
    assert record_length(memoryview(wire), 64) == len(wire)
    assert record_length(memoryview(wire + TAIL), 64) == len(wire)
    assert join_record(wire) == b"".join(fragments)


def test_only_the_first_of_two_records_is_measured() -> None:
    first, second = record([b"ab", b"c"]), record([b"defg"])
    assert record_length(memoryview(first + second), 64) == len(first)


@pytest.mark.parametrize(
    ("wire", "size"),
    [
        (u32(LAST | 13), 17),
        (u32(LAST | 0x7FFFFFFF), 0x80000003),
        (u32(8) + bytes(8) + u32(LAST | 1), 17),
        (u32(0) * 5, 20),
    ],
    ids=["one fragment", "two GiB", "second fragment", "empty fragments without end"],
)
def test_record_over_the_limit_is_oversized_from_its_mark_on(
    wire: bytes, size: int
) -> None:
    with pytest.raises(Oversized, match=f"record of {size} bytes or more, .* is 16$"):
        record_length(memoryview(wire), 16)


def test_record_of_fragments_without_end_is_oversized() -> None:
    most = record([b""] * 63 + [b"x"])
    assert record_length(memoryview(most), 16384) == len(most)
    with pytest.raises(Oversized, match=r"^record of more than 64 fragments$"):
        record_length(memoryview(u32(0) * 64), 16384)


def test_record_of_just_the_limit_is_taken() -> None:
    assert record_length(memoryview(record([bytes(12)])), 16) == 16


@given(st.lists(st.binary(max_size=20), min_size=1), st.binary(max_size=8))
def test_fragments_come_back_whatever_follows(
    fragments: list[bytes], tail: bytes
) -> None:
    wire = record(fragments)
    length = record_length(memoryview(wire + tail), 1 << 16)
    assert length == len(wire)
    assert join_record(wire) == b"".join(fragments)


@given(st.binary(max_size=80), st.integers(1, 64))
def test_any_bytes_have_a_length_within_the_limit_or_are_oversized(
    wire: bytes, limit: int
) -> None:
    try:
        length = record_length(memoryview(wire), limit)
    except Oversized:
        return
    if length is not None:
        assert 0 < length <= min(limit, len(wire))
        assert len(join_record(wire[:length])) <= length - 4


@given(st.binary(max_size=80), st.integers(1, 64))
def test_more_bytes_never_change_what_was_said(wire: bytes, limit: int) -> None:
    answers = []
    for end in range(1, len(wire) + 1):
        try:
            answers.append(record_length(memoryview(wire[:end]), limit))
        except Oversized:
            answers.append(-1)
    for earlier, later in pairwise(answers):
        assert earlier in (None, later)
