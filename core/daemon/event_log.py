# SPDX-License-Identifier: GPL-2.0-or-later
"""The writer's process (core/control/writer.py): the events' file, and its successors.

It opens the file itself, with the supervisor's rights, before it gives them up:
opening, too, may wait for a disk. So another file, or the same one anew, is another
process, which goes on where the last one was. That is kept here as it was told, and
read by no other process.
"""

import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from cthelper.core.config import EventsConfig
from cthelper.core.control.event_file import EventFile
from cthelper.core.control.reports import Answer, Reporter
from cthelper.core.control.writer import Position, Writer
from cthelper.core.daemon.auxiliary import Auxiliary
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.privileges import Confinement
from cthelper.core.errors import CthelperError, RestartNeeded

FOLDER: Final = Path("/var/log/cthelper")
"""Where the file may be whatever stood in the configuration at the start."""

_MEMORY: Final = 128 << 20
# One that is to end does, where the disk does not keep it waiting.
_ENDING_SECONDS: Final = 3.0
# What the writer says: the file is open, or why it is not. All else is its position.
_OPEN: Final = b"+"
_FAILED: Final = b"-"


class EventLog(Auxiliary):
    """The file, and who writes to it."""

    name = "writer"

    def __init__(
        self,
        log: Log,
        workers: int,
        confinement: Confinement,
        answers: Mapping[str, Answer],
        config: EventsConfig,
    ) -> None:
        super().__init__(log, workers, confinement, answers)
        self._file = config.file
        # All that the processes remember is of this run.
        self._begin = 0.0
        self._position = Position().packed()
        self._told = ""
        self._failed = self._ending = False
        self.folders = {FOLDER}
        if self._file is not None:
            self.folders.add(self._file.parent)

    @property
    def error(self) -> str | None:
        """Why the file cannot be opened; None: it can, or none is wanted."""
        return self._told or None

    def open(self) -> Reporter:
        """Have it started, where there is a file; the supervisor is asked there."""
        self.due = None if self._file is None else time.monotonic()
        self._reporter = self.connect()
        return self._reporter

    def check(self, config: EventsConfig) -> None:
        """Raises RestartNeeded where the supervisor may not write there any more."""
        if config.file is not None and config.file.parent not in self.folders:
            raise RestartNeeded("events.file is in another folder: restart cthelper")

    def reopen(self, config: EventsConfig) -> None:
        """Have the file opened anew, another one where that has changed, or none."""
        if self._file is None and self.life is None:
            self._begin, self._position = time.time(), Position().packed()
        self._file, self._told, self._young = config.file, "", 0
        self.due = None if self._file is None else time.monotonic()
        if self.life is not None:
            self._end()
            # Whoever waits for a disk until then is killed, and replaced.
            self.due = time.monotonic() + _ENDING_SECONDS

    def finish(self) -> None:
        """Have all written that has happened, and end it."""
        reporter = self._reporter
        if self.life is not None:
            self._end()
            until = time.monotonic() + _ENDING_SECONDS
            ends = self.life.fileno(), reporter.fileno()
            while left := max(0.0, until - time.monotonic()):
                ready, _, _ = select.select(ends, [], [], left)
                if reporter.fileno() in ready:
                    reporter.serve()
                if self.life.fileno() in ready and not self.hear():
                    break
        self.close()

    def died(self) -> None:
        """It is dead: start another one, where it did not end for good."""
        if self._ending:
            self._bury()
            self.due = None if self._file is None else time.monotonic()
            return
        if not self._failed:
            self._log.event("writer-died", "warning", pid=self._pid)
        super().died()

    def _end(self) -> None:
        assert self.life is not None  # noqa: S101 - as whoever calls this has seen
        self._ending = True
        with suppress(OSError):  # it is dead
            self.life.shutdown(socket.SHUT_WR)

    def _started(self) -> None:
        self._failed = self._ending = False

    def _said(self, data: bytes) -> None:
        if data[:1] == _FAILED:
            self._failed = True
            detail = data[1:].decode(errors="replace")
            # It is tried again and again.
            if detail != self._told:
                self._told = detail
                self._log.event("events-unavailable", "warning", detail=detail)
        elif data == _OPEN:
            self._told = ""
            self._log.event("writer-started", pid=self._pid, file=self._file)
        else:
            self._position = data

    def _serve(self, life: socket.socket) -> None:
        assert self._file is not None  # noqa: S101 - it is started only then
        askers = self._askers()
        position = Position.unpacked(self._position)
        self._limit(_MEMORY)
        try:
            file = EventFile(self._file, position.unwritten)
        except CthelperError as error:
            life.send(_FAILED + str(error).encode())
            return
        life.send(_OPEN)
        self._confinement.confine_bare()

        def ends(seconds: float) -> bool:
            return bool(select.select([life], [], [], seconds)[0])

        with suppress(OSError):  # the supervisor is gone
            Writer(file, askers, self._begin, position, life.send, ends).run()
