# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor in a process of its own, with real forks and no kernel to ask.

Queues, servers and what is installed are fakes that write a line for what is done to
them, in between those of the log, so that the order can be asserted.
"""

import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import pytest

from cthelper.core.config import Config, parse
from cthelper.core.daemon import ruleset_care, supervisor
from cthelper.core.daemon.channel import Channel, Gone, Order, fingerprint, taken
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import CannotAsk, Kernel
from cthelper.core.daemon.progress import Progress
from cthelper.core.daemon.supervisor import Supervisor
from cthelper.core.declaration import declare, stand_in
from cthelper.core.errors import CthelperError, QueueError, RegistryError
from cthelper.core.quarantine import Quarantine
from cthelper.core.queue.backends import Backend
from cthelper.core.queue.binding import Binding
from cthelper.core.registry import builtin_helpers
from cthelper.core.sources import Declared
from cthelper.core.tuples import ORIGINAL
from tests.core.builders import conntrack

OTHERS = "".join(
    f"helpers.{name}.enabled = false\n"
    for name, each in builtin_helpers().items()
    if each.enabled and not each.template and name not in ("sunrpc", "tns")
)
OTHERS += 'control.socket = ""\n'
MOVED = "[helpers.tns]\nqueue = 2090\n"
SECONDS = 10.0
ENTRY = conntrack(helper="tns")


class Running:
    """A supervisor, what it did, and the faults that it is to meet."""

    def __init__(self, folder: Path, output: TextIO, read: int) -> None:
        self._faults = folder / "faults"
        self._faults.mkdir()
        self._file = folder / "cthelper.toml"
        self._read, self._rest = read, ""
        self.output = output
        self.answers: Path | None = None
        self.plugin = False
        self.touched, self._touch = os.pipe()
        self.pid = 0

    def configure(self, settings: str) -> None:
        """What stands in the file from now on."""
        self._file.write_text(f"{OTHERS}{settings}")

    def config(self) -> Config:
        """Read the file."""
        return self.configured(self._file.read_bytes())

    def declared(self, sources: bytes) -> Declared:
        """What the supervisor makes of it: with `plugin` tns is one."""
        if not self.plugin:
            return Declared(self.configured(sources), sources)
        if self.fails("examine"):
            raise RegistryError("tns.py:3: ends its process (exit code 3)")
        helpers = builtin_helpers()
        helpers["tns"] = stand_in(declare(helpers["tns"], "", None))
        return Declared(parse(sources.decode(), self._file, helpers), sources)

    def configured(self, sources: bytes) -> Config:
        """What its text comes to."""
        return parse(sources.decode(), self._file, builtin_helpers())

    def say(self, line: str) -> None:
        """Write a line, in whichever process."""
        print(line, file=self.output, flush=True)

    def fail(self, step: str) -> None:
        """Have a step fail from now on."""
        (self._faults / step).touch()

    def mend(self, step: str) -> None:
        """Have it fail no more."""
        (self._faults / step).unlink()

    def fails(self, step: str) -> bool:
        return (self._faults / step).exists()

    def ask(self, *, keep: bool) -> Kernel:
        """What the kernel is said to do."""
        assert keep
        if self.fails("ask"):
            raise CannotAsk("no answer")
        return Kernel(carries_entries=not self.fails("entries"))

    def start(self) -> None:
        """Fork the supervisor."""
        self.pid = os.fork()
        if self.pid == 0:
            try:
                Supervisor(
                    *(self.declared(self._file.read_bytes()), self._file.read_bytes),
                    *(self.declared, self.configured),
                    FakeConfinement(self),  # type: ignore[arg-type]
                    answers=self.answers,
                ).run()
            except CthelperError as error:
                self.say(f"cannot start: {error}")
            finally:
                sys.stderr.flush()
                os._exit(0)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, last: str) -> list[str]:
        """The next lines, up to one that begins with `last`."""
        lines: list[str] = []
        deadline = time.monotonic() + SECONDS
        while not (lines and lines[-1].startswith(last)):
            line, found, rest = self._rest.partition("\n")
            if found:
                self._rest = rest
                lines.append(re.sub("^time=.* event=", "* ", line))
                continue
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._read], [], [], left)[0], lines
            self._rest += os.read(self._read, 1 << 16).decode()
        return lines

    def flush(self) -> None:
        """Take the ruleset away."""
        self.fail("ruleset")
        self.touch()

    def touch(self) -> None:
        """Have it told that something has been done to a ruleset."""
        os.write(self._touch, b"event")

    def end(self) -> None:
        """End what still runs."""
        for each in (self.touched, self._touch):
            os.close(each)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class LogOutput:
    """What the log writes to, as long as that does not fail."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def write(self, text: str, /) -> None:
        if self._running.fails("log"):
            self._running.say("no line")
            raise BrokenPipeError
        self._running.output.write(text)


