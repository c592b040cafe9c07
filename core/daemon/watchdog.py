# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches that servers go on, so that no packet waits for one that does not.

A server that stands still over a packet has its helper interrupted after half of the
deadline. Before the deadline is over all that waits in its queues is released, and what
comes passes by; once it goes on it serves again. After two seconds, or two deadlines,
it is killed, and the supervisor starts another one. So is one that stands still
anywhere while packets wait, as a stopped process does.

It looks in a signal handler, several times a deadline: so the supervisor may meanwhile
be busy with anything, such as nft, the import of a plugin, or another server's answer.
What is not urgent it leaves to the supervisor's loop, which the signal wakes.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from cthelper.core.daemon.interruption import SIGNAL as INTERRUPT
from cthelper.core.daemon.progress import NOT_BEGUN, Mark, Progress, Subject
from cthelper.core.errors import CthelperError
from cthelper.core.queue.binding import Binding, bound_queues, open_list

REPLACED: Final = 2.0
"""Seconds after which a server that stands still is killed, or two deadlines."""

# Looks in a deadline, and after how many without a change something is done. Looks are
# counted, too, since the machine itself may have stood still between two of them.
_LOOKS: Final = 6
_INTERRUPTED: Final = 3
_RELEASED: Final = 5
# A server that would run and had less CPU time than this part of a deadline was kept
# from it, and is not at fault: a packet takes a thousandth of that.
_STARVED: Final = 0.25
_STOPPED: Final = ("T", "t")
# The clock of a process's CPU time (include/linux/posix-timers_types.h).
_CPU_CLOCK: Final = 2


class Watched(Protocol):
    """A server's process, once it reads its queues."""

    @property
    def number(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def standing(self) -> "Standing": ...


@dataclass(slots=True)
class Standing:
    """How long a server has stood still, by what was seen of it.

    `told` is whether it was, `released` whether its queues are, `killed` whether it
    was, for that, and `stopped` whether it stood still because it was stopped from
    outside.
    """

    mark: Mark = NOT_BEGUN
    since: float = 0.0
    looks: int = 0
    cpu: float = 0.0
    told: bool = False
    released: bool = False
    killed: bool = False
    stopped: bool = False

    def begin(self, mark: Mark, now: float) -> None:
        """It has gone on, or there is nothing to do."""
        self.mark, self.since, self.looks = mark, now, 0


@dataclass(frozen=True, slots=True)
class Stuck:
    """A server stands still, and its queues were released.

    `subject` is what it stands still over, where that is a packet.
    """

    number: int
    pid: int
    subject: Subject | None


@dataclass(slots=True)
class Watchdog:
    """Looks after servers while it is entered; `look` may also be called.

    `serving` are the servers that read their queues, `bindings_of` a server's queues,
    `deadline` how long a packet may wait, in seconds. `clock` gives seconds and only
    moves forward. What it met is in `stuck`, servers that go on again, whose queues are
    to be resumed, in `recovered`, and what failed in `failures`; the supervisor takes
    them out.
    """

    serving: Callable[[], Iterable[Watched]]
    bindings_of: Callable[[int], Sequence[Binding]]
    deadline: Callable[[], float]
    clock: Callable[[], float] = time.monotonic
    stuck: list[Stuck] = field(default_factory=list)
    recovered: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _list: int | None = field(default_factory=open_list)
    _looks: bool = False

    def __enter__(self) -> "Watchdog":
        signal.signal(signal.SIGALRM, self._on_alarm)
        self.set()
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def set(self) -> None:
        """Look as often as the deadline asks for, which may have changed."""
        pause = self.deadline() / _LOOKS
        signal.setitimer(signal.ITIMER_REAL, pause, pause)

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        # The next signal may come while a look takes long.
        if not self._looks:
            self._looks = True
            try:
                self.look()
            finally:
                self._looks = False

    def look(self) -> None:
        """Look at all servers, and do what is urgent."""
        waiting: dict[int, int] | None = None
        for each in list(self.serving()):
            # What fails must not end what the signal came between, nor be in the way of
            # other servers.
            try:
                standing, mark, now = each.standing, each.progress.mark, self.clock()
                if mark != standing.mark:
                    if standing.told:
                        self.recovered.append(each.number)
                        standing.told = standing.released = False
                    standing.begin(mark, now)
                    continue
                if not (mark.since or standing.told):
                    if waiting is None:
                        rows = bound_queues(self._list).values()
                        waiting = {row.number: row.waiting for row in rows}
                    queues = self.bindings_of(each.number)
                    if not any(waiting.get(queue.number) for queue in queues):
                        standing.begin(mark, now)
                        continue
                self._stands(each, standing, now - standing.since)
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    def _stands(self, server: Watched, standing: Standing, seconds: float) -> None:
        """A server has not gone on since it was looked at before."""
        standing.looks += 1
        if standing.looks == 1:
            standing.cpu = _cpu(server.pid)
        part = self.deadline() / _LOOKS
        subject = server.progress.subject
        if (
            subject is not None
            and standing.looks >= _INTERRUPTED
            and not self._starved(server, standing)
        ):
            os.kill(server.pid, INTERRUPT)
        if standing.looks >= _RELEASED and seconds >= part * (_RELEASED - 1):
            if not standing.told:
                standing.told = True
                self.stuck.append(Stuck(server.number, server.pid, subject))
            if not standing.released:
                standing.released = self._release(server)
        if (
            seconds >= max(REPLACED, 2 * self.deadline())
            and standing.told
            and not standing.killed
            and not self._starved(server, standing)
        ):
            standing.killed = True
            standing.stopped = _state(server.pid) in _STOPPED
            os.kill(server.pid, signal.SIGKILL)

    def _release(self, server: Watched) -> bool:
        """Have what waits for a server, and what comes, go on; whether all does."""
        failures = len(self.failures)
        for binding in self.bindings_of(server.number):
            for step in (binding.pause, binding.release):
                try:
                    step()
                except CthelperError as error:
                    self.failures.append(str(error))
        return len(self.failures) == failures

    def _starved(self, server: Watched, standing: Standing) -> bool:
        """Whether a server that stands still would run and was kept from it."""
        used = _cpu(server.pid) - standing.cpu
        return _state(server.pid) == "R" and used < self.deadline() * _STARVED


def _cpu(pid: int) -> float:
    """Seconds of CPU time that a process has had (CPUCLOCK_SCHED of it)."""
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)


def _state(pid: int) -> str:
    """A process's state, a letter (proc_pid_stat(5)): R runs, or would.

    Empty where it cannot be seen, as where /proc hides other users' processes.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    # The name before it, in parentheses, may hold anything.
    return stat.rpartition(")")[2].split()[0]
