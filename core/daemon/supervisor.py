# SPDX-License-Identifier: GPL-2.0-or-later
"""Several workers: starts them, registers their helpers, loads the ruleset for all.

Each worker is a fork, so that one that is started again has the very configuration that
the others have, whatever stands in the file by then. There is one thread here, and no
packet: nothing that a fork would tear.

A worker's helpers are enabled while it serves its queues. When it dies the kernel is
told at once to queue to it no more; so its flows pass, and new ones are confirmed,
until its successor serves.
"""

import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cthelper.core.config import Config
from cthelper.core.daemon.channel import Channel, Gone, Message, Order, fingerprint
from cthelper.core.daemon.installation import Installation
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.ruleset import registrations
from cthelper.core.daemon.server import check_change, reload
from cthelper.core.daemon.signals import Signals, empty, waker_pair
from cthelper.core.daemon.worker import Worker
from cthelper.core.errors import CthelperError, QueueError
from cthelper.core.netlink.nfnetlink_cthelper import Registration
from cthelper.core.queue.backends import choose

# A worker that does not answer for so long is ended. Draining takes 2 s at most, and
# reading the configuration what plugins take for their import.
_ANSWER_SECONDS: Final = 30.0
# Until a worker that died is started again; doubled each time that it dies young.
_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_YOUNG_SECONDS: Final = 60.0

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(slots=True)
class _Process:
    """A worker's process; `serving` once its queues are bound."""

    number: int
    pid: int
    channel: Channel
    since: float
    serving: bool = False


