# SPDX-License-Identifier: GPL-2.0-or-later
"""Events at the end of a file, one JSON object a line."""

import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cthelper.core.errors import CthelperError
from cthelper.core.records import Record

# A pipe that nobody reads, a terminal, a link: none holds it up or leads it elsewhere.
_FLAGS: Final = (
    *(os.O_APPEND, os.O_CREAT, os.O_CLOEXEC),
    *(os.O_NOFOLLOW, os.O_NOCTTY, os.O_NONBLOCK),
)
_MODE: Final = 0o640


class EventFile:
    """Lines at the end of a file.

    What cannot be written, as where the disk is full, is counted (`unwritten`), and
    told of before the next line that can be (``events-unwritten``). Raises
    CthelperError where the file cannot be opened, or is none.
    """

    def __init__(self, path: Path, unwritten: int = 0) -> None:
        self.unwritten = unwritten
        self._path = path
        self._anew = False
        self._open()

    def _open(self) -> None:
        file = _opened(self._path)
        size = os.fstat(file).st_size
        # Whoever wrote it last may have died in the middle of a line.
        self._torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        self._file = file

    def reopen(self) -> None:
        """Open it anew before the next line; a handler of a signal may call this.

        Where that cannot be done what is open goes on.
        """
        self._anew = True

    def write(self, records: Sequence[Record]) -> None:
        """Write these, or count them."""
        if self._anew:
            self._anew = False
            before = self._file
            with suppress(CthelperError, OSError):
                self._open()
                os.close(before)
        lines = [_line(each) for each in records]
        told = self.unwritten
        if told:
            time = records[0].get("time", "")
            note = {"time": time, "event": "events-unwritten", "count": told}
            lines.insert(0, _line(note))
        # The next line begins a line.
        head = b"\n" if self._torn else b""
        data = head + b"".join(lines)
        try:
            written = os.write(self._file, data)
        except OSError:
            written = 0
        if written:
            self._torn = data[written - 1] != ord("\n")
        # A line that lacks its end alone has it with the next head.
        whole = data[len(head) : written + 1].count(b"\n")
        if told and whole:
            self.unwritten = 0
        self.unwritten += len(lines) - max(whole, bool(told))


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _opened(path: Path) -> int:
    """The file, which is made where it is not there. Raises CthelperError."""
    try:
        # Read, too: for its last byte.
        file = os.open(path, os.O_RDWR | sum(_FLAGS), _MODE)
    except OSError as error:
        raise CthelperError(f"{path}: cannot be written: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise CthelperError(f"{path}: cannot be written: Not a regular file")
    return file