class FakeBinding(Binding):
    """Writes a line for each message."""

    def __init__(self, running: Running, number: int, *, fail_open: bool) -> None:
        self.other, end = socket.socketpair()
        super().__init__(number, end, fail_open=fail_open)
        self._say = running.say
        self._say(f"bind {number}{'' if fail_open else ' closed'}")

    def pause(self) -> None:
        self._say(f"pause {self.number}")

    def resume(self) -> None:
        self._say(f"resume {self.number}")

    def release(self) -> None:
        self._say(f"release {self.number}")

    def set_fail_open(self, fail_open: bool) -> None:
        self._say(f"{'open' if fail_open else 'closed'} {self.number}")

    def close(self) -> None:
        self._say(f"close {self.number}")


class FakeServer:
    """Answers, or dies or fails where it is to."""

    def __init__(
        self,
        running: Running,
        number: int,
        config: Config,
        bindings: list[Binding],
        configure: Callable[[bytes], Config],
        channel: Channel,
        _kernel: Kernel,
        progress: Progress,
        quarantine: Quarantine,
        _reports: Iterable[socket.socket],
    ) -> None:
        self._running, self._number, self._channel = running, number, channel
        self._progress, self._quarantine = progress, quarantine
        self._config, self._configure = config, configure
        self._queues = {each.number for each in bindings}
        if running.fails(f"start {number}"):
            raise QueueError("no server")
        if running.fails(f"bug {number}"):
            raise RecursionError("in a server")
        if quarantine.holds("tns", ENTRY):
            running.say(f"server {number} leaves out what the last one died of")

    def load(self, sources: bytes) -> None:
        self._running.say(f"server {self._number} imports")
        assert fingerprint(self._configure(sources)) == fingerprint(self._config)
        while self._running.fails("import without end"):
            time.sleep(0.01)
        if self._running.fails("import"):
            raise RegistryError("tns.py:7: OSError: no")

    def run(self) -> None:
        self._reads()
        answer: dict[str, object] = {}
        order: object = None
        if self._running.fails("loop"):
            self._running.mend("loop")
            self._channel.send(answer)
            self._progress.begin(ENTRY, ORIGINAL)
            self._loop()
        if self._running.fails("over a packet"):
            self._progress.begin(ENTRY, ORIGINAL)
        while order != Order.LEAVE:
            try:
                self._channel.send(answer)
                message = self._channel.receive(SECONDS, files=True)
            except Gone:
                return  # a test that failed has ended the supervisor
            order, numbers = message["order"], message["queues"]
            assert isinstance(numbers, list)
            descriptors = message.get("descriptors", [])
            assert isinstance(descriptors, list)
            if order == Order.PREPARE:
                sources = taken(descriptors.pop())
            assert len(numbers) == len(descriptors)
            words = map(str, ("server", self._number, order, *numbers))
            self._running.say(" ".join(words))
            if self._running.fails(f"die {order} {self._number}"):
                os.kill(os.getpid(), signal.SIGKILL)
            answer = {"totals": {"packets": 5}} if order == Order.LEAVE else {}
            if self._running.fails(f"{order} {self._number}"):
                answer = {"error": "no"}
            if order == Order.PREPARE:
                self._queues.update(numbers)
            if order == Order.COMMIT:
                self._config = self._configure(sources)
                self._queues &= self._config.queues_of(self._number)
                self._reads()
        self._channel.send(answer)

    def _loop(self) -> None:
        """Stand still over a packet, and interrupted go on where it is to."""
        went_on: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: went_on.append(number))
        own = os.getppid()
        while not (went_on and self._running.fails("slow")) and os.getppid() == own:
            pass
        self._running.say("server goes on")
        time.sleep(0.5)
        self._progress.turn()

    def _reads(self) -> None:
        words = map(str, ("server", self._number, "reads", *sorted(self._queues)))
        self._running.say(" ".join(words))


