# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes beside the servers: they ask these and the supervisor, and read no packet.

The ends of who asks and who answers are the supervisor's: whoever dies, those who come
after him go on with them. Without such a process questions are not asked, and packets
never wait.
"""

import errno
import os
import resource
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from cthelper.core.control import reports
from cthelper.core.control.following import SUPERVISOR
from cthelper.core.control.reports import Answer, Asker, Reporter
from cthelper.core.daemon.backoff import pause
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.privileges import Confinement

# What packets wait for has the processor first.
_NICE: Final = 5
_PAUSE_SECONDS: Final = 1.0
_YOUNG_SECONDS: Final = 60.0
# What was killed ends within a moment, where it does not wait for a disk.
_ENDING_SECONDS: Final = 1.0
_ENDING_PAUSE: Final = 0.01
# So many may be left that were killed and wait for a disk: no signal ends these.
_LEFT: Final = 3


class Auxiliary(ABC):
    """Such a process, and its successors.

    `name` is what it is. `due` is when `start` is to be called again, of
    `time.monotonic`; None: it is not. `life` becomes readable when it says something,
    or is dead; None: there is none. The supervisor answers with `answers`.
    """

    name: str

    def __init__(
        self,
        log: Log,
        workers: int,
        confinement: Confinement,
        answers: Mapping[str, Answer],
    ) -> None:
        self.due: float | None = None
        self.life: socket.socket | None = None
        self._log = log
        self._confinement = confinement
        self._numbers = (SUPERVISOR, *range(workers))
        self._answers = answers
        self._pairs: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._pid = 0
        self._since = 0.0
        self._young = 0
        self._killed: list[int] = []

    def end_of(self, number: int) -> socket.socket:
        """The end at which a server answers."""
        return self._pairs[number][1]

    def connect(self) -> Reporter:
        """Make the ends; the supervisor is asked at what is returned."""
        self._pairs = {number: reports.pair() for number in self._numbers}
        return Reporter(self.end_of(SUPERVISOR), self._answers)

    def start(self, become: Callable[[Callable[[], None]], None]) -> socket.socket:
        """Fork it; what is returned becomes readable when it speaks, or is dead.

        In the child `become` is given what it is to do, and does not return. Raises
        OSError, also where too many that were killed have not ended.
        """
        self.reap()
        self._since, self.due = time.monotonic(), None
        try:
            if len(self._killed) >= _LEFT:
                raise OSError(errno.EBUSY, f"{_LEFT} that were killed have not ended")
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                theirs.close()
                raise
        except OSError:
            self._postpone()
            raise
        if pid == 0:
            ours.close()
            become(lambda: self._serve(theirs))
        theirs.close()
        ours.setblocking(False)
        self._pid, self.life = pid, ours
        self._started()
        return ours

    def leave(self, number: int | None = None) -> None:
        """In a child: close what is not this server's; None: what is not its own."""
        for other, (asking, answering) in self._pairs.items():
            asking.close()
            if other != number:
                answering.close()
        if self.life is not None:
            self.life.close()

    def hear(self) -> bool:
        """Take what it says; whether it still lives."""
        assert self.life is not None  # noqa: S101 - as it has become readable
        try:
            data = self.life.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self._said(data)
        return bool(data)

    def died(self) -> None:
        """It is dead, or about to be: see to it, and have it started again.

        After a while, the later the more often that was necessary.
        """
        self._bury()
        if time.monotonic() - self._since > _YOUNG_SECONDS:
            self._young = 0
        self._postpone()

    def reap(self) -> None:
        """Have those that were killed leave nothing; it waits for none."""
        self._killed = [
            each for each in self._killed if os.waitpid(each, os.WNOHANG)[0] == 0
        ]

    def close(self) -> None:
        """End it."""
        self.due = None
        self._bury()
        for pair in self._pairs.values():
            for end in pair:
                end.close()
        until = time.monotonic() + _ENDING_SECONDS
        while self._killed and time.monotonic() < until:
            time.sleep(_ENDING_PAUSE)
            self.reap()

    def _askers(self) -> dict[int, Asker]:
        """In the child: the ends of who asks; the others are closed."""
        for _, answering in self._pairs.values():
            answering.close()
        return {number: Asker(asking) for number, (asking, _) in self._pairs.items()}

    def _limit(self, memory: int) -> None:
        """In the child: run after what packets wait for, in so many bytes of memory
        beside what it has of the supervisor's.
        """
        # Neither is allowed by the systemd unit, which bounds its memory itself.
        with suppress(OSError):
            os.nice(_NICE)
        with suppress(OSError, ValueError):
            most = _data() + memory
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    @abstractmethod
    def _started(self) -> None:
        """It has been forked."""

    @abstractmethod
    def _said(self, data: bytes) -> None:
        """Take what it says, which may be anything."""

    @abstractmethod
    def _serve(self, life: socket.socket) -> None:
        """Be it, for as long as the supervisor holds the other end."""

    def _postpone(self) -> None:
        self._young += 1
        self.due = time.monotonic() + pause(_PAUSE_SECONDS, self._young)

    def _bury(self) -> None:
        if self.life is not None:
            self.life.close()
            self.life = None
            # One that has ended already stays as it is until it is reaped.
            os.kill(self._pid, signal.SIGKILL)
            self._killed.append(self._pid)
        self.reap()


def _data() -> int:
    """Bytes of this process's data, as RLIMIT_DATA counts them. Raises OSError."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[5]
    return int(pages) * resource.getpagesize()
