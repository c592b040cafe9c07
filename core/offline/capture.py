# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures in: frames of a pcap or pcapng file, and where the IP packet in each begins.

scapy's raw readers read the records, and nothing is dissected. The formats are those of
draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng, the link types those of
https://www.tcpdump.org/linktypes.html. Files may be packed with gzip, and with zstd
where Python has it (3.14) or the package backports.zstd is there. The first bytes
decide, not the file's name.

A file that is cut short or damaged gives the frames before the damage and one warning
that says where it is. A frame that the capturing program cut (snap length) comes as it
is, as it still shows that its flow exists; a parser will find it truncated, and the
first such frame is worth one warning, since helpers need whole messages.
"""

import gzip
import importlib
import io
import logging
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapNgReader, RawPcapReader

from cthelper.core.errors import CaptureError, pip_install

Frame = tuple[int, float, bytes, int]
"""Number (from 1), seconds since the first frame, bytes, offset of the IP header.

Behind the IP packet there may be padding or a trailer of the link layer. Of a frame of
NFLOG there is the packet alone.
"""

STDIN: Final = Path("-")
"""Standard input; `find_captures` means a file of that name by its absolute path."""

# Its annotations allow a name only; it takes whatever can read().
_READER: Final[Any] = RawPcapReader

Offset = Callable[[bytes], int | None]

# scapy reports damage through this logger, several times or never, and without the
# place; Capture says it once.
logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

ZSTD: Final = "backports.zstd"
"""The package that reads zstd where Python itself does not."""

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_PCAP: Final = frozenset(
    {b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1"}
)
_PCAPNG: Final = b"\x0a\x0d\x0d\x0a"
_MAGIC: Final = 4
_PCAP_HEADER: Final = 24
_RECORD_HEADER: Final = 16
# libpcap keeps the length of a frame check sequence above these bits.
_LINK_TYPE: Final = 0x03FFFFFF
# scapy reads at most this much of a frame (libpcap's MAXIMUM_SNAPLEN is 4 more). Its
# default of 65535 would cut a whole IP packet behind an Ethernet header.
_LARGEST_FRAME: Final = 4 * 0xFFFF
# As Wireshark has it.
_LARGEST_BLOCK: Final = 1 << 24
_CHUNK: Final = 1 << 16
_NANOSECONDS: Final = 1_000_000_000

_IF_TSOFFSET: Final = 14
_PACKET_BLOCKS: Final = frozenset({2, 3, 6})
_INTERFACE_BLOCK: Final = 1
_INTERFACE_HEADER: Final = 8

_IP: Final = frozenset({b"\x08\x00", b"\x86\xdd"})
_VLAN: Final = frozenset({b"\x81\x00", b"\x88\xa8", b"\x91\x00"})
_PPPOE: Final = b"\x88\x64"
_PPP_IP: Final = frozenset({b"\x00\x21", b"\x00\x57"})
# Of one byte where the link has agreed on it (RFC 1661, section 6.5).
_PPP_IP_SHORT: Final = frozenset({b"\x21", b"\x57"})
# Address and control of PPP in HDLC-like framing (RFC 1662, section 3.1), which a link
# may agree to leave out, and of Cisco's framing, unicast and multicast, where an
# EtherType follows.
_PPP_FRAMED: Final = b"\xff\x03"
_CISCO_FRAMED: Final = frozenset({b"\x0f\x00", b"\x8f\x00"})

_NFLOG: Final = 239
_NFLOG_HEADER: Final = 4
# NFULA_PAYLOAD (linux/netfilter/nfnetlink_log.h).
_NFLOG_PAYLOAD: Final = 9
# AF_INET and AF_INET6 of Linux: whatever hook of a table ip, ip6 or inet logs.
_NFLOG_IP: Final = frozenset({b"\x02", b"\x0a"})
_IPV6_HEADER: Final = 40
# AF_INET of all systems; AF_INET6 of Linux, NetBSD, FreeBSD and macOS.
_FAMILIES: Final = frozenset(
    family.to_bytes(4, order)
    for family in (2, 10, 24, 28, 30)
    for order in ("little", "big")
)


def _behind_type(frame: bytes, at: int) -> int | None:
    """The offset of the IP header, where an EtherType is at `at`."""
    kind = frame[at : at + 2]
    while kind in _VLAN:
        at += 4
        kind = frame[at : at + 2]
    if kind in _IP:
        return at + 2
    if kind == _PPPOE and frame[at + 8 : at + 10] in _PPP_IP:
        return at + 10
    return None


def _ethernet(frame: bytes) -> int | None:
    return 14 if frame[12:14] in _IP else _behind_type(frame, 12)


def _cooked(frame: bytes) -> int | None:
    return 16 if frame[14:16] in _IP else _behind_type(frame, 14)


def _cooked2(frame: bytes) -> int | None:
    # The type comes first here; what it says begins behind the whole header.
    if frame[:2] in _IP:
        return 20
    if frame[:2] in _VLAN:
        return _behind_type(frame, 22)
    if frame[:2] == _PPPOE and frame[26:28] in _PPP_IP:
        return 28
    return None


def _raw(frame: bytes) -> int | None:
    return 0 if frame and frame[0] >> 4 in (4, 6) else None


def _ppp(frame: bytes, at: int = 0) -> int | None:
    """The offset of the IP header, where PPP begins at `at`."""
    if frame[at : at + 2] == _PPP_FRAMED:
        at += 2
    if frame[at : at + 2] in _PPP_IP:
        return at + 2
    return at + 1 if frame[at : at + 1] in _PPP_IP_SHORT else None


def _ppp_hdlc(frame: bytes) -> int | None:
    return _behind_type(frame, 2) if frame[:2] in _CISCO_FRAMED else _ppp(frame)


def _ppp_ether(frame: bytes) -> int | None:
    # Six bytes of PPPoE (RFC 2516, section 4); code 0 is a session's.
    return _ppp(frame, 6) if frame[1:2] == b"\0" else None


def _nflog(frame: bytes, order: str) -> tuple[bytes, int]:
    """The IP packet that was logged, and its length before a snaplen cut it.

    Nothing where it holds none. Lengths and types are in the file's byte order. The
    kernel gives the packet from its network header on
    (__build_packet_message in net/netfilter/nfnetlink_log.c).
    """
    at = _NFLOG_HEADER
    while frame[:1] in _NFLOG_IP and at + 4 <= len(frame):
        length, kind = struct.unpack_from(order + "HH", frame, at)
        if length < 4:
            break
        if kind == _NFLOG_PAYLOAD:
            # What pads it must not make up for what was cut.
            packet = frame[at + 4 : at + length]
            return packet, max(len(packet), _said_length(packet))
        at += length + -length % 4
    return b"", 0


def _said_length(packet: bytes) -> int:
    """How long the packet is by its IP header."""
    if _raw(packet) is None:
        return 0
    if packet[0] >> 4 == 4:
        return int.from_bytes(packet[2:4])
    return _IPV6_HEADER + int.from_bytes(packet[4:6])


def _loopback(frame: bytes) -> int | None:
    # Its byte order is the capturing machine's (NULL) or the network's (LOOP).
    return 4 if frame[:4] in _FAMILIES else None


_OFFSETS: Final[dict[int, Offset]] = {
    0: _loopback,
    1: _ethernet,
    9: _ppp,
    12: _raw,
    14: _raw,
    50: _ppp_hdlc,
    51: _ppp_ether,
    101: _raw,
    108: _loopback,
    113: _cooked,
    228: _raw,
    229: _raw,
    _NFLOG: _raw,
    276: _cooked2,
}


class _Source(io.RawIOBase):
    """The bytes that `read` gives, up to its first fault, which is kept.

    A BufferedReader on top is C; only its refills come here. Python's own readers of
    packed files lose what they had unpacked when they meet the fault. The first refill
    holds a magic number whole, however slowly it comes.
    """

    def __init__(
        self, read: Callable[[int], bytes], faults: tuple[type[Exception], ...]
    ) -> None:
        self._read = read
        self._faults = faults
        self.count = 0
        self.fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.count

    def readinto(self, buffer: Any) -> int:
        if self.fault is not None:
            return 0
        try:
            data = self._read(len(buffer))
            while self.count == 0 and 0 < len(data) < _MAGIC:
                more = self._read(len(buffer) - len(data))
                if not more:
                    break
                data += more
        except self._faults as error:
            self.fault = error
            return 0
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class _Bounded:
    """What scapy's pcapng reader reads from: it believes every length it meets."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.offset = 0

    def read(self, size: int) -> bytes:
        if size > _LARGEST_BLOCK:
            raise EOFError
        data = self._read(size)
        self.offset += len(data)
        return data


