# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper run``: binds the queues, registers helpers, loads the ruleset, and has
servers read the packets. It reads none itself.

A server is a fork, so that one that is started again has the very configuration that
the others have, whatever stands in the file by then. There is one thread here, and no
packet: nothing that a fork would tear. And no code of a plugin: helpers are known by
what they declare (examination.py), and servers import them once they are confined.

The queues' sockets stay here. When a server dies its queues are paused and what waits
there is released, so that its flows pass until its successor reads the same queues. So
it is with one that stands still (watchdog.py). What a server died of is kept from the
next one: the flow, and its peer.
"""

import os
import selectors
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from cthelper import __version__
from cthelper.core.compiled import COMPILED
from cthelper.core.config import Config
from cthelper.core.daemon import interruption
from cthelper.core.daemon.answers import read_answers
from cthelper.core.daemon.auxiliary import Auxiliary
from cthelper.core.daemon.backoff import pause
from cthelper.core.daemon.channel import (
    Channel,
    Gone,
    Message,
    Order,
    fingerprint,
    handed,
)
from cthelper.core.daemon.controlling import Control
from cthelper.core.daemon.event_log import EventLog
from cthelper.core.daemon.installation import Installation
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.notify import Notifier
from cthelper.core.daemon.privileges import Confinement
from cthelper.core.daemon.probe import (
    GLUE_MENDED,
    NOT_GLUED,
    UNKNOWN,
    CannotAsk,
    Kernel,
    ask,
)
from cthelper.core.daemon.progress import Progress, Subject
from cthelper.core.daemon.ruleset_care import RulesetCare
from cthelper.core.daemon.server import HasFileno, Server
from cthelper.core.daemon.signals import Signals, empty, waker_pair
from cthelper.core.daemon.watchdog import Standing, Watchdog
from cthelper.core.declaration import is_stand_in
from cthelper.core.errors import CthelperError, QueueError, RestartNeeded
from cthelper.core.quarantine import FAULTS, Quarantine
from cthelper.core.queue.backends import choose
from cthelper.core.queue.binding import Binding, bound_queues
from cthelper.core.records import Record
from cthelper.core.sources import Declared
from cthelper.core.tuples import FlowKey

# A server that does not answer for so long, or serve, is ended. Draining takes 2 s at
# most, and reading the configuration what plugins take for their import.
_ANSWER_SECONDS: Final = 30.0
# Until a server that died is started again; doubled each time that it dies young.
_PAUSE_SECONDS: Final = 1.0
_YOUNG_SECONDS: Final = 60.0

# Servers whose supervisor was killed let go of their queues within a moment.
_LEAVING_SECONDS: Final = 3.0
_LEAVING_PAUSE: Final = 0.05

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What a reload does not change.
_FIXED: Final = (
    *("workers", "receive_buffer", "flow_limit", "backend", "mark"),
    "user",
)


@dataclass(slots=True)
class _Process:
    """A server's process; `serving` once it reads its queues."""

    number: int
    pid: int
    channel: Channel
    since: float
    progress: Progress
    serving: bool = False
    standing: Standing = field(default_factory=Standing)


