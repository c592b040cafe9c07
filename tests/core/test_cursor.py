# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading through a message."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.cursor import Cursor
from cthelper.core.errors import Malformed, Truncated

READS: dict[str, Callable[[Cursor], object]] = {
    "u8": Cursor.u8,
    "u16": Cursor.u16,
    "u32s": lambda cursor: cursor.u32s(3),
    "u32": Cursor.u32,
    "take": lambda cursor: cursor.take(5),
    "skip": lambda cursor: cursor.skip(5),
    "negative": lambda cursor: cursor.take(-1),
}


def test_numbers_are_read_in_network_order() -> None:
    cursor = Cursor(b"\x01\x02\x03\x04\x05\x06\x07")
    assert (cursor.u8(), cursor.u16(), cursor.u32()) == (1, 0x0203, 0x04050607)
    assert cursor.remaining == 0


def test_several_integers_are_those_that_are_read_one_by_one() -> None:
    cursor = Cursor(bytes(range(1, 14)), position=1)
    assert cursor.u32s(0) == ()
    assert cursor.u32s(2) == (0x02030405, 0x06070809)
    assert cursor.u32s(1) == (0x0A0B0C0D,)
    assert cursor.remaining == 0


def test_skip_passes_over_bytes() -> None:
    cursor = Cursor(b"abcdef", position=1)
    cursor.skip(2)
    assert cursor.take(2) == b"de"
    assert (cursor.position, cursor.remaining) == (5, 1)


@pytest.mark.parametrize(
    ("read", "size"),
    [
        *(("u8", 0), ("u16", 1), ("u32", 3), ("u32s", 11)),
        *(("take", 4), ("skip", 4), ("negative", 4)),
    ],
)
def test_read_past_the_end_is_truncated_and_reads_nothing(read: str, size: int) -> None:
    cursor = Cursor(b"\xa5" * (size + 2), position=2)
    with pytest.raises(Truncated):
        READS[read](cursor)
    assert cursor.position == 2


def test_no_bytes_can_be_taken_at_the_end() -> None:
    assert Cursor(b"ab", position=2).take(0) == b""


def test_position_past_the_end_is_truncated() -> None:
    with pytest.raises(Truncated):
        Cursor(b"ab", position=3).take(0)


def test_truncated_says_offset_and_lengths() -> None:
    with pytest.raises(Malformed, match="4 bytes wanted at offset 1, 2 are left"):
        Cursor(b"abc", position=1).u32()


@given(st.binary(max_size=64), st.lists(st.integers(0, 20), max_size=20))
def test_takes_concatenate_to_a_prefix(content: bytes, lengths: list[int]) -> None:
    cursor = Cursor(content)
    taken = b""
    for length in lengths:
        try:
            taken += cursor.take(length)
        except Truncated:
            assert length > cursor.remaining
    assert content.startswith(taken)
    assert cursor.position == len(taken)
    assert cursor.remaining == len(content) - len(taken)
