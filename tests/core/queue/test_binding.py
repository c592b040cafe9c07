# SPDX-License-Identifier: GPL-2.0-or-later
"""Bound queues: what is sent to have packets pass, wait, or be released."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cthelper.core import errors
from cthelper.core.errors import QueueError
from cthelper.core.queue import binding
from cthelper.core.queue.binding import (
    Binding,
    BoundQueue,
    bound_queues,
    open_list,
    refusal,
    somebody_queues,
)
from cthelper.core.queue.messages import batch, length, parameters
from cthelper.core.queue.protocol import Action

ROWS = (
    "    0  31621     0 2 65531     0     0        0  1\n"
    " 2077 -12345    17 2 65531     3     4       99  1\n"
)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's list, which has no queue yet."""
    file = tmp_path / "nfnetlink_queue"
    monkeypatch.setattr(binding, "PROC", file)
    return file


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The queue's socket, and one that reads what goes to the kernel."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    with closing(ours), closing(kernel):
        yield ours, kernel


def test_bound_queues_are_read_by_their_number(rows: Path) -> None:
    rows.write_text(ROWS)
    assert bound_queues() == {
        0: BoundQueue(0, 31621, 0, 0),
        2077: BoundQueue(2077, -12345, 17, 99, 7),
    }


@pytest.mark.usefixtures("rows")
def test_no_queue_is_bound_where_the_kernel_has_none() -> None:
    assert bound_queues() == {}


@pytest.mark.parametrize(
    ("namespaces", "found"),
    [
        ({}, False),
        ({"net:[1]": ""}, False),
        ({"net:[1]": "", "net:[2]": ROWS}, True),
        ({"net:[1]": None, "net:[2]": ROWS}, True),
        ({"net:[1]": None}, False),
    ],
)
def test_queues_of_other_namespaces_are_found(
    tmp_path: Path, namespaces: dict[str, str | None], found: bool
) -> None:
    for pid, (namespace, rows) in enumerate(namespaces.items(), 10):
        # Of each two processes; None: there is nothing of it to be read.
        for process in (tmp_path / f"{pid}", tmp_path / f"1{pid}"):
            (process / "ns").mkdir(parents=True)
            (process / "ns/net").symlink_to(namespace)
            if rows is not None:
                (process / "net/netfilter").mkdir(parents=True)
                (process / "net/netfilter/nfnetlink_queue").write_text(rows)
    # One that has ended meanwhile, and what is no process.
    (tmp_path / "5").mkdir()
    (tmp_path / "net/netfilter").mkdir(parents=True)
    (tmp_path / "net/netfilter/nfnetlink_queue").write_text(ROWS)
    assert somebody_queues(tmp_path) is found


def test_list_that_was_opened_is_read_anew_each_time(
    rows: Path, ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    ours, kernel = ends
    rows.write_text(ROWS)
    bound = Binding(2077, ours, fail_open=True)
    opened = open_list()
    assert opened is not None
    rows.write_text(ROWS.replace("2077", "2078"))
    assert bound_queues(opened).keys() == {0, 2078}
    rows.write_text(ROWS)
    # Where no file can be opened any more.
    rows.rename(tmp_path / "elsewhere")
    assert bound_queues() == {}
    assert bound_queues(opened)[2077].waiting == 17
    bound.release()
    assert kernel.recv(100)
    os.close(opened)
    bound.close()


@pytest.mark.parametrize("fail_open", [True, False])
def test_what_waits_is_accepted_or_where_it_fails_closed_dropped(
    rows: Path, ends: tuple[socket.socket, socket.socket], fail_open: bool
) -> None:
    ours, kernel = ends
    bound = Binding(2077, ours, fail_open=fail_open)
    rows.write_text(ROWS)
    bound.pause()
    bound.release()
    bound.resume()
    bound.set_fail_open(not fail_open)
    bound.release()
    fates = [Action.ACCEPT, Action.DROP] if fail_open else [Action.DROP, Action.ACCEPT]
    assert [kernel.recv(200) for _ in range(5)] == [
        length(2077, 0),
        batch(2077, fates[0], 99),
        length(2077, 1 << 20),
        parameters(2077, fail_open=not fail_open),
        batch(2077, fates[1], 99),
    ]


@pytest.mark.usefixtures("rows")
def test_queue_that_is_not_there_any_more_has_nothing_to_release(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, kernel = ends
    Binding(2077, ours, fail_open=True).release()
    with pytest.raises(BlockingIOError):
        kernel.recv(200)


def test_closing_unbinds_and_what_is_asked_then_is_an_error(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    done: list[str] = []
    bound = Binding(7, ends[0], fail_open=True, unbind=lambda: done.append("unbound"))
    bound.close()
    assert done == ["unbound"]
    for ask in (bound.pause, lambda: bound.set_receive_buffer(1 << 16)):
        with pytest.raises(QueueError, match="cannot set queue 7: Bad file descriptor"):
            ask()


def test_queue_that_cannot_be_bound_says_why(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "lacking", lambda: "needs a right")
    error = OSError(errno.EPERM, "Operation not permitted")
    assert str(refusal(2077, error)) == (
        "cannot bind queue 2077: Operation not permitted: needs a right"
    )
    failed = QueueError("cannot set queue 2077: Operation not permitted: needs a right")
    assert refusal(2077, failed) is failed
    rows.write_text(ROWS)
    assert str(refusal(2077, error)) == (
        "queue 2077 is bound by another process: stop it, or set another queue number"
    )
