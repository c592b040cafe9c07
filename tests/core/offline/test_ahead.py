# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading ahead: in whatever pieces the bytes come, and where they end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.offline.ahead import Ahead, Source


def pieces(*each: bytes) -> Source:
    """What gives these, one a call, whatever is asked for."""
    left = list(each)
    return Source(lambda _: left.pop(0) if left else b"", (OSError,))


def test_bytes_stay_until_they_are_used() -> None:
    ahead = Ahead(pieces(b"abc", b"def", b"gh"))
    assert ahead.fill(2)
    assert (ahead.data, ahead.at, ahead.offset) == (b"abc", 0, 0)
    ahead.at += 2
    assert ahead.fill(1)
    assert (ahead.data, ahead.at, ahead.offset) == (b"abc", 2, 2)
    assert ahead.fill(4)
    assert (ahead.data[ahead.at :], ahead.offset) == (b"cdef", 2)
    assert not ahead.fill(9)
    assert (ahead.data[ahead.at :], ahead.offset) == (b"cdefgh", 2)
    assert not ahead.fill(7)
    assert ahead.fill(6)


def test_no_more_is_waited_for_than_was_asked_for() -> None:
    source = pieces(b"abc", b"def")
    ahead = Ahead(source)
    assert ahead.fill(3)
    assert source.count == 3


@given(st.lists(st.binary(min_size=1, max_size=9)), st.lists(st.integers(0, 12)))
def test_reading_gives_all_bytes_in_their_order(
    given: list[bytes], sizes: list[int]
) -> None:
    content = b"".join(given)
    ahead = Ahead(pieces(*given))
    found = b""
    for size in sizes:
        piece = ahead.read(size)
        assert len(piece) == min(size, len(content) - len(found))
        found += piece
        assert ahead.offset == len(found)
    assert found + ahead.read(len(content) + 1) == content


def test_fault_ends_the_bytes_and_is_kept() -> None:
    calls = []

    def read(size: int) -> bytes:
        calls.append(size)
        if len(calls) == 1:
            return b"abc"
        raise OSError(5, "Input/output error")

    source = Source(read, (OSError,))
    ahead = Ahead(source)
    assert not ahead.fill(4)
    assert (ahead.read(9), ahead.read(9)) == (b"abc", b"")
    assert str(source.fault) == "[Errno 5] Input/output error"
    assert (len(calls), source.count) == (2, 3)


def test_other_exceptions_pass() -> None:
    def read(size: int) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ahead(Source(read, (OSError,))).fill(1)


def test_end_may_be_asked_for_again() -> None:
    # A terminal or a file that grows gives more.
    source = pieces(b"a", b"", b"b")
    ahead = Ahead(source)
    assert not ahead.fill(2)
    assert ahead.fill(2)
    assert ahead.data == b"ab"
