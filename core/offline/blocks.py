# SPDX-License-Identifier: GPL-2.0-or-later
"""The formats of captures: pcap, and pcapng of any number of sections.

draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. Of pcapng the blocks that hold a
frame are read (enhanced, simple, and the obsolete packet block), and those that these
need (section header, interface description); others are passed over.

A reader gives frames by the batch, as many as the piece of the file that was read ahead
holds whole: those of a file some hundred at a time, those of a pipe as they come.
"""

import struct
from typing import Final, Protocol

from cthelper.core.offline.ahead import Ahead
from cthelper.core.offline.linktypes import (
    ETHERNET,
    FINDERS,
    IP,
    NFLOG,
    logged,
    nowhere,
    said_length,
)

Place = tuple[int, float, int, int, int]
"""Of a frame in a batch: its number in the capture (from 1), seconds since the first
frame, where it begins, where its IP header is, and where it ends."""

PCAP: Final = frozenset(
    {b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1"}
)
"""What a pcap file may begin with: either byte order, micro- or nanoseconds."""
PCAPNG: Final = b"\x0a\x0d\x0d\x0a"
"""What a pcapng file begins with, and the type of a section header."""

_BIG: Final = frozenset({b"\xa1\xb2\xc3\xd4", b"\xa1\xb2\x3c\x4d"})
_NANO: Final = frozenset({b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1"})
_PCAP_HEADER: Final = 24
_LINK_TYPE_AT: Final = 20
# libpcap keeps the length of a frame check sequence above these bits.
_LINK_TYPE: Final = 0x03FFFFFF
_RECORD_HEADER: Final = 16
# libpcap's MAXIMUM_SNAPLEN is 4 more.
_LARGEST_FRAME: Final = 4 * 0xFFFF

# As Wireshark has it.
_LARGEST_BLOCK: Final = 1 << 24
# Type, length, and the length again at the end.
_BLOCK_AROUND: Final = 12
_BODY_AT: Final = 8
_TAIL: Final = 4
_SECTION: Final = int.from_bytes(PCAPNG, "big")
_SECTION_SIZE: Final = 28
_MAJOR: Final = 1
_BIG_SECTION: Final = b"\x1a\x2b\x3c\x4d"
_LITTLE_SECTION: Final = b"\x4d\x3c\x2b\x1a"
_INTERFACE: Final = 1
_INTERFACE_SIZE: Final = 8
_OBSOLETE: Final = 2
_SIMPLE: Final = 3
_SIMPLE_SIZE: Final = 4
_ENHANCED: Final = 6
_PACKET_SIZE: Final = 20
_OPTION_HEADER: Final = 4
_NO_LIMIT: Final = 0xFFFFFFFF
_IF_TSRESOL: Final = 9
_IF_TSOFFSET: Final = 14

_MICROSECONDS: Final = 1_000_000
_NANOSECONDS: Final = 1_000_000_000


class Batch:
    """Frames with an IP packet in a piece of a capture, in their order.

    They stand in `data`, each at its place. `at` is the index of the next one to be
    looked at. Behind an IP packet there may be padding or a trailer of the link layer.
    Of NFLOG a frame is the packet alone.
    """

    def __init__(self, data: bytes, places: list[Place]) -> None:
        self.data = data
        self.places = places
        self.at = 0


def single(number: int, time: float, frame: bytes, start: int) -> Batch:
    """A batch of one frame, whose IP header is at `start`."""
    return Batch(frame, [(number, time, 0, start, len(frame))])


class Notes(Protocol):
    """Who is told of what is wrong with a capture, before the frame or at the end."""

    def ended(self, rest: int, offset: int, why: str) -> None:
        """There is no more at this byte but `rest` bytes; if any, this is `why`."""

    def broken(self, offset: int, why: str) -> None:
        """It cannot be read from this byte on."""

    def unknown(self, frame: int, link: int) -> None:
        """The first frame of a link type that is not known."""

    def cut(self, frame: int, captured: int, length: int) -> None:
        """The first frame of which only a part was captured."""


class Format:
    """The frames of one capture, whatever its format.

    `number` counts all of them, those without an IP packet, too; `first` is when the
    first one came, in nanoseconds since 1970.
    """

    def __init__(self, ahead: Ahead, notes: Notes) -> None:
        self.number = 0
        self.first = 0
        self._ahead = ahead
        self._notes = notes
        self._told_unknown = False
        self._told_cut = False

    def read(self) -> Batch | None:
        """The next frames; None where the file has no more, or is broken there.

        A batch may be empty: its frames hold no IP packet. It ends before a frame that
        `Notes` are told of, so that what is before it has been seen by then.
        """
        raise NotImplementedError

    def _ended(self, why: str) -> None:
        ahead = self._ahead
        self._notes.ended(len(ahead.data) - ahead.at, ahead.offset, why)


class Pcap(Format):
    """The frames of a pcap file."""

    def __init__(self, ahead: Ahead, notes: Notes) -> None:
        """Raises EOFError where the file ends within its header."""
        super().__init__(ahead, notes)
        if not ahead.fill(_PCAP_HEADER):
            raise EOFError
        magic = ahead.data[ahead.at : ahead.at + len(PCAPNG)]
        self._order = ">" if magic in _BIG else "<"
        self._resolution = _NANOSECONDS if magic in _NANO else _MICROSECONDS
        (link,) = struct.unpack_from(
            self._order + "I", ahead.data, ahead.at + _LINK_TYPE_AT
        )
        self._link: int = link & _LINK_TYPE
        self._record = struct.Struct(self._order + "4I")
        self._first_ticks = 0
        ahead.at += _PCAP_HEADER

    def read(self) -> Batch | None:
        """The next frames; None where the file has no more, or is broken there."""
        ahead = self._ahead
        if not ahead.fill(_RECORD_HEADER):
            self._ended("the file ends within a record's header")
            return None
        captured: int = self._record.unpack_from(ahead.data, ahead.at)[2]
        if captured > _LARGEST_FRAME:
            why = f"a frame of {captured} bytes is over {_LARGEST_FRAME}"
            self._notes.broken(ahead.offset, why)
            return None
        if not ahead.fill(_RECORD_HEADER + captured):
            there = len(ahead.data) - ahead.at - _RECORD_HEADER
            self._ended(f"the file ends after {there} of {captured} bytes")
            return None
        return self._batch()

    def _batch(self) -> Batch:
        """Of the records that are there whole: the first one and what follows."""
        data, at = self._ahead.data, self._ahead.at
        began, end = at, len(data)
        unpack = self._record.unpack_from
        link, resolution = self._link, self._resolution
        number, first = self.number, self._first_ticks
        finder = FINDERS.get(link, nowhere)
        if finder is nowhere and not self._told_unknown:
            self._told_unknown = True
            self._notes.unknown(number + 1, link)
        places: list[Place] = []
        seconds: int
        fraction: int
        captured: int
        length: int
        while at + _RECORD_HEADER <= end:
            seconds, fraction, captured, length = unpack(data, at)
            begin = at + _RECORD_HEADER
            stop = behind = begin + captured
            if behind > end or captured > _LARGEST_FRAME:
                break
            ticks = seconds * resolution + fraction
            if number == 0:
                first = self._first_ticks = ticks
                self.first = ticks * (_NANOSECONDS // resolution)
            if link == ETHERNET and data[begin + 12 : begin + 14] in IP:
                # Most frames; where it stands beyond a short one, so does the packet.
                start = begin + 14
            else:
                if link == NFLOG:
                    begin, stop = logged(data, begin, stop, self._order)
                    length = max(stop - begin, said_length(data, begin, stop))
                start = finder(data, begin, stop)
            if 0 <= start < stop:
                if length > stop - begin and not self._told_cut:
                    if at > began:
                        break
                    self._told_cut = True
                    self._notes.cut(number + 1, stop - begin, length)
                time = (ticks - first) / resolution
                places.append((number + 1, time, begin, start, stop))
            number += 1
            at = behind
        self.number = number
        self._ahead.at = at
        return Batch(data, places)


class _Interface:
    """What an interface of a pcapng file says of its frames.

    `resolution` is in ticks a second, `offset` in nanoseconds. `factor` is the
    nanoseconds of a tick, 0 where these are no whole number.
    """

    def __init__(self, link: int, snaplen: int) -> None:
        self.link = link
        self.finder = FINDERS.get(link, nowhere)
        # 0 is no limit.
        self.snaplen = snaplen or _NO_LIMIT
        self.offset = 0
        self.tick(_MICROSECONDS)

    def tick(self, resolution: int) -> None:
        """It counts so many ticks a second."""
        self.resolution = resolution
        whole = _NANOSECONDS % resolution == 0
        self.factor = _NANOSECONDS // resolution if whole else 0


class Pcapng(Format):
    """The frames of a pcapng file."""

    def __init__(self, ahead: Ahead, notes: Notes) -> None:
        """Raises EOFError where the first section header is cut short or not valid."""
        super().__init__(ahead, notes)
        self._order = "<"
        # Interfaces belong to their section.
        self._interfaces: list[_Interface] = []
        self._now = 0
        if not self._section():
            raise EOFError

    def read(self) -> Batch | None:
        """The next frames; None where the file has no more, or is broken there."""
        ahead = self._ahead
        broken = "a block that is cut short or not valid begins there"
        while ahead.fill(_BODY_AT):
            kind, length = self._head.unpack_from(ahead.data, ahead.at)
            if kind != _SECTION:
                size = length + -length % 4 if _is_length(length) else 0
                batch = self._batch() if size and ahead.fill(size) else None
                if batch is None:
                    self._notes.broken(ahead.offset, broken)
                return batch
            if not self._section():
                self._notes.broken(ahead.offset, broken)
                return None
        self._ended(broken)
        return None

    def _section(self) -> bool:
        """Read a section's header; whether it is one."""
        ahead = self._ahead
        if not ahead.fill(_BLOCK_AROUND):
            return False
        magic = ahead.data[ahead.at + 8 : ahead.at + 12]
        if magic not in (_BIG_SECTION, _LITTLE_SECTION):
            return False
        order = ">" if magic == _BIG_SECTION else "<"
        (length,) = struct.unpack_from(order + "I", ahead.data, ahead.at + 4)
        size = length + -length % 4
        if length < _SECTION_SIZE or not _is_length(length) or not ahead.fill(size):
            return False
        data, at = ahead.data, ahead.at
        (major,) = struct.unpack_from(order + "H", data, at + 12)
        if major != _MAJOR or data[at + size - 4 : at + size] != data[at + 4 : at + 8]:
            return False
        self._order = order
        self._head = struct.Struct(order + "II")
        self._packet = struct.Struct(order + "5I")
        self._old_packet = struct.Struct(order + "HH4I")
        self._word = struct.Struct(order + "I")
        self._interfaces = []
        ahead.at += size
        return True

    def _batch(self) -> Batch | None:
        """Of the blocks that are there whole; None: the first one is not valid."""
        data, at = self._ahead.data, self._ahead.at
        began, end = at, len(data)
        head, packet = self._head.unpack_from, self._packet.unpack_from
        interfaces = self._interfaces
        number, first, now = self.number, self.first, self._now
        places: list[Place] = []
        kind: int
        size: int
        on: int
        high: int
        low: int
        captured: int
        length: int
        while at + _BODY_AT <= end:
            kind, size = head(data, at)
            behind = at + size + -size % 4
            if kind == _SECTION or not _is_length(size) or behind > end:
                break
            if data[behind - _TAIL : behind] != data[at + 4 : at + 8]:
                break
            stop = at + size - _TAIL
            begin = at + _BODY_AT + _PACKET_SIZE
            timed = True
            if kind == _ENHANCED:
                if begin > stop:
                    break
                on, high, low, captured, length = packet(data, at + _BODY_AT)
            elif kind == _SIMPLE:
                begin = at + _BODY_AT + _SIMPLE_SIZE
                if begin > stop or not interfaces:
                    break
                on = 0
                (length,) = self._word.unpack_from(data, at + _BODY_AT)
                captured = min(length, interfaces[0].snaplen)
                timed = False
            elif kind == _OBSOLETE:
                if begin > stop:
                    break
                on, _, high, low, captured, length = self._old_packet.unpack_from(
                    data, at + _BODY_AT
                )
            else:
                if kind == _INTERFACE and not self._describe(data, at + _BODY_AT, stop):
                    break
                at = behind
                continue
            if on >= len(interfaces):
                break
            interface = interfaces[on]
            link = interface.link
            if interface.finder is nowhere and not self._told_unknown:
                if at > began:
                    break
                self._told_unknown = True
                self._notes.unknown(number + 1, link)
            if timed:
                ticks = high << 32 | low
                if interface.factor:
                    now = ticks * interface.factor + interface.offset
                else:
                    now = ticks * _NANOSECONDS // interface.resolution
                    now += interface.offset
            if number == 0:
                first = self.first = now
            # What is not there, or more than any frame has, was not captured.
            stop = min(stop, begin + min(captured, _LARGEST_FRAME))
            if link == ETHERNET and data[begin + 12 : begin + 14] in IP:
                start = begin + 14
            else:
                if link == NFLOG:
                    begin, stop = logged(data, begin, stop, self._order)
                    length = max(stop - begin, said_length(data, begin, stop))
                start = interface.finder(data, begin, stop)
            if 0 <= start < stop:
                if length > stop - begin and not self._told_cut:
                    if at > began:
                        break
                    self._told_cut = True
                    self._notes.cut(number + 1, stop - begin, length)
                time = (now - first) / _NANOSECONDS
                places.append((number + 1, time, begin, start, stop))
            number += 1
            at = behind
        if at == began:
            return None
        self.number = number
        self._now = now
        self._ahead.at = at
        return Batch(data, places)

    def _describe(self, data: bytes, at: int, stop: int) -> bool:
        """Read an interface description between `at` and `stop`; whether it is one."""
        if at + _INTERFACE_SIZE > stop:
            return False
        link, snaplen = struct.unpack_from(self._order + "HxxI", data, at)
        interface = _Interface(link, snaplen)
        at += _INTERFACE_SIZE
        while at + _OPTION_HEADER <= stop:
            code, size = struct.unpack_from(self._order + "HH", data, at)
            at += _OPTION_HEADER
            # The end of the options may be left out.
            if code == 0 or at + size > stop:
                break
            if code == _IF_TSRESOL and size == 1:
                exponent = data[at] & 0x7F
                interface.tick((2 if data[at] & 0x80 else 10) ** exponent)
            elif code == _IF_TSOFFSET and size == 8:
                (seconds,) = struct.unpack_from(self._order + "q", data, at)
                interface.offset = seconds * _NANOSECONDS
            at += size + -size % 4
        self._interfaces.append(interface)
        return True


def _is_length(length: int) -> bool:
    """Whether a block may have it."""
    return _BLOCK_AROUND <= length <= _BLOCK_AROUND + _LARGEST_BLOCK
