# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes of one direction of a TCP flow, however its segments come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import StreamLost
from cthelper.core.stream import Stream
from tests.cases import cases
from tests.core.builders import cut

# Right below the wrap of the sequence numbers, so that the cases cross it: the SYN has
# the number 0xfffffffd, the byte at offset 2 has 0.
FIRST = 2**32 - 2
LIMIT = 64
CONTENT = b"0123456789abcdef"


def begun(limit: int = LIMIT, first: int = FIRST) -> Stream:
    """A stream whose first byte has the number `first`."""
    stream = Stream(limit)
    stream.begin(first)
    return stream


def feed(stream: Stream, offset: int, data: bytes, first: int = FIRST) -> bytes:
    """Feed `data`, which lies at `offset` in the stream."""
    return stream.feed((first + offset) % 2**32, data)


def lost(stream: Stream, offset: int, data: bytes) -> str:
    """The reason why the stream is lost."""
    with pytest.raises(StreamLost) as caught:
        feed(stream, offset, data)
    return caught.value.reason


@pytest.mark.parametrize(
    ("segments", "available"),
    [
        ([(0, b"ab"), (2, b"cd")], [b"ab", b"cd"]),
        ([(0, b"a"), (1, b"b"), (2, b"c"), (3, b"d")], [b"a", b"b", b"c", b"d"]),
        ([(0, b""), (0, b"ab"), (2, b"")], [b"", b"ab", b""]),
        ([(0, b"ab"), (0, b"ab"), (2, b"c")], [b"ab", b"", b"c"]),
        ([(0, b"abc"), (1, b"b"), (3, b"d")], [b"abc", b"", b"d"]),
        ([(0, b"abc"), (1, b"bcde"), (5, b"f")], [b"abc", b"de", b"f"]),
        ([(2, b"cd"), (0, b"ab"), (4, b"e")], [b"", b"abcd", b"e"]),
        ([(4, b"e"), (2, b"cd"), (0, b"ab")], [b"", b"", b"abcde"]),
        ([(2, b"cd"), (0, b"abcd")], [b"", b"abcd"]),
        ([(2, b"cd"), (0, b"abcdef")], [b"", b"abcdef"]),
        ([(2, b"cd"), (0, b"abc")], [b"", b"abcd"]),
        ([(2, b"c"), (2, b"cd"), (0, b"ab")], [b"", b"", b"abcd"]),
        ([(2, b"cd"), (2, b"c"), (0, b"ab")], [b"", b"", b"abcd"]),
        ([(2, b"cd"), (3, b"de"), (0, b"ab")], [b"", b"", b"abcde"]),
        ([(2, b"c"), (4, b"e"), (0, b"ab"), (3, b"d")], [b"", b"", b"abc", b"de"]),
    ],
    ids=[
        "in order",
        "byte by byte",
        "without payload",
        "retransmission",
        "retransmission of a part",
        "retransmission with more",
        "out of order",
        "backwards",
        "held bytes come again",
        "held bytes lie inside",
        "held bytes overlap",
        "held bytes come again with more",
        "held bytes come again in part",
        "held bytes overlap each other",
        "two holes",
    ],
)
def test_bytes_become_available_in_order(
    segments: list[tuple[int, bytes]], available: list[bytes]
) -> None:
    stream = begun()
    assert [feed(stream, offset, data) for offset, data in segments] == available


@cases(
    "segments",
    {
        "retransmission": [(0, b"abcd"), (0, b"abXd")],
        "retransmission with more": [(0, b"abcd"), (2, b"cXef")],
        "retransmission of a part": [(0, b"abcd"), (1, b"X")],
        "held bytes": [(2, b"cd"), (2, b"cX")],
        "held bytes, shorter": [(2, b"cd"), (2, b"X")],
        "held bytes, longer": [(2, b"cd"), (2, b"cXe")],
        "first copy was held": [(2, b"cd"), (0, b"abX")],
        "first copy was held, inside": [(2, b"cd"), (0, b"abXdef")],
        "both copies are held": [(2, b"cd"), (3, b"Xe")],
        "held between two others": [(2, b"cd"), (6, b"gh"), (3, b"defX")],
    },
)
def test_repetition_with_other_content_is_an_overlap(
    segments: list[tuple[int, bytes]],
) -> None:
    stream = begun()
    for offset, data in segments[:-1]:
        feed(stream, offset, data)
    assert lost(stream, *segments[-1]) == "overlap"


