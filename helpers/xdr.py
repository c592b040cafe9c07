# SPDX-License-Identifier: GPL-2.0-or-later
"""XDR (RFC 4506) and the record marking of ONC RPC on TCP (RFC 5531, section 11)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from cthelper.core.api import (
    Cursor,
    Malformed,
    Oversized,
    Rewrite,
    RewriteRefused,
)

_T = TypeVar("_T")

_LAST_FRAGMENT: Final = 0x80000000
_MARK: Final = 4
# Peers send one, or a few. An attacker may send empty ones without end, byte by byte,
# and they are counted anew with each segment.
_FRAGMENT_LIMIT: Final = 64


def read_opaque(cursor: Cursor, limit: int) -> bytes:
    """Variable-length opaque data of at most `limit` bytes, its padding passed over.

    RFC 4506, section 4.10. Raises Malformed.
    """
    length = cursor.u32()
    if length > limit:
        raise _too_large(length, limit)
    data = cursor.take(length)
    if length % 4:
        cursor.skip(-length % 4)
    return data


def read_opaques(cursor: Cursor, count: int, limit: int) -> list[bytes]:
    """So many of them, at less cost than one by one, for lists. Raises Malformed."""
    data, at = cursor.data, cursor.position
    found = []
    for _ in range(count):
        start = at + 4
        length = int.from_bytes(data[at:start])
        if length > limit:
            raise _too_large(length, limit)
        found.append(data[start : start + length])
        at = start + length + -length % 4
    cursor.skip(at - cursor.position)
    return found


def skip_opaque(cursor: Cursor, length: int, limit: int) -> None:
    """Pass over opaque data whose length has been read. Raises Malformed."""
    if length > limit:
        raise _too_large(length, limit)
    if length:
        cursor.skip(length + -length % 4)


def _too_large(length: int, limit: int) -> Malformed:
    return Malformed(f"opaque data of {length} bytes, the limit is {limit}")


def read_string(cursor: Cursor, limit: int) -> str:
    """An ASCII string of at most `limit` bytes (RFC 4506, section 4.11).

    Raises Malformed.
    """
    data = read_opaque(cursor, limit)
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed(f"string {data!r} is not ASCII") from None


def string(text: str) -> bytes:
    """An ASCII string with its length and padding (RFC 4506, section 4.11)."""
    data = text.encode("ascii")
    return len(data).to_bytes(4) + data + bytes(-len(data) % 4)


def read_list(
    cursor: Cursor, read: Callable[[Cursor], _T], limit: int | None = None
) -> Iterator[_T]:
    """The items of a list in which a boolean before each says that it follows.

    RFC 4506, sections 4.4 and 4.19. `read` reads one, when it is asked for. With
    `limit` what comes after so many items is not read; without it the message bounds
    the list: each item takes 4 bytes at least. Raises Malformed, also where what is
    read does not end.
    """
    count = 0
    while count != limit and (follows := cursor.u32()) != 0:
        if follows != 1:
            raise Malformed(f"boolean {follows} in a list")
        yield read(cursor)
        count += 1


def record_length(data: memoryview, limit: int) -> int | None:
    """Bytes that the first record takes, all its fragments and marks; None: need more.

    Raises Oversized where the marks promise more than `limit` bytes, marks included, or
    where there are more than 64 fragments.
    """
    end = 0
    for _ in range(_FRAGMENT_LIMIT):
        if len(data) < end + _MARK:
            return None
        mark = int.from_bytes(data[end : end + _MARK])
        end += _MARK + (mark & ~_LAST_FRAGMENT)
        if end > limit:
            raise Oversized(f"record of {end} bytes or more, the limit is {limit}")
        if mark & _LAST_FRAGMENT:
            return end if end <= len(data) else None
    raise Oversized(f"record of more than {_FRAGMENT_LIMIT} fragments")


def join_record(data: bytes) -> bytes:
    """The record in `data`, which `record_length` has measured, without its marks."""
    return b"".join(data[start:stop] for start, stop in _fragments(data))


def rewrite_record(
    data: bytes, changes: Iterable[tuple[tuple[int, int], bytes]]
) -> Iterator[Rewrite]:
    """What puts other bytes into the record in `data`, its marks being told of lengths.

    Each of `changes` is a span of what `join_record` gives, and the bytes that go in
    its place. Raises RewriteRefused with reason ``fragmented`` where a span is not
    inside one fragment.
    """
    fragments = list(_fragments(data))
    grown = [0] * len(fragments)
    for (start, stop), new in changes:
        before = 0
        for number, (first, last) in enumerate(fragments):
            size = last - first
            if before <= start and stop <= before + size:
                at = first - before
                grown[number] += len(new) - (stop - start)
                yield Rewrite((at + start, at + stop), new)
                break
            before += size
        else:
            raise RewriteRefused("fragmented", "a fragment ends in the announcement")
    for (first, last), more in zip(fragments, grown, strict=True):
        mark = int.from_bytes(data[first - _MARK : first])
        new = ((mark & _LAST_FRAGMENT) + last - first + more).to_bytes(_MARK)
        yield Rewrite((first - _MARK, first), new)


def _fragments(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the fragments of a record are, behind their marks."""
    start = 0
    while start < len(data):
        mark = int.from_bytes(data[start : start + _MARK])
        start += _MARK
        stop = start + (mark & ~_LAST_FRAGMENT)
        yield start, stop
        start = stop
