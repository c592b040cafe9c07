# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor in a process of its own, with real forks and no kernel to ask.

Queues, servers and what is installed are fakes that write a line for what is done to
them, in between those of the log, so that the order can be asserted.
"""

import errno
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TextIO

import pytest

from cthelper.core.config import Config, parse
from cthelper.core.daemon import notify, ruleset_care, supervisor
from cthelper.core.daemon.channel import Channel, Gone, Order
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import CannotAsk, Kernel
from cthelper.core.daemon.progress import Progress
from cthelper.core.daemon.supervisor import Supervisor
from cthelper.core.errors import CthelperError, QueueError
from cthelper.core.quarantine import Quarantine
from cthelper.core.queue.backends import Backend
from cthelper.core.queue.binding import Binding
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import ORIGINAL
from tests.core.builders import conntrack
from tests.core.daemon.test_notify import Manager

OTHERS = "".join(
    f"helpers.{name}.enabled = false\n"
    for name in builtin_helpers()
    if name not in ("sunrpc", "tns")
)
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
        self.touched, self._touch = os.pipe()
        self.pid = 0

    def configure(self, settings: str) -> None:
        """What stands in the file from now on."""
        self._file.write_text(f"{OTHERS}{settings}")

    def config(self) -> Config:
        """Read the file."""
        return parse(self._file.read_text(), self._file, builtin_helpers())

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
                Supervisor(self.config(), self.config).run()
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
        read_config: Callable[[], Config],
        channel: Channel,
        _kernel: Kernel,
        progress: Progress,
        quarantine: Quarantine,
    ) -> None:
        self._running, self._number, self._channel = running, number, channel
        self._progress, self._quarantine = progress, quarantine
        self._config, self._read_config = config, read_config
        self._queues = {each.number for each in bindings}
        if running.fails(f"start {number}"):
            raise QueueError("no server")
        if running.fails(f"bug {number}"):
            raise RecursionError("in a server")
        if quarantine.holds("tns", ENTRY):
            running.say(f"server {number} leaves out what the last one died of")

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
                message = self._channel.receive(SECONDS)
            except Gone:
                return  # a test that failed has ended the supervisor
            order, numbers = message["order"], message["queues"]
            assert isinstance(numbers, list)
            descriptors = message.get("descriptors", [])
            assert isinstance(descriptors, list)
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
                self._config = self._read_config()
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


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
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


def test_kernel_whose_packets_come_without_their_entries_is_refused(
    running: Running,
) -> None:
    running.fail("entries")
    running.configure("")
    running.start()
    *lines, last = running.until("cannot start")
    (kernel,) = (each for each in lines if each.startswith("* kernel release="))
    assert "carries_entries=false confirms=true" in kernel
    assert last == (
        "cannot start: queued packets do not carry their conntrack entry: boot a "
        "kernel with CONFIG_NETFILTER_NETLINK_GLUE_CT=y"
    )
    assert lines[lines.index(kernel) + 1 :] == [
        *("abandon", "release 2077", "close 2077")
    ]


def test_kernel_that_cannot_be_asked_is_served_all_the_same(running: Running) -> None:
    running.fail("ask")
    lines = started(running)
    assert '* config-warning detail="no answer"' in lines


def pid_of(line: str) -> int:
    """The process that a line is of."""
    return int(line.partition("pid=")[2].split()[0])


def plain(lines: list[str]) -> list[str]:
    """The lines, events by their name alone."""
    return [" ".join(each.split()[:2]) if each[0] == "*" else each for each in lines]


def test_packets_are_read_before_any_is_queued_and_answered_before_it_leaves(
    running: Running,
) -> None:
    closed = "helpers.tns.fail_closed = true\n"
    lines = started(running, closed)
    assert plain(lines) == [
        *("take over", "bind 2077", "bind 2078 closed", "* kernel"),
        "server 0 reads 2077 2078",
        *("resume 2077", "resume 2078", "* worker-started", "install", "* started"),
    ]
    # As a terminal and systemd do.
    for number in (signal.SIGHUP, signal.SIGTERM):
        os.kill(pid_of(lines[-3]), number)
    running.signal(signal.SIGTERM)
    *lines, stopped = running.until("* stopped")
    assert lines == [
        *("pause 2077", "pause 2078", "server 0 drain", "server 0 leave"),
        *("release 2077", "release 2078", "remove"),
        *("release 2077", "close 2077", "release 2078", "close 2078"),
    ]
    assert stopped.startswith("* stopped packets=5 bypassed=0 dropped=0 ")


@pytest.mark.parametrize(
    ("fault", "steps", "reason"),
    [
        ("bind 2090", ["close 2077", "abandon"], "no queue 2090"),
        (
            "start 0",
            ["abandon", "release 2077", "close 2077", "release 2090", "close 2090"],
            "no server",
        ),
        (
            "install",
            [
                *("abandon", "server 0 leave"),
                *("release 2077", "close 2077", "release 2090", "close 2090"),
            ],
            "no install",
        ),
    ],
    ids=["queue", "server", "ruleset"],
)
def test_where_it_cannot_start_nothing_is_left(
    running: Running, fault: str, steps: list[str], reason: str
) -> None:
    running.configure(MOVED)
    running.fail(fault)
    running.start()
    lines = running.until("cannot start")
    assert lines[-1] == f"cannot start: {reason}"
    assert lines[-1 - len(steps) : -1] == steps


def test_server_that_stands_still_is_replaced_and_the_next_leaves_out_its_flow(
    running: Running,
) -> None:
    running.fail("loop")
    started(running)
    sender = ENTRY.original.source.address
    lines = running.until("* worker-started")
    stuck = plain(lines).index("* worker-stuck")
    assert f"helper=tns sender={sender}" in lines[stuck]
    assert [each for each in plain(lines) if each != "* worker-stuck"] == [
        *("pause 2077", "release 2077", "pause 2077", "release 2077"),
        "* worker-died",
        "server 0 leaves out what the last one died of",
        *("server 0 reads 2077", "resume 2077", "* worker-started"),
    ]
    (died,) = (each for each in lines if each.startswith("* worker-died"))
    assert f"status=SIGKILL because=stuck helper=tns sender={sender}" in died


def test_server_that_goes_on_after_the_deadline_serves_again(running: Running) -> None:
    for each in ("loop", "slow"):
        running.fail(each)
    started(running)
    lines = plain(running.until("resume"))
    assert sorted(lines) == sorted(
        [
            *("server goes on", "pause 2077", "release 2077", "* worker-stuck"),
            "resume 2077",
        ]
    )
    assert lines[-1] == "resume 2077"
    assert running.until("* worker-resumed")


def test_server_is_started_later_where_there_is_no_process_to_be_had(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, mine = os.fork, os.getpid()

    def limited() -> int:
        if os.getpid() != mine and running.fails("fork"):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    lines = started(running)
    (process,) = (pid_of(each) for each in lines if "worker-started" in each)
    running.fail("fork")
    os.kill(process, signal.SIGKILL)
    failed = running.until("* step-failed")[-1]
    assert "cannot start server 0: Resource temporarily unavailable" in failed
    running.until("* step-failed")
    running.mend("fork")
    running.until("* worker-started")


def test_where_it_cannot_start_a_server_at_first_it_says_so(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, mine = os.fork, os.getpid()

    def limited() -> int:
        if os.getpid() != mine:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    running.configure("")
    running.start()
    lines = running.until("cannot start")
    assert lines[-1] == (
        "cannot start: cannot start server 0: Resource temporarily unavailable"
    )
    assert "abandon" in lines


def test_flow_is_blamed_where_two_servers_in_a_row_are_killed_over_it(
    running: Running,
) -> None:
    running.fail("over a packet")
    lines = started(running, "budget.deadline = 60000\n")
    for number in range(3):
        (process,) = (pid_of(each) for each in lines if "worker-started" in each)
        os.kill(process, signal.SIGKILL)
        lines = running.until("* worker-started")
        (died,) = (each for each in lines if each.startswith("* worker-died"))
        left_out = "server 0 leaves out what the last one died of"
        assert ("helper=tns" in died) is (left_out in lines) is (number > 0)


def test_flows_of_a_server_that_dies_pass_until_another_reads_the_same_queues(
    running: Running,
) -> None:
    first = [each for each in started(running, "daemon.workers = 2\n") if "pid" in each]
    os.kill(pid_of(first[1]), signal.SIGKILL)
    lines = running.until("* worker-started")
    assert plain(lines) == [
        *("pause 2078", "release 2078", "* worker-died"),
        *("server 1 reads 2078", "resume 2078", "* worker-started"),
    ]
    assert "status=SIGKILL" in lines[2]
    # Each time that it dies young it takes twice as long.
    os.kill(pid_of(lines[-1]), signal.SIGKILL)
    before = time.monotonic()
    running.until("* worker-started")
    assert 0.1 <= time.monotonic() - before < SECONDS


def test_server_that_cannot_serve_again_is_tried_again(running: Running) -> None:
    lines = started(running)
    running.fail("start 0")
    os.kill(pid_of(lines[-3]), signal.SIGKILL)
    again = plain(running.until("* step-failed") + running.until("* worker-died"))
    dies = ["pause 2077", "release 2077", "* worker-died"]
    assert again == [*dies, "* step-failed", *dies]


def test_bug_in_a_server_is_told_in_one_line_and_ends_no_more_than_the_server(
    running: Running,
) -> None:
    lines = started(running)
    running.fail("bug 0")
    os.kill(pid_of(lines[-3]), signal.SIGKILL)
    running.until("* worker-died")
    failed, *_, died = running.until("* worker-died")
    assert failed.startswith('* step-failed detail="Traceback ')
    assert failed.endswith('RecursionError: in a server\\n" worker=0')
    assert "exit code 1" in died


def test_log_that_cannot_be_written_ends_nothing_from_the_start_on(
    running: Running,
) -> None:
    running.configure("")
    running.fail("log")
    running.start()
    running.until("install")
    running.until("no line")
    running.configure("helpers.tns.enabled = false\n")
    running.signal(signal.SIGHUP)
    assert running.until("no line")[-2] == "server 0 reads 2077"
    running.mend("log")
    running.signal(signal.SIGTERM)
    # Of the kernel, of the start of worker and supervisor, and of the reload.
    lost, stopped = running.until("* stopped")[-2:]
    assert lost == "* log-lost lines=4"
    assert " log-lost=4" in stopped


def test_lost_ruleset_is_put_back_while_the_servers_go_on(running: Running) -> None:
    started(running, "[daemon]\nworkers = 2\n")
    running.flush()
    lines = running.until("* ruleset-restored")
    assert plain(lines) == ["* ruleset-lost", "restore", "* ruleset-restored"]
    assert " action=restore seconds=0.0 uninspected=sunrpc,tns " in lines[0]
    # Somebody goes on taking it away.
    running.flush()
    before = time.monotonic()
    (lost,) = running.until("* ruleset-lost")
    assert " seconds=0.2 " in lost
    running.until("* ruleset-restored")
    assert 0.2 <= time.monotonic() - before < SECONDS
    running.signal(signal.SIGTERM)
    running.until("* stopped")


def test_lost_ruleset_comes_back_with_a_reload_where_it_is_only_told(
    running: Running,
) -> None:
    warn = '[daemon]\nlost_ruleset = "warn"\n'
    started(running, warn)
    running.flush()
    (lost,) = running.until("* ruleset-lost")
    assert " action=warn uninspected=" in lost
    assert plain(reload(running, warn, "* ruleset-restored")) == [
        *("server 0 prepare", "change", "open 2077", "server 0 commit"),
        *("server 0 reads 2077", "* reloaded", "* ruleset-restored"),
    ]


# Reloading.


def reload(running: Running, settings: str, last: str = "* reload") -> list[str]:
    running.configure(settings)
    running.signal(signal.SIGHUP)
    return running.until(last)


def test_new_queue_is_read_before_the_rules_name_it_and_an_unused_one_goes_last(
    running: Running,
) -> None:
    started(running, MOVED)
    closed = "[helpers.tns]\nqueue = 2091\nfail_closed = true\n"
    assert plain(reload(running, closed)) == [
        *("bind 2091 closed", "server 0 prepare 2091", "resume 2091", "change"),
        *("open 2077", "pause 2090", "closed 2091", "server 0 commit"),
        *("server 0 reads 2077 2091", "release 2090", "close 2090", "* reloaded"),
    ]


@pytest.mark.parametrize(
    ("fault", "steps", "reason"),
    [
        ("bind 2090", [], "no queue 2090"),
        ("prepare 0", ["server 0 prepare 2090"], "server 0: no"),
        ("change", ["server 0 prepare 2090", "resume 2090", "change"], "no change"),
    ],
    ids=["queue", "server", "kernel"],
)
def test_reload_is_taken_by_all_or_by_none(
    running: Running, fault: str, steps: list[str], reason: str
) -> None:
    started(running)
    running.fail(fault)
    *lines, refused = reload(running, MOVED)
    undone = ["bind 2090", *steps, "server 0 abort", "close 2090"] if steps else []
    assert lines == undone
    assert refused == f'* reload-refused error="{reason}"'
    # The old one is the one that a server goes on with.
    running.signal(signal.SIGTERM)
    assert running.until("server 0 drain")[0] == "pause 2077"


@pytest.mark.parametrize(
    "setting",
    ["workers = 2", "receive_buffer = 65536", "flow_limit = 7", "mark = 0"],
)
def test_what_a_reload_does_not_change_is_refused_before_anything_is_done(
    running: Running, setting: str
) -> None:
    started(running)
    (refused,) = reload(running, f"[daemon]\n{setting}\n")
    key = setting.split()[0]
    assert f"daemon.{key} has changed: restart cthelper" in refused


def test_server_that_dies_of_a_reload_begins_again_with_the_new_configuration(
    running: Running,
) -> None:
    started(running)
    running.fail("die prepare 0")
    lines = reload(running, MOVED) + running.until("* worker-started")
    assert plain(lines) == [
        *("bind 2090", "server 0 prepare 2090"),
        *("pause 2077", "release 2077", "* worker-died", "change"),
        *("open 2077", "open 2090", "* reloaded"),
        *("server 0 reads 2077 2090", "resume 2090", "resume 2077", "* worker-started"),
    ]


def test_queue_does_not_go_from_one_server_to_another(running: Running) -> None:
    started(running, "[daemon]\nworkers = 2\n")
    lines = reload(running, "[daemon]\nworkers = 2\nqueue = 2078\n")
    refused = "queue 2078 is another worker's until now: restart cthelper"
    assert refused in lines[-1]


# The service manager.


def test_service_manager_is_told_of_each_state_once_it_is_so(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Manager(str(tmp_path / "notify"))) as manager:
        told: list[str] = []

        def heard(last: str) -> list[str]:
            """The first lines of what is said, up to the one that is `last`."""
            deadline = time.monotonic() + SECONDS
            while last not in told:
                assert time.monotonic() < deadline, told
                told.extend(each.partition("\n")[0] for each in manager.heard)
            found = told[: told.index(last) + 1]
            del told[: len(found)]
            return [each for each in found if each == last or each != "WATCHDOG=1"]

        for name, value in manager.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
        running.fail("install")
        running.configure("")
        running.start()
        running.until("cannot start")
        assert "READY=1" not in manager.heard
        os.waitpid(running.pid, 0)

        running.mend("install")
        started(running, "daemon.workers = 2\n")
        serving = "workers serve sunrpc, tns"
        assert heard("READY=1") == [
            f"STATUS=1 of 2 {serving}",
            f"STATUS=2 of 2 {serving}",
            "READY=1",
        ]
        assert heard("WATCHDOG=1") == ["WATCHDOG=1"]
        assert heard("WATCHDOG=1") == ["WATCHDOG=1"]

        running.configure("daemon.workers = 2\nhelpers.tns.enabled = false\n")
        assert notify.reload(running.pid, tmp_path, SECONDS) == ""
        assert heard("READY=1") == [
            *("RELOADING=1", "STATUS=2 of 2 workers serve sunrpc", "READY=1")
        ]
        running.until("* reloaded")

        running.configure("daemon.workers = 1\n")
        error = "daemon.workers has changed: restart cthelper"
        assert notify.reload(running.pid, tmp_path, SECONDS) == error
        assert heard("READY=1") == [
            "RELOADING=1",
            f"STATUS=2 of 2 workers serve sunrpc; refused a reload: {error}",
            "READY=1",
        ]
        running.signal(signal.SIGTERM)
        assert heard("STOPPING=1") == ["STOPPING=1"]
        running.until("* stopped")
