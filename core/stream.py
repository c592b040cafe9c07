# SPDX-License-Identifier: GPL-2.0-or-later
"""One direction of a TCP flow: its bytes in order from the first one, bounded."""

from typing import Final

from cthelper.core.errors import StreamLost
from cthelper.core.sequence import MODULUS, distance

# Segments that wait beyond a missing one. Honest peers send few; thousands of one byte
# each would cost time and memory far beyond what they carry.
_HELD: Final = 256
# Segments in a row that lie too far beyond a missing one to wait for it, after which it
# is given up. It may come again after some; one alone may be anybody's.
_PASSED_OVER: Final = 64
# How far behind what was sent an acknowledgment may be (MAXACKWINCONST).
_ACKNOWLEDGED: Final = 66000


class Stream:
    """Puts the segments of one direction in order (RFC 9293, section 3.4).

    `begin` says where it begins. `limit`, in bytes, bounds what is held beyond a
    missing segment, in 256 segments at most, and how far back a repeated segment is
    compared with the first copy. Nothing is delayed: the packets have their verdicts,
    only their bytes wait. `later` and `acknowledges` are window.py's: where the
    direction begins if another SYN counts, which came after its own and before further
    bytes; and what the latest segment that counts acknowledges of the other direction.
    """

    __slots__ = (
        "_ahead",
        "_first",
        "_limit",
        "_next",
        "_passed_over",
        "_seen",
        "acknowledges",
        "later",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._first = 0
        self._next: int | None = None
        self._seen = bytearray()
        # Most streams never have any.
        self._ahead: dict[int, bytes] | None = None
        self._passed_over = 0
        self.acknowledges: int | None = None
        self.later: int | None = None

    def begin(self, start: int) -> None:
        """The first byte has the sequence number `start`; what came before is void."""
        self._first = self._next = start
        self._seen = bytearray()
        self._ahead = None
        self._passed_over = 0
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
    def empty(self) -> bool:
        """Whether no byte has come."""
        return self._next in (None, self._first) and not self._ahead

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
        while self._ahead and (held := self._held_at_hand(self._ahead)) is not None:
            behind, data = held
            available += self._accept(data, behind)
        if available:
            self._passed_over = 0
            self.later = None
        return available

    def _hold(self, start: int, offset: int, data: bytes) -> None:
        if self._ahead is None:
            self._ahead = {}
        earlier = self._ahead.get(start, b"")
        size = min(len(earlier), len(data))
        if earlier[:size] != data[:size]:
            raise StreamLost("overlap", "a segment repeats bytes with other content")
        if size == len(data):
            return
        held = sum(map(len, self._ahead.values())) - size + len(data)
        if (
            max(offset + len(data), held) > self._limit
            or len(self._ahead) + (not earlier) > _HELD
        ):
            self._passed_over += 1
            if self._passed_over > _PASSED_OVER:
                raise StreamLost(
                    "gap", f"{_PASSED_OVER} segments lie far beyond a missing one"
                )
            return
        self._ahead[start] = data

    def _held_at_hand(self, ahead: dict[int, bytes]) -> tuple[int, bytes] | None:
        """A held segment that lies at the next byte or behind it, and how far."""
        for start in ahead:
            behind = distance(start, self.next)
            if behind >= 0:
                return behind, ahead.pop(start)
        return None

    def _accept(self, data: bytes, repeated: int) -> bytes:
        """Take in `data`, whose first `repeated` bytes lie before the next one."""
        if repeated:
            end = min(repeated, len(data))
            known = bytes(self._seen[max(0, len(self._seen) - repeated) :])
            forgotten = repeated - len(known)
            old = data[min(forgotten, end) : end]
            if old != known[: len(old)]:
                raise StreamLost(
                    "overlap", "a segment repeats bytes with other content"
                )
        fresh = data[repeated:]
        self._seen += fresh
        if len(self._seen) > self._limit:
            del self._seen[: -self._limit]
        self._next = (self.next + len(fresh)) % MODULUS
        return fresh
