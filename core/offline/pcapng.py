# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures out: IP packets as pcapng, times in nanoseconds.

draft-ietf-opsawg-pcapng; `cthelper.core.offline.blocks` reads it.
"""

import struct
from io import RawIOBase
from typing import Final

_BLOCK: Final = struct.Struct("<II")
_TOTAL: Final = struct.Struct("<I")
_SECTION: Final = (0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
_RAW: Final = 101
_NANOSECONDS: Final = 9
# if_tsresol, and the end of the options.
_OPTIONS: Final = struct.pack("<HHB3xHH", 9, 1, _NANOSECONDS, 0, 0)
_INTERFACE: Final = (1, struct.pack("<HHI", _RAW, 0, 0) + _OPTIONS)
_ENHANCED: Final = 6
_PACKET: Final = struct.Struct("<5I")


def _block(type_: int, body: bytes) -> bytes:
    length = 12 + len(body) + -len(body) % 4
    padded = body + bytes(-len(body) % 4)
    return _BLOCK.pack(type_, length) + padded + _TOTAL.pack(length)


_HEAD: Final = _block(*_SECTION) + _block(*_INTERFACE)
EMPTY: Final = len(_HEAD)
"""The size of a file without a packet."""


class Writer:
    """Writes packets to a file; `size` is how many bytes it has by now."""

    def __init__(self, file: RawIOBase) -> None:
        """Raises OSError."""
        self.size = 0
        self._file = file
        self._write(_HEAD)

    def packet(self, time: int, data: bytes) -> None:
        """Write an IP packet of `time`, nanoseconds since 1970. Raises OSError."""
        length = len(data)
        head = _PACKET.pack(0, time >> 32, time & 0xFFFFFFFF, length, length)
        self._write(_block(_ENHANCED, head + data))

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self.size += len(data)
