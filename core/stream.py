# SPDX-License-Identifier: GPL-2.0-or-later
"""One direction of a TCP flow: its bytes in order from the first one, bounded."""

from typing import Final

from cthelper.core.errors import StreamLost

_MODULUS: Final = 1 << 32
_HALF: Final = 1 << 31
# Segments that wait beyond a missing one. Honest peers send few; thousands of one byte
# each would cost time and memory far beyond what they carry.
_HELD: Final = 256


class Stream:
    """Puts the segments of one direction in order (RFC 9293, section 3.4).

    The first segment must be the SYN. `limit`, in bytes, bounds what is held beyond a
    missing segment, in 256 segments at most, and how far back a repeated segment is
    compared with the first copy. Nothing is delayed: the packets have their verdicts,
    only their bytes wait.
    """

    __slots__ = ("_ahead", "_first", "_limit", "_next", "_seen")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._first = 0
        self._next: int | None = None
        self._seen = bytearray()
        self._ahead: dict[int, bytes] = {}

    @property
    def next(self) -> int:
        """The sequence number of the next byte in order; 0 before the first one."""
        return self._next or 0

    def feed(self, sequence: int, data: bytes, *, syn: bool) -> bytes:
        """The bytes that `data` makes available in order; empty: none yet.

        Raises StreamLost where the stream cannot be followed; do not feed it again.
        """
        start = (sequence + syn) % _MODULUS
        if self._next is None:
            if not syn:
                raise StreamLost("mid-stream", "first segment seen is not a SYN")
            self._first = self._next = start
        elif syn and start != self._first:
            raise StreamLost("mid-stream", "second SYN with another sequence number")
        offset = self._offset(start, self._next)
        # A keepalive probe may carry one byte of garbage below the window
        # (RFC 9293, section 3.8.4): not a repetition with other content.
        if not data or (offset == -1 and len(data) == 1):
            return b""
        if offset > 0:
            self._hold(start, offset, data)
            return b""
        available = self._accept(data, -offset)
        while (held := self._held_at_hand()) is not None:
            start = held
            data = self._ahead.pop(held)
            available += self._accept(data, -self._offset(start, self._next))
        return available

    def _offset(self, sequence: int, origin: int) -> int:
        """Distance from `origin` to `sequence` in a space of 32 bits, signed."""
        return (sequence - origin + _HALF) % _MODULUS - _HALF

    def _hold(self, start: int, offset: int, data: bytes) -> None:
        earlier = self._ahead.get(start, b"")
        size = min(len(earlier), len(data))
        if earlier[:size] != data[:size]:
            raise StreamLost("overlap", "a segment repeats bytes with other content")
        if len(data) > len(earlier):
            self._ahead[start] = data
        held = sum(len(segment) for segment in self._ahead.values())
        if (
            offset + len(data) > self._limit
            or held > self._limit
            or len(self._ahead) > _HELD
        ):
            raise StreamLost("gap", f"{held} bytes wait beyond a missing segment")

    def _held_at_hand(self) -> int | None:
        assert self._next is not None  # noqa: S101 - feed() has set it
        for start in self._ahead:
            if self._offset(start, self._next) <= 0:
                return start
        return None

    def _accept(self, data: bytes, repeated: int) -> bytes:
        """Take in `data`, whose first `repeated` bytes lie before the next one."""
        assert self._next is not None  # noqa: S101 - feed() has set it
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
        self._next = (self._next + len(fresh)) % _MODULUS
        return fresh
