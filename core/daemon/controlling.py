# SPDX-License-Identifier: GPL-2.0-or-later
"""The controller's process (core/control): its socket, its start, and its successors.

The listening socket is the supervisor's, and so are the ends of who asks and who
answers: whoever dies, those who come after him go on with them. Without a controller
connections wait, and packets never do.
"""

import grp
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from cthelper import __version__
from cthelper.core.config import ControlConfig
from cthelper.core.control import reports
from cthelper.core.control.collecting import Collector
from cthelper.core.control.commands import SUPERVISOR, Commands
from cthelper.core.control.controller import Controller
from cthelper.core.control.health import Fill
from cthelper.core.control.place import answers, is_socket
from cthelper.core.control.reports import Asker, Reporter
from cthelper.core.daemon.backoff import pause
from cthelper.core.daemon.expectation_table import ExpectationTable
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.privileges import Confinement
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.queue.binding import bound_queues, open_list
from cthelper.core.records import Record

_ENTRIES: Final = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_MOST_ENTRIES: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
# What packets wait for has the processor first.
_NICE: Final = 5
# Beside what it has of the supervisor's.
_MEMORY: Final = 512 << 20
_BACKLOG: Final = 16
# The controller of a supervisor that was killed leaves within a moment.
_LEAVING_SECONDS: Final = 3.0
_LEAVING_PAUSE: Final = 0.05
_PAUSE_SECONDS: Final = 1.0
_YOUNG_SECONDS: Final = 60.0


class Control:
    """The control socket, and who serves it. `state` is what the supervisor tells.

    `due` is when `start` is to be called again, of `time.monotonic`; None: it is not.
    """

    def __init__(
        self,
        log: Log,
        workers: int,
        state: Callable[[], Record],
        confinement: Confinement,
    ) -> None:
        self.due: float | None = None
        self._log = log
        self._confinement = confinement
        self._numbers = (SUPERVISOR, *range(workers))
        self._answers = {"state": lambda _: state(), "events": log.recent.answer}
        self._pairs: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._listening: socket.socket | None = None
        self._path: Path | None = None
        self._statistics = False
        self._pid = 0
        self._life: socket.socket | None = None
        self._since = 0.0
        self._young = 0

    def end_of(self, number: int) -> socket.socket:
        """The end at which a server answers."""
        return self._pairs[number][1]

    def open(self, config: ControlConfig) -> Reporter:
        """Listen where the configuration says; logs what fails and goes without.

        The supervisor is asked at what is returned.
        """
        self._pairs = {number: reports.pair() for number in self._numbers}
        self._statistics = config.statistics
        if config.socket is not None:
            self._open(config.socket, config.group)
        return Reporter(self.end_of(SUPERVISOR), self._answers)

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

    def start(self, become: Callable[[Callable[[], None]], None]) -> socket.socket:
        """Fork the controller; what is returned becomes readable when it is dead.

        In the child `become` is given what it is to do, and does not return. Raises
        OSError.
        """
        self._since, self.due = time.monotonic(), None
        try:
            ours, theirs = socket.socketpair()
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
        self._pid, self._life = pid, ours
        self._log.event("controller-started", pid=pid, socket=self._path)
        return ours

    def leave(self, number: int) -> None:
        """In a child: close what is not this server's."""
        for other, (asking, answering) in self._pairs.items():
            asking.close()
            if other != number:
                answering.close()
        for each in (self._life, self._listening):
            if each is not None:
                each.close()

    def _serve(self, life: socket.socket) -> None:
        """Be the controller, for as long as the supervisor holds the other end."""
        assert self._listening is not None  # noqa: S101 - it is started only then
        for _, answering in self._pairs.values():
            answering.close()
        table = ExpectationTable(Ctnetlink())
        queues = open_list()
        entries = [FileIO(each) for each in (_ENTRIES, _MOST_ENTRIES)]

        def expectations() -> Fill | None:
            room = table.room()
            return None if room is None else Fill(room.held, room.most)

        collector = Collector() if self._statistics else None
        commands = Commands(
            {number: Asker(asking) for number, (asking, _) in self._pairs.items()},
            queues=lambda: bound_queues(queues),
            expectations=expectations,
            entries=lambda: _fill(entries),
            collector=collector,
        )
        # Neither is allowed by the systemd unit, which bounds its memory itself.
        with suppress(OSError):
            os.nice(_NICE)
        with suppress(OSError, ValueError):
            # Tables may be large; where it needs more whoever asks is told.
            most = _data() + _MEMORY
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        self._confinement.confine_controller()
        if collector is not None:
            threading.Thread(target=collector.run, daemon=True).start()
        Controller(self._listening, life.fileno(), commands, __version__).run()

    def died(self) -> None:
        """It is dead, or about to be: see to it, and have it started again."""
        self._bury()
        if time.monotonic() - self._since > _YOUNG_SECONDS:
            self._young = 0
        self._postpone()

    def _postpone(self) -> None:
        self._young += 1
        self.due = time.monotonic() + pause(_PAUSE_SECONDS, self._young)

    def _bury(self) -> None:
        if self._life is not None:
            self._life.close()
            self._life = None
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def close(self) -> None:
        """End it, and listen no more."""
        self.due = None
        self._bury()
        for pair in self._pairs.values():
            for end in pair:
                end.close()
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
    while answers(path) and time.monotonic() < deadline:
        time.sleep(_LEAVING_PAUSE)
    if not answers(path):
        path.unlink(missing_ok=True)


def _data() -> int:
    """Bytes of this process's data, as RLIMIT_DATA counts them. Raises OSError."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[5]
    return int(pages) * resource.getpagesize()


def _fill(files: Sequence[FileIO]) -> Fill | None:
    """What two files of the kernel's say: how many there are, and may be."""
    try:
        used, most = (int(os.pread(each.fileno(), 32, 0)) for each in files)
    except (OSError, ValueError):
        return None
    return Fill(used, most)
