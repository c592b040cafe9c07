# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures in: frames of a pcap or pcapng file, and where the IP packet in each begins.

`cthelper.core.offline.blocks` has the formats, `cthelper.core.offline.linktypes` the
link layers. Files may be packed with gzip, and with zstd where Python has it (3.14) or
the package backports.zstd is there. The first bytes decide, not the file's name.

A file that is cut short or damaged gives the frames before the damage and one warning
that says where it is. A frame that the capturing program cut (snap length) comes as it
is, as it still shows that its flow exists; a parser will find it truncated, and the
first such frame is worth one warning, since helpers need whole messages.
"""

import gzip
import importlib
import io
import os
import select
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cthelper.core.errors import CaptureError, pip_install
from cthelper.core.offline.ahead import Ahead, Source
from cthelper.core.offline.blocks import PCAP, PCAPNG, Batch, Format, Pcap, Pcapng

Frame = tuple[int, float, bytes, int]
"""Number (from 1), seconds since the first frame, bytes, offset of the IP header.

Behind the IP packet there may be padding or a trailer of the link layer. Of a frame of
NFLOG there is the packet alone.
"""

STDIN: Final = Path("-")
"""Standard input; `find_captures` means a file of that name by its absolute path."""

ZSTD: Final = "backports.zstd"
"""The package that reads zstd where Python itself does not."""

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_MAGIC: Final = 4


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
            # Made once: it is asked before each piece.
            self._ready = select.poll()
            if stop is not None:
                for number in (self._file.fileno(), stop.fileno()):
                    self._ready.register(number, select.POLLIN)
            self._disk = Source(self._read, (OSError,))
            self._sources = [self._disk]
            self._ahead = Ahead(self._disk)
            self._unpack()
            self._format = self._open()
            self._frames = self._each()
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
        return self._frames

    def batches(self) -> Iterator[Batch]:
        """All frames, by the batch as they are read: of one pass with the frames.

        `frames` counts those of the batches that were asked for.
        """
        form = self._format
        while form is not None:
            batch = form.read()
            self.begin = form.first
            if batch is None:
                return
            self.frames = form.number
            yield batch

    def _each(self) -> Iterator[Frame]:
        for batch in self.batches():
            read = self.frames
            for number, time, begin, start, stop in batch.places:
                self.frames = number
                yield number, time, batch.data[begin:stop], start - begin
            self.frames = read

    def close(self) -> None:
        """Close the file; there are no frames after that."""
        self._file.close()

    def _read(self, size: int) -> bytes:
        if self._stop is not None:
            came = [number for number, _ in self._ready.poll()]
            self._stopped = self._stop.fileno() in came
            if self._stopped:
                return b""
        return self._file.read(size) or b""

    def _unpack(self) -> None:
        # Of a file they need no more than that it can be read.
        packed: Any = self._ahead
        magic = self._magic()
        if magic.startswith(_GZIP):
            file = gzip.GzipFile(fileobj=packed, mode="rb")
            unpacked = Source(file.read1, (EOFError, OSError, zlib.error))
        elif magic == _ZSTD:
            zstd = self._zstd()
            file = zstd.ZstdFile(packed)
            unpacked = Source(file.read1, (EOFError, OSError, zstd.ZstdError))
        else:
            return
        self._sources.append(unpacked)
        self._ahead = Ahead(unpacked)

    def _magic(self) -> bytes:
        """The first bytes, which stay to be read."""
        ahead = self._ahead
        ahead.fill(_MAGIC)
        return ahead.data[ahead.at : ahead.at + _MAGIC]

    def _zstd(self) -> Any:
        """Python's module, or the one that older Pythons can have."""
        for name in ("compression.zstd", ZSTD):
            with suppress(ImportError):
                return importlib.import_module(name)
        raise CaptureError(
            f"{self._path}: packed with zstd, and {ZSTD} is not installed: "
            f"{pip_install(ZSTD)}"
        )

    def _open(self) -> Format | None:
        """What reads the format; None where it is stopped before that is known."""
        magic = self._magic()
        try:
            if magic in PCAP:
                return Pcap(self._ahead, self)
            if magic == PCAPNG:
                return Pcapng(self._ahead, self)
        except EOFError:
            if self._stopped:
                return None
            raise CaptureError(f"{self._path}: broken within the file header") from None
        if self._stopped:
            return None
        if (fault := self._fault()) is not None:
            raise CaptureError(f"{self._path}: {fault}")
        raise CaptureError(f"{self._path}: not a pcap or pcapng file")

    def _fault(self) -> Exception | None:
        """What the disk or the packing has to say, the disk first."""
        return next((each.fault for each in self._sources if each.fault), None)

    # Notes

    def ended(self, rest: int, offset: int, why: str) -> None:
        """The file has no more at this byte but `rest` bytes."""
        if rest or self._fault() is not None:
            self.broken(offset, why)

    def broken(self, offset: int, why: str) -> None:
        """The file cannot be read from this byte on."""
        if self._stopped:
            return
        packed = " of what is packed in it" if len(self._sources) > 1 else ""
        self._warn(
            f"{self._path}: broken after frame {self.frames}, at byte {offset}"
            f"{packed}: {self._fault() or why}"
        )

    def unknown(self, frame: int, link: int) -> None:
        """A frame has a link type that is not known."""
        self._warn(
            f"{self._path}: frame {frame} has link type {link}, which is not known; "
            "such frames are passed over"
        )

    def cut(self, frame: int, captured: int, length: int) -> None:
        """Of a frame only a part was captured."""
        self._warn(
            f"{self._path}: frame {frame} was cut to {captured} of {length} "
            "bytes when it was captured (snap length); helpers need whole frames"
        )