@pytest.mark.parametrize("probe", [b"", b"\xa5"], ids=["0 bytes", "1 byte"])
def test_keepalive_probe_is_ignored(probe: bytes) -> None:
    stream = begun()
    assert feed(stream, -1, probe) == b""
    assert feed(stream, 0, b"abcd") == b"abcd"
    assert feed(stream, 3, probe) == b""
    assert feed(stream, 4, b"e") == b"e"


def test_bytes_may_wait_up_to_the_limit() -> None:
    stream = begun(limit=8)
    assert feed(stream, 1, b"1234567") == b""
    assert feed(stream, 0, b"0") == b"01234567"


@pytest.mark.parametrize(
    ("offset", "data"),
    [(1, b"12345678"), (8, b"8"), (2**31 - 2, b"x")],
    ids=["too many bytes", "too far ahead", "as far as can be told"],
)
def test_bytes_beyond_the_limit_do_not_wait(offset: int, data: bytes) -> None:
    stream = begun(limit=8)
    assert feed(stream, offset, data) == b""
    assert feed(stream, 0, b"0") == b"0"
    assert feed(stream, 1, b"1") == b"1"


def test_what_does_not_wait_ends_the_stream_where_nothing_else_comes() -> None:
    stream = begun(limit=8)
    for _ in range(64):
        assert feed(stream, 9, b"9") == b""
    assert lost(stream, 9, b"9") == "gap"


def test_what_does_not_wait_is_counted_anew_after_each_byte_in_order() -> None:
    stream = begun(limit=8)
    for offset in range(3):
        for _ in range(64):
            assert feed(stream, offset + 9, b"9") == b""
        assert feed(stream, offset, b"x") == b"x"


def test_what_waits_is_kept_once() -> None:
    stream = begun(limit=8)
    for offset, data in [(1, b"12345"), (2, b"234"), (6, b"6"), (1, b"1"), (4, b"456")]:
        assert feed(stream, offset, data) == b""
    assert stream.held < begun(limit=8).held + 400
    assert feed(stream, 0, b"0") == b"0123456"


def test_number_of_pieces_that_wait_is_bounded() -> None:
    # Every second byte: within the limit of bytes by far.
    stream = begun(limit=16 * 1024)
    for offset in range(128, 0, -2):
        assert feed(stream, offset, b"x") == b""
    assert feed(stream, 130, b"x") == b""
    assert stream.held < 16 * 1024
    # What touches a piece is no further one.
    assert feed(stream, 129, b"z") == b""
    for offset in range(1, 129, 2):
        assert feed(stream, offset, b"z") == b""
    assert feed(stream, 0, b"y") == b"y" + 64 * b"zx" + b"z"
    assert feed(stream, 130, b"x") == b"x"


def test_no_packet_has_much_to_put_together() -> None:
    stream = begun(limit=16 * 1024)
    for offset in range(8000, 0, -1):
        assert feed(stream, offset, b"x") == b""
    assert stream.held < 16 * 1024
    assert feed(stream, 0, b"y") == b"y" + 8000 * b"x"


def test_tail_is_what_is_unread() -> None:
    stream = begun(limit=8)
    assert stream.tail == b""
    feed(stream, 0, CONTENT)
    for unread in (0, 3, 8):
        stream.unread = unread
        assert stream.tail == CONTENT[16 - unread :]
    stream.begin(FIRST)
    assert stream.tail == b""


def test_segment_in_order_may_be_longer_than_the_limit() -> None:
    stream = begun(limit=8)
    assert feed(stream, 0, CONTENT) == CONTENT
    assert feed(stream, len(CONTENT), b"g") == b"g"


def test_repetition_is_compared_as_far_back_as_the_limit() -> None:
    stream = begun(limit=8)
    feed(stream, 0, CONTENT)
    assert lost(stream, 8, b"X9") == "overlap"


