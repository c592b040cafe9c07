# SPDX-License-Identifier: GPL-2.0-or-later
"""One direction of a TCP flow: its bytes in order from the first one, bounded."""

from typing import Final

from cthelper.core.errors import StreamLost
from cthelper.core.sequence import MODULUS, distance

# Pieces that wait beyond a missing one, each with another missing one before it. Honest
# peers send few; hundreds of one byte each would cost time and memory far beyond what
# they carry.
_HELD: Final = 64
# Segments in a row that lie too far beyond a missing one to wait for it, after which it
# is given up. It may come again after some; one alone may be anybody's.
_PASSED_OVER: Final = 64
# How far behind what was sent an acknowledgment may be (MAXACKWINCONST).
_ACKNOWLEDGED: Final = 66000
# What the objects take in memory besides the bytes: of a stream, and of a piece.
_OBJECT: Final = 200
_PIECE: Final = 200


class Stream:
    """Puts the segments of one direction in order (RFC 9293, section 3.4).

    `begin` says where it begins. `limit`, in bytes, bounds what is held beyond a
    missing segment, in 64 pieces at most, and how far back a repeated segment is
    compared with the first copy. Nothing is delayed: the packets have their verdicts,
    only their bytes wait. `unread` is how many of the latest bytes in order belong to
    a message that is not complete, at most `limit`. `later` and `acknowledges` are
    window.py's: where the direction begins if another SYN counts, which came after its
    own and before further bytes; and what the latest segment that counts acknowledges
    of the other direction.
    """

    __slots__ = (
        "_ahead",
        "_first",
        "_next",
        "_passed_over",
        "_seen",
        "acknowledges",
        "later",
        "limit",
        "unread",
    )

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._first = 0
        self._next: int | None = None
        self._seen = bytearray()
        # Most streams never have any. No two of them touch.
        self._ahead: dict[int, bytes] | None = None
        self._passed_over = 0
        self.unread = 0
        self.acknowledges: int | None = None
        self.later: int | None = None

    def begin(self, start: int) -> None:
        """The first byte has the sequence number `start`; what came before is void."""
        self._first = self._next = start
        self._seen = bytearray()
        self._ahead = None
        self._passed_over = 0
        self.unread = 0
        self.acknowledges = self.later = None

    @property
    def begun(self) -> bool:
        """Whether it is known where the stream begins."""
        return self._next is not None

    @property
    def first(self) -> int:
        """The sequence number of its first byte; 0 before it has begun."""
        return self._first

    @property
    def next(self) -> int:
        """The sequence number of the next byte in order; 0 before it has begun."""
        return self._next or 0

    @property
    def waits(self) -> bool:
        """Whether segments beyond a missing one are held."""
        return bool(self._ahead)

    @property
    def empty(self) -> bool:
        """Whether no byte has come."""
        return self._next in (None, self._first) and not self._ahead

    @property
    def held(self) -> int:
        """Bytes of memory that it takes, about."""
        # It has room for a quarter more.
        size = _OBJECT + len(self._seen) * 5 // 4
        if self._ahead:
            size += sum(map(len, self._ahead.values())) + _PIECE * len(self._ahead)
        return size

    @property
    def tail(self) -> bytes:
        """The bytes that are unread."""
        return bytes(self._seen[-self.unread :]) if self.unread else b""

    def may_acknowledge(self, number: int) -> bool:
        """Whether the other end may say that it has all before sequence `number`.

        Such as it may acknowledge what came, and a FIN (tcp_in_window in
        nf_conntrack_proto_tcp.c, III and IV).
        """
        next_ = self.next
        held = self._ahead or {}
        ahead = max(
            (distance(next_, start) + len(data) for start, data in held.items()),
            default=0,
        )
        return -_ACKNOWLEDGED <= distance(next_, number) <= ahead + 1

    def has_sent(self, number: int) -> bool:
        """Whether it has come to sequence `number` since it began, and no further."""
        return (number - self._first) % MODULUS <= (self.next - self._first) % MODULUS

    def came(self, start: int, size: int) -> list[tuple[int, int]]:
        """Which parts of a segment have come before, as offsets into it.

        `start` is the sequence number of its first byte. What lay too far beyond a
        missing segment is not known any more.
        """
        held = self._ahead or {}
        parts = [(distance(start, first), len(data)) for first, data in held.items()]
        # A segment that begins at the next byte has nothing that lies before it.
        parts.append((0, distance(start, self.next)))
        return [
            (max(0, at), min(size, at + length))
            for at, length in parts
            if at < size and at + length > 0 and length > 0
        ]

    def feed(self, start: int, data: bytes) -> bytes:
        """The bytes that `data` makes available in order; empty: none yet.

        `start` is the sequence number of its first byte. Raises StreamLost where the
        stream cannot be followed; do not feed it again.
        """
        offset = distance(self.next, start)
        # A keepalive probe may carry one byte of garbage below the window
        # (RFC 9293, section 3.8.4): not a repetition with other content.
        if not data or (offset == -1 and len(data) == 1):
            return b""
        if offset > 0:
            self._hold(start, offset, data)
            return b""
        available = self._accept(data, -offset)
        if self._ahead:
            available += self._reached(self._ahead)
        if available:
            self._passed_over = 0
            self.later = None
        return available

    def _hold(self, start: int, offset: int, data: bytes) -> None:
        """Keep `data`, as one piece with those that it overlaps or touches."""
        ahead = self._ahead if self._ahead is not None else {}
        size = len(data)
        touched = []
        for first, held in ahead.items():
            at = distance(start, first)
            if -len(held) <= at <= size:
                low, high = max(0, at), min(size, at + len(held))
                if data[low:high] != held[low - at : high - at]:
                    raise _overlap()
                touched.append((at, first, held))
        if offset + size > self.limit or (not touched and len(ahead) == _HELD):
            self._passed_over += 1
            if self._passed_over > _PASSED_OVER:
                raise StreamLost(
                    "gap", f"{_PASSED_OVER} segments lie far beyond a missing one"
                )
            return
        before = after = b""
        for at, first, held in touched:
            del ahead[first]
            if at < 0:
                start, before = first, held[:-at]
            if at + len(held) > size:
                after = held[size - at :]
        ahead[start] = before + data + after
        self._ahead = ahead

    def _reached(self, ahead: dict[int, bytes]) -> bytes:
        """What the held pieces add that the stream has come to."""
        due = [
            (distance(start, self.next), start)
            for start in ahead
            if distance(start, self.next) >= 0
        ]
        # The first of them first, so that none lies far behind.
        return b"".join(
            self._accept(ahead.pop(start), distance(start, self.next))
            for _, start in sorted(due, reverse=True)
        )

    def _accept(self, data: bytes, repeated: int) -> bytes:
        """Take in `data`, whose first `repeated` bytes lie before the next one."""
        if repeated:
            end = min(repeated, len(data))
            known = bytes(self._seen[max(0, len(self._seen) - repeated) :])
            forgotten = repeated - len(known)
            old = data[min(forgotten, end) : end]
            if old != known[: len(old)]:
                raise _overlap()
        fresh = data[repeated:]
        self._seen += fresh
        if len(self._seen) > self.limit:
            del self._seen[: -self.limit]
        self._next = (self.next + len(fresh)) % MODULUS
        return fresh


def _overlap() -> StreamLost:
    return StreamLost("overlap", "a segment repeats bytes with other content")
