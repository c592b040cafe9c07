# SPDX-License-Identifier: GPL-2.0-or-later
"""The controller's process (core/control): its socket, its start, and its successors.

The listening socket is the supervisor's, as the ends are (auxiliary.py). Without a
controller connections wait, and packets never do.
"""

import grp
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from cthelper import __version__
from cthelper.core.config import ControlConfig
from cthelper.core.control.collecting import Collector
from cthelper.core.control.commands import Commands
from cthelper.core.control.controller import Controller
from cthelper.core.control.health import Fill
from cthelper.core.control.place import answers as is_answered
from cthelper.core.control.place import is_socket
from cthelper.core.control.reports import Answer, Reporter
from cthelper.core.daemon.auxiliary import Auxiliary
from cthelper.core.daemon.expectation_table import ExpectationTable
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.privileges import Confinement
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.queue.binding import bound_queues, open_list

_ENTRIES: Final = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_MOST_ENTRIES: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
# Beside what it has of the supervisor's.
_MEMORY: Final = 512 << 20
_BACKLOG: Final = 16
# The controller of a supervisor that was killed leaves within a moment.
_LEAVING_SECONDS: Final = 3.0
_LEAVING_PAUSE: Final = 0.05


class Control(Auxiliary):
    """The control socket, and who serves it."""

    name = "controller"

    def __init__(
        self,
        log: Log,
        workers: int,
        confinement: Confinement,
        answers: Mapping[str, Answer],
    ) -> None:
        super().__init__(log, workers, confinement, answers)
        self._listening: socket.socket | None = None
        self._path: Path | None = None
        self._statistics = False

    def open(self, config: ControlConfig) -> Reporter:
        """Listen where the configuration says; logs what fails and goes without.

        The supervisor is asked at what is returned.
        """
        self._statistics = config.statistics
        if config.socket is not None:
            self._open(config.socket, config.group)
        return self.connect()

    def _open(self, path: Path, group: str | None) -> None:
        try:
            self._listening = _listen(path, group)
        except (OSError, LookupError) as error:
            self._log.event(
                "control-unavailable",
                "warning",
                socket=path,
                detail=getattr(error, "strerror", None) or str(error),
            )
        else:
            self._path = path
            self.due = time.monotonic()

    def _started(self) -> None:
        self._log.event("controller-started", pid=self._pid, socket=self._path)

    def _said(self, data: bytes) -> None:
        """It has nothing to say."""

    def died(self) -> None:
        """As `Auxiliary` has it, and log it."""
        self._log.event("controller-died", "warning", pid=self._pid)
        super().died()

    def leave(self, number: int | None = None) -> None:
        """In a child: close what is not this server's; None: what is not its own."""
        super().leave(number)
        if self._listening is not None:
            self._listening.close()

    def _serve(self, life: socket.socket) -> None:
        assert self._listening is not None  # noqa: S101 - it is started only then
        table = ExpectationTable(Ctnetlink())
        queues = open_list()
        entries = [FileIO(each) for each in (_ENTRIES, _MOST_ENTRIES)]

        def expectations() -> Fill | None:
            room = table.room()
            return None if room is None else Fill(room.held, room.most)

        collector = Collector() if self._statistics else None
        commands = Commands(
            self._askers(),
            queues=lambda: bound_queues(queues),
            expectations=expectations,
            entries=lambda: _fill(entries),
            collector=collector,
        )
        # Tables may be large; where it needs more whoever asks is told.
        self._limit(_MEMORY)
        self._confinement.confine_controller()
        if collector is not None:
            threading.Thread(target=collector.run, daemon=True).start()
        Controller(self._listening, life.fileno(), commands, __version__).run()

    def close(self) -> None:
        """End it, and listen no more."""
        super().close()
        if self._listening is not None:
            self._listening.close()
        if self._path is not None:
            # Whoever is confined by Landlock leaves it; nobody answers there then.
            with suppress(OSError):
                self._path.unlink()


def _listen(path: Path, group: str | None) -> socket.socket:
    """Listen there, for root and for a group. Raises OSError, and LookupError."""
    number = -1 if group is None else grp.getgrnam(group).gr_gid
    path.parent.mkdir(mode=0o755, exist_ok=True)
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody connects before the mode is what it is to be.
        mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(path, -1, number)
            path.chmod(0o660)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _clear(path: Path) -> None:
    """Take away what a daemon that is gone has left. Raises OSError."""
    if not is_socket(path):
        return
    deadline = time.monotonic() + _LEAVING_SECONDS
    while is_answered(path) and time.monotonic() < deadline:
        time.sleep(_LEAVING_PAUSE)
    if not is_answered(path):
        path.unlink(missing_ok=True)


def _fill(files: Sequence[FileIO]) -> Fill | None:
    """What two files of the kernel's say: how many there are, and may be."""
    try:
        used, most = (int(os.pread(each.fileno(), 32, 0)) for each in files)
    except (OSError, ValueError):
        return None
    return Fill(used, most)