class FakeConfinement:
    """Writes a line for each process that is confined, where that does not fail."""

    user, landlock, seccomp, gaps = None, 0, False, ("no seccomp",)

    def __init__(self, running: Running) -> None:
        self._running = running

    def confine_supervisor(self, folders: Iterable[Path]) -> None:
        assert Path("/var/log/cthelper") in folders
        self._confine("supervisor")

    def confine_bare(self) -> None:
        self._confine("writer")

    def confine_server(self) -> None:
        self._confine("server")

    def _confine(self, who: str) -> None:
        self._running.say(f"confine {who}")
        if self._running.fails(f"confine {who}"):
            raise CthelperError(f"{who} keeps all")


class FakeInstallation:
    """Writes a line for each step."""

    def __init__(self, running: Running, log: Log) -> None:
        self._running, self._log = running, log

    def fileno(self) -> int:
        return self._running.touched

    def close(self) -> None:
        pass

    def touched(self) -> bool:
        return bool(os.read(self._running.touched, 100))

    def missing(self, _config: Config) -> bool:
        return self._running.fails("ruleset")

    def restore(self, _config: Config) -> None:
        self._step("restore")
        self._running.mend("ruleset")

    def _step(self, name: str) -> None:
        self._running.say(name)
        if self._running.fails(name):
            raise QueueError(f"no {name}")

    def take_over(self, _config: Config) -> None:
        self._step("take over")

    def install(self, _config: Config, _kernel: Kernel) -> None:
        self._step("install")

    def abandon(self) -> None:
        self._step("abandon")

    def change(self, _config: Config) -> None:
        self._step("change")
        if self._running.fails("ruleset"):
            self._running.mend("ruleset")
            self._running.touch()

    def remove(self) -> None:
        self._step("remove")

    def attempt(self, step: Callable[[], None]) -> None:
        step()


def running_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A supervisor that is still to be started."""
    read, write = os.pipe()
    with open(read, "rb"), open(write, "w", buffering=1) as output:
        made = Running(tmp_path, output, read)

        def bind(number: int, _buffer: int, *, fail_open: bool) -> Binding:
            if made.fails(f"bind {number}"):
                raise QueueError(f"no queue {number}")
            return FakeBinding(made, number, fail_open=fail_open)

        def read_queue(_binding: Binding, _flows: int) -> None:
            raise AssertionError("the supervisor reads nothing")

        backend = Backend("fake", "it is a test", bind, read_queue)  # type: ignore[arg-type]
        for name, fake in (
            ("choose", lambda _: backend),
            ("bound_queues", dict),
            ("ask", made.ask),
            ("Server", partial(FakeServer, made)),
            ("Installation", partial(FakeInstallation, made)),
            ("Log", partial(Log, output=LogOutput(made))),
            ("_PAUSE_SECONDS", 0.05),
        ):
            monkeypatch.setattr(supervisor, name, fake)
        monkeypatch.setattr(ruleset_care, "_PAUSE", 0.2)
        yield made
        made.end()


def started(running: Running, settings: str = "") -> list[str]:
    """What is done until it serves."""
    running.configure(settings)
    running.start()
    return running.until("* started")


def pid_of(line: str) -> int:
    """The process that a line is of."""
    return int(line.partition("pid=")[2].split()[0])


def plain(lines: list[str]) -> list[str]:
    """The lines, events by their name alone."""
    return [" ".join(each.split()[:2]) if each[0] == "*" else each for each in lines]
