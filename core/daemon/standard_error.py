# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard error as a log needs it: writing there never waits for who reads it.

A pipe whose reader stands still, a terminal that was stopped, a journal that is busy: a
write to them waits, and with it every packet. What stands behind the descriptor is
shared with other processes, which do not expect it to be non-blocking: so a pipe or a
terminal is opened once more, and a socket is told with each message. A file is written
to as it is, with its offset. What must not be opened once more, since it is another
user's, is asked before each write whether it is ready.
"""

import os
import select
import socket
import stat
import sys
from contextlib import suppress

# As the kernel's log has them (sd-daemon(3)).
_PRIORITIES = {"error": "<3>", "warning": "<4>", "info": "<6>", "debug": "<7>"}

_FLAGS = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class StandardError:
    """Writes lines to a descriptor, by default this process's standard error.

    A line is written whole or not at all: what is left of one that was begun is written
    before the next one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        # Where a program is started without one, another file may have its number.
        if descriptor is None and sys.stderr is not None:
            descriptor = 2
        self._file = self._socket = self._ready = None
        self._rest = b""
        if descriptor is not None:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(descriptor))
            else:
                self._file = _opened(descriptor, mode)
                if not stat.S_ISREG(mode) and os.get_blocking(self._file):
                    self._ready = select.poll()
                    self._ready.register(self._file, select.POLLOUT)

    def close(self) -> None:
        """Close what was opened here."""
        if self._socket is not None:
            self._socket.close()
        elif self._file is not None:
            os.close(self._file)

    def write(self, text: str) -> None:
        """Write a line. Raises OSError where that cannot be done now."""
        if self._rest:
            self._rest = self._rest[self._put(self._rest) :]
            if self._rest:
                raise BlockingIOError
        data = text.encode("utf-8", "backslashreplace")
        self._rest = data[self._put(data) :]

    def _put(self, data: bytes) -> int:
        """Write what can be written; how many bytes."""
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._file is None:
            raise BrokenPipeError
        if self._ready is None:
            return os.write(self._file, data)
        # A pipe that is ready takes so much at once, unless another process is quicker.
        # A terminal may be ready for less; one that was stopped is not.
        done = 0
        while done < len(data) and self._ready.poll(0):
            done += os.write(self._file, data[done : done + select.PIPE_BUF])
        if not done:
            raise BlockingIOError
        return done


def _opened(descriptor: int, mode: int) -> int:
    """A descriptor of ours for the same file, which does not block if that can be."""
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # Not of another user's, and not where nobody reads any more.
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", _FLAGS)
    return os.dup(descriptor)


def priority(level: str) -> str:
    """What a line of this level begins with where the journal reads standard error.

    Elsewhere it is nothing. JOURNAL_STREAM has the journal's device and inode, and is
    handed on to processes whose standard error is another (systemd.exec(5)).
    """
    journal = os.environ.get("JOURNAL_STREAM")
    if journal is None:
        return ""
    try:
        found = os.fstat(2)
    except OSError:
        return ""
    ours = f"{found.st_dev}:{found.st_ino}" == journal
    return _PRIORITIES[level] if ours else ""
