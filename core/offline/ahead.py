# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading ahead: what a file or a decompressor gives, in few large pieces.

Who reads looks at `Ahead.data` in place, from `Ahead.at` on, and asks for more when
what is there does not do. Nothing is copied but the part of a record that a piece has
cut off, when the next piece is put behind it.
"""

from collections.abc import Callable
from typing import Final

# Some hundred frames. No more, so that a reader that is stopped ends soon.
_PIECE: Final = 1 << 17


class Source:
    """The bytes that `read` gives, up to its first fault, which is kept.

    `read` takes the most that is wanted and gives at least one byte, or none at the
    end. A fault is one of `faults`; other exceptions pass. `count` is how many bytes
    came.
    """

    def __init__(
        self, read: Callable[[int], bytes], faults: tuple[type[Exception], ...]
    ) -> None:
        self._read = read
        self._faults = faults
        self.count = 0
        self.fault: Exception | None = None

    def read(self, size: int) -> bytes:
        """At most `size` bytes, at least one; none at the end and behind a fault."""
        if self.fault is not None:
            return b""
        try:
            data = self._read(size)
        except self._faults as error:
            self.fault = error
            return b""
        self.count += len(data)
        return data


class Ahead:
    """Bytes of a source that were read but not used yet: `data`, from `at` on.

    Who uses some moves `at` behind them.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        # Bytes of the source before `data`.
        self._before = 0
        self.data = b""
        self.at = 0

    @property
    def offset(self) -> int:
        """How many bytes of the source were used."""
        return self._before + self.at

    def fill(self, size: int) -> bool:
        """Have `size` bytes from `at` on, or more; whether there are so many.

        `data` and `at` are others then. Of a pipe no more is waited for than that.
        """
        missing = size - (len(self.data) - self.at)
        if missing <= 0:
            return True
        # One is put together once, however small the pieces are that a pipe gives.
        pieces = [self.data[self.at :]]
        while missing > 0:
            piece = self._source.read(max(missing, _PIECE))
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        self._before += self.at
        self.data = b"".join(pieces)
        self.at = 0
        return missing <= 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end alone."""
        self.fill(size)
        found = self.data[self.at : self.at + size]
        self.at += len(found)
        return found
