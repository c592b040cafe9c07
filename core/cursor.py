# SPDX-License-Identifier: GPL-2.0-or-later
"""Bounded reading of network-order bytes."""

import struct
from typing import Final

from cthelper.core.errors import Truncated

# Of so many integers as messages have in a row.
_WORDS: Final = tuple(struct.Struct(f"!{count}I") for count in range(9))


class Cursor:
    """Reads forward through one message and never past its end.

    Every read raises Truncated where the bytes do not suffice, and then has read
    nothing. `data` is the message, `position` where the next byte to be read is in it.
    """

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    @property
    def remaining(self) -> int:
        """Number of bytes that are left."""
        return len(self.data) - self.position

    def take(self, length: int) -> bytes:
        """The next `length` bytes, 0 or more."""
        start = self.position
        stop = start + length
        if not start <= stop <= len(self.data):
            raise Truncated(
                f"{length} bytes wanted at offset {start}, {self.remaining} are left"
            )
        self.position = stop
        return self.data[start:stop]

    def skip(self, length: int) -> None:
        """Pass over `length` bytes, 0 or more."""
        self.take(length)

    def u8(self) -> int:
        """The next byte as an unsigned integer."""
        return self.take(1)[0]

    def u16(self) -> int:
        """The next 2 bytes as an unsigned integer."""
        return int.from_bytes(self.take(2))

    def u32s(self, count: int) -> tuple[int, ...]:
        """The next unsigned integers of 4 bytes, at less cost than one by one."""
        start = self.position
        if start + 4 * count > len(self.data):
            self.take(4 * count)  # says what is missing
        self.position = start + 4 * count
        words = _WORDS[count] if count < len(_WORDS) else struct.Struct(f"!{count}I")
        return words.unpack_from(self.data, start)

    def u32(self) -> int:
        """The next 4 bytes as an unsigned integer."""
        start = self.position
        if start + 4 > len(self.data):
            self.take(4)  # says what is missing
        self.position = start + 4
        return int.from_bytes(self.data[start : start + 4])