class Supervisor:
    """Runs the configured helpers on live traffic, in ``daemon.workers`` servers.

    For SIGHUP `read` reads what the configuration is made of, and `declare` makes it of
    that here, `configure` in each server, which may not read all files. `confinement`
    is what they are held to. `answers` is a file with what the kernel does, which is
    not asked then. Use `run`.
    """

    def __init__(
        self,
        declared: Declared,
        read: Callable[[], bytes],
        declare: Callable[[bytes], Declared],
        configure: Callable[[bytes], Config],
        confinement: Confinement,
        *,
        keep_ruleset: bool = False,
        answers: Path | None = None,
    ) -> None:
        config = self._config = declared.config
        self._sources = declared.sources
        self._answers = answers
        self._read, self._declare, self._configure = read, declare, configure
        self._confinement = confinement
        self._keep_ruleset = keep_ruleset
        daemon = config.daemon
        self._backend = choose(daemon.backend)
        self._log = Log(daemon.log_level, daemon.log_format, clock=time.monotonic)
        self._notifier = Notifier(os.environ, time.monotonic)
        recent = self._log.recent.answer
        beside = self._log, daemon.workers, confinement
        self._control = Control(
            *beside, {"state": lambda _: self._state(), "events": recent}
        )
        self._events = EventLog(*beside, {"events": recent}, config.events)
        self._auxiliaries: tuple[Auxiliary, ...] = self._control, self._events
        self._began = time.time()
        self._reloaded: Record | None = None
        self._kernel = UNKNOWN
        self._installation = Installation(self._log)
        self._care = RulesetCare(self._installation, self._log, time.monotonic)
        self._bindings: dict[int, Binding] = {}
        self._processes: dict[int, _Process] = {}
        # When queues that could not be resumed are to be, by their server.
        self._paused: dict[int, float] = {}
        # When servers that died are to be started again, and how often they died young.
        self._due: dict[int, float] = {}
        self._young: Counter[int] = Counter()
        self._totals: Counter[str] = Counter()
        self._quarantine = Quarantine(time.monotonic)
        # The flow that the last server to be killed from outside was at.
        self._last_killed: FlowKey | None = None
        self._watchdog = Watchdog(
            lambda: [each for each in self._processes.values() if each.serving],
            self._bindings_of,
            lambda: self._config.budget.deadline / 1000,
        )
        self._woken, waker = waker_pair()
        self._signals = Signals(waker)
        self._selector = selectors.DefaultSelector()
        self._watch(self._woken, lambda: empty(self._woken))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CthelperError where it cannot start."""
        with self._signals, self._watchdog:
            self._start()
            self._watch(self._installation, lambda: self._care.look(self._config))
            self._warn()
            self._log.event(
                "started",
                helpers=",".join(self._config.helpers),
                queues=",".join(map(str, sorted(self._bindings))),
                workers=self._config.daemon.workers,
                backend=self._backend.name,
                because=self._backend.reason,
                code="compiled" if COMPILED else "interpreted",
            )
            self._notifier.ready()
            try:
                while not self._signals.stop:
                    self._turn()
                    if self._signals.taken_reload():
                        self._reload()
            finally:
                self._stop()
            totals = self._totals + self._log.counters
            first = ("packets", "bypassed", "dropped", "verdicts_refused")
            self._log.event(
                "stopped",
                **{name: totals[name] for name in first},
                **{name: totals[name] for name in sorted(totals.keys() - set(first))},
            )

    def _watch(self, source: HasFileno, act: Callable[[], object]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        beginning = [each for each in self._processes.values() if not each.serving]
        dues = [*self._due.values(), *self._paused.values()]
        dues += [each.since + _ANSWER_SECONDS for each in beginning]
        others = [each.due for each in self._auxiliaries]
        for other in (self._care.due, self._notifier.due, *others):
            if other is not None:
                dues.append(other)
        wait = max(0.0, min(dues) - time.monotonic()) if dues else None
        for key, _ in self._selector.select(wait):
            key.data()
        self._take_notice()
        for begun in list(self._processes.values()):
            late = begun.since + _ANSWER_SECONDS <= time.monotonic()
            if late and not begun.serving:
                # It imports plugins, which may take for ever.
                self._died(begun, "late")
        for number, due in list(self._paused.items()):
            if due <= time.monotonic():
                process = self._processes.get(number)
                if process is not None and process.serving:
                    self._resume(number)
                else:
                    del self._paused[number]
        for number, due in list(self._due.items()):
            if due <= time.monotonic():
                del self._due[number]
                try:
                    self._fork(number)
                except QueueError as error:
                    self._failed([str(error)])
                    self._postpone(number)
        if self._care.due is not None and self._care.due <= time.monotonic():
            self._care.act(self._config)
        for auxiliary in self._auxiliaries:
            if auxiliary.due is not None and auxiliary.due <= time.monotonic():
                self._start_auxiliary(auxiliary)
            auxiliary.reap()
        # One that stands still is replaced soon, or something is wrong here.
        if not any(each.standing.told for each in self._processes.values()):
            self._notifier.alive()

    def _tell_state(self, more: str = "") -> None:
        """Tell the service manager how it is."""
        serving = sum(each.serving for each in self._processes.values())
        self._notifier.status(
            f"{serving} of {self._config.daemon.workers} workers serve "
            f"{', '.join(self._config.helpers)}{more}"
        )

    def _take_notice(self) -> None:
        """Tell what the watchdog has done, and resume the queues of who goes on."""
        watchdog = self._watchdog
        while watchdog.stuck:
            stuck = watchdog.stuck.pop(0)
            self._log.event(
                "worker-stuck",
                "error",
                worker=stuck.number,
                pid=stuck.pid,
                **_told(stuck.subject),
            )
        while watchdog.recovered:
            process = self._processes.get(watchdog.recovered.pop(0))
            # It may stand still again by now, or another one have taken its place.
            if process is not None and process.serving and not process.standing.told:
                self._resume(process.number)
                self._log.event(
                    "worker-resumed", worker=process.number, pid=process.pid
                )
        while watchdog.failures:
            self._failed([watchdog.failures.pop(0)])

    # Starting and ending all

    def _start(self) -> None:
        """Bind, have all read, register, load: so no packet is queued to nobody."""
        config = self._config
        try:
            _await_free(config.queues)
            self._installation.take_over(config)
            self._bindings = self._bind(config, config.queues)
            self._kernel = self._ask()
            reporters = self._control.open(config.control), self._events.open()
            for reporter in reporters:
                self._watch(reporter, reporter.serve)
            self._confine()
            for number in range(config.daemon.workers):
                self._fork(number)
            for process in list(self._processes.values()):
                answer = self._answer(process)
                if answer is None:
                    raise QueueError(f"server {process.number} died at its start")
                if "error" in answer:
                    raise QueueError(str(answer["error"]))
                self._serves(process)
            self._installation.install(config, self._kernel)
        except CthelperError:
            for auxiliary in self._auxiliaries:
                auxiliary.close()
            self._installation.abandon()
            self._dismiss()
            self._unbind(list(self._bindings))
            raise

    def _ask(self) -> Kernel:
        """What the kernel does. Raises QueueError where it lacks what is needed."""
        try:
            if self._answers is None:
                kernel = ask(keep=True)
            else:
                kernel = read_answers(self._answers)
        except CannotAsk as error:
            self._log.event("config-warning", "warning", detail=str(error))
            return UNKNOWN
        self._log.event("kernel", release=os.uname().release, **asdict(kernel))
        if not kernel.carries_entries:
            raise QueueError(f"{NOT_GLUED}: {GLUE_MENDED}")
        return kernel

    def _confine(self) -> None:
        """Give up what only the start has needed. Raises CthelperError."""
        confinement = self._confinement
        for gap in confinement.gaps:
            self._log.event("privileges-kept", "warning", detail=gap)
        confinement.confine_supervisor(self._events.folders)
        user = confinement.user
        self._log.event(
            "privileges",
            servers=str(os.geteuid()) if user is None else user.name,
            landlock=confinement.landlock,
            seccomp=confinement.seccomp,
        )

    def _stop(self) -> None:
        """Queue no more, answer what waits, leave nothing behind."""
        self._notifier.stopping()
        self._control.close()
        for binding in self._bindings.values():
            self._installation.attempt(binding.pause)
        self._failed(self._order_all(Order.DRAIN))
        # While there is somebody who tells of it.
        self._events.finish()
        self._dismiss()
        # What a server has left would be dropped when a helper is unregistered.
        for binding in self._bindings.values():
            self._installation.attempt(binding.release)
        if not self._keep_ruleset:
            self._installation.remove()
        self._unbind(list(self._bindings))

    def _dismiss(self) -> None:
        """Have all servers end; their queues must be empty."""
        for process in list(self._processes.values()):
            if process.serving:
                self._tell(process, Order.LEAVE)
                answer = self._answer(process)
                if answer is None:
                    continue  # it has died
                totals = answer["totals"]
                assert isinstance(totals, dict)  # noqa: S101 - as Server answers it
                self._totals.update(totals)
            self._bury(process)
        self._due.clear()

    # Queues

    def _bind(self, config: Config, numbers: Iterable[int]) -> dict[int, Binding]:
        """Bind all of these queues, which are paused then, or none and raise."""
        bound: dict[int, Binding] = {}
        try:
            for number in sorted(numbers):
                bound[number] = self._backend.bind(
                    number,
                    config.daemon.receive_buffer,
                    fail_open=number not in config.closed_queues,
                )
        except CthelperError:
            for binding in bound.values():
                binding.close()
            raise
        return bound

    def _unbind(self, numbers: Iterable[int]) -> None:
        """Let go of paused queues, and of what a server has left there."""
        for number in numbers:
            binding = self._bindings.pop(number)
            self._installation.attempt(binding.release)
            binding.close()

    def _bindings_of(self, number: int) -> list[Binding]:
        """The queues that a server reads."""
        return [self._bindings[each] for each in self._config.queues_of(number)]

    # One server

    def _fork(self, number: int) -> None:
        """Start a server; it answers when it reads its queues, or cannot.

        Raises QueueError where there are no more processes or descriptors to be had.
        """
        ends: tuple[Channel, ...] = ()
        with _held_back() as mask:
            try:
                ours, theirs = ends = Channel.pair()
                progress = Progress()
                pid = os.fork()
            except OSError as error:
                for end in ends:
                    end.close()
                raise QueueError(
                    f"cannot start server {number}: {error.strerror}"
                ) from None
            if pid == 0:
                serve = partial(self._serve, number, ours, theirs, progress)
                self._become(serve, mask, worker=number)
        theirs.close()
        process = _Process(number, pid, ours, time.monotonic(), progress)
        self._processes[number] = process
        self._watch(ours, lambda: self._hear(process))

    def _become(
        self,
        serve: Callable[[], None],
        mask: Iterable[signal.Signals | int],
        **who: object,
    ) -> NoReturn:
        """Be another process, in the one that was forked for it."""
        status = 1
        try:
            # A terminal and systemd send them to all processes.
            for each in (*_SIGNALS, signal.SIGALRM):
                signal.signal(each, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._notifier.close()
            # Who holds the supervisor's end of a channel keeps it open for the dead.
            for process in self._processes.values():
                process.channel.close()
                process.progress.close()
            self._selector.close()
            self._installation.close()
            serve()
            status = 0
        except CthelperError:
            pass  # it has been told
        except BaseException:
            trace = traceback.format_exc()
            self._log.event("step-failed", "error", detail=trace, **who)
        finally:
            # Nothing of the supervisor's is to be done at this process's end.
            os._exit(status)

    def _serve(
        self, number: int, ours: Channel, theirs: Channel, progress: Progress
    ) -> None:
        """Be a server to its end. Raises CthelperError, once it is told."""
        ours.close()
        own = self._bindings_of(number)
        for binding in self._bindings.values():
            if binding not in own:
                binding.socket.close()
        for auxiliary in self._auxiliaries:
            auxiliary.leave(number)
        try:
            server = Server(
                *(number, self._config, own, self._configure, theirs),
                *(self._kernel, progress, self._quarantine),
                [each.end_of(number) for each in self._auxiliaries],
            )
            self._confinement.confine_server()
            helpers = self._config.helpers.values()
            if any(is_stand_in(each.helper) for each in helpers):
                interruption.end_with_parent()
                server.load(self._sources)
        except CthelperError as error:
            with suppress(Gone):
                theirs.send({"error": str(error)})
            raise
        interruption.allow()
        server.run()

    def _start_auxiliary(self, auxiliary: Auxiliary) -> None:
        if auxiliary.life is not None:
            # It was to end, and has not: it is ended.
            self._selector.unregister(auxiliary.life)
            auxiliary.died()
            return
        with _held_back() as mask:

            def become(serve: Callable[[], None]) -> NoReturn:
                for binding in self._bindings.values():
                    binding.socket.close()
                for other in self._auxiliaries:
                    if other is not auxiliary:
                        other.leave()
                self._become(serve, mask, process=auxiliary.name)

            try:
                life = auxiliary.start(become)
            except OSError as error:
                self._failed([f"cannot start the {auxiliary.name}: {error.strerror}"])
                return

        def hear() -> None:
            if not auxiliary.hear():
                self._selector.unregister(life)
                auxiliary.died()

        self._watch(life, hear)

    def _state(self) -> Record:
        """What the controller is told of it (core/control/health.py)."""
        config = self._config
        return {
            "version": __version__,
            "code": "compiled" if COMPILED else "interpreted",
            "backend": self._backend.name,
            "kernel": os.uname().release,
            "pid": os.getpid(),
            "since": self._began,
            "workers": [
                {
                    "worker": number,
                    "pid": process.pid if process is not None else None,
                    "serving": process is not None
                    and process.serving
                    and not process.standing.told,
                }
                for number in range(config.daemon.workers)
                for process in [self._processes.get(number)]
            ],
            "helpers": {
                each.name: {"policies": [policy.name for policy in each.policies]}
                for each in config.helpers.values()
            },
            "queues": sorted(self._bindings),
            "closed_queues": sorted(config.closed_queues),
            "ruleset": self._care.in_place,
            "reload": self._reloaded,
            "events_error": self._events.error,
            "counters": self._log.counters,
        }

    def _hear(self, process: _Process) -> None:
        """A server is ready, or has died."""
        answer = self._answer(process)
        if answer is None:
            return
        if "error" in answer:
            self._failed([f"server {process.number}: {answer['error']}"])
            return
        self._serves(process)

    def _serves(self, process: _Process) -> None:
        process.serving = True
        self._resume(process.number)
        self._log.event("worker-started", worker=process.number, pid=process.pid)
        self._tell_state()

    def _resume(self, number: int) -> None:
        """Have packets wait for a server again; what fails is tried again."""
        self._paused.pop(number, None)
        for binding in self._bindings_of(number):
            try:
                binding.resume()
            except CthelperError as error:
                self._failed([str(error)])
                self._paused[number] = time.monotonic() + _PAUSE_SECONDS

    def _order_all(
        self,
        order: Order,
        bindings: Mapping[int, list[Binding]] | None = None,
        *files: int,
        **details: object,
    ) -> list[str]:
        """Tell all that serve, at a time, and wait; the errors that they answer.

        `bindings` are of queues that are new to a server, by its number; `files` are
        handed to each.
        """
        serving = [each for each in self._processes.values() if each.serving]
        for process in serving:
            fresh = (bindings or {}).get(process.number, [])
            self._tell(process, order, fresh, *files, **details)
        errors = []
        for process in serving:
            answer = self._answer(process)
            if answer is not None and "error" in answer:
                errors.append(f"server {process.number}: {answer['error']}")
        return errors

    def _tell(
        self,
        process: _Process,
        order: Order,
        fresh: Iterable[Binding] = (),
        *files: int,
        **details: object,
    ) -> None:
        queues = [each.number for each in fresh]
        descriptors = [each.fileno() for each in fresh]
        # Where it is gone, so is the answer.
        with suppress(Gone):
            process.channel.send(
                {"order": order, "queues": queues, **details}, [*descriptors, *files]
            )

    def _answer(self, process: _Process) -> Message | None:
        """What a server answers; None where it has died, which is seen to."""
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

    def _died(self, process: _Process, because: str | None = None) -> None:
        """Have its flows pass, and start it again after a while."""
        number = process.number
        for binding in self._bindings_of(number):
            self._installation.attempt(binding.pause)
            self._installation.attempt(binding.release)
        if process.standing.killed:
            because = "stuck"
        lived = time.monotonic() - process.since
        subject = process.progress.subject
        status = self._bury(process)
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        blamed = subject if self._blames(process, status, subject) else None
        self._log.event(
            "worker-died",
            "error",
            worker=number,
            pid=process.pid,
            status=how,
            **({} if because is None else {"because": because}),
            **_told(blamed),
        )
        self._tell_state()
        if lived > _YOUNG_SECONDS:
            self._young[number] = 0
        self._postpone(number)

    def _postpone(self, number: int) -> None:
        """Start a server later, the more so the more often that was necessary."""
        self._young[number] += 1
        wait = pause(_PAUSE_SECONDS, self._young[number])
        self._due[number] = time.monotonic() + wait

    def _blames(self, process: _Process, status: int, subject: Subject | None) -> bool:
        """Whether a server died of what it was at; then the next one leaves it out.

        One that was stopped, or killed from outside, may have been at anything, but not
        at the same again.
        """
        if subject is None or process.standing.stopped:
            return False
        if status == -signal.SIGKILL and not process.standing.killed:
            before, self._last_killed = self._last_killed, subject.key
            if before != subject.key:
                return False
        self._quarantine.hold_flow(subject.key)
        self._quarantine.blame(
            *(subject.helper, subject.client, subject.server, subject.direction),
            assured=subject.assured,
            weight=FAULTS,
        )
        return True

    def _bury(self, process: _Process) -> int:
        """Wait for its end and forget it; its exit code, or minus the signal."""
        del self._processes[process.number]
        self._selector.unregister(process.channel)
        process.channel.close()
        process.progress.close()
        # It may have closed its end and live on; what has ended already stays as it is.
        os.kill(process.pid, signal.SIGKILL)
        _, status = os.waitpid(process.pid, 0)
        return os.waitstatus_to_exitcode(status)

    # Reloading

    def _reload(self) -> None:
        """Take a new configuration, or refuse it and go on with the old one."""
        self._notifier.reloading()
        refused = None
        try:
            declared = self._declare(self._read())
            config = declared.config
            self._change(config, declared.sources)
        except CthelperError as error:
            refused = str(error)
            self._log.event("reload-refused", "error", error=refused)
        else:
            self._warn()
            self._log.event("reloaded", helpers=",".join(config.helpers))
        self._reloaded = {"time": time.time(), "error": refused}
        # As logrotate(8) wants it, whatever stands in the file.
        self._events.reopen(self._config.events)
        self._notifier.reloaded(refused)
        self._tell_state("" if refused is None else f"; refused a reload: {refused}")
        self._notifier.ready()

    def _warn(self) -> None:
        for warning in self._config.warnings:
            self._log.event("config-warning", "warning", detail=warning)

    def _change(self, config: Config, sources: bytes) -> None:
        """Have all servers and the kernel take it, or none. Raises CthelperError.

        `sources` is what it was made of.
        """
        for key in _FIXED:
            if getattr(self._config.daemon, key) != getattr(config.daemon, key):
                raise RestartNeeded(f"daemon.{key} has changed: restart cthelper")
        if config.control != self._config.control:
            raise RestartNeeded("control has changed: restart cthelper")
        self._events.check(config.events)
        for number in range(config.daemon.workers):
            others = self._bindings.keys() - self._config.queues_of(number)
            if moved := config.queues_of(number) & others:
                raise RestartNeeded(
                    f"queue {min(moved)} is another worker's until now: "
                    "restart cthelper"
                )
        # Those that have just begun have the old configuration, and serve nothing yet.
        for process in list(self._processes.values()):
            if not process.serving:
                self._bury(process)
                self._due[process.number] = time.monotonic()
        try:
            file = handed(sources)
        except OSError as error:
            raise QueueError(f"cannot hand on the configuration: {error}") from None
        try:
            fresh = self._bind(config, config.queues - self._bindings.keys())
            parts = {
                number: [
                    fresh[each]
                    for each in sorted(config.queues_of(number) & fresh.keys())
                ]
                for number in range(config.daemon.workers)
            }
            errors = self._order_all(
                Order.PREPARE, parts, file, config=fingerprint(config)
            )
        finally:
            os.close(file)
        try:
            if errors:
                raise QueueError(errors[0])
            for process in self._processes.values():
                for binding in parts[process.number]:
                    binding.resume()
            self._installation.change(config)
        except CthelperError:
            self._failed(self._order_all(Order.ABORT))
            for binding in fresh.values():
                # The rules of before do not queue there, but those of now have.
                for step in (binding.pause, binding.release, binding.close):
                    self._installation.attempt(step)
            raise
        unused = self._bindings.keys() - config.queues
        self._bindings |= fresh
        self._config, self._sources = config, sources
        self._quarantine.release()
        self._watchdog.set()
        self._log.configure(config.daemon.log_level, config.daemon.log_format)
        for number, binding in self._bindings.items():
            if number in unused:
                step = binding.pause
            else:
                closed = number in config.closed_queues
                step = partial(binding.set_fail_open, not closed)
            self._installation.attempt(step)
        self._failed(self._order_all(Order.COMMIT))
        self._unbind(unused)


@contextmanager
def _held_back() -> Iterator[Collection[signal.Signals | int]]:
    """Signals wait meanwhile: one that came before a child ignores it would be the
    supervisor's. Gives the mask of before.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _told(subject: Subject | None) -> dict[str, object]:
    """What the log says of what a server was at."""
    if subject is None:
        return {}
    return {"helper": subject.helper, "sender": subject.sender}


def _await_free(queues: Collection[int]) -> None:
    """Wait for servers that are about to end; whoever stays is met when binding."""
    deadline = time.monotonic() + _LEAVING_SECONDS
    while not bound_queues().keys().isdisjoint(queues) and time.monotonic() < deadline:
        time.sleep(_LEAVING_PAUSE)