class _Clock:
    """How one interface of a pcapng file counts time.

    `resolution` is in ticks a second, `offset` in nanoseconds.
    """

    __slots__ = ("offset", "resolution")

    def __init__(self, resolution: int, seconds: int) -> None:
        self.resolution = resolution
        self.offset = seconds * _NANOSECONDS


class _Blocks(RawPcapNgReader):
    """scapy's pcapng reader without its faults (2.8.0)."""

    def __init__(self, filename: Any, fdesc: Any = None, magic: Any = None) -> None:
        self.source: _Bounded = fdesc
        super().__init__(filename, fdesc, magic)
        # Secrets and process information say nothing about frames, but may be damaged,
        # and the secrets would become scapy's own configuration.
        for kind in set(self.blocktypes) - _PACKET_BLOCKS - {_INTERFACE_BLOCK}:
            del self.blocktypes[kind]

    def _read_block_shb(self) -> None:
        # Interfaces belong to their section; scapy counts on.
        self.interfaces = []
        super()._read_block_shb()

    def _read_block_idb(self, block: bytes, size: int) -> None:
        # The end of the options may be left out; scapy 2.6 then drops the last one.
        if len(block) >= _INTERFACE_HEADER:
            block += bytes(4)
        super()._read_block_idb(block, size)
        link, snaplen, options = self.interfaces[-1]
        offset = self._read_options(block[_INTERFACE_HEADER:]).get(_IF_TSOFFSET, b"")
        seconds = 0
        if isinstance(offset, bytes) and len(offset) == 8:
            (seconds,) = struct.unpack(self.endian + "q", offset)
        # scapy knows no offset, but hands out the resolution as it finds it here.
        clock = _Clock(options["tsresol"], seconds)
        # 0 is no limit; scapy would give simple packets no bytes.
        self.interfaces[-1] = (link, snaplen or 0xFFFFFFFF, {"tsresol": clock})

    def _check_interface_id(self, intid: int) -> bool:
        # scapy passes over the packet, and the later ones would have wrong numbers.
        if intid >= len(self.interfaces):
            raise EOFError
        return True


