# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor starts, reloads and ends: in which order, and where a step fails."""

import errno
import os
import signal
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cthelper.core.daemon import channel, notify, supervisor
from cthelper.core.daemon.answers import write_answers
from cthelper.core.daemon.probe import NOT_GLUED, UNKNOWN, CannotAsk, Kernel
from tests.core.daemon.supervised import MOVED, SECONDS, Running, pid_of, plain, started
from tests.core.daemon.test_answers import asked
from tests.core.daemon.test_notify import Manager


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


def test_packets_are_read_before_any_is_queued_and_answered_before_it_leaves(
    running: Running,
) -> None:
    closed = "helpers.tns.fail_closed = true\n"
    lines = started(running, closed)
    assert plain(lines) == [
        *("take over", "bind 2077", "bind 2078 closed", "* kernel"),
        *("* privileges-kept", "confine supervisor", "* privileges"),
        *("confine server", "server 0 reads 2077 2078"),
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
            "confine supervisor",
            ["abandon", "release 2077", "close 2077", "release 2090", "close 2090"],
            "supervisor keeps all",
        ),
        (
            "confine server",
            ["abandon", "release 2077", "close 2077", "release 2090", "close 2090"],
            "server keeps all",
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
    ids=["queue", "server", "supervisor's rights", "server's rights", "ruleset"],
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
    # Of the kernel, of the privileges that stay and go, of the start of worker and
    # supervisor, and of the reload.
    lost, stopped = running.until("* stopped")[-2:]
    assert lost == "* log-lost lines=6"
    assert " log-lost=6" in stopped


@pytest.mark.parametrize(
    ("kernel", "line"),
    [
        (replace(UNKNOWN, hands_down=True), "hands_down=true"),
        (replace(UNKNOWN, carries_entries=False), "carries_entries=false"),
        (CannotAsk("no namespace"), "no namespace"),
    ],
    ids=["answers", "no entries", "no answer"],
)
def test_what_another_process_has_asked_is_not_asked_again(
    running: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: Kernel | CannotAsk,
    line: str,
) -> None:
    running.fail("ask")
    running.answers = tmp_path / "kernel"
    asked(monkeypatch, kernel)
    with suppress(CannotAsk):
        write_answers(running.answers)
    running.configure("")
    running.start()
    lacking = "carries" in line
    lines = running.until("cannot start" if lacking else "* started")
    assert any(line in each for each in lines)
    if lacking:
        assert NOT_GLUED in lines[-1]


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
    closed = ["pause 2090", "release 2090", "close 2090"]
    undone = ["bind 2090", *steps, "server 0 abort", *closed] if steps else []
    assert lines == undone
    assert refused == f'* reload-refused error="{reason}"'
    # The old one is the one that a server goes on with.
    running.signal(signal.SIGTERM)
    assert running.until("server 0 drain")[0] == "pause 2077"


def test_reload_for_which_there_is_no_file_to_be_had_is_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = channel.handed

    def limited(data: bytes) -> int:
        if running.fails("file"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return handed(data)

    monkeypatch.setattr(supervisor, "handed", limited)
    started(running)
    running.fail("file")
    (refused,) = reload(running, MOVED)
    assert "cannot hand on the configuration: " in refused
    assert "Too many open files" in refused
    running.mend("file")
    assert reload(running, MOVED)[-1].startswith("* reloaded")


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
        *("confine server", "server 0 reads 2077 2090"),
        *("resume 2090", "resume 2077", "* worker-started"),
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