def test_repetition_older_than_what_is_kept_is_ignored() -> None:
    stream = begun(limit=8)
    feed(stream, 0, CONTENT)
    assert feed(stream, 0, b"XXXXXXXX") == b""
    assert feed(stream, 6, b"XX89abcdefg") == b"g"


def test_repetition_across_the_end_of_what_is_kept_is_compared_in_part() -> None:
    stream = begun(limit=8)
    feed(stream, 0, CONTENT)
    assert lost(stream, 6, b"XX8X") == "overlap"


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Content, and segments in any order that cover it, some of them repeated."""
    content = draw(st.binary(max_size=60))
    offsets = st.integers(0, len(content))
    pieces = cut(content, draw(st.sets(offsets, max_size=8)))
    segments, offset = [], 0
    for piece in pieces:
        segments.append((offset, piece))
        offset += len(piece)
    for start, stop in draw(st.lists(st.tuples(offsets, offsets), max_size=4)):
        segments.append((start, content[start:stop]))
    return content, draw(st.permutations(segments))


@given(deliveries(), st.integers(0, 2**32 - 1))
def test_any_delivery_gives_the_content(
    delivery: tuple[bytes, list[tuple[int, bytes]]], first: int
) -> None:
    content, segments = delivery
    stream = begun(limit=sum(len(data) for _, data in segments) + 1, first=first)
    assert b"".join(feed(stream, *each, first) for each in segments) == content
    assert stream.held == begun().held + len(content) * 5 // 4


@given(st.binary(min_size=2, max_size=60), st.integers(0, 2**32 - 1), st.data())
def test_changed_byte_in_a_repetition_is_an_overlap(
    content: bytes, first: int, data: st.DataObject
) -> None:
    pieces = cut(content, data.draw(st.sets(st.integers(1, 59), max_size=6)))
    limit = data.draw(st.integers(1, len(content) + 1))
    stream = begun(limit=limit, first=first)
    offset = 0
    for piece in pieces:
        assert feed(stream, offset, piece, first) == piece
        offset += len(piece)
    oldest = max(0, len(content) - limit)
    changed = data.draw(st.integers(oldest, len(content) - 1))
    start = data.draw(st.integers(0, changed))
    stop = data.draw(st.integers(changed + 1, len(content)))
    repetition = bytearray(content[start:stop])
    repetition[changed - start] ^= data.draw(st.integers(1, 255))
    if (start, stop) == (len(content) - 1, len(content)):
        # Not to be told from a keepalive probe.
        assert feed(stream, start, bytes(repetition), first) == b""
        return
    with pytest.raises(StreamLost) as caught:
        feed(stream, start, bytes(repetition), first)
    assert caught.value.reason == "overlap"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**32 - 1) | st.integers(-40, 40).map(lambda n: n % 2**32),
            st.binary(max_size=40),
        ),
        max_size=20,
    )
)
def test_any_segments_give_bytes_or_a_lost_stream(
    segments: list[tuple[int, bytes]],
) -> None:
    stream = begun(32, 0)
    fed = available = 0
    reason = None
    for sequence, payload in segments:
        fed += len(payload)
        try:
            available += len(stream.feed(sequence, payload))
        except StreamLost as error:
            reason = error.reason
            break
        assert available <= fed
    assert reason in {None, "overlap"}


@pytest.mark.parametrize(
    ("start", "size", "parts"),
    [
        (10, 5, []),
        (8, 5, [(0, 2)]),
        (0, 10, [(0, 10)]),
        (10, 20, [(10, 14)]),
        (22, 5, [(0, 2)]),
        (8, 14, [(12, 14), (0, 2)]),
    ],
)
def test_what_has_come_before_of_a_segment_is_told(
    start: int, size: int, parts: list[tuple[int, int]]
) -> None:
    """Ten bytes in order, and four beyond a gap of ten."""
    stream = Stream(100)
    stream.begin(FIRST)
    stream.feed(FIRST, bytes(10))
    stream.feed((FIRST + 20) % 2**32, bytes(4))
    assert stream.came((FIRST + start) % 2**32, size) == parts