class Capture:
    """The frames of one capture file, once; a context manager.

    `frames` is how many were read so far, and `position` of `size` bytes of the file on
    disk (0 where it is a pipe). `warn` gets lines about damage, frames cut by the snap
    length and unknown link types, at most one of each kind.

    Times are seconds since the file's first frame, exact to the microsecond (and as
    good as a float is beyond); negative for a frame that claims to be earlier. A simple
    packet block has no time and gets that of the frame before it. `begin` is when the
    first frame came, in nanoseconds since 1970 (0 before it is read).

    STDIN is read as it comes. What is at the other end of `stop` ends the capture, also
    while nothing comes, by closing it; the frames that are read already still follow.
    """

    def __init__(
        self,
        path: Path,
        *,
        warn: Callable[[str], None],
        stop: Connection | None = None,
    ) -> None:
        """Raises CaptureError where the file cannot be opened or is no capture."""
        self.frames = 0
        self.begin = 0
        self._path = path
        self._warn = warn
        self._stop = stop
        self._stopped = False
        self._cut = False
        self._unknown = False
        if path == STDIN and sys.__stdin__ is None:
            # By now its number may be that of something else.
            raise CaptureError("-: standard input is closed")
        try:
            self._file = io.FileIO(0 if path == STDIN else path, closefd=path != STDIN)
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}") from None
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            if path == STDIN and self._file.isatty():
                raise CaptureError("-: standard input is a terminal, not a capture")
            self._disk = _Source(self._read, (OSError,))
            self._sources = [self._disk]
            self._stream = io.BufferedReader(self._disk, _CHUNK)
            self._unpack()
            self._records = self._open()
        except BaseException:
            self.close()
            raise

    @property
    def position(self) -> int:
        """Bytes of the file on disk that were read so far."""
        return self._disk.count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self._records

    def close(self) -> None:
        """Close the file; there are no frames after that."""
        self._file.close()

    def _read(self, size: int) -> bytes:
        if self._stop is not None:
            self._stopped = self._stop in wait([self._file.fileno(), self._stop])
            if self._stopped:
                return b""
        return self._file.read(size) or b""

    def _unpack(self) -> None:
        magic = self._stream.peek(_MAGIC)[:_MAGIC]
        if magic.startswith(_GZIP):
            file = gzip.GzipFile(fileobj=self._stream, mode="rb")
            unpacked = _Source(file.read1, (EOFError, OSError, zlib.error))
        elif magic == _ZSTD:
            zstd = self._zstd()
            file = zstd.ZstdFile(self._stream)
            unpacked = _Source(file.read1, (EOFError, OSError, zstd.ZstdError))
        else:
            return
        self._sources.append(unpacked)
        self._stream = io.BufferedReader(unpacked, _CHUNK)

    def _zstd(self) -> Any:
        """Python's module, or the one that older Pythons can have."""
        for name in ("compression.zstd", ZSTD):
            with suppress(ImportError):
                return importlib.import_module(name)
        raise CaptureError(
            f"{self._path}: packed with zstd, and {ZSTD} is not installed: "
            f"{pip_install(ZSTD)}"
        )

    def _open(self) -> Iterator[Frame]:
        magic = self._stream.peek(_MAGIC)[:_MAGIC]
        try:
            if magic in _PCAP:
                return self._pcap(_READER(self._stream))
            if magic == _PCAPNG:
                return self._pcapng(_Blocks(_Bounded(self._stream.read)))
        except Scapy_Exception:
            if self._stopped:
                return iter(())
            raise CaptureError(f"{self._path}: broken within the file header") from None
        if self._stopped:
            return iter(())
        # The fault of a packed file shows only where its bytes are asked for.
        self._stream.read(_MAGIC)
        if (fault := self._fault()) is not None:
            raise CaptureError(f"{self._path}: {fault}")
        raise CaptureError(f"{self._path}: not a pcap or pcapng file")

    def _pcap(self, reader: Any) -> Iterator[Frame]:
        link = reader.linktype & _LINK_TYPE
        offset = _OFFSETS.get(link)
        resolution = _NANOSECONDS if reader.nano else 1_000_000
        read = reader._read_packet
        number = first = 0
        end = _PCAP_HEADER
        while True:
            try:
                frame, (seconds, fraction, length, captured) = read(_LARGEST_FRAME)
            except EOFError:
                if self._stream.tell() != end or self._fault() is not None:
                    self._broken(end, "the file ends within a record's header")
                return
            if len(frame) != captured:
                # scapy hands out the part that it got.
                if captured > _LARGEST_FRAME:
                    why = f"a frame of {captured} bytes is over {_LARGEST_FRAME}"
                else:
                    why = f"the file ends after {len(frame)} of {captured} bytes"
                self._broken(end, why)
                return
            end += _RECORD_HEADER + captured
            number += 1
            self.frames = number
            ticks = seconds * resolution + fraction
            if number == 1:
                first = ticks
                self.begin = ticks * (_NANOSECONDS // resolution)
            if offset is None:
                self._note_unknown(link)
                continue
            if link == _NFLOG:
                frame, length = _nflog(frame, reader.endian)
                captured = len(frame)
            start = offset(frame)
            if start is not None and start < captured:
                if captured < length:
                    self._note_cut(captured, length)
                yield number, (ticks - first) / resolution, frame, start

    def _pcapng(self, reader: Any) -> Iterator[Frame]:
        offsets = _OFFSETS
        # By blocks, not by packets: damage is said to be where its block begins.
        source, read = reader.source, reader._read_block
        number = first = now = 0
        while True:
            begin = source.offset
            try:
                record = read(_LARGEST_FRAME)
            except (EOFError, Scapy_Exception):
                if source.offset != begin or self._fault() is not None:
                    why = "a block that is cut short or not valid begins there"
                    self._broken(begin, why)
                return
            if record is None:
                continue
            frame, (link, clock, high, low, length, *_) = record
            number += 1
            self.frames = number
            if high is not None:
                ticks = high << 32 | low
                now = ticks * _NANOSECONDS // clock.resolution + clock.offset
            if number == 1:
                self.begin = first = now
            offset = offsets.get(link)
            if offset is None:
                self._note_unknown(link)
                continue
            if link == _NFLOG:
                frame, length = _nflog(frame, reader.endian)
            start = offset(frame)
            if start is not None and start < len(frame):
                if len(frame) < length:
                    self._note_cut(len(frame), length)
                yield number, (now - first) / _NANOSECONDS, frame, start

    def _fault(self) -> Exception | None:
        """What the disk or the packing has to say, the disk first."""
        return next((each.fault for each in self._sources if each.fault), None)

    def _broken(self, offset: int, why: str) -> None:
        if self._stopped:
            return
        packed = " of what is packed in it" if len(self._sources) > 1 else ""
        self._warn(
            f"{self._path}: broken after frame {self.frames}, at byte {offset}"
            f"{packed}: {self._fault() or why}"
        )

    def _note_unknown(self, link: int) -> None:
        if not self._unknown:
            self._unknown = True
            self._warn(
                f"{self._path}: frame {self.frames} has link type {link}, which is not "
                "known; such frames are passed over"
            )

    def _note_cut(self, captured: int, length: int) -> None:
        if not self._cut:
            self._cut = True
            self._warn(
                f"{self._path}: frame {self.frames} was cut to {captured} of {length} "
                "bytes when it was captured (snap length); helpers need whole frames"
            )