class Supervisor:
    """Runs the configured helpers on live traffic, in ``daemon.workers`` processes.

    `read_config` reads the configuration again, for SIGHUP. Use `run`.
    """

    def __init__(
        self,
        config: Config,
        read_config: Callable[[], Config],
        *,
        keep_ruleset: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._read_config = read_config
        self._keep_ruleset = keep_ruleset
        self._clock = clock
        daemon = config.daemon
        self._log = Log(daemon.log_level, daemon.log_format, clock=clock)
        self._installation = Installation(self._log)
        self._processes: dict[int, _Process] = {}
        # When workers that died are to be started again, and how often they died young.
        self._due: dict[int, float] = {}
        self._young: Counter[int] = Counter()
        self._totals: Counter[str] = Counter()
        self._woken, waker = waker_pair()
        self._signals = Signals(waker)
        self._selector = selectors.DefaultSelector()
        self._watch(self._woken, lambda: empty(self._woken))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CthelperError where it cannot start."""
        with self._signals:
            self._start()
            backend = choose(self._config.daemon.backend)
            self._log.event(
                "started",
                helpers=",".join(self._config.helpers),
                queues=",".join(map(str, sorted(self._config.queues))),
                workers=self._config.daemon.workers,
                backend=backend.name,
                because=backend.reason,
            )
            try:
                while not self._signals.stop:
                    self._turn()
                    if self._signals.taken_reload():
                        reload(self._log, self._read_config, self._change)
            finally:
                self._stop()
            totals = self._totals + self._log.counters
            first = ("packets", "bypassed", "verdicts_refused")
            self._log.event(
                "stopped",
                **{name: totals[name] for name in first},
                **{name: totals[name] for name in sorted(totals.keys() - set(first))},
            )

    def _watch(self, source: socket.socket | Channel, act: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        now = self._clock()
        next_due = min(self._due.values(), default=None)
        wait = None if next_due is None else max(0.0, next_due - now)
        for key, _ in self._selector.select(wait):
            key.data()
        for number, due in list(self._due.items()):
            if due <= self._clock():
                del self._due[number]
                self._fork(number)

    # Starting and ending all

    def _start(self) -> None:
        """Have all bind their queues, then register, then load the ruleset."""
        config = self._config
        try:
            self._installation.take_over(config)
            for number in range(config.daemon.workers):
                self._fork(number)
            for process in list(self._processes.values()):
                answer = self._answer(process)
                if answer is None:
                    raise QueueError(f"worker {process.number} died at its start")
                if "error" in answer:
                    raise QueueError(str(answer["error"]))
                self._serves(process)
            self._installation.install(self._wanted(config), config)
        except CthelperError:
            self._installation.abandon()
            self._dismiss()
            raise

    def _stop(self) -> None:
        """Queue no more, answer what waits, leave nothing behind."""
        self._installation.stop(self._config)
        self._failed(self._order_all(Order.DRAIN))
        self._dismiss()
        if not self._keep_ruleset:
            self._installation.remove()

    def _dismiss(self) -> None:
        """Have all workers end; their queues must be empty."""
        for process in list(self._processes.values()):
            if not process.serving:
                os.kill(process.pid, signal.SIGKILL)
            else:
                self._tell(process, Order.LEAVE)
                answer = self._answer(process)
                if answer is None:
                    continue  # it has died
                totals = answer["totals"]
                assert isinstance(totals, dict)  # noqa: S101 - as Worker answers it
                self._totals.update(totals)
            self._bury(process)
        self._due.clear()

    # One worker

    def _fork(self, number: int) -> None:
        """Start a worker; it answers when its queues are bound, or cannot be."""
        ours, theirs = Channel.pair()
        # A signal that came before the worker ignores it would be the supervisor's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._become(number, ours, theirs, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        process = _Process(number, pid, ours, self._clock())
        self._processes[number] = process
        self._watch(ours, lambda: self._hear(process))

    def _become(
        self,
        number: int,
        ours: Channel,
        theirs: Channel,
        mask: Iterable[signal.Signals | int],
    ) -> None:
        """Be the worker, in the process that was forked for it; does not return."""
        status = 1
        try:
            # A terminal and systemd send them to all processes.
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # Who holds the supervisor's end of a channel keeps it open for the dead.
            ours.close()
            for process in self._processes.values():
                process.channel.close()
            self._selector.close()
            self._installation.close()
            part = self._config.by_worker[number]
            Worker(number, part, self._read_config, theirs).run()
            status = 0
        except CthelperError:
            pass  # the worker has logged it
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            # Nothing of the supervisor's is to be done at this process's end.
            os._exit(status)

    def _hear(self, process: _Process) -> None:
        """A worker is ready, or has died."""
        answer = self._answer(process)
        if answer is None:
            return
        if "error" in answer:
            self._failed([f"worker {process.number}: {answer['error']}"])
            return
        part = self._config.by_worker[process.number]
        wanted = registrations(part.served, enabled=True)
        self._installation.attempt(lambda: self._installation.enable(wanted))
        self._serves(process)

    def _serves(self, process: _Process) -> None:
        process.serving = True
        self._log.event("worker-started", worker=process.number, pid=process.pid)

    def _order_all(self, order: Order, **details: object) -> list[str]:
        """Tell all that serve, at a time, and wait; the errors that they answer."""
        serving = [each for each in self._processes.values() if each.serving]
        for process in serving:
            self._tell(process, order, **details)
        errors = []
        for process in serving:
            answer = self._answer(process)
            if answer is not None and "error" in answer:
                errors.append(f"worker {process.number}: {answer['error']}")
        return errors

    def _tell(self, process: _Process, order: Order, **details: object) -> None:
        try:
            process.channel.send({"order": order, **details})
        except Gone:
            return  # and so is the answer

    def _answer(self, process: _Process) -> Message | None:
        """What a worker answers; None where it has died, which is seen to."""
        try:
            return process.channel.receive(_ANSWER_SECONDS)
        except TimeoutError:
            os.kill(process.pid, signal.SIGKILL)
        except Gone:
            pass
        self._died(process)
        return None

    def _failed(self, errors: Iterable[str]) -> None:
        for error in errors:
            self._log.event("step-failed", "error", detail=error)

    def _died(self, process: _Process) -> None:
        """Have its flows pass, and start it again after a while."""
        number = process.number
        if process.serving:
            part = self._config.by_worker[number]
            self._installation.disable(registrations(part.served, enabled=False))
        lived = self._clock() - process.since
        status = self._bury(process)
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        self._log.event(
            "worker-died", "error", worker=number, pid=process.pid, status=how
        )
        self._young[number] = 1 if lived > _YOUNG_SECONDS else self._young[number] + 1
        pause = _PAUSE_SECONDS * 2 ** (self._young[number] - 1)
        self._due[number] = self._clock() + min(pause, _LONGEST_PAUSE)

    def _bury(self, process: _Process) -> int:
        """Wait for its end and forget it; its exit code, or minus the signal."""
        del self._processes[process.number]
        self._selector.unregister(process.channel)
        process.channel.close()
        _, status = os.waitpid(process.pid, 0)
        return os.waitstatus_to_exitcode(status)

    # Reloading

    def _change(self, config: Config) -> None:
        check_change(self._config, config)
        # Those that have just begun have the old configuration, and serve nothing yet.
        for process in list(self._processes.values()):
            if not process.serving:
                os.kill(process.pid, signal.SIGKILL)
                self._bury(process)
                self._due[process.number] = self._clock()
        errors = self._order_all(Order.PREPARE, config=fingerprint(config))
        try:
            if errors:
                raise QueueError(errors[0])
            self._installation.change(self._wanted(config), config, lambda step: step())
        except CthelperError:
            self._failed(self._order_all(Order.ABORT))
            raise
        self._config = config
        self._log.configure(config.daemon.log_level, config.daemon.log_format)
        self._failed(self._order_all(Order.COMMIT))

    def _wanted(self, config: Config) -> list[Registration]:
        """The registrations of all workers; those that serve have theirs enabled."""
        return [
            registration
            for number, part in enumerate(config.by_worker)
            for registration in registrations(
                part.served,
                enabled=number in self._processes and self._processes[number].serving,
            )
        ]
