# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers that die, stand still or cannot be made, and what the supervisor does."""

import errno
import os
import signal
import time

import pytest

from tests.core.daemon.supervised import (
    ENTRY,
    SECONDS,
    Running,
    pid_of,
    plain,
    started,
)


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
        *("server 0 leaves out what the last one died of", "confine server"),
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
        *("confine server", "server 1 reads 2078"),
        *("resume 2078", "* worker-started"),
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
