# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor knows plugins by what they declare, and servers import them."""

import os
import signal

import pytest

from cthelper.core.daemon import supervisor
from tests.core.daemon.supervised import Running, pid_of, plain, started


@pytest.fixture(autouse=True)
def tns_is_a_plugin(running: Running) -> None:
    running.plugin = True


def test_server_imports_once_it_is_confined_and_serves_after(running: Running) -> None:
    lines = plain(started(running))
    begun = lines.index("confine server")
    assert lines[begun : begun + 3] == [
        *("confine server", "server 0 imports", "server 0 reads 2077")
    ]


def test_server_of_no_plugin_imports_none(running: Running) -> None:
    lines = started(running, "helpers.tns.enabled = false\n")
    assert "server 0 imports" not in lines


def test_next_server_imports_what_the_first_one_has(running: Running) -> None:
    lines = started(running)
    running.configure("helpers.tns.ports = [9]\n")  # nobody has told it
    os.kill(pid_of(lines[-3]), signal.SIGKILL)
    lines = running.until("* worker-started")
    assert "server 0 imports" in lines
    running.signal(signal.SIGHUP)
    running.until("* reloaded")
    os.kill(pid_of(lines[-1]), signal.SIGKILL)
    assert "server 0 imports" in running.until("* worker-started")


def test_plugin_that_cannot_be_imported_keeps_it_from_starting(
    running: Running,
) -> None:
    running.configure("")
    running.fail("import")
    running.start()
    lines = running.until("cannot start")
    assert lines[-1] == "cannot start: tns.py:7: OSError: no"
    assert "abandon" in lines


def test_next_server_that_cannot_import_is_told_and_tried_again(
    running: Running,
) -> None:
    lines = started(running)
    running.fail("import")
    os.kill(pid_of(lines[-3]), signal.SIGKILL)
    failed = running.until("* step-failed")[-1]
    assert "server 0: tns.py:7: OSError: no" in failed
    running.mend("import")
    running.until("* worker-started")


def test_server_that_imports_for_ever_is_replaced(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_ANSWER_SECONDS", 0.5)
    lines = started(running)
    running.fail("import without end")
    os.kill(pid_of(lines[-3]), signal.SIGKILL)
    running.until("server 0 imports")
    died = running.until("* worker-died")[-1]
    assert "status=SIGKILL because=late" in died
    running.mend("import without end")
    running.until("* worker-started")


def test_at_the_start_it_is_waited_for_so_long(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_ANSWER_SECONDS", 0.3)
    running.configure("")
    running.fail("import without end")
    running.start()
    last = running.until("cannot start")[-1]
    assert last == "cannot start: server 0 died at its start"


def test_reload_with_a_plugin_that_is_wrong_is_refused(running: Running) -> None:
    started(running)
    running.fail("examine")
    running.signal(signal.SIGHUP)
    refused = running.until("* reload-refused")[-1]
    assert "tns.py:3: ends its process (exit code 3)" in refused
    running.mend("examine")
    running.configure("helpers.tns.ports = [9]\n")
    running.signal(signal.SIGHUP)
    lines = running.until("* reloaded")
    assert "server 0 prepare" in lines
